"""One pretraining step (masked LM + next sentence): real tokens a second, ours and transformers'.

    python -m benchmarks.bench_step --size mini --vocab VOCAB.txt --corpus TRAIN.txt.gz
    python -m benchmarks.bench_step --size base --rows 64 --batches 8 16 32 ...
    python -m benchmarks.bench_step --size base --device cuda --rows 4096 --batches 64 128 256 ...

Both sides train on the same examples with the same masks, ready-made as tensors; both take the
same fused AdamW, precision and dropout, zero_grad(set_to_none) and no clipping. A round is one pass
over all examples, so the token counts are equal. Each side runs at the batch size (rows of the full
length for ours, rows for the peer) at which it is fastest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs as a plain script

from benchmarks import ours, peers, report
from benchmarks.examples import (
    Documents,
    Example,
    Kind,
    Vocabulary,
    make_examples,
    random_documents,
    read_corpus,
    real_tokens,
)
from bertkit.runtime import Runtime, has_compiler, pick_dtype, start
from bertkit.settings import SIZES

KIND_TEXT = {
    "full": "(a) rows of exactly {length} tokens",
    "pairs": "(b) single-sentence pairs",
    "long": "(c) BERT's long segments",
}
H100_PEAK = 989e12  # dense bf16, H100 and H200 SXM data sheet


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    Attributes:
        vocab: a vocab.txt; None makes random text (quick checks only).
        corpus: plain text, blank lines between documents.
        documents: how many of them to read.
        size: mini, base, ...
        length: the longest row.
        kinds: full, pairs, long.
        rows: examples of one round.
        batches: batch sizes that both sides try, in rows.
        compiled_batches: sizes tried compiled; none: the best eager one and twice that.
        rounds: interleaved rounds.
        dropout: of both sides; transformers' default is 0.1.
        device: cpu or cuda.
        precision: auto is bf16 where the hardware has it, else fp32.
        threads: torch threads; 0 leaves torch's choice.
        compile: measure compiled peers too and compile ours.
        name: results/NAME.md.
    """

    vocab: Path | None = None
    corpus: Path | None = None
    documents: int = 400
    size: str = "mini"
    length: int = 128
    kinds: list[Kind] = field(default_factory=lambda: ["full", "pairs", "long"])
    rows: int = 256
    batches: list[int] = field(default_factory=lambda: [8, 16, 32, 64])
    compiled_batches: list[int] = field(default_factory=list)
    rounds: int = 5
    dropout: float = 0.1
    device: str = "cpu"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    threads: int = 0
    compile: bool = True
    name: str = ""


DEFAULTS = Options()


@dataclass(slots=True)
class Side:
    """A model with its optimizer; how batches are made for it; how gradients are.

    `around` is the state of torch that a side trains in: ours uses deterministic algorithms on a
    CPU, as `bertkit pretrain` does, and pays for them; the peer is not held to that.
    """

    name: str
    parameters: list[torch.nn.Parameter]
    backward: Callable[[Any], object]
    make_batches: Callable[[Sequence[Example], int], list[Any]]
    machine: Runtime
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)

    def step(self, batch: Any) -> None:
        """One optimizer step; the same code for both sides."""
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(batch)
        self.optimizer.step()

    def rate(self, batches: Sequence[Any], tokens: int) -> float:
        """Real tokens a second of one pass over `batches`."""
        device = self.machine.device.type
        with self.around():
            report.synchronize(device)
            begin = time.perf_counter()
            for batch in batches:
                self.step(batch)
            report.synchronize(device)
            return tokens / (time.perf_counter() - begin)


def machine_of(options: Options) -> Runtime:
    """Device and precision of both sides: bf16 where the hardware multiplies it, else fp32."""
    device = torch.device(options.device)
    dtype = pick_dtype(device, options.precision)
    return Runtime(device, dtype, rank=0, world=1, threads=torch.get_num_threads())


def peer_side(options: Options, vocabulary: Vocabulary, kind: Kind, compile_it: bool) -> Side:
    """The peer, BertForPreTraining of transformers, eager or compiled."""
    config = peers.peer_config(options.size, vocabulary.size, options.dropout, options.length)
    model = peers.peer_model("pretraining", config, options.device)
    forward = peers.compiled(model, ragged=kind != "full") if compile_it else model

    def make_batches(examples: Sequence[Example], rows: int) -> list[Any]:
        starts = range(0, len(examples), rows)
        return [
            peers.pad_batch(examples[i : i + rows], vocabulary.pad, options.device) for i in starts
        ]

    machine = machine_of(options)

    def backward(batch: Any) -> None:
        with machine.autocast():
            loss = forward(**batch).loss
        loss.backward()

    return Side(
        name="transformers, compiled" if compile_it else "transformers, eager",
        parameters=list(model.parameters()),
        backward=backward,
        make_batches=make_batches,
        machine=machine,
    )


