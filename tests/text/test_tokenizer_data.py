"""Every text of every data set, tokenized here and by transformers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.text.test_tokenizer import DATA, VOCABS, both

# What a batch is compared by. Long texts are cut in pieces, so that all of them is seen.
BATCH, PIECE = 1000, 5000


def strings_of(tree: Any) -> Iterator[str]:
    """Every string in a JSON value, keys too."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, list):
        for item in tree:
            yield from strings_of(item)
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield key
            yield from strings_of(item)


def texts_of(path: Path) -> Iterator[str]:
    """The lines of a text file, the strings of a JSON file; long ones in pieces."""
    name = path.name.removesuffix(".gz")
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open()
    with opened as lines:
        if name.endswith(".json"):
            texts = strings_of(json.load(lines))
        elif name.endswith(".jsonl"):
            texts = (text for line in lines for text in strings_of(json.loads(line)))
        else:
            texts = (line.rstrip("\n") for line in lines)
        for text in texts:
            yield from (text[i : i + PIECE] for i in range(0, len(text) or 1, PIECE))


def files_of_text() -> list[str]:
    paths = [p for p in sorted(DATA.glob("*/*")) if p.is_file() and p.parent.name != "vocab"]
    return [str(p.relative_to(DATA)) for p in paths if p.name != "LICENSE.txt"] or ["absent"]


def batches(name: str, limit: int | None) -> Iterator[list[str]]:
    if not (DATA / name).exists():
        pytest.skip(f"needs {DATA}")
    texts = islice(texts_of(DATA / name), limit)
    while batch := list(islice(texts, BATCH)):
        yield batch


def assert_singles_equal(batch: list[str], vocab: str, lower: bool) -> None:
    """Ids, offsets and masks of whole texts, by every way that ours has."""
    ours, theirs = both(vocab, lower)
    call: dict[str, Any] = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    expected = theirs(batch, **call, verbose=False).data
    assert ours(batch, **call).data == expected
    assert ours(batch)["input_ids"] == expected["input_ids"]


def assert_pairs_equal(batch: list[str], vocab: str, lower: bool) -> None:
    """Pairs, windows with overflow, truncation with padding, and the way back to text."""
    ours, theirs = both(vocab, lower)
    seconds = [*batch[1:], batch[0]]
    call: dict[str, Any] = {"max_length": 96, "truncation": True, "padding": True}
    expected = theirs(batch, seconds, **call)
    assert ours(batch, seconds, **call).data == expected.data
    assert ours.batch_decode(expected.input_ids) == theirs.batch_decode(expected.input_ids)
    call |= {"stride": 8, "return_overflowing_tokens": True, "return_offsets_mapping": True}
    mine, other = ours(batch, seconds, **call), theirs(batch, seconds, **call)
    assert mine.data == other.data
    for number in range(0, len(other["input_ids"]), 50):
        assert mine.sequence_ids(number) == other.sequence_ids(number)


@pytest.mark.parametrize("name", files_of_text())
def test_a_sample_of_each_data_set_equals_transformers(name: str) -> None:
    vocab = "bert-base-uncased" if len(name) % 2 else "bert-base-chinese"
    for batch in batches(name, limit=25):
        assert_singles_equal(batch, vocab, True)
        assert_pairs_equal(batch, vocab, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", files_of_text())
def test_all_of_each_data_set_equals_transformers(name: str) -> None:
    """With all five vocabularies; the corpora of tens of megabytes with each in turn."""
    for number, batch in enumerate(batches(name, limit=None)):
        turn = list(VOCABS)[number % len(VOCABS)]
        for vocab in [turn] if name.endswith("train.txt.gz") else VOCABS:
            assert_singles_equal(batch, vocab, VOCABS[vocab])
        assert_pairs_equal(batch, turn, VOCABS[turn])
