"""Results: JSON, npz and page hold the same numbers; pages open in a browser, and narrow."""

from __future__ import annotations

import ast
import json
import math
import re
import shutil
import subprocess
from functools import lru_cache
from html import unescape
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bertkit.explain import chinese
from bertkit.explain.ablation import ablate
from bertkit.explain.attribution import attribute
from bertkit.explain.attribution_totals import attribute_over
from bertkit.explain.comparing import compare, compare_over
from bertkit.explain.contributions import AttributionOptions
from bertkit.explain.directions import Pushes
from bertkit.explain.lenses import lens, lens_over
from bertkit.explain.maps import attention, attention_over
from bertkit.explain.page import Section, html_page
from bertkit.explain.page_style import DARK, LIGHT
from bertkit.explain.patching import KINDS, Tracing
from bertkit.explain.pictures import Look, bars, brief, heat, label_of, terse, width_of
from bertkit.explain.probe_training import ProbeSettings
from bertkit.explain.probing import probe
from bertkit.explain.pruning import prune
from bertkit.explain.readouts import CRF_NOTE
from bertkit.explain.result import Result, plain
from bertkit.explain.scores import pairs, score, score_over
from bertkit.explain.steering import perturb_vector, perturb_vector_over
from bertkit.explain.tables import Grid, digits, with_error, wrapped
from bertkit.explain.tracing import TracePair, patch, patch_over
from bertkit.explain.trajectories import trajectory, trajectory_over
from bertkit.explain.vectors import vector, vector_over
from bertkit.explain.weakness import weak_over
from bertkit.explain.weights import perturb_weights
from bertkit.explain.wording import language_of, named, say, speaking
from bertkit.infer.minimal_pairs import MinimalPair
from bertkit.tasks.records import Place, TextRow
from tests.explain.models import CHINESE, MASKED, TEXT, TEXTS, labelled, opened
from tests.tasks import tiny

HOSTILE = 'a </script><script>alert("1")</script> & <b> [x] {y} 猫 "cat" 😀 שלום \u2028 x'
ENGLISH = (
    "BERT LN LayerNorm KL CKA RSA CRF logit logits rollout Fisher CLS SEP MASK UNK "
    "post tiny bertkit json npz JSON lens score mask order"
)
PAIRS = [
    MinimalPair(good, bad, kind, Place("f", 1))
    for good, bad, kind in (("the cat ran", "cat the ran", "order"), ("a dog", "dog a", "词序"))
]
LABELLED = [TextRow("0", text, None, "ab"[i % 2], Place("f", 1)) for i, text in enumerate(TEXTS)]


def pruned() -> Result:
    with TemporaryDirectory() as folder:
        return prune(opened(), Path(folder) / "small", layers=[2], width=20, texts=TEXTS)


