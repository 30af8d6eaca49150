"""The same sentence pairs for both sides of a benchmark: real lengths, ready-made masks."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bertkit.text.sentences import split_sentences

Ids = npt.NDArray[np.int64]
# A document is its sentences, a sentence its token ids without special tokens.
Documents = list[list[Ids]]
Kind = Literal["full", "pairs", "long"]
MASK_RATE = 0.15
NOT_MASKED = -100


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What masking and padding need to know of a vocabulary."""

    size: int
    pad: int
    cls: int
    sep: int
    mask: int

    @classmethod
    def of_file(cls, path: Path) -> Vocabulary:
        """Read a vocab.txt, one token a line."""
        tokens = path.read_text(encoding="utf-8").splitlines()
        place = {token: index for index, token in enumerate(tokens)}
        names = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
        return cls(len(tokens), *(place[name] for name in names))


@dataclass(frozen=True, slots=True)
class Example:
    """One masked sentence pair: S ids, segments and labels (-100 where nothing is asked)."""

    ids: Ids
    types: Ids
    labels: Ids
    next_label: int


def read_corpus(path: Path, tokenizer: Any, limit: int) -> Documents:
    """Tokenise the first `limit` documents of a text file (blank lines bound documents).

    Args:
        path: plain or gzipped text.
        tokenizer: any of transformers' fast tokenizers.
        limit: how many documents.
    """
    texts = [split_sentences(" ".join(lines)) for lines in _document_lines(path, limit)]
    encoded = [tokenizer(sentences, add_special_tokens=False).input_ids for sentences in texts]
    return [
        [np.array(ids, np.int64) for ids in sentences if ids] for sentences in encoded if sentences
    ]


def random_documents(vocabulary: Vocabulary, count: int, seed: int = 0) -> Documents:
    """Documents of random ids, for quick checks without a corpus."""
    rng = np.random.default_rng(seed)
    low = min(vocabulary.size - 1, vocabulary.mask + 1)
    return [
        [rng.integers(low, vocabulary.size, size=rng.integers(5, 40)) for _ in range(12)]
        for _ in range(count)
    ]


def make_examples(
    documents: Documents, kind: Kind, vocabulary: Vocabulary, length: int, count: int
) -> list[Example]:
    """Masked examples of one kind, always the same ones for the same arguments.

    Args:
        documents: sentences by document.
        kind: "full" rows of exactly `length`; "pairs" of single sentences; "long" segments of
            several sentences that fill `length`, 10% of them cut short, as BERT's own data.
        vocabulary: ids of the special tokens.
        length: the most tokens a row may have, [CLS] and two [SEP] included.
        count: how many; the corpus is passed over again when it runs out.
    """
    rng = np.random.default_rng(1)
    makers = {"full": _full_pairs, "pairs": _sentence_pairs, "long": _long_pairs}
    examples: list[Example] = []
    while len(examples) < count:
        before = len(examples)
        for first, second, label in makers[kind](documents, length - 3, rng):
            examples.append(_mask(first, second, label, vocabulary, rng))
            if len(examples) == count:
                break
        if len(examples) == before:
            raise SystemExit(f"the corpus is too small for rows of {length} tokens")
    return examples


Pairs = Iterator[tuple[Ids, Ids, int]]


def _full_pairs(documents: Documents, room: int, rng: np.random.Generator) -> Pairs:
    stream = np.concatenate([sentence for document in documents for sentence in document])
    for start in range(0, len(stream) - room + 1, room):
        row = stream[start : start + room]
        yield row[: room // 2], row[room // 2 :], int(rng.integers(2))


def _sentence_pairs(documents: Documents, room: int, rng: np.random.Generator) -> Pairs:
    """Neighbours from all over the corpus: a few documents in a row fill 45% to 54% of 128."""
    firsts = [(d, place) for d, document in enumerate(documents) for place in range(len(document))]
    for index, place in rng.permutation(firsts).tolist():
        document = documents[index]
        if place == len(document) - 1:
            continue
        label = int(rng.random() < 0.5)
        other = _other_document(documents, index, rng) if label else document
        at = int(rng.integers(len(other))) if label else place + 1
        yield *_truncate(document[place], other[at], room), label


def _long_pairs(documents: Documents, room: int, rng: np.random.Generator) -> Pairs:
    """BERT's create_pretraining_data: gather sentences up to a target, split them at random."""
    for index, document in enumerate(documents):
        chunk: list[Ids] = []
        target = room if rng.random() > 0.1 else int(rng.integers(2, room + 1))
        for place, sentence in enumerate(document):
            chunk.append(sentence)
            if sum(map(len, chunk)) < target and place < len(document) - 1:
                continue
            cut = int(rng.integers(1, len(chunk))) if len(chunk) > 1 else 1
            first = np.concatenate(chunk[:cut])
            label = int(len(chunk) == 1 or rng.random() < 0.5)
            if label:
                other = _other_document(documents, index, rng)
                begin = int(rng.integers(len(other)))
                second = np.concatenate(other[begin:])[: max(1, target - len(first))]
            else:
                second = np.concatenate(chunk[cut:])
            yield *_truncate(first, second, room), label
            chunk = []
            target = room if rng.random() > 0.1 else int(rng.integers(2, room + 1))


def _other_document(documents: Documents, index: int, rng: np.random.Generator) -> list[Ids]:
    step = int(rng.integers(1, max(2, len(documents))))
    return documents[(index + step) % len(documents)]


def _truncate(first: Ids, second: Ids, room: int) -> tuple[Ids, Ids]:
    """Cut the longer of the two until both fit."""
    excess = len(first) + len(second) - room
    if excess <= 0:
        return first, second
    shorter = min(len(first), len(second), room // 2)
    if len(first) > len(second):
        return first[: room - shorter], second[:shorter]
    return first[:shorter], second[: room - shorter]


def _mask(
    first: Ids, second: Ids, label: int, vocabulary: Vocabulary, rng: np.random.Generator
) -> Example:
    """Join a pair and choose 15% of its real tokens: 80% [MASK], 10% random, 10% kept."""
    v = vocabulary
    ids = np.concatenate([[v.cls], first, [v.sep], second, [v.sep]]).astype(np.int64)
    types = np.zeros(len(ids), np.int64)
    types[len(first) + 2 :] = 1
    special = np.zeros(len(ids), bool)
    special[[0, len(first) + 1, len(ids) - 1]] = True
    chosen = (rng.random(len(ids)) < MASK_RATE) & ~special
    if not chosen.any():
        chosen[1] = True  # a row without labels would make the peer's mean loss NaN at batch 1
    labels = np.where(chosen, ids, NOT_MASKED)
    draw = rng.random(len(ids))
    noise = rng.integers(min(v.mask + 1, v.size - 1), v.size, size=len(ids))
    ids = np.where(chosen & (draw < 0.8), v.mask, ids)
    ids = np.where(chosen & (draw >= 0.9), noise, ids)
    return Example(ids, types, labels, label)


def real_tokens(examples: Sequence[Example]) -> int:
    """Tokens that are not padding."""
    return sum(len(example.ids) for example in examples)


def _document_lines(path: Path, limit: int) -> Iterator[list[str]]:
    opened = (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8")
    )
    with opened as lines:
        document: list[str] = []
        for line in lines:
            if line.strip():
                document.append(line.strip())
            elif document:
                yield document
                document, limit = [], limit - 1
                if limit <= 0:
                    return
        if document:
            yield document