def our_side(options: Options, vocabulary: Vocabulary, compile_it: bool) -> Side:
    """BertForPreTraining of bertkit on ragged batches of rows * length tokens.

    Where so large a step has several replicas, a batch has a part for each.
    """
    model = ours.our_model(options.size, vocabulary.size, options.dropout, options.length)
    model.to(options.device)
    machine = machine_of(options)

    def replicated(rows: int) -> Runtime:
        tokens = rows * options.length
        return ours.our_machine(machine, options.size, tokens, compile_it)

    most = replicated(max(options.batches))

    def make_batches(examples: Sequence[Example], rows: int) -> list[Any]:
        many = replicated(rows).replicas
        groups = ours.token_batches(examples, rows * options.length)
        return [ours.dealt(group, many, machine.device) for group in groups]

    return Side(
        name="bertkit, compiled" if compile_it else "bertkit, eager",
        parameters=list(model.parameters()),
        backward=ours.our_backward(model, most, compile_it),
        make_batches=make_batches,
        machine=machine,
        around=partial(start, options.device, options.precision),
    )


def best_batch(side: Side, examples: Sequence[Example], sizes: Sequence[int]) -> int:
    """The batch size at which a side is fastest; sizes that do not fit in memory lose."""
    rates: dict[int, float] = {}
    share = examples[: 2 * max(sizes)]
    for size in sizes:
        batches = side.make_batches(share, size)
        try:
            # Compiled code must see every shape first; eager code only allocates.
            side.rate(batches if "compiled" in side.name else batches[:2], 0)
            # The better of two: one alone has picked a batch 5% too slow on a shared machine.
            rates[size] = max(side.rate(batches, real_tokens(share)) for _ in range(2))
            report.say(f"{side.name}: batch {size}: {rates[size]:,.0f} tokens/s")
        except torch.OutOfMemoryError:
            report.say(f"{side.name}: batch {size} does not fit")
            torch.cuda.empty_cache()
    return max(rates, key=lambda size: rates[size])


def flops_a_token(size: str, vocab_size: int, examples: Sequence[Example]) -> float:
    """Forward and backward work of a real token: 6 P + 12 L D S + 6 p (V D + D^2).

    P counts the encoder's matrices, S is the mean length that a token sees in its own sequence, p
    the share of masked tokens: what the task needs, whatever else a side computes.
    """
    layers, hidden, _ = SIZES[size]
    lengths = np.array([len(example.ids) for example in examples], np.float64)
    masked = sum(int((example.labels >= 0).sum()) for example in examples) / lengths.sum()
    seen = (lengths**2).sum() / lengths.sum()
    matrices = layers * 12 * hidden**2
    head = vocab_size * hidden + hidden**2
    return float(6 * matrices + 12 * layers * hidden * seen + 6 * masked * head)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures of one kind of rows: tokens/s by side, best batch by side, work a token, fill."""

    kind: Kind
    rates: dict[str, list[float]]
    batches: dict[str, int]
    flops: float
    fill: float

    @property
    def ours(self) -> str:
        """Our faster side, eager or compiled."""
        names = [name for name in self.rates if name.startswith("bertkit")]
        return max(names, key=lambda name: report.Spread.of(self.rates[name]).median)


def sizes_to_try(options: Options, side: str, eager_best: int) -> list[int]:
    """All sizes for an eager side; around the eager best for a compiled one.

    Compiling takes a minute a shape on a CPU; bigger batches than eager's best are what compiled
    code profits from, because it keeps fewer intermediate tensors.
    """
    if "compiled" not in side:
        return options.batches
    return options.compiled_batches or sorted({eager_best, min(2 * eager_best, options.rows)})


def make_sides(options: Options, vocabulary: Vocabulary, kind: Kind) -> list[Side]:
    """The peer and ours, eager and, where asked and possible, compiled."""
    modes = [False, True] if options.compile else [False]
    peers_sides = [peer_side(options, vocabulary, kind, mode) for mode in modes]
    return peers_sides + [our_side(options, vocabulary, mode) for mode in modes]


def measure(options: Options, vocabulary: Vocabulary, documents: Documents, kind: Kind) -> Outcome:
    """Find each side's best batch size, then run the sides in turn."""
    examples = make_examples(documents, kind, vocabulary, options.length, options.rows)
    tokens = real_tokens(examples)
    sides = make_sides(options, vocabulary, kind)
    chosen: dict[str, int] = {}
    runs: dict[str, Callable[[], float]] = {}
    eager_best = options.batches[0]
    for side in sides:
        best = best_batch(side, examples, sizes_to_try(options, side.name, eager_best))
        eager_best = best if "eager" in side.name else eager_best
        batches = side.make_batches(examples, best)
        side.rate(batches, tokens)  # every shape once: nothing compiles while the clock runs
        chosen[side.name] = best
        runs[side.name] = partial(side.rate, batches, tokens)
    rates = report.interleave(runs, options.rounds)
    flops = flops_a_token(options.size, vocabulary.size, examples)
    return Outcome(kind, rates, chosen, flops, tokens / (len(examples) * options.length))