@lru_cache
def results() -> dict[str, Result]:
    return {
        "vector": vector(opened(), MASKED, top_k=4),
        "vector of a word": vector(labelled("BertForTokenClassification"), HOSTILE, word="猫"),
        "vector over": vector_over(opened(), TEXTS),
        "lens": lens(opened(), "我爱 [MASK] [MASK]", target="京", top_k=5),
        "lens of labels": lens(labelled("BertForSequenceClassification"), HOSTILE, target="x"),
        "lens over": lens_over(opened(), TEXTS),
        "attention": attention(opened(), TEXT, CHINESE),
        "attention hostile": attention(opened(double=False), HOSTILE),
        "attention long": attention(opened(), "the cat " * 30),
        "attention over": attention_over(opened(), TEXTS),
        "attribute": attribute(opened(), TEXT, HOSTILE, word="猫"),
        "attribute hidden": attribute(
            labelled("BertForTokenClassification"),
            HOSTILE,
            word="猫",
            options=AttributionOptions("deletion"),
        ),
        "attribute over": attribute_over(
            labelled("BertForSequenceClassification"),
            TEXTS[:4],
            options=AttributionOptions("gradient-x-input"),
        ),
        "perturb-vector": perturb_vector(opened(), MASKED, pushes=Pushes(steps=(0.5,))),
        "perturb-vector of labels": perturb_vector(
            labelled("BertForSequenceClassification"), HOSTILE, pushes=Pushes(layers=(0, 2))
        ),
        "perturb-vector over": perturb_vector_over(opened(), TEXTS, positions=2),
        "patch": patch(
            opened(), MASKED, "The dog [MASK] on the mat.", tracing=Tracing(sites=tuple(KINDS))
        ),
        "patch with noise": patch(
            labelled("BertForSequenceClassification"),
            HOSTILE,
            tracing=Tracing(noise="猫", by="word", draws=2),
        ),
        "patch over": patch_over(
            opened(), [TracePair("我爱 [MASK]", "我住 [MASK]", "京", Place("f", 1))]
        ),
        "score": score(opened(), HOSTILE),
        "score over": score_over(opened(), TEXTS),
        "pairs": pairs(opened(), PAIRS),
        "compare": compare(opened(), TEXT),
        "compare two": compare_over(opened(), [HOSTILE, *TEXTS], opened(num_hidden_layers=7)),
        "trajectory": trajectory([opened(), opened(num_hidden_layers=7)], "lens", MASKED),
        "trajectory over": trajectory_over([opened()] * 3, "score", TEXTS[:2]),
        "probe": probe(opened(), LABELLED, LABELLED, "classify", settings=ProbeSettings(steps=5)),
        "weak": weak_over(opened(), [*TEXTS, HOSTILE]),
        "weak other": weak_over(opened(), TEXTS, other=opened(), seed=1),
        "weights": perturb_weights(opened(), TEXTS),
        "weights of a tagger": perturb_weights(
            labelled("BertForTokenClassification"), HOSTILE, by="layer", changes=("noise:0.5",)
        ),
        "ablate": ablate(opened(), TEXTS, how="mean"),
        "prune": pruned(),
    }


by_result = pytest.mark.parametrize("name", results())


