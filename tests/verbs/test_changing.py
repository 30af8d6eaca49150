"""`bertkit explain perturb-vector` and `patch` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertkit import BertCrfForTokenClassification
from bertkit.cli import main
from tests.tasks import tiny
from tests.verbs.running import run_explain

CLEAN, CORRUPT = "The cat [MASK] on the mat.", "The dog [MASK] on the mat."


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    texts, pairs = tmp_path / "texts.txt", tmp_path / "pairs.tsv"
    texts.write_text("the cat sat on the mat\n\n我爱北京\na dog ran\n", encoding="utf-8")
    rows = [
        ("good", "bad", "word"),
        (CLEAN, CORRUPT, "sat"),
        ("我爱 [MASK]", "我爱 住 [MASK]", "京"),
    ]
    pairs.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return {"TEXTS": str(texts), "PAIRS": str(pairs)}


def test_a_vector_is_pushed(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "p.html"
    flags = ("--towards", "sat", "--step", "0.5", "--layer", "2", "--layer", "0", "--random", "3")
    found = run_explain(
        capsys, "perturb-vector", model, CLEAN, *flags, "--html", str(page), "--top", "2"
    )
    (at,) = found["positions"]
    assert (found["verb"], found["steps"]) == ("perturb-vector", [-0.5, 0.0, 0.5])
    assert (at["target"], at["layers"]) == ("sat", [0, 2])
    assert len(at["names"][0][0][0]) == 2
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    again = run_explain(
        capsys, "perturb-vector", model, "the cat the", "--word", "#2", "--layer", "1"
    )
    assert again["positions"][0]["target"] == "the"
    assert again["tokens"][3] == "[the]"


def test_vectors_of_a_file_are_pushed(
    model: str, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--positions", "3", "--step", "1", "--random", "2", "--seed", "4")
    found = run_explain(capsys, "perturb-vector", model, "--file", files["TEXTS"], *flags)
    assert (found["texts"], found["positions"]) == (3, 3)
    assert len(found["singular_kl"]) == 3
    assert found == run_explain(capsys, "perturb-vector", model, "--file", files["TEXTS"], *flags)


def test_states_are_patched(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--target", "sat", "--site", "hidden", "--site", "feed-forward")
    found = run_explain(capsys, "patch", model, CLEAN, CORRUPT, *flags)
    assert [one["site"] for one in found["sites"]] == ["hidden", "feed-forward"]
    assert found["columns"][2] == "cat → dog"
    noisy = run_explain(
        capsys, "patch", model, CLEAN, "--noise", "#1", "--draws", "2", "--by", "word"
    )
    assert noisy["columns"][2] == "cat + noise"
    assert noisy["draws"] == 2
    texts = str(tiny.folder("BertForSequenceClassification", **tiny.labels("x", "y", "z")))
    flags = ("--pair", "a dog", "--corrupt_pair", "a mat", "--target", "y")
    assert run_explain(capsys, "patch", texts, "the cat", "the cat", *flags)["label"] == "[CLS]"
    assert main(["explain", "patch", model, CLEAN, CORRUPT, "--device", "cpu"]) == 0
    assert "cat → dog" in capsys.readouterr().out


def test_a_type_of_entity_is_a_target_of_a_tagger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    labels = tiny.labels("O", "B-LOC", "I-LOC")
    tagger = str(tiny.folder("BertForTokenClassification", **labels))
    flags = ("--word", "cat", "--target", "LOC")
    found = run_explain(capsys, "patch", tagger, "the cat", "the dog", *flags)
    assert found["target"] == "B-LOC"
    assert run_explain(capsys, "lens", tagger, "the cat", *flags)["positions"][0]["target"]
    crf = BertCrfForTokenClassification.from_pretrained(tagger)
    crf.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    run_explain(capsys, "lens", str(tmp_path), "the cat", *flags)
    page = tmp_path / "ablate.html"
    ablated = run_explain(capsys, "ablate", str(tmp_path), "the cat", "--html", str(page))
    assert "has a CRF" in ablated["note"]
    assert "has a CRF" in page.read_text(encoding="utf-8").split("<script")[0]
    assert ["has a CRF" in record.getMessage() for record in caplog.records].count(True) == 1
    answers = str(tiny.folder("BertForQuestionAnswering"))
    assert main(["explain", "patch", answers, "the cat", "the dog", "--device", "cpu"]) == 1
    assert "lens" not in capsys.readouterr().err


def test_pairs_of_a_file_are_patched(
    model: str, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--clean", "good", "--corrupt", "bad", "--target_column", "word")
    found = run_explain(capsys, "patch", model, "--file", files["PAIRS"], *flags, "--skip-bad-rows")
    assert (found["pairs"], found["skipped"]) == (1, 1)
    line = ["explain", "patch", model, "--file", files["PAIRS"], *flags, "--quiet"]
    assert main([*line, "--device", "cpu"]) == 1
    assert "pairs.tsv:3: the clean text has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (["perturb-vector", "MODEL"], "one text", 2),
        (["perturb-vector", "MODEL", CLEAN, "--step", "-1"], "above 0", 2),
        (["perturb-vector", "MODEL", CLEAN, "--layer", "9"], "layer 9", 2),
        (["perturb-vector", "MODEL", CLEAN, "--towards", "zoo"], "not one token", 2),
        (["perturb-vector", "MODEL", "--file", "TEXTS", "--towards", "sat"], "for one text", 2),
        (["perturb-vector", "MODEL", "the cat"], "no [MASK]", 1),
        (["patch", "MODEL", CLEAN], "corrupt text", 2),
        (["patch", "MODEL", CLEAN, CORRUPT, "--noise", "cat"], "not both", 2),
        (["patch", "MODEL", CLEAN, "the dog [MASK]"], "tokens", 1),
        (["patch", "MODEL", CLEAN, CORRUPT, "--site", "head"], "head", 2),
        (["patch", "MODEL", "--file", "PAIRS"], "no column", 1),
    ],
)
def test_mistakes_are_one_line(
    model: str,
    files: dict[str, str],
    arguments: list[str],
    said: str,
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"MODEL": model, **files}
    line = ["explain", *(known.get(word, word) for word in arguments), "--quiet"]
    assert main([*line, "--device", "cpu"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", ["perturb-vector", "patch"])
def test_help_names_the_flags(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", verb, "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--json", "--quiet", "--device", "--file", "MODEL"):
        assert flag in out
