"""`bertkit explain perturb-weights|ablate|prune` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertkit.cli import main
from tests.tasks import tiny
from tests.verbs.running import run_explain


def test_files_and_single_texts(
    model: str, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, arrays = tmp_path / "p.html", tmp_path / "a.npz"
    flags = ("--html", str(page), "--npz", str(arrays), "--by", "module", "--texts", "3")
    changes = ("--change", "zero", "--change", "quantise:4:row", "--tensors", "*layer.1*")
    found = run_explain(capsys, "perturb-weights", model, "--file", texts, *changes, *flags)
    assert found["texts"] == 3
    assert found["changes"] == ["zero", "4 bits a row"]
    assert len(found["tensors"]) == 8
    assert page.exists()
    assert arrays.exists()
    found = run_explain(capsys, "perturb-weights", model, "the cat [MASK]", "--by", "layer")
    assert (found["texts"], len(found["changes"])) == (1, 4)
    found = run_explain(capsys, "ablate", model, "--file", texts, "--how", "mean")
    assert (found["texts"], found["how"]) == (22, "mean")
    asker = str(tiny.folder("BertForQuestionAnswering"))
    found = run_explain(capsys, "ablate", asker, "who is it?", "--pair", "it is mary")
    assert found["questions"] == 2


def test_prune_writes_a_folder(
    model: str, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "small")
    flags = ("--out", out, "--least_layers", "1", "--width", "10", "--file", texts)
    found = run_explain(capsys, "prune", model, *flags)
    assert found["sizes"][1]["layers"] == 1
    assert found["lost"]["texts"] == 22
    assert main(["explain", "prune", model, *flags, "--quiet"]) == 2
    assert "holds a model" in capsys.readouterr().err
    found = run_explain(capsys, "prune", out, "--out", out + "2", "--heads", "1.2")
    assert found["heads"] == [[1, 2]]
    assert found["lost"] is None
    assert run_explain(capsys, "score", out + "2", "the cat")["tokens"] == 2


def test_tables_and_progress_are_for_people(
    model: str, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "ablate", model, "--file", texts, "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert "feed-forward 2" in out
    assert "ablating: 22 texts" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["perturb-weights", "MODEL"], "one text"),
        (["perturb-weights", "MODEL", "a cat", "--change", "melt"], "'melt' is no change"),
        (["perturb-weights", "MODEL", "a cat", "--tensors", "*x*z*"], "no tensor's name"),
        (["ablate", "MODEL", "--file", "FILE", "--texts", "0"], "--texts 0"),
        (["ablate", "MODEL", "--file", "FILE", "--pair", "a"], "--pair goes with one text"),
        (["prune", "MODEL", "--out", "OUT", "--layers", "x"], "'x' cannot be read"),
        (["prune", "MODEL", "--out", "OUT", "--heads", "1"], "1.3,2.4"),
        (["prune", "MODEL", "--out", "OUT", "--least_layers", "1"], "measured on texts"),
        (["prune", "MODEL", "--out", "OUT", "--layers", "1", "--least_layers", "1"], "not both"),
        (["prune", "MODEL", "--out", "OUT"], "nothing is to be pruned"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    model: str,
    texts: str,
    tmp_path: Path,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"MODEL": model, "FILE": texts, "OUT": str(tmp_path / "out")}
    assert main(["explain", *(known.get(word, word) for word in arguments), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
