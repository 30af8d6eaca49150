"""Kinds of masked positions: how frequent the word is, part of word, place, length, script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bertkit.explain.corpus import MaskedTexts
from bertkit.text.scripts import script_of

if TYPE_CHECKING:
    from bertkit.text.tokenizer import BertTokenizer

Ints = NDArray[np.int64]


class Bands(NamedTuple):
    """Whole numbers from 1 in bands; each begins where its start says.

    Attributes:
        by: what is counted.
        starts: ascending, the first is 1.
    """

    by: str
    starts: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """As people write them."""
        found = []
        for start, behind in zip(self.starts, (*self.starts[1:], 0), strict=True):
            last = f"{start:,}+" if not behind else f"{start:,}–{behind - 1:,}"
            found.append(f"{start:,}" if behind == start + 1 else last)
        return found

    def of(self, numbers: Ints) -> Ints:
        """[M] the band of each."""
        return np.maximum(np.searchsorted(self.starts, numbers, side="right") - 1, 0)


FREQUENCY = Bands("how often the word is in the file", (1, 2, 5, 20, 100, 1000))
POSITION = Bands("position in the text (tokens)", (1, 2, 6, 11, 21, 51, 101, 201))
LENGTH = Bands("length of the text (tokens)", (1, 9, 17, 33, 65, 129, 257))
PARTS = ["first piece", "continuation", "whole word", "Chinese character"]
SCRIPTS = ["Latin", "Han", "Digits", "Punctuation", "other"]
BREAKDOWNS = [
    ("all", ["all"]),
    (FREQUENCY.by, FREQUENCY.names),
    ("part of word", PARTS),
    (POSITION.by, POSITION.names),
    (LENGTH.by, LENGTH.names),
    ("script", SCRIPTS),
]


class Sorter:
    """Puts masked positions into the groups of all breakdowns.

    Args:
        tokenizer: the model's.
        words: how often each word is in the file, normalised.
    """

    def __init__(self, tokenizer: BertTokenizer, words: Counter[str]) -> None:
        # Ids that a vocabulary leaves out have no name, and stand nowhere.
        names = [name or "" for name in tokenizer.convert_ids_to_tokens([*range(len(tokenizer))])]
        self.continues = np.array([name.startswith("##") for name in names])
        # "##" itself is a piece of two signs, not the mark of one.
        self.continues &= np.array([len(name) > 2 for name in names])
        self.pieces = [
            name[2:] if more else name for name, more in zip(names, self.continues, strict=True)
        ]
        numbers = {script: number for number, script in enumerate(SCRIPTS)}
        self.scripts = np.array(
            [numbers.get(script_of(piece[:1] or " "), len(SCRIPTS) - 1) for piece in self.pieces]
        )
        self.han = (self.scripts == 1) & np.array([len(piece) == 1 for piece in self.pieces])
        self.words = words

    def groups(self, masked: MaskedTexts) -> Iterator[Ints]:
        """[M] the group of each masked position, breakdown by breakdown."""
        batch = masked.batch
        at, labels = batch.mlm_positions.numpy(), batch.mlm_labels.numpy()
        ids = batch.input_ids.numpy().copy()
        ids[at] = labels
        begins = np.flatnonzero(~self.continues[ids])
        word = np.searchsorted(begins, at, side="right") - 1
        first, last = begins[word], np.append(begins[1:], len(ids))[word]
        seen = [
            self.words["".join(self.pieces[i] for i in ids[a:b])]
            for a, b in zip(first, last, strict=True)
        ]
        whole = np.where(self.han[labels], 3, 2)
        text = np.repeat(np.arange(len(batch.lengths)), batch.lengths.numpy())[at]
        yield np.zeros(len(at), dtype=np.int64)
        yield FREQUENCY.of(np.array(seen, dtype=np.int64))
        yield np.where(at > first, 1, np.where(last - first > 1, 0, whole))
        yield POSITION.of(at - batch.starts.numpy()[text])
        yield LENGTH.of(batch.lengths.numpy()[text] - 2)
        yield self.scripts[labels]
