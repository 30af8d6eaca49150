"""What `bertkit prepare` says when something is amiss, and that its advice works."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bertkit.cli import main
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train import parts as parts_module
from bertkit.train import plan as plan_module
from bertkit.train import prepare as prepare_module
from bertkit.verbs.corpus import _size

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *LETTERS, *(f"##{c}" for c in LETTERS)]
HAN = "我们爱语言模型，学习。"
ENGLISH = [f"Mice like {a}{b}. They eat {b}{a} too.\n" for a in LETTERS for b in LETTERS]


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("english")
    BertTokenizer(VOCAB).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("chinese")
    BertTokenizer([*VOCAB, *HAN]).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = parts_module.chunked
    monkeypatch.setattr(prepare_module, "chunked", lambda documents: cut(documents, 500))


def test_the_advice_at_a_bad_row_can_be_followed(
    tmp_path: Path,
    english: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan_module, "SAMPLE", 500)
    text = "\n".join(ENGLISH[:200]).encode()
    source = tmp_path / "a.txt"
    for name, more, mended in [
        ("skip", ["--skip-bad-rows"], None),
        ("encoding", ["--encoding", "latin-1"], None),
        ("mend", [], text + b"\ncaf\xc3\xa9.\n"),
    ]:
        source.write_bytes(text + b"\ncaf\xe9.\n")
        command = ["prepare", str(source), "--tokenizer", english, "--out", str(tmp_path / name)]
        command += ["--quiet", "--json"]
        assert main(command) == 1
        err = capsys.readouterr().err
        assert f"{source}:401: bad encoding: " in err
        assert "--encoding" in err
        assert "--skip-bad-rows" in err
        source.write_bytes(mended or source.read_bytes())
        assert main([*command, *more]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["documents"] == 201 - (name == "skip")
        assert 0 < report["parts"] - report["parts_kept"] < 3


def _notes(
    folder: Path, text: str, tokenizer: str, capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, Any]:
    source = folder / "text.txt"
    source.write_text(text, encoding="utf-8")
    command = ["prepare", str(source), "--tokenizer", tokenizer, "--out", str(folder / "out")]
    assert main([*command, "--json", *more]) == 0
    printed = capsys.readouterr()
    result: dict[str, Any] = json.loads(printed.out)
    return {**result, "err": printed.err}


def test_a_script_that_the_vocabulary_lacks_is_named(
    tmp_path: Path, english: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = _notes(tmp_path, "\n".join([*ENGLISH[:100], HAN]), english, capsys)
    assert result["notes"] == []
    text = "\n\n".join([*ENGLISH[:40], *(f"{HAN} {word}" for word in ENGLISH[40:80])])
    result = _notes(tmp_path, text, english, capsys, "--overwrite", "--words", "jieba")
    share = result["unknown_tokens"] / (result["train"]["tokens"] + result["dev"]["tokens"])
    assert share > 0.1
    [warning] = result["notes"]
    assert warning.startswith(f"warning: {share:.1%} of the tokens is [UNK] (100.0% of Han: ")
    assert "Latin" not in warning
    assert "bertkit vocab" in warning
    assert "of a sample is [UNK] (100.0% of Han" in result["err"]  # before the work begins


def test_chinese_without_its_words_is_noted(
    tmp_path: Path, chinese: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n\n".join(f"{HAN}\n{HAN} {word}" for word in ENGLISH[:50])
    [note] = _notes(tmp_path, text, chinese, capsys)["notes"]
    assert "--words jieba" in note
    more = ("--words", "jieba", "--overwrite")
    assert _notes(tmp_path, text, chinese, capsys, *more)["notes"] == []
    shown = _notes(tmp_path, text, chinese, capsys, *more, "--show", "9", "--masking", "word")
    samples = shown["samples"]
    lines = [words for example in samples["examples"] for words in (example["a"], example["b"])]
    pairs = [line for line in lines if "{模" in line or "{型" in line]
    assert pairs
    for line in pairs:  # the two characters of a word are hidden together or not at all
        assert line.count("{模") == line.count("{型") == line.count(" {型")
    assert 0.3 < samples["balance"]["random"] / 2 / samples["balance"]["next"] < 0.7


def test_one_document_is_noted(
    tmp_path: Path, english: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, what in [
        ("".join(ENGLISH[:100]), "all of the text is one document"),
        ("\n".join(ENGLISH[:10]), "the held-out text is of one document"),
    ]:
        [note] = _notes(tmp_path, text, english, capsys, "--overwrite")["notes"]
        assert what in note
        assert "blank lines" in note
    assert _notes(tmp_path, "\n".join(ENGLISH), english, capsys, "--overwrite")["notes"] == []


@pytest.mark.parametrize("verb", ["prepare", "vocab"])
def test_where_every_row_is_bad_they_are_counted(
    tmp_path: Path, english: str, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"body": "x"}\n{broken\n{"body": "y"}\n')
    command = [verb, str(source), "--out", str(tmp_path / "out"), "--skip_bad_rows", "--quiet"]
    assert main([*command, *(["--tokenizer", english] if verb == "prepare" else [])]) == 1
    err = capsys.readouterr().err
    assert f"(2 missing field, 1 broken JSON); the first: {source}:1: missing field" in err
    assert err.count("\n") == 1


def test_standard_input_is_called_so(
    tmp_path: Path,
    english: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = b"One.\n\xff\nTwo. Three.\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    command = ["prepare", "-", "--tokenizer", english, "--out", str(tmp_path / "out"), "--json"]
    assert main([*command, "--skip_bad_rows"]) == 0
    assert json.loads(capsys.readouterr().out)["first_bad"][0].startswith("standard input, line 2:")


def test_what_is_typed_wrong_is_refused(
    tmp_path: Path, english: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a.txt"
    source.write_text(ENGLISH[0])
    command = ["prepare", str(source), "--tokenizer", english, "--out"]
    assert main([*command, str(tmp_path), "--masking", "word"]) == 2
    assert "--masking goes with --show" in capsys.readouterr().err
    assert main([*command, str(tmp_path), "--show", "-3"]) == 2
    assert "--show -3: say how many" in capsys.readouterr().err
    for arguments in ([*command, str(source)], ["vocab", str(source), "--out", str(source)]):
        assert main(arguments) == 2
        assert "is a file; name a folder" in capsys.readouterr().err


def test_a_mistake_in_the_input_is_told_before_what_is_in_the_way(
    tmp_path: Path, english: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, gone = tmp_path / "a.txt", str(tmp_path / "gone.txt")
    source.write_text(ENGLISH[0])
    for command, said in (
        (["vocab", gone, "--out", english], "gone.txt: no such file"),
        (["vocab", str(source), "--out", english, "--size", "5"], "size 5 has no room"),
        (["vocab", str(source), "--out", english, "--encoding", "x"], "no text encoding 'x'"),
        (["vocab", str(source), "--out", english], "holds a tokenizer already"),
        (["vocab", gone, "--extend", english, "--out", str(source)], "gone.txt: no such file"),
        (["vocab", str(tmp_path), "--out", str(tmp_path / "new")], "whose files are the text"),
        (["prepare", gone, "--tokenizer", english, "--out", str(source)], "gone.txt: no such file"),
    ):
        assert main(command) in (1, 2)
        assert said in capsys.readouterr().err


def test_progress_is_told_once_at_the_end_and_sizes_in_units_that_fit(
    tmp_path: Path,
    english: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan_module, "SAMPLE", 500)
    source = tmp_path / "a.txt.gz"  # of which the estimate is too small
    source.write_bytes(gzip.compress("\n".join(ENGLISH).encode() * 3))
    command = ["prepare", str(source), "--tokenizer", english, "--out", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert sum(line.startswith("preparing: ") for line in printed.err.splitlines()) == 1
    assert " kB will be written; " in printed.err
    assert re.search(r"/out: \d+\.\d kB, ", printed.out)
    assert [_size(n) for n in (0, 999, 1000, 2_340_000)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "2.3 MB",
    ]


def test_an_interrupt_ends_workers_at_once(tmp_path: Path, english: str) -> None:
    source = tmp_path / "a.txt"
    source.write_text("\n".join(ENGLISH))
    script = tmp_path / "run.py"
    script.write_text(
        "import signal, sys, time\n"
        "from bertkit.cli import main\n"
        "from bertkit.train import parts\n"
        "def slow(encoder, path, chunk):\n"
        "    path.with_suffix('.begun').touch()\n"
        "    time.sleep(60)\n"
        "parts._make_part = slow\n"  # in the workers too: they import this file
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # `... &` ignores it
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, str(script), "prepare", str(source), "--tokenizer", english]
    command += ["--out", str(out), "--workers", "2"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while process.poll() is None and not list(out.glob(".work/*.begun")):
            time.sleep(0.05)
        start = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()  # ends when the last worker has
    assert time.monotonic() - start < 15
    assert process.returncode == 130
    assert lines[-1] == "bertkit: interrupted; run the same command again to continue"
    assert not [line for line in lines if "Traceback" in line]
