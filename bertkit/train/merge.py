"""From part files to the shards of two splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from bertkit.data.shardwriter import ShardWriter
from bertkit.errors import DataError
from bertkit.train.heldout import DEV, TRAIN, Choice, choose
from bertkit.train.parts import Part, document_tokens, read_part


class SplitReport(Struct, frozen=True):
    """What one split holds."""

    documents: int = 0
    sentences: int = 0
    tokens: int = 0


class Merged(Struct, frozen=True):
    """What became of the documents.

    Attributes:
        train, dev: the two splits.
        held_out: "nothing", "documents", or "end of one document".
        duplicates: documents that copy an earlier one.
        single_sentence_documents: they make no pair of following sentences.
        unknown_tokens: how many of the tokens are [UNK].
        bytes_on_disk: of the shards.
    """

    train: SplitReport
    dev: SplitReport
    held_out: str
    duplicates: int
    single_sentence_documents: int
    unknown_tokens: int
    bytes_on_disk: int


class MergeSettings(Struct, frozen=True):
    """How parts become shards: see PrepareOptions and ShardWriter."""

    vocab_size: int
    unknown_id: int
    with_words: bool
    held_out: float
    dedup: bool


def merge_parts(
    paths: Sequence[Path],
    folder: Path,
    settings: MergeSettings,
    tell: Callable[[int], None],
) -> Merged:
    """Decide where each document goes, then write folder/train and folder/dev.

    Args:
        paths: the part files, in order.
        folder: where the two splits go.
        settings: see MergeSettings.
        tell: called with the number of parts done.

    Raises:
        DataError: there is too little text, or a part was damaged since it was made.
    """
    hashes, sentences, tokens = _sizes(paths)
    choice = choose(hashes, sentences, tokens, settings.held_out, settings.dedup)
    unknown = first = 0
    with ShardWriter(folder / "train", settings.vocab_size, settings.with_words) as train:
        dev = None
        if choice.kind != "nothing":
            dev = ShardWriter(folder / "dev", settings.vocab_size, settings.with_words)
        with dev or nullcontext():
            for number, path in enumerate(paths):
                part = _part(path)
                _add(train, part, TRAIN, choice, first)
                if dev is not None:
                    _add(dev, part, DEV, choice, first)
                unknown += int((part.tokens == settings.unknown_id).sum())
                first += len(part.hashes)
                tell(number + 1)
    return Merged(
        _split_report(train),
        SplitReport() if dev is None else _split_report(dev),
        choice.kind,
        choice.duplicates,
        int((sentences == 1).sum()),
        unknown,
        sum(f.stat().st_size for split in ("train", "dev") for f in (folder / split).glob("*")),
    )


def _split_report(writer: ShardWriter) -> SplitReport:
    return SplitReport(writer.documents, writer.sentences, writer.tokens)


def _part(path: Path) -> Part:
    found = read_part(path)
    if found is None:
        raise DataError("was damaged while it was needed; run again to make it anew", path)
    return found[1]


def _sizes(paths: Sequence[Path]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of all documents: hashes, sentences, tokens."""
    columns: list[tuple[NDArray[Any], ...]] = []
    for path in paths:
        part = _part(path)
        sizes = document_tokens(part.counts, part.lengths)
        columns.append((part.hashes.copy(), part.counts.copy(), sizes.astype(np.uint32)))
    if not columns:
        raise DataError("the corpus holds no text; check the files and --field")
    hashes, sentences, tokens = (np.concatenate(c) for c in zip(*columns, strict=True))
    return hashes, sentences.astype(np.int64), tokens.astype(np.int64)


def _add(writer: ShardWriter, part: Part, side: int, choice: Choice, first: int) -> None:
    """Append the sentences of this part that belong to `side`.

    Args:
        writer: of that side.
        part: documents `first` and following.
        side: TRAIN or DEV.
        choice: where each document goes.
        first: the number of the part's first document.
    """
    here = choice.sides[first : first + len(part.hashes)] == side
    wanted = np.repeat(here, part.counts)  # of each sentence
    if choice.tail is not None and first <= choice.tail[0] < first + len(here):
        document = choice.tail[0] - first
        end = int(part.counts[: document + 1].sum())
        wanted[end - choice.tail[1] : end] = side == DEV
    if not wanted.any():
        return
    owner = np.repeat(np.arange(len(here)), part.counts)[wanted]
    counts = np.bincount(owner, minlength=len(here))
    chosen = np.repeat(wanted, part.lengths)  # of each token
    words = None if part.words is None else part.words[chosen]
    writer.add_many(part.tokens[chosen], part.lengths[wanted], counts[counts > 0], words)
