"""The CRF against pytorch-crf: loss with its gradient, and Viterbi, in milliseconds a batch.

    python -m benchmarks.bench_crf

pytorch-crf runs at its best: time steps first, and with one thread and with all of them, of which
the faster counts in each case. Answers are compared once a case, in 64 bits, outside the clock.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import cyclopts

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs as a plain script

import torch
from torch import Tensor
from torchcrf import CRF as Peer

from benchmarks import report
from bertkit.model.crf import Crf

# Sequences, words in the longest, tags; whether the lengths differ.
CASES = {
    "32 x 128 x 9": (32, 128, 9, False),
    "8 x 512 x 31": (8, 512, 31, False),
    "32 x 128 x 9, lengths 1 to 128": (32, 128, 9, True),
    "8 x 512 x 31, lengths 1 to 512": (8, 512, 31, True),
}
WORKS = ("loss + gradient", "Viterbi")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How long to measure.

    Attributes:
        rounds: interleaved rounds.
        seconds: of each side in each round.
        name: results/NAME.md.
    """

    rounds: int = 7
    seconds: float = 0.3
    name: str = "crf"


@dataclass(frozen=True)
class Inputs:
    """The same batch, laid end to end and padded with time steps first.

    Attributes:
        emissions: [M, C].
        tags: [M].
        counts: [B].
        padded: [S, B, C].
        padded_tags: [S, B].
        mask: [S, B] bool.
    """

    emissions: Tensor
    tags: Tensor
    counts: Tensor
    padded: Tensor
    padded_tags: Tensor
    mask: Tensor

    @classmethod
    def drawn(cls, size: int, longest: int, c: int, ragged: bool) -> Inputs:
        """Random emissions and tags."""
        counts = torch.full((size,), longest)
        if ragged:
            counts = torch.randint(1, longest + 1, (size,)).index_fill(0, torch.tensor(0), longest)
        emissions = 3 * torch.randn(int(counts.sum()), c)
        tags = torch.randint(c, (len(emissions),))
        padded, padded_tags, mask = (
            torch.nn.utils.rnn.pad_sequence(list(x.split(counts.tolist())))
            for x in (emissions, tags, torch.ones(len(tags), dtype=torch.bool))
        )
        emissions.requires_grad_()
        padded.requires_grad_()
        return cls(emissions, tags, counts, padded, padded_tags, mask)

    def double(self) -> Inputs:
        """The same in 64 bits."""
        emissions, padded = (
            x.detach().double().requires_grad_() for x in (self.emissions, self.padded)
        )
        return replace(self, emissions=emissions, padded=padded)


def our_loss(crf: Crf, inputs: Inputs) -> Tensor:
    """The mean negative log-likelihood, its gradient left in place."""
    crf.zero_grad()
    inputs.emissions.grad = None
    loss = -crf.log_likelihood(inputs.emissions, inputs.tags, inputs.counts).mean()
    loss.backward()
    return loss.detach()


def peer_loss(crf: Any, inputs: Inputs) -> Tensor:
    """The same by pytorch-crf."""
    crf.zero_grad()
    inputs.padded.grad = None
    loss: Tensor = -crf(inputs.padded, inputs.padded_tags, inputs.mask, reduction="mean")
    loss.backward()
    return loss.detach()


def check(ours: Crf, peer: Any, inputs: Inputs) -> None:
    """Loss, gradients and best tags are the same, in 64 bits."""
    ours, peer, inputs = copy.deepcopy(ours).double(), copy.deepcopy(peer).double(), inputs.double()
    torch.testing.assert_close(our_loss(ours, inputs), peer_loss(peer, inputs))
    wanted = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad)
    assert inputs.emissions.grad is not None
    assert inputs.padded.grad is not None
    padded = torch.nn.utils.rnn.pad_sequence(
        list(inputs.emissions.grad.split(inputs.counts.tolist()))
    )
    torch.testing.assert_close(padded, inputs.padded.grad)
    best = ours.decode(inputs.emissions, inputs.counts).split(inputs.counts.tolist())
    assert [tags.tolist() for tags in best] == peer.decode(inputs.padded, inputs.mask)


