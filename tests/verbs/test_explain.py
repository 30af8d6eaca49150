"""`bertkit explain` and `bertkit score` from the command line: files, formats, refusals."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertkit.cli import main
from tests.tasks import tiny
from tests.verbs.running import run


def test_one_text_in_every_verb(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked = "The cat [MASK] on the mat."
    found = run(capsys, "explain", "vector", model, masked, "--top", "3")
    assert len(found["positions"][0]["nearest"][0]) == 3
    found = run(capsys, "explain", "lens", model, masked, "--target", "sat")
    assert found["positions"][0]["target"] == "sat"
    found = run(capsys, "explain", "lens", model, "the cat the", "--word", "#2")
    assert found["tokens"][3] == "[the]"
    found = run(capsys, "explain", "attention", model, "the cat", "--pair", "我爱")
    assert found["tokens"] == ["[CLS]", "the", "cat", "[SEP]", "我", "爱", "[SEP]"]
    page, arrays = tmp_path / "p.html", tmp_path / "a.npz"
    flags = ("--html", str(page), "--npz", str(arrays))
    found = run(capsys, "explain", "score", model, "the cat", *flags)
    assert found["text"] == "the cat"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    with np.load(arrays) as kept:
        assert json.loads(str(kept["json"]))["score"] == found["score"]


def test_files_in_every_verb(
    model: str, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("vector", "lens", "attention", "score"):
        found = run(capsys, "explain", verb, model, "--file", texts)
        assert found["verb"] == verb
        assert found.get("texts", 22) == 22
    out = tmp_path / "scores.jsonl"
    told = run(capsys, "score", model, texts, "--out", str(out))
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert told["texts"] == len(rows) == 22
    assert [word["word"] for word in rows[1]["words"]] == ["我", "爱", "北", "京"]
    assert main(["score", model, texts, "--device", "cpu", "--quiet"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows


def test_standard_input_is_a_file_too(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("the cat\n我爱\n".encode())))
    assert run(capsys, "explain", "lens", model, "--file", "-")["texts"] == 2
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the cat")))
    arguments = [
        "explain",
        "ablate",
        model,
        "--file",
        "-",
        "--how",
        "mean",
        "--device",
        "cpu",
    ]
    assert main([*arguments, "--quiet"]) == 2
    assert "more than once; name a file" in capsys.readouterr().err


def test_a_tuned_lens_is_trained_and_used(
    model: str, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "lens.safetensors")
    told = run(capsys, "explain", "tune-lens", model, texts, "--out", out, "--steps", "3")
    assert told["steps"] == 3
    found = run(capsys, "explain", "lens", model, "the [MASK]", "--tuned", out)
    assert found["tuned"]
    assert main(["explain", "tune-lens", model, texts, "--out", out]) == 2
    assert "overwrite" in capsys.readouterr().err


def test_minimal_pairs_from_a_file(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("good,bad\nthe cat ran,cat the ran\na dog,dog a\n", encoding="utf-8")
    assert run(capsys, "explain", "pairs", model, str(path))["pairs"] == 2


def test_pages_are_in_the_language_of_the_rows(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    made = {
        "PAIRS": ("pairs.csv", "good,bad\n我爱北京,爱我京北\n"),
        "TRACE": ("trace.csv", "clean,corrupt,target\n我爱 [MASK],我住 [MASK],京\n"),
        "TAGS": ("tags.conll", "我\tO\n爱\tO\n北\tB-LOC\n京\tI-LOC\n\n" * 8),
    }
    for name, text in made.values():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for line in (
        ("pairs", model, "PAIRS"),
        ("patch", model, "--file", "TRACE"),
        ("probe", model, "TAGS", "TAGS", "--steps", "1"),
        ("trajectory", model, "pairs", "--file", "PAIRS"),
        ("trajectory", model, "probe", "--file", "TAGS", "--dev", "TAGS"),
    ):
        words = [str(tmp_path / made[word][0]) if word in made else word for word in line]
        run(capsys, "explain", *words, "--html", str(page), "--overwrite")
        assert 'lang="zh-CN"' in page.read_text(encoding="utf-8"), line


def test_tables_are_for_people(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "score", model, "The Café ran", "--device", "cpu"]) == 0
    assert "Café" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lens", "MODEL"], "one text"),
        (["lens", "MODEL", "a [MASK]", "--file", "FILE"], "one text"),
        (["vector", "MODEL", "a [MASK]", "--top", "0"], "--top 0"),
        (["score", "MODEL", "a", "--out", "x.jsonl"], "--out goes with --file"),
        (["score", "MODEL", "a", "--html", "FILE"], "exists"),
        (["lens", "MODEL", "a [MASK]", "--word", "a", "--target", "b"], "its own target"),
        (["lens", "MODEL", "a [MASK]", "--target", "zoo"], "not one token"),
        (["pairs", "MODEL", "FILE", "--good", "a"], "both columns"),
        (["score", "MODEL", "a", "--html", "none/x.html"], "no folder none"),
        (["tune-lens", "MODEL", "FILE", "--out", "none/x"], "no folder none"),
        (["vector", "MODEL", "a [MASK]", "--npz", "none/x"], "no folder none"),
        (["score", "MODEL", "a", "--method", "guess"], "guess"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    model: str,
    texts: str,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"MODEL": model, "FILE": texts}
    assert main(["explain", *(known.get(word, word) for word in arguments), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_bad_input_is_one_line_and_status_1(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = str(tiny.folder("BertForQuestionAnswering"))
    capsys.readouterr()
    for arguments in (
        ["lens", model, "no mask here"],
        ["lens", model, "the cat", "--word", "dog"],
        ["lens", model, "--file", str(tmp_path / "none.txt")],
        ["lens", model, "a [MASK]", "--tuned", str(tmp_path / "none.safetensors")],
        ["lens", answers, "the cat"],
        ["attention", model, " "],
    ):
        assert main(["explain", *arguments, "--quiet", "--device", "cpu"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1


ROWS = {
    "CONLL": ("words.txt", 8 * "the O\ncat B-ANIMAL\nsat O\non O\n\n"),
    "BIO": ("words.bio", "我\tO\n爱\tO\n"),
    "LABELS": ("labels.txt", "good\tthe cat sat\nbad\ta dog ran\n"),
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("verb", ["lens", "perturb-vector", "ablate", "trajectory", "tune-lens"])
def test_labelled_rows_are_not_read_as_texts(
    model: str, verb: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, text = ROWS[kind]
    (tmp_path / name).write_text(text, encoding="utf-8")
    file = str(tmp_path / name)
    line = ["explain", verb, model, *(["lens"] if verb == "trajectory" else []), "--file", file]
    if verb == "tune-lens":
        line = ["explain", verb, model, file, "--out", str(tmp_path / "x")]
    assert main([*line, "--quiet", "--device", "cpu"]) == 1
    err = capsys.readouterr().err
    assert f"{name}: its lines are labelled rows" in err
    assert "--field" in err
    assert err.count("\n") == 1


def test_progress_counts_what_is_done(
    model: str, texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bertkit.explain.corpus as corpus
    from bertkit.verbs.options import Common

    told: list[tuple[int, int]] = []

    @contextmanager
    def progress(self: Common, title: str, unit: str = "") -> Iterator[Any]:
        yield lambda done, total: told.append((done, total))

    monkeypatch.setattr(Common, "progress", progress)
    monkeypatch.setattr(corpus, "BATCH_TOKENS", 8)
    for verb in ("vector", "lens", "weak", "attention", "score", "compare", "attribute"):
        told.clear()
        more = ["--target", "cat", "--steps", "1"] if verb == "attribute" else []
        if verb == "attribute":
            more = ["--method", "gradient-x-input"]
        assert main(["explain", verb, model, "--file", texts, *more, "--device", "cpu"]) == 0
        assert told == sorted(set(told)), verb
        assert told[-1] == (22, 22), verb
    monkeypatch.undo()
    monkeypatch.setattr(Common, "progress", progress)
    told.clear()
    weights = ["perturb-weights", model, "--file", texts, "--by", "module", "--change", "zero"]
    assert main(["explain", *weights, "--device", "cpu"]) == 0
    assert told == sorted(told)
    assert told.count((22, 22)) == 1  # each is a finished line


def test_a_word_of_several_characters_needs_a_segmenter(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["explain", "lens", model, "我爱北京", "--word", "北京", "--device", "cpu"]
    assert main(asked) == 1
    assert "--segmenter jieba" in capsys.readouterr().err
    assert main([*asked, "--segmenter", "jieba"]) == 0
    assert "[北]" in capsys.readouterr().out
    found = run(capsys, "explain", "attention", model, "我爱北京", "--segmenter", "jieba")
    assert found["words"] == ["我", "爱", "北京"]
    found = run(capsys, "explain", "score", model, "我爱北京", "--segmenter", "jieba")
    assert [word["word"] for word in found["words"]] == ["我", "爱", "北京"]


def test_pairs_takes_no_flags_of_texts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "pairs", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--html" in out
    assert "--field" not in out


def test_an_interrupted_run_leaves_no_half_file_under_the_name(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "bad.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"text": "the cat"}\n{"no": 1}\n', encoding="utf-8")
    assert main(["score", model, str(path), "--out", str(out), "--quiet"]) == 1
    assert "bad.jsonl:2" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("verb", ["vector", "lens", "tune-lens", "attention", "score", "pairs"])
def test_every_verb_has_help_with_the_common_flags(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", verb, "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--json", "--quiet", "--device", "MODEL"):
        assert flag in out


def test_help_loads_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from bertkit.cli import main; main(['explain', 'lens', '--help']);"
        "import bertkit.explain;"
        "print(*(m for m in ('torch', 'numpy', 'tokenizers', 'pyarrow') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_every_public_name_resolves() -> None:
    import bertkit.explain as explain

    assert explain.__all__ == sorted(explain.HOMES)
    for name in explain.__all__:
        assert getattr(explain, name).__name__ == name
    assert not hasattr(explain, "nothing")


def test_brackets_of_the_text_are_not_markup(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "score", model, "a [red]cat[/red] [/b]", "--device", "cpu"]) == 0
    assert "a [red]cat[/red] [/b]" in " ".join(capsys.readouterr().out.split())
    assert main(["explain", "lens", model, "the cat", "--word", "cat", "--device", "cpu"]) == 0
    assert "[cat]" in capsys.readouterr().out
