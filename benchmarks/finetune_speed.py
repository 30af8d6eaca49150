"""Training examples a second on real mixed lengths: ours and transformers' Trainer at its best.

Every measurement is a whole run of two epochs, of which the second is timed: what is slow only once
(memory, kernels, compiling) is over by then. Each side takes the batch size that is fastest for it,
the peer also compiled where asked. Both have the same files, precision, dropout and optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import finetune_encode, finetune_ours, finetune_peer, peers, report
from benchmarks.finetune_tasks import Job
from bertkit.runtime import pick_dtype
from bertkit.tasks.formats import open_rows

EPOCHS = 2
OURS = "bertkit"


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """How to measure; the fields are those of the command's options."""

    work: Path
    rounds: int
    batches: Sequence[int]
    size: str = ""
    compile: bool = False
    workers: int = 0
    device: str = "cpu"
    precision: str = "auto"

    @property
    def dtype(self) -> torch.dtype:
        """Of both sides."""
        return pick_dtype(torch.device(self.device), self.precision)


@dataclass(frozen=True, slots=True)
class Speeds:
    """One task: examples/s by side, best batch by side, percentiles of lengths, examples."""

    job: Job
    rates: dict[str, list[float]]
    batches: dict[str, int]
    lengths: tuple[int, int, int]
    examples: int


def fresh_model(folder: Path, size: str, like: Path) -> Path:
    """A model folder of a named size with random weights and the tokenizer of another."""
    tokenizer = peers.load_tokenizer(like)
    config = peers.peer_config(size, len(tokenizer), dropout=0.1)
    torch.manual_seed(0)
    peers.transformers().BertModel(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def our_rate(job: Job, settings: SpeedSettings, batch: int) -> float:
    """Examples a second of the second epoch, by the run's own log."""
    recipe = finetune_ours.recipe_of(job.spec, 0, settings.precision)
    recipe.train.epochs, recipe.train.batch_size = EPOCHS, batch
    recipe.log.every_steps = 1
    out = settings.work / "runs" / f"{job.spec.name}-speed"
    run = finetune_ours.train(
        job.spec, job.model, job.files, out, recipe, settings.device, scored=False
    )
    steps = [line for line in run.log if line["event"] == "train"]
    begin, end = steps[len(steps) // EPOCHS - 1], steps[-1]
    return float((end["examples"] - begin["examples"]) / (end["seconds"] - begin["seconds"]))


def peer_rate(
    job: Job, encoded: finetune_encode.Encoded, labels: Sequence[str], pad: int,
    settings: SpeedSettings, batch: int, compiled: bool,
) -> float:  # fmt: skip
    """Examples a second of the Trainer's second epoch."""
    model = finetune_peer.open_model(job.spec, str(job.model), labels, 0)
    clock = finetune_peer.train(
        model,
        encoded.inputs,
        pad,
        finetune_peer.PeerSettings(
            batch_size=batch,
            learning_rate=job.spec.learning_rate,
            epochs=EPOCHS,
            device=settings.device,
            bf16=settings.dtype == torch.bfloat16,
            compile=compiled,
            workers=settings.workers,
        ),
    )
    return len(encoded.inputs) / clock.epochs[-1]


def best_batch(name: str, rate: Callable[[int], float], sizes: Sequence[int]) -> int:
    """The batch size at which a side is fastest; sizes that do not fit in memory lose."""
    rates: dict[int, float] = {}
    for size in sizes:
        try:
            rates[size] = rate(size)
            report.say(f"{name}: batch {size}: {rates[size]:,.1f} examples/s")
        except torch.OutOfMemoryError:
            report.say(f"{name}: batch {size} does not fit")
            torch.cuda.empty_cache()
    return max(rates, key=lambda size: rates[size])


def measure_task(job: Job, settings: SpeedSettings) -> Speeds:
    """Find each side's best batch size, then run the sides in turn."""
    rows = list(open_rows(job.files.train, job.spec.task).rows())
    labels = finetune_encode.learn_labels(job.spec.task, rows)
    tokenizer = peers.load_tokenizer(job.model)
    encoded = finetune_encode.encode(job.spec, tokenizer, rows, labels)
    of_peer = partial(peer_rate, job, encoded, labels, tokenizer.pad_token_id, settings)
    sides: dict[str, Callable[[int], float]] = {
        "transformers": partial(of_peer, compiled=False),
        OURS: partial(our_rate, job, settings),
    }
    if settings.compile:
        sides["transformers, compiled"] = partial(of_peer, compiled=True)
    batches = {name: best_batch(name, rate, settings.batches) for name, rate in sides.items()}
    runs = {name: partial(rate, batches[name]) for name, rate in sides.items()}
    rates = report.interleave(runs, settings.rounds)
    lengths = np.percentile([len(e["input_ids"]) for e in encoded.inputs], [5, 50, 95])
    low, middle, high = lengths.astype(int).tolist()
    return Speeds(job, rates, batches, (low, middle, high), len(encoded.inputs))


def rows_of(speeds: Speeds) -> list[list[str]]:
    """The lines of the table for one task."""
    low, middle, high = speeds.lengths
    rows = []
    for name, values in speeds.rates.items():
        ratio = "-" if name == OURS else report.ratios(speeds.rates[OURS], values).text(2)
        rows.append(
            [
                speeds.job.spec.name,
                f"{speeds.examples:,}",
                f"{middle} ({low}-{high})",
                name,
                str(speeds.batches[name]),
                report.Spread.of(values).text(1),
                ratio,
            ]
        )
    return rows


def measure(jobs: Sequence[Job], settings: SpeedSettings, name: str) -> None:
    """The table and the JSON line."""
    if settings.size:
        folder = settings.work / f"fresh-{settings.size}"
        fresh = fresh_model(folder, settings.size, jobs[0].model)
        jobs = [Job(j.spec, j.files, f"BERT-{settings.size}, fresh", fresh) for j in jobs]
    found = []
    for job in jobs:
        report.say(f"-- {job.spec.name}")
        found.append(measure_task(job, settings))
    precision = "bf16 autocast" if settings.dtype == torch.bfloat16 else "fp32"
    models = ", ".join(dict.fromkeys(job.model_name for job in jobs))
    intro = (
        f"{models}; {precision}, dropout 0.1, fused AdamW, clipping at 1, both sides. Runs of two "
        "epochs, the second timed; tokenizing, saving and scoring are not. Peer: transformers' "
        "Trainer, batches grouped by length and padded to their longest row"
        + (f", {settings.workers} processes that lay out batches" if settings.workers else "")
        + f". Each side at its fastest batch size of {', '.join(map(str, settings.batches))}; "
        f"{settings.rounds} interleaved rounds, median (min-max). Lengths in tokens: median "
        "(5%-95%)."
    )
    header = ["task", "examples", "lengths", "side", "batch", "examples/s", "ours against it"]
    body = [row for speeds in found for row in rows_of(speeds)]
    figures: dict[str, object] = {
        "precision": precision,
        "tasks": {
            s.job.spec.name: {
                "model": s.job.model_name,
                "rates": s.rates,
                "batches": s.batches,
                "lengths": s.lengths,
                "examples": s.examples,
            }
            for s in found
        },
    }
    size = f"_{settings.size}" if settings.size else ""
    name = name or f"finetune_speed{size}_{settings.device.partition(':')[0]}"
    machine = report.describe_machine(settings.device)
    title = "Fine-tuning: examples a second against transformers' Trainer"
    report.publish(name, title, [intro, report.table(header, body)], figures, machine)