class Marks(HTMLParser):
    """The marks of a page's pictures, and its embedded JSON."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[int], float | None]] = []
        self.text, self.inside, self.of = "", False, ""
        self.seen = ""
        self.addresses: list[Any] = []
        self.feed(page)
        self.data = json.loads(self.text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        named = dict(attrs)
        self.inside = named.get("id") == "data"
        self.addresses += [named[key] for key in ("src", "href") if key in named]
        self.of = named.get("data-of", self.of)
        if "data-at" in named:
            at = [int(i) for i in named["data-at"].split(",")]
            value = float(named["data-value"]) if named["data-value"] else None
            self.found.append((self.of, at, value))

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""
        self.seen += data


def looked_up(data: Any, path: str, at: list[int]) -> Any:
    """The number of the JSON that a mark names: `*` in a path is an index of the place."""
    left = list(at)
    for key in path.split("."):
        data = data[left.pop(0) if key == "*" else int(key) if key.isdigit() else key]
    for index in left:
        data = data[index]
    return data


@by_result
def test_the_pictures_show_the_numbers_of_the_json(name: str, tmp_path: Path) -> None:
    result = results()[name]
    result.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    marks = Marks(page)
    assert marks.data == json.loads(result.to_json())
    assert marks.found
    for of, at, value in marks.found:
        assert looked_up(marks.data, of, at) == value
    assert marks.addresses == []
    assert "http" not in re.sub(r"http-equiv", "", page)
    chinese = 'lang="zh-CN"' in page
    assert chinese == (result.language() == "zh")
    assert (result.caution_zh if chinese else result.caution) in unescape(page)


@by_result
def test_json_and_npz_hold_every_field(name: str, tmp_path: Path) -> None:
    result = results()[name]
    result.to_json(tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert data["verb"] == result.verb
    result.to_npz(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz", allow_pickle=False) as arrays:
        rest = json.loads(str(arrays["json"]))
        names = [key for key in arrays.files if key != "json"]
        for key in names:
            assert looked_up(data, key, []) == plain(arrays[key]), key
    for key, value in data.items():
        inside = [n for n in names if n == key or n.startswith(f"{key}.")]
        assert inside or rest[key] == value, key


@by_result
def test_the_table_is_text_with_the_users_words(name: str) -> None:
    table = results()[name].as_text(160)
    assert len(table.splitlines()) > 3
    if name == "score":
        assert "猫" in table


@by_result
def test_no_number_of_a_table_is_cut_at_80_columns(name: str) -> None:
    narrow, wide = (results()[name].as_text(width) for width in (80, 1000))
    lines = narrow.splitlines()
    assert max(map(width_of, lines)) <= 80
    cells = [cell for line in lines for cell in re.split("[│┃]", line)]
    assert not [cell for cell in cells if "…" in cell and re.search(r"\d", cell)]
    pattern = r"(?<![\w.])[-+]?\d[\d,.]*(?:e[-+]?\d+)?%?(?![\w.])"
    assert set(re.findall(pattern, wide)) <= set(re.findall(pattern, narrow))
    assert "nan" not in narrow


def test_what_does_not_fit_stands_below_under_the_same_names() -> None:
    told = Grid("t", ["layer", "a", "b"], [["layer 1", "1.5e-08", "2.25"]], note="n")
    for width, parts in ((80, 1), (24, 2)):
        console = Console(width=width, color_system=None, file=StringIO())
        console.print(told)
        drawn = console.file.getvalue()  # type: ignore[attr-defined]
        assert drawn.count("layer 1") == parts
        assert drawn.startswith("t\n")
        assert drawn.endswith("n\n")
        assert ("1.5e-08" in drawn, "2.25" in drawn) == (True, True)
    assert wrapped("the cat 0.5  猫猫 0.25", 12) == "the cat 0.5\n猫猫 0.25"
    assert wrapped("unbelievable", 5) == "unbel\nievab\nle"
    assert digits(0.0) + digits(1.5e-9, "+") + digits(float("nan")) == "0.00+1.50e-09"
    assert with_error(0.5, float("nan")) == "0.500"


def test_labels_are_whole_and_small_numbers_have_digits() -> None:
    assert width_of("ab中") == 4
    assert label_of("中" * 100) == f"<bdi>{'中' * 100}</bdi>"
    assert label_of(" ") == "<bdi>␣</bdi>"
    assert (brief(0.0000123), brief(1234.5), brief(math.nan)) == ("1.23e-05", "1,234", "–")
    assert (terse(0.0000123), terse(0.1234), terse(0.0)) == ("1e-5", "0.12", "0")


def test_marks_carry_numbers_that_are_missing() -> None:
    drawn = heat("x", np.array([[np.nan, 1.0]]), ["r"], ["a", "b"], Look("")) + bars(
        "y", np.array([np.nan, -2.0]), ["a", "b"]
    )
    assert re.findall(r'data-value="([^"]*)"', drawn) == ["", "1.0", "", "-2.0"]


def test_a_legend_tells_what_lies_beyond_its_ends() -> None:
    def told(*values: float) -> list[str]:
        drawn = heat("x", np.array([values]), ["r"], list("abc"), Look("", most=1.0))
        return re.sub("<[^>]*>", "", drawn[: drawn.index("</p>")]).split()

    assert told(0.5, 1.0, np.nan) == ["0", "1"]
    assert told(0.5, 1.5, -0.5) == ["-1", "0", "≥", "1"]
    assert told(0.5, 1.0, -3.0) == ["≤", "-1", "0", "1"]


def test_a_page_cannot_be_broken_by_its_data() -> None:
    page = html_page(HOSTILE, HOSTILE, [Section(HOSTILE, "", HOSTILE)], {"x": HOSTILE})
    assert Marks(page).data == {"x": HOSTILE}
    assert page.count("<script") == 2
    assert "<b>" not in page


def test_a_page_stays_small_and_says_what_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertkit.explain.page.MOST_JSON", 200)
    drawn = bars("small", np.zeros(3), "abc")
    data = {"many": [0.12345] * 99, "parts": [{"big": [1.5] * 99}], "small": [0.0] * 3}
    told = html_page("t", "c", [Section("h", drawn)], data)
    assert "many; parts.*.big; see --json" in told
    assert Marks(told).data == {"many": None, "parts": [{"big": None}], "small": [0.0] * 3}


def test_a_page_is_in_the_language_of_the_text_or_the_one_named(tmp_path: Path) -> None:
    assert [language_of([text]) for text in ("a cat", "我爱 BERT 模型", "12", "ねこが好き")] == [
        "en",
        "zh",
        None,
        "en",
    ]
    results()["lens over"].to_html(tmp_path / "zh.html", "zh")
    marks = Marks((tmp_path / "zh.html").read_text(encoding="utf-8"))
    assert "遮住的词的准确率" in marks.seen
    assert "第 1 层" in marks.seen
    assert "layer" not in marks.seen.replace(marks.text, "")
    with speaking("zh"):
        assert named("towards the, gradient") == "朝向 the（梯度）"
        assert named("loss by script") == "损失，按文字"
        assert named("x of 北京 rather than y") == "北京 的 x 而不是 y"
        assert named(CRF_NOTE).startswith("标注模型带 CRF")
    assert named("layer 1") == "layer 1"


def test_chinese_pages_hold_no_english(tmp_path: Path) -> None:
    """But for the texts, the vocabulary, and names that are the same in both languages."""
    words = re.compile("[A-Za-z]{2,}")
    known = set(words.findall(" ".join((*tiny.VOCAB, *TEXTS, HOSTILE, MASKED, ENGLISH))))
    for name, result in results().items():
        result.to_html(tmp_path / "page.html", "zh")
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        page = re.sub(r"(?s)<(style|script).*?</\1>", "", page)
        told = re.findall('(?:title|aria-label)="([^"]*)"', page)
        seen = [unescape(text) for text in (*told, *re.split("<[^>]*>", page))]
        names = f"{getattr(result, 'model', '')} {getattr(result, 'folder', '')}"
        allowed = known.union(words.findall(names))
        assert [text for text in seen if not allowed.issuperset(words.findall(text))] == [], name


def test_every_sentence_of_a_page_has_its_chinese() -> None:
    """What `say` is given stands in the table with the same values."""
    said = []
    for path in Path(chinese.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "say":
                said += [n.value for n in node.args if isinstance(n, ast.Constant)]
    assert len(said) > 100
    assert [text for text in said if text not in chinese.CHINESE] == []
    found = re.compile(r"{(\w+)}").findall
    fields = {text: set(found(text)) for text in chinese.CHINESE}
    assert [t for t, zh in chinese.CHINESE.items() if set(found(zh)) != fields[t]] == []
    with speaking("zh"):
        assert say("layer {n}", n="{x}") == "第 {x} 层"


@pytest.mark.parametrize("mode", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("deep", [2, 3], ids=["above", "below"])
def test_figures_can_be_read_on_every_colour(mode: tuple[str, ...], deep: int) -> None:
    """WCAG's contrast of the ink on each mix of paper and the deepest colour is 4.5 or more."""

    def luminance(rgb: Any) -> float:
        part = np.asarray(rgb) / 255
        linear = np.where(part <= 0.03928, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    paper, ink, end = (np.array([*map(int, mode[i].split())]) for i in (0, 1, deep))
    for part in np.linspace(0, 1, 11):
        pair = sorted((luminance(paper + (end - paper) * part), luminance(ink)))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5


def test_float32_is_short_and_exact() -> None:
    values = np.array([[0.1, 1 / 3], [np.nan, np.inf]], dtype=np.float32)
    assert plain(values) == [[0.1, 0.33333334], [None, None]]
    assert np.float32(plain(values)[0][1]) == values[0, 1]
    assert plain(np.zeros((0, 3))) == []
    assert plain(np.array(2.5)) == 2.5


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


# Each page stands in a frame as wide as a telephone, then as a desk's screen; what it looks like
# there becomes the text of this one.
FRAME = """<!doctype html><meta charset="utf-8"><body><script>
const told = {}, pages = %s;
const look = page => ({
  width: page.documentElement.scrollWidth, height: page.body.getBoundingClientRect().height,
  pictures: [...page.querySelectorAll(".bars, .heat:not(.square), .plot")].map(
    x => x.getBoundingClientRect().width),
  cut: [...page.querySelectorAll(":is(.bars, .heat:not(.square)) :is(th, .num)")].filter(
    x => x.scrollWidth > x.clientWidth + 1).map(x => x.textContent),
  faded: [...page.querySelectorAll(".wide")].filter(
    x => x.classList.contains("more") !== (x.scrollWidth > x.clientWidth + 1)).length});
const broken = (page, head) => [...head.textContent.matchAll(/[a-z]{2,14}/gi)].filter(word => {
  const range = page.createRange();
  range.setStart(head.firstChild, word.index);
  range.setEnd(head.firstChild, word.index + word[0].length);
  return range.getClientRects().length > 1;
}).map(word => word[0]);
for (const [name, source] of Object.entries(pages)) {
  const frame = document.createElement("iframe");
  frame.style = "border:0; width:360px; height:740px";
  frame.addEventListener("load", () => {
    const inner = frame.contentWindow, page = inner.document;
    for (const button of page.querySelectorAll("[data-head]")) button.click();
    for (const list of page.querySelectorAll("select")) {
      list.value = list.options[list.options.length - 1].value;
      list.dispatchEvent(new inner.Event("change"));
    }
    const cell = page.querySelector("td[data-at]");
    if (cell) cell.dispatchEvent(new inner.MouseEvent("click", {bubbles: true}));
    told[name] = {
      narrow: look(page),
      broken: [...page.querySelectorAll(".heat:not(.square) bdi")].flatMap(x => broken(page, x)),
      pointed: cell ? [page.getElementById("told").textContent,
        cell.dataset.value] : null,
      marks: [...page.querySelectorAll("[data-at]")].map(
        m => [m.closest("[data-of]").dataset.of, m.dataset.at, m.dataset.value])};
    const wider = [...page.querySelectorAll(".more")];
    for (const box of wider) {
      box.scrollLeft = box.scrollWidth;
      box.dispatchEvent(new inner.Event("scroll"));
    }
    told[name].wider = [wider.length, page.querySelectorAll(".more").length];
    frame.style.width = "1200px";
    told[name].broad = look(page);
    frame.remove();
    if (Object.keys(told).length === Object.keys(pages).length)
      document.body.textContent = JSON.stringify(told);
  });
  frame.srcdoc = source;
  document.body.append(frame);
}
</script>"""


@pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")
def test_pages_in_a_real_browser(tmp_path: Path) -> None:
    """No console errors; 360 and 1200 px; after every choice the numbers are the JSON's."""
    pages = {}
    for name, result in results().items():
        result.to_html(tmp_path / "page.html")
        pages[name] = (tmp_path / "page.html").read_text(encoding="utf-8")
    source = json.dumps(pages).replace("<", "\\u003c")
    (tmp_path / "frame.html").write_text(FRAME.replace("%s", source), encoding="utf-8")
    dom, errors = browse(tmp_path, "frame.html")
    assert errors == []
    seen = json.loads(unescape(re.sub(r"(?s).*<body[^>]*>(.*)</body>.*", r"\1", dom)))
    assert list(pages) == [name for name in pages if name in seen]
    assert any(page["wider"][0] for page in seen.values())
    for name, page in seen.items():
        narrow, broad = page["narrow"], page["broad"]
        assert narrow["width"] <= 360, name
        assert broad["width"] <= 1200, name
        assert narrow["height"] > 100
        assert narrow["cut"] == broad["cut"] == [], name
        assert page["broken"] == [], name
        assert narrow["faded"] == 0, name
        assert page["wider"][1] == 0, name
        assert all(width > 900 for width in broad["pictures"] if width), name
        assert len(page["marks"]) == len(Marks(pages[name]).found)
        data = json.loads(results()[name].to_json())
        for of, at, value in page["marks"]:
            wanted = looked_up(data, of, [int(i) for i in at.split(",")])
            assert (None if value == "" else float(value)) == wanted
        if page["pointed"]:
            text, value = page["pointed"]
            assert text.endswith(f": {value or '–'}"), name
        if name in ("attention", "attention hostile"):
            assert any(of == "norm_weighted" and at[:4] == "1,1," for of, at, _ in page["marks"])


def browse(folder: Path, page: str) -> tuple[str, list[str]]:
    """A page's document as Chromium leaves it, and what its console said."""
    command = [
        str(chromium()),
        *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"),
        *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"),
        *(f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=2000", "--dump-dom"),
        (folder / page).as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
