"""`bertkit explain probe|weak` from the command line: files, figures, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bertkit.cli import main
from bertkit.text.tokenizer import BertTokenizer
from tests.tasks import tiny
from tests.verbs.running import run_explain


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("probing")
    tags = 8 * "the\tD\ncat\tN\nsat\tV\n\n我\tP\n爱\tV\n\n"
    texts = "label\ttext\n" + 8 * "good\tthe cat sat\nbad\ta dog ran\n"
    lines = 6 * "the cat sat on the mat\n我爱北京\nunbelievable zoo, 7\n"
    made = {
        "TAGS": ("tags.conll", tags),
        "LABELS": ("labels.tsv", texts),
        "TEXTS": ("texts.txt", lines),
    }
    for name, text in made.values():
        (folder / name).write_text(text, encoding="utf-8")
    return {key: str(folder / name) for key, (name, _) in made.items()}


def test_probes_of_words_and_of_texts(
    model: str, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, arrays = tmp_path / "p.html", tmp_path / "a.npz"
    flags: tuple[str, ...] = ("--steps", "60", "--html", str(page), "--npz", str(arrays))
    found = run_explain(capsys, "probe", model, files["TAGS"], files["TAGS"], *flags)
    assert found["labels"] == ["D", "N", "P", "V"]
    assert found["accuracy"][0] == 1
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    with np.load(arrays) as kept:
        assert kept["selectivity"].tolist() == found["selectivity"]
    flags = ("--task", "classify", "--pooling", "mean", "--steps", "60", "--most", "10")
    found = run_explain(capsys, "probe", model, files["LABELS"], files["LABELS"], *flags)
    assert (found["train_rows"], found["train_total"]) == (10, 16)
    assert (found["dev_rows"], found["reads"]) == (5, "mean of the tokens")


def test_where_a_model_is_weak(
    model: str, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_explain(capsys, "weak", model, "--file", files["TEXTS"], "--seed", "3")
    lens = run_explain(capsys, "lens", model, "--file", files["TEXTS"], "--seed", "3")
    assert found["overall"]["figures"]["loss"] == pytest.approx(lens["loss"][-1:], rel=1e-5)
    assert found["texts"] == 18
    other = run_explain(capsys, "weak", model, "--file", files["TEXTS"], "--other", model)
    assert other["overall"]["change"]["loss"] == [0]
    assert main(["explain", "weak", model, "--file", files["TEXTS"], "--device", "cpu"]) == 0
    assert "Chinese character" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["weak", "MODEL"], 2, "--file"),
        (["weak", "MODEL", "--file=-"], 2, "read twice"),
        (["weak", "MODEL", "--file", "TEXTS", "--other", "CASED"], 2, "one tokenizer"),
        (["weak", "MODEL", "--file", "TEXTS", "--html", "TEXTS"], 2, "exists"),
        (["probe", "MODEL", "-", "TAGS"], 2, "name a file"),
        (["probe", "MODEL", "TAGS", "TAGS", "--steps", "0"], 2, "steps is 0"),
        (["probe", "MODEL", "TAGS", "TAGS", "--npz", "TAGS"], 2, "exists"),
        (["probe", "MODEL", "TEXTS", "TEXTS"], 1, "no labelled"),
        (["probe", "MODEL", "TAGS", "none.conll"], 1, "none.conll"),
        (["probe", "MODEL", "LABELS", "LABELS"], 2, "--task classify"),
    ],
)
def test_what_is_wrong_is_one_line(
    model: str,
    files: dict[str, str],
    tmp_path: Path,
    arguments: list[str],
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"MODEL": model, **files}
    if "CASED" in arguments:
        known["CASED"] = str(tmp_path)
        tiny.ours("BertForMaskedLM").save_pretrained(tmp_path)
        BertTokenizer(tiny.VOCAB, do_lower_case=False).save_pretrained(tmp_path)
    words = [known.get(word, word) for word in arguments]
    assert main(["explain", *words, "--quiet", "--device", "cpu"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
