"""Text to ids: BertTokenizer against transformers' fast BERT tokenizer, texts/s and MB/s.

    python -m benchmarks.bench_tokenize --data ../shared/data

Every round takes the next part of the corpus, so that neither side meets a text again: what the
word cache knows, it knows from other texts. The first round, with an empty cache, is shown by
itself. Both sides use all the threads they want. Answers are compared once a case, outside the
clock.
"""

from __future__ import annotations

import gzip
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import cyclopts

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs as a plain script

import torch
from transformers.models.bert.tokenization_bert import BertTokenizer as Peer

from benchmarks import report
from bertkit.text.sentences import split_sentences
from bertkit.text.tokenizer import BertTokenizer

CORPORA = {
    "English paragraphs": ("en_wikipedia/train.txt.gz", "bert-base-uncased.txt", False),
    "English sentences": ("en_wikipedia/train.txt.gz", "bert-base-uncased.txt", True),
    "Chinese paragraphs": ("zh_wikipedia/train.txt.gz", "bert-base-chinese.txt", False),
    "Chinese sentences": ("zh_wikipedia/train.txt.gz", "bert-base-chinese.txt", True),
}
ONE_BY_ONE_SHARE = 10
ROWS: dict[str, Any] = {
    "padding": True,
    "truncation": True,
    "max_length": 128,
    "return_tensors": "pt",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    Attributes:
        data: folder with the corpora and vocabularies named in CORPORA.
        texts: texts in a round.
        rounds: rounds after the first.
        name: results/NAME.md.
    """

    data: Path
    texts: int = 10_000
    rounds: int = 5
    name: str = "tokenize"


def in_batches(tokenizer: Any, texts: list[str], size: int) -> None:
    """Tensors, a small batch at a time, as a data loader asks for them."""
    for start in range(0, len(texts), size):
        tokenizer(texts[start : start + size], **ROWS)


def one_by_one(tokenizer: Any, texts: list[str]) -> None:
    """One call a text, as a server or a loop over lines does; a tenth of the texts."""
    for text in texts[::ONE_BY_ONE_SHARE]:
        tokenizer(text)


CASES: dict[str, Callable[[Any, list[str]], Any]] = {
    "lists": lambda tokenizer, texts: tokenizer(texts),
    "lists with offsets": lambda tokenizer, texts: tokenizer(texts, return_offsets_mapping=True),
    "padded tensors, all at once": lambda tokenizer, texts: tokenizer(texts, **ROWS),
    "padded tensors, 32 at a time": lambda tokenizer, texts: in_batches(tokenizer, texts, 32),
    "one at a time": one_by_one,
}


def texts_of(path: Path, sentences: bool, count: int) -> list[str]:
    """The first paragraphs or sentences of a corpus."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        whole = (line.strip() for line in lines if line.strip())
        parts = (s for line in whole for s in split_sentences(line)) if sentences else whole
        return list(islice(parts, count))


def check(ours: BertTokenizer, peer: Any, texts: list[str]) -> None:
    """Both give the same ids, masks and offsets."""
    call: dict[str, Any] = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    assert ours(texts, **call).data == peer(texts, **call).data
    mine, other = ours(texts, **ROWS), peer(texts, **ROWS)
    assert all(torch.equal(mine[name], other[name]) for name in other)


def measure(options: Options, corpus: str) -> tuple[list[list[str]], dict[str, Any]]:
    """One table's rows and the raw figures of one corpus."""
    file, vocab, sentences = CORPORA[corpus]
    count = options.texts * (options.rounds + 1)
    texts = texts_of(options.data / file, sentences, count)
    parts = [texts[i : i + options.texts] for i in range(0, len(texts), options.texts)]
    parts = [part for part in parts if len(part) == options.texts]
    vocab_file = str(options.data / "vocab" / vocab)
    peer = Peer(vocab=vocab_file, model_max_length=10**30)
    rows, figures = [], {}
    for case, work in CASES.items():
        report.say(f"{corpus}, {case}")
        ours = BertTokenizer(vocab_file)
        seconds = rounds_of(work, {"bertkit": ours, "transformers": peer}, parts)
        rows.append(row_of(case, seconds, parts))
        figures[case] = seconds
    check(ours, peer, texts[:500])
    return rows, figures


def rounds_of(
    work: Callable[[Any, list[str]], Any], sides: dict[str, Any], parts: list[list[str]]
) -> dict[str, list[float]]:
    """Seconds of each side for each part of the corpus, in turn."""
    upcoming = {name: iter(parts) for name in sides}

    def timed(name: str) -> float:
        texts = next(upcoming[name])
        start = time.perf_counter()
        work(sides[name], texts)
        return time.perf_counter() - start

    return report.interleave({name: partial(timed, name) for name in sides}, len(parts))


def row_of(case: str, seconds: dict[str, list[float]], parts: list[list[str]]) -> list[str]:
    """A table line: both speeds, and how many times faster ours is."""
    share = ONE_BY_ONE_SHARE if CASES[case] is one_by_one else 1
    done = [part[::share] for part in parts]
    megabytes = [sum(len(text.encode()) for text in part) / 1e6 for part in done]
    cells = [case]
    for side in ("bertkit", "transformers"):
        later = seconds[side][1:]
        speed = report.ratios(megabytes[1:], later)
        per_second = report.ratios([len(part) for part in done[1:]], later)
        cells += [speed.text(2), f"{per_second.median:,.0f}"]
    factors = [b / a for a, b in zip(seconds["bertkit"], seconds["transformers"], strict=True)]
    return [*cells, report.Spread.of(factors[1:]).text(2), f"{factors[0]:.2f}"]


app = cyclopts.App(default_parameter=report.FLAGS)


@app.default
def main(options: Annotated[Options, cyclopts.Parameter(name="*")]) -> None:
    """Measure every case on every corpus, in interleaved rounds, and write the tables."""
    header = ["case", "bertkit MB/s", "texts/s", "transformers MB/s", "texts/s"]
    header += ["bertkit is faster by", "first round, cache empty"]
    sections = [
        f"{options.texts:,} texts a round, {options.rounds} rounds after the first, median "
        "(min-max). Every round takes texts that neither side has met. Ids, masks and offsets of "
        f"both were compared and are equal. RAYON_NUM_THREADS is "
        f"{os.environ.get('RAYON_NUM_THREADS', 'not set')}: the Rust library that both use may "
        "take every core; the word cache of bertkit takes one."
    ]
    figures: dict[str, object] = {}
    for corpus in CORPORA:
        rows, figures[corpus] = measure(options, corpus)
        sections += [f"## {corpus}", report.table(header, rows)]
    report.publish(options.name, "Text to ids", sections, figures, report.describe_machine())


if __name__ == "__main__":
    app()