def outcome_rows(outcome: Outcome, options: Options, peak: float) -> list[list[str]]:
    """Table rows of one kind, a side each."""
    fastest = outcome.ours
    rows = []
    for name, values in outcome.rates.items():
        spread = report.Spread.of(values)
        share = f"{spread.median * outcome.flops / peak:.0%}"
        if options.device.startswith("cuda"):
            share += f" / {spread.median * outcome.flops / H100_PEAK:.0%}"
        ratio = report.ratios(outcome.rates[fastest], values)
        rows.append(
            [
                KIND_TEXT[outcome.kind].format(length=options.length),
                f"{outcome.fill:.0%}",
                name,
                str(outcome.batches[name]),
                spread.text(),
                share,
                "-" if name.startswith("bertkit") else ratio.text(2),
            ]
        )
    return rows


def write_results(
    options: Options, outcomes: Sequence[Outcome], dtype: torch.dtype, peak: float
) -> None:
    """The table and the JSON line."""
    machine = report.describe_machine(options.device)
    precision = "bf16 autocast" if dtype == torch.bfloat16 else "fp32"
    intro = (
        f"BERT-{options.size}, {precision}, dropout {options.dropout}, fused AdamW, both sides; "
        f"{options.rows} examples a round, {options.rounds} interleaved rounds; median (min-max). "
        f"Matrix peak measured here: {peak / 1e9:,.0f} GFLOP/s {precision.split()[0]}. "
        "Share of peak counts only the work the task needs (real tokens, masked logits)"
        + ("; the second share is of 989 TFLOP/s." if options.device.startswith("cuda") else ".")
    )
    header = ["rows", "fill", "side", "batch", "real tokens/s", "share of peak", "ours against it"]
    body = [row for outcome in outcomes for row in outcome_rows(outcome, options, peak)]
    figures: dict[str, object] = {
        "peak_flops": peak,
        "precision": precision,
        "outcomes": [
            {
                "kind": outcome.kind,
                "rates": outcome.rates,
                "batches": outcome.batches,
                "flops_a_token": outcome.flops,
                "fill": outcome.fill,
            }
            for outcome in outcomes
        ],
    }
    name = options.name or f"step_{options.size}_{options.length}_{options.device}"
    title = f"Pretraining step, BERT-{options.size}, {options.length} tokens"
    report.publish(name, title, [intro, report.table(header, body)], figures, machine)


app = cyclopts.App(default_parameter=report.FLAGS)


@app.default
def main(options: Annotated[Options, cyclopts.Parameter(name="*")] = DEFAULTS) -> None:
    """Measure the pretraining step of bertkit and of transformers."""
    if options.threads:
        torch.set_num_threads(options.threads)
    # TF32 where a GPU is asked for fp32: the peer's documentation advises it too.
    torch.set_float32_matmul_precision("high")
    if options.compile and not has_compiler(torch.device(options.device)):
        raise SystemExit("torch.compile needs a C++ compiler or Triton; else say --no_compile")
    torch._dynamo.config.recompile_limit = 64
    machine = machine_of(options)
    # Before and after, the better of the two: a neighbour's load must not flatter the shares.
    peak = report.matrix_peak(machine.dtype, options.device)
    vocabulary, documents = load_text(options)
    outcomes = []
    for kind in options.kinds:
        report.say(f"-- {KIND_TEXT[kind].format(length=options.length)}")
        torch._dynamo.reset()
        outcomes.append(measure(options, vocabulary, documents, kind))
    peak = max(peak, report.matrix_peak(machine.dtype, options.device))
    write_results(options, outcomes, machine.dtype, peak)


def load_text(options: Options) -> tuple[Vocabulary, Documents]:
    """The vocabulary and the tokenised corpus; random text where none is named."""
    if options.vocab is None:
        vocabulary = Vocabulary(size=30522, pad=0, cls=101, sep=102, mask=103)
        return vocabulary, random_documents(vocabulary, options.documents)
    vocabulary = Vocabulary.of_file(options.vocab)
    if options.corpus is None:
        return vocabulary, random_documents(vocabulary, options.documents)
    return vocabulary, read_corpus(
        options.corpus, peers.vocab_tokenizer(options.vocab), options.documents
    )


if __name__ == "__main__":
    app()