def milliseconds(work: Callable[[], object], threads: int, seconds: float) -> float:
    """The mean time of a call, over so many seconds after one call that does not count."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        work()
        calls, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            work()
            calls += 1
        return 1e3 * spent / calls
    finally:
        torch.set_num_threads(before)


def measure(case: str, options: Options) -> tuple[list[list[str]], dict[str, Any]]:
    """The rows of one case, and the raw figures."""
    size, longest, c, ragged = CASES[case]
    torch.manual_seed(0)
    peer = Peer(c)
    free, names = Crf(c), ["O", *(f"{p}-{i}" for i in range(c // 2) for p in "BI")]
    free.load_state_dict(peer.state_dict())
    legal = Crf.of_labels(names)
    inputs = Inputs.drawn(size, longest, c, ragged)
    check(free, peer, inputs)
    threads = torch.get_num_threads()
    best = legal.decode(inputs.emissions, inputs.counts)
    legal_inputs = replace(inputs, tags=best)
    works: dict[str, dict[str, tuple[Callable[[], object], int]]] = {
        "loss + gradient": {
            "bertkit": (partial(our_loss, free, inputs), threads),
            "bertkit, BIO": (partial(our_loss, legal, legal_inputs), threads),
            "pytorch-crf": (partial(peer_loss, peer, inputs), threads),
            "pytorch-crf, one thread": (partial(peer_loss, peer, inputs), 1),
        },
        "Viterbi": {
            "bertkit": (partial(free.decode, inputs.emissions, inputs.counts), threads),
            "bertkit, BIO": (partial(legal.decode, inputs.emissions, inputs.counts), threads),
            "pytorch-crf": (partial(peer.decode, inputs.padded, inputs.mask), threads),
            "pytorch-crf, one thread": (partial(peer.decode, inputs.padded, inputs.mask), 1),
        },
    }
    rows, figures = [], {}
    for name in WORKS:
        report.say(f"{case}, {name}")
        sides = {
            side: partial(milliseconds, work, count, options.seconds)
            for side, (work, count) in works[name].items()
        }
        found = report.interleave(sides, options.rounds)
        rows.append(row_of(case, name, found))
        figures[f"{case}, {name}"] = found
    return rows, figures


def row_of(case: str, work: str, found: dict[str, list[float]]) -> list[str]:
    """A table line: times, and the ratio to the faster of the peer's two."""
    spreads = {side: report.Spread.of(values) for side, values in found.items()}
    best = min(("pytorch-crf", "pytorch-crf, one thread"), key=lambda side: spreads[side].median)
    cells = [spread.text(2) for spread in spreads.values()]
    return [case, work, *cells, report.ratios(found[best], found["bertkit"]).text(1)]


DEFAULTS = Options()
app = cyclopts.App(default_parameter=report.FLAGS)


@app.default
def main(options: Annotated[Options, cyclopts.Parameter(name="*")] = DEFAULTS) -> None:
    """Measure every case in interleaved rounds, and write the table."""
    header = [
        "sequences x words x tags",
        "work",
        "bertkit ms",
        "bertkit with the constraints of BIO",
    ]
    header += ["pytorch-crf ms", "the same, one thread", "bertkit is faster by"]
    rows: list[list[str]] = []
    figures: dict[str, object] = {}
    for case in CASES:
        lines, figures[case] = measure(case, options)
        rows += lines
    sections = [
        f"Milliseconds a batch, {options.rounds} rounds of {options.seconds} s a side, median "
        f"(min-max), fp32 emissions, pytorch-crf {version('pytorch-crf')}. The last column is the "
        "ratio of the faster of pytorch-crf's two to bertkit without constraints, round by round. "
        "Loss, gradients and best tags of both were compared, in 64 bits, and are equal.",
        report.table(header, rows),
    ]
    report.publish(options.name, "CRF", sections, figures, report.describe_machine())


if __name__ == "__main__":
    app()
