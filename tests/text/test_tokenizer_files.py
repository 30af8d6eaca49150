"""A tokenizer's files: to and from all versions of transformers, and broken in many ways."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer
from transformers.models.bert.tokenization_bert import BertTokenizer as Reference

from bertkit.errors import CheckpointError
from bertkit.text import tokenfiles, wordpiece
from bertkit.text.tokenizer import BertTokenizer
from tests.text.test_tokenizer import SMALL, TEXTS, both

ROOT = Path(__file__).parents[2]
SAMPLES = [*TEXTS, "a neologism [E1] x <e2> <e2>s", "naïve [MASK] , fox"]
SIZE = len(SMALL)


def added(content: str, **flags: bool) -> dict[str, Any]:
    names = ("lstrip", "normalized", "rstrip", "single_word", "special")
    return {"content": content, **{name: flags.get(name, False) for name in names}}


# What transformers 3 and 4 left beside vocab.txt.
OLD: dict[str, dict[str, Any]] = {
    "vocab.txt alone": {},
    "a cased one": {"tokenizer_config": {"do_lower_case": False, "model_max_length": 64}},
    "special tokens in the map": {
        "special_tokens_map": {"unk_token": "[UNK]", "additional_special_tokens": ["[E1]", "<e2>"]},
    },
    "special tokens in the config": {"tokenizer_config": {"extra_special_tokens": ["<e2>"]}},
    "flags of a special token": {
        "special_tokens_map": {"mask_token": added("[MASK]", lstrip=True)},
    },
    "added_tokens.json": {"added_tokens": {"neologism": SIZE, "<e2>": SIZE + 1}},
    "added_tokens_decoder": {
        "tokenizer_config": {
            "added_tokens_decoder": {
                str(SIZE): added("neologism", normalized=True),
                str(SIZE + 1): added("[E1]", special=True),
            },
            "additional_special_tokens": ["[E1]"],
        },
    },
}


def assert_alike(ours: BertTokenizer, theirs: Any) -> None:
    call: dict[str, Any] = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    mine, other = ours(SAMPLES, **call), theirs(SAMPLES, **call)
    assert mine.data == other.data
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert len(ours) == len(theirs)
    for skip in (True, False):
        assert ours.batch_decode(mine.input_ids, skip) == theirs.batch_decode(mine.input_ids, skip)


@pytest.mark.parametrize("name", OLD)
def test_old_folders_open_as_in_transformers_and_are_saved_for_all(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "vocab.txt").write_text("".join(f"{t}\n" for t in SMALL), encoding="utf-8")
    for file, content in OLD[name].items():
        (tmp_path / f"{file}.json").write_text(json.dumps(content))
    ours = BertTokenizer.from_pretrained(tmp_path)
    assert_alike(ours, Reference.from_pretrained(tmp_path))
    ours.save_pretrained(tmp_path / "saved")
    assert_alike(ours, AutoTokenizer.from_pretrained(tmp_path / "saved"))
    again = BertTokenizer.from_pretrained(tmp_path / "saved")
    assert again(SAMPLES).data == ours(SAMPLES).data
    # And without tokenizer.json, as the slow tokenizer of version 4 opens it.
    (tmp_path / "saved" / "tokenizer.json").unlink()
    slow = BertTokenizer.from_pretrained(tmp_path / "saved")
    assert slow(SAMPLES).data == ours(SAMPLES).data
    assert slow.get_added_vocab() == ours.get_added_vocab()


def test_what_version_5_writes_opens_here_and_goes_back(tmp_path: Path) -> None:
    theirs = copy.deepcopy(both("small", False)[1])
    theirs.backend_tokenizer.no_padding()  # other tests of this process have called it
    theirs.backend_tokenizer.no_truncation()
    theirs.add_tokens(["neologism", AddedToken("<e2>", single_word=True)])
    theirs.add_special_tokens({"extra_special_tokens": ["[E1]"]})
    theirs.save_pretrained(tmp_path / "theirs")
    assert {p.name for p in (tmp_path / "theirs").iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    ours = BertTokenizer.from_pretrained(tmp_path / "theirs")
    assert_alike(ours, theirs)
    ours.save_pretrained(tmp_path / "ours")
    assert_alike(ours, AutoTokenizer.from_pretrained(tmp_path / "ours"))
    before, after = (
        json.loads((tmp_path / side / "tokenizer.json").read_text(encoding="utf-8"))
        for side in ("theirs", "ours")
    )
    assert before == after


def test_renamed_special_tokens(tmp_path: Path) -> None:
    words = ["<p>", "<u>", "<c>", "<s>", "<m>", *SMALL[5:]]
    names: Any = {
        "pad_token": "<p>",
        "unk_token": "<u>",
        "cls_token": "<c>",
        "sep_token": "<s>",
        "mask_token": "<m>",
    }
    ours = BertTokenizer(words, do_lower_case=False, **names)
    vocab = {word: i for i, word in enumerate(words)}
    theirs = Reference(vocab=vocab, do_lower_case=False, **names)
    assert_alike(ours, theirs)
    ours.save_pretrained(tmp_path)
    assert_alike(BertTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path))
    for bad in ("$A", "a:b:c"):
        with pytest.raises(CheckpointError, match="cannot be cls_token"):
            BertTokenizer([*words, bad], **{**names, "cls_token": bad})


def test_a_vocabulary_with_holes_doubles_and_line_ends_keeps_its_ids(tmp_path: Path) -> None:
    words = [*SMALL, "fox", "", "with\nline end", "last"]
    vocab = {word: i for i, word in enumerate(words)}
    assert len(vocab) < len(words)
    ours = BertTokenizer(vocab)
    ours.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    again = BertTokenizer.from_pretrained(tmp_path)
    assert again("the fox last")["input_ids"] == ours("the fox last")["input_ids"]
    assert again.convert_tokens_to_ids("last") == len(words) - 1
    assert BertTokenizer(tmp_path / "vocab.txt")("fox").data == ours("fox").data
    crlf = (tmp_path / "vocab.txt").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + crlf)
    assert BertTokenizer(tmp_path / "vocab.txt")("the fox").data == ours("the fox").data


def refused(path: Path, named: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        BertTokenizer.from_pretrained(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 600
    assert str(named or path) in message
    return message


def test_vocabularies_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"[PAD]\n[UNK]\nfox\n\xff\n")
    assert ":4: not UTF-8" in refused(path)
    path.write_bytes(b"")
    assert "not a mapping" in refused(path)
    path.write_bytes(b"x" * 5_000_000)
    assert "[UNK]" in refused(path)
    path.write_bytes(b"\n" * 10_000_000)
    assert "lines" in refused(path)
    path.write_bytes(b"".join(b"%d\n" % i for i in range(wordpiece.MAX_ID + 2)))
    assert "no BERT has so many" in refused(path)
    monkeypatch.setattr(tokenfiles, "_MAX_FILE_BYTES", 1000)
    assert "larger" in refused(path)
    path.unlink()
    path.mkdir()
    assert refused(path)


def test_json_that_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both()[0].save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    good = json.loads(path.read_text(encoding="utf-8"))

    def written(**parts: Any) -> str:
        path.write_text(json.dumps({**good, **parts}))
        return refused(tmp_path, path)

    path.write_text("null")
    assert "a JSON object is expected, not null" in refused(tmp_path, path)
    path.write_text("[" * 200_000)
    assert "too deeply" in refused(tmp_path, path)
    path.write_text('{"a":' * 200_000)
    assert "too deeply" in refused(tmp_path, path)
    path.write_text('{"model": {"vocab": {"a": ' + "9" * 10_000 + "}}}")
    assert "not JSON" in refused(tmp_path, path)
    path.write_text('{"a": [' + "[]," * 5_000_000 + "0]}")
    assert "brackets" in refused(tmp_path, path)
    token = {"id": SIZE, "content": "x" * (wordpiece.MAX_ADDED_CHARACTERS + 1)}
    assert "more added tokens" in written(added_tokens=[token])
    assert "share one id" in written(model={**good["model"], "vocab": {"a": 1, "[UNK]": 1}})
    assert "max_input_chars" in written(model={**good["model"], "max_input_chars_per_word": 2**20})
    holes = {**good["model"]["vocab"], "far": SIZE}
    del holes["fox"]
    message = written(
        model={**good["model"], "vocab": holes}, added_tokens=[{"id": SIZE, "content": "new"}]
    )
    assert "has the id of another token" in message
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
        both()[0].save_pretrained(tmp_path)
        if name == "config.json":
            (tmp_path / "tokenizer_config.json").unlink()
        (tmp_path / name).write_text("{")
        refused(tmp_path, tmp_path / name)
        (tmp_path / name).unlink()
    (tmp_path / "special_tokens_map.json").write_text(
        '{"mask_token": {"content": "a\\nb", "x": 1}}'
    )
    BertTokenizer.from_pretrained(tmp_path)  # a mask that the vocabulary lacks: refused when used


@pytest.mark.parametrize("seed", [0])
def test_mutants_load_or_are_refused_in_one_line(seed: int, tmp_path: Path) -> None:
    assert_mutants_load_or_are_refused(seed, 1200, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_more_mutants(seed: int, tmp_path: Path) -> None:
    assert_mutants_load_or_are_refused(seed, 5000, tmp_path)


def assert_mutants_load_or_are_refused(seed: int, count: int, tmp_path: Path) -> None:
    good = copy.deepcopy(both("small", False)[0])
    good.add_tokens(["neologism"])
    good.add_special_tokens({"extra_special_tokens": ["[E1]"]})
    good.save_pretrained(tmp_path / "good")
    (tmp_path / "good" / "added_tokens.json").write_text(json.dumps({"neologism": SIZE}))
    (tmp_path / "good" / "config.json").write_text('{"max_position_embeddings": 64}')
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-m", "tests.text.tokenizer_mutants"]
    command += [str(tmp_path / "good"), str(tmp_path / "work"), str(seed), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["wrong"] == []
    assert told["loaded"] + told["refused"] == count
    assert min(told["loaded"], told["refused"]) > count / 5
    assert told["peak_mib"] < 400
    assert "panicked" not in done.stderr
