"""Pseudo-log-likelihood of a whole file: ours against transformers, one copy at a time and padded.

    python -m benchmarks.bench_score --size mini

All sides score the same texts with the same random weights, and must agree. "one copy at a time" is
the plain loop: each token masked in a copy of its own, one forward pass a copy. "padded" is the
same in batches: copies of all texts sorted by length, padded to the longest of their batch, the
whole vocabulary at every position, as transformers' call computes it. Rates are tokens scored a
second.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs as a plain script

from benchmarks import report
from bertkit.checkpoint.config import BertConfig
from bertkit.model.heads import BertForMaskedLM
from bertkit.settings import SIZES
from bertkit.tasks.score import Scorer
from bertkit.text.tokenizer import BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    Attributes:
        size: of the model.
        vocabulary: how many words it has.
        texts: how many are scored.
        words: their mean length, spread as sentences are (lognormal).
        rows: copies in a padded batch of transformers.
        rounds: interleaved rounds.
        name: results/NAME.md.
    """

    size: str = "mini"
    vocabulary: int = 30522
    texts: int = 100
    words: float = 22.0
    rows: int = 64
    rounds: int = 3
    name: str = "score"


def make_texts(options: Options) -> list[str]:
    """Texts of words that are one token each."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(options.words) - 0.18, 0.6, options.texts).astype(int)
    words = options.vocabulary - len(SPECIAL)
    return [
        " ".join(f"w{i}" for i in rng.integers(0, words, size=int(np.clip(length, 3, 120))))
        for length in lengths
    ]


def make_model(options: Options) -> tuple[Any, Any, BertTokenizer]:
    """The same weights here and in transformers, and the tokenizer."""
    import transformers

    layers, hidden, heads = SIZES[options.size]
    config = BertConfig(
        vocab_size=options.vocabulary,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )
    torch.manual_seed(0)
    ours = BertForMaskedLM(config).eval()
    with torch.no_grad():
        ours.cls.predictions.bias.normal_(0, 0.1)  # a head that counts as trained
    words = [f"w{i}" for i in range(options.vocabulary - len(SPECIAL))]
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    return ours, theirs, BertTokenizer([*SPECIAL, *words])


def one_at_a_time(model: Any, rows: Sequence[Sequence[int]], mask: int) -> list[float]:
    """The plain loop."""
    scores = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            total = 0.0
            for i in range(1, len(row) - 1):
                copy = ids.clone()
                copy[0, i] = mask
                total += float(model(copy).logits[0, i].log_softmax(-1)[row[i]])
            scores.append(total)
    return scores


def padded(model: Any, rows: Sequence[Sequence[int]], mask: int, size: int) -> list[float]:
    """Batches of copies, sorted by length and padded."""
    copies = [(len(row), n, i) for n, row in enumerate(rows) for i in range(1, len(row) - 1)]
    copies.sort()
    scores = [0.0] * len(rows)
    with torch.no_grad():
        for start in range(0, len(copies), size):
            part = copies[start : start + size]
            longest = part[-1][0]
            ids = torch.zeros(len(part), longest, dtype=torch.long)
            real = torch.zeros(len(part), longest, dtype=torch.long)
            for at, (length, n, i) in enumerate(part):
                ids[at, :length] = torch.tensor(rows[n])
                ids[at, i], real[at, :length] = mask, 1
            logits = model(ids, attention_mask=real).logits
            places = torch.tensor([i for _, _, i in part])
            targets = torch.tensor([rows[n][i] for _, n, i in part])
            logs = logits[torch.arange(len(part)), places].log_softmax(-1)
            found = logs.gather(1, targets[:, None]).squeeze(1).tolist()
            for (_, n, _), log in zip(part, found, strict=True):
                scores[n] += log
    return scores


def timed(work: Callable[[], list[float]], tokens: int, kept: dict[str, Any], name: str) -> float:
    """Tokens a second; the scores are kept to be compared."""
    start = time.perf_counter()
    kept[name] = work()
    return tokens / (time.perf_counter() - start)


def measure(options: Options) -> dict[str, list[float]]:
    """Tokens a second of each side, by rounds.

    Raises:
        AssertionError: the sides disagree.
    """
    texts = make_texts(options)
    ours, theirs, tokenizer = make_model(options)
    rows: list[list[int]] = tokenizer(texts)["input_ids"]
    tokens, mask = sum(len(row) - 2 for row in rows), tokenizer.mask_token_id
    scorer = Scorer(ours, tokenizer, "original")
    work: dict[str, Callable[[], list[float]]] = {
        "bertkit": lambda: [scored.score for scored in scorer.score(texts)],
        "transformers, padded batches": lambda: padded(theirs, rows, mask, options.rows),
        "transformers, one copy at a time": lambda: one_at_a_time(theirs, rows, mask),
    }
    kept: dict[str, Any] = {}
    sides = {name: partial(timed, do, tokens, kept, name) for name, do in work.items()}
    scorer.score(texts[:2])  # what is made once is made
    rates = report.interleave(sides, options.rounds)
    for name, scores in kept.items():
        assert np.allclose(scores, kept["bertkit"], rtol=1e-4), f"{name} disagrees"
    return rates


DEFAULTS = Options()
app = cyclopts.App(default_parameter=report.FLAGS)


@app.default
def main(options: Annotated[Options, cyclopts.Parameter(name="*")] = DEFAULTS) -> None:
    """Measure every side in interleaved rounds, and write the table."""
    rates = measure(options)
    mine = rates["bertkit"]
    rows = [
        [name, report.Spread.of(values).text(), report.ratios(mine, values).text(2)]
        for name, values in rates.items()
    ]
    sections = [
        f"{options.texts} texts of about {options.words:.0f} words, {options.size}, a vocabulary "
        f"of {options.vocabulary:,}, {options.rounds} rounds in turn. All sides give the same "
        "scores.",
        report.table(["side", "tokens scored a second", "bertkit is so much faster"], rows),
    ]
    figures: dict[str, object] = {
        name: {"rates": values, "ratio": report.ratios(mine, values).median}
        for name, values in rates.items()
    }
    machine = report.describe_machine()
    title = "Pseudo-log-likelihood of a file"
    report.publish(options.name, title, sections, figures, machine)


if __name__ == "__main__":
    app()
