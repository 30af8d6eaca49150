"""The figures of all runs of the fine-tuning benchmark, and the tables made of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.finetune_tasks import CRF, SPECS, TaskSpec

SIDES = ("ours", "peer")
Record = dict[str, Any]


class Kept:
    """The figures of all runs, in a JSON file beside the table.

    A run replaces the same one of before; runs of a task with other settings are forgotten.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        if path.is_file():
            self.records = json.loads(path.read_text(encoding="utf-8"))["runs"]

    def add(self, record: Record) -> None:
        """Keep one run."""

        def stays(other: Record) -> bool:
            if any(other[key] != record[key] for key in ("model", "task")):
                return True
            same = all(other[key] == record[key] for key in ("side", "seed"))
            return bool(other["settings"] == record["settings"]) and not same

        self.records = [*filter(stays, self.records), record]
        self.path.parent.mkdir(exist_ok=True)
        text = json.dumps({"runs": self.records}, ensure_ascii=False, indent=1)
        self.path.write_text(text + "\n", encoding="utf-8")

    def of(self, model: str, task: str, side: str) -> list[Record]:
        """The runs of one side of a line, by seed."""
        keys = {"model": model, "task": task, "side": side}
        found = [r for r in self.records if all(r[k] == v for k, v in keys.items())]
        return sorted(found, key=lambda record: record["seed"])

    def lines(self) -> list[tuple[str, str]]:
        """(model, task) of all runs, in the order of the tasks."""
        found = {(r["model"], r["task"]) for r in self.records}
        return sorted(found, key=lambda line: (list(SPECS).index(line[1]), line[0]))


def errors_of(peer: Sequence[Record]) -> list[float]:
    """The standard errors that the scored rows leave, as the peer's runs have them."""
    return [float(r["error"]) for r in peer]


def noise_of(
    spec: TaskSpec, ours: Sequence[Record], other: Sequence[Record], errors: Sequence[float]
) -> float:
    """How far two means may lie apart by chance, in the metric's own unit.

    With several seeds a side: the half-width of the 95% interval of the difference of two means
    (Student's t, pooled deviation). With one: twice the standard error of a difference of two
    scores, each as uncertain as the rows that were scored make it.
    """
    from scipy.stats import t

    metric = spec.metrics[0]
    sides = [[float(r["figures"][metric]) for r in side] for side in (ours, other)]
    freedom = sum(len(values) - 1 for values in sides)
    if min(map(len, sides)) > 1:
        squares = sum(statistics.variance(values) * (len(values) - 1) for values in sides)
        spread = math.sqrt(squares / freedom * sum(1 / len(values) for values in sides))
        return float(t.ppf(0.975, freedom)) * spread
    return 2 * math.sqrt(2) * max(errors, default=math.nan)


def quality_row(kept: Kept, model: str, task: str) -> list[str]:
    """One line of the table."""
    spec = SPECS[task]
    ours, peer = (kept.of(model, task, side) for side in SIDES)
    any_run = (ours or peer)[0]
    settings = any_run["settings"]
    cells = [
        task,
        model,
        f"{settings['train_records']:,} / {settings['dev_records']:,}",
        f"{settings['learning_rate']:g}, {settings['batch_size']}, {settings['epochs']:g}",
        spec.metrics[0],
        *(shown(spec, runs, spec.metrics[0]) for runs in (ours, peer)),
    ]
    if ours and peer:
        apart = difference(spec, ours, peer) * spec.scale
        noise = noise_of(spec, ours, peer, errors_of(peer)) * spec.scale
        cells += [f"{apart:+.2f}", f"{noise:.2f}", "yes" if apart >= -noise else "**no**"]
    else:
        cells += ["-", "-", "-"]
    others = [f"{name} {shown(spec, ours, name)} / {shown(spec, peer, name)}"
              for name in spec.metrics[1:]]  # fmt: skip
    seconds = " / ".join(minutes(runs) for runs in (ours, peer))
    dates = sorted({r["date"] for r in (*ours, *peer)})
    return [*cells, "; ".join(others) or "-", seconds, dates[-1]]


def difference(spec: TaskSpec, ours: Sequence[Record], peer: Sequence[Record]) -> float:
    """The difference of the means of the first metric."""
    metric = spec.metrics[0]
    means = [statistics.mean(float(r["figures"][metric]) for r in side) for side in (ours, peer)]
    return means[0] - means[1]


def shown(spec: TaskSpec, runs: Sequence[Record], metric: str) -> str:
    """Mean, deviation and number of runs, in percent."""
    values = [r["figures"][metric] * spec.scale for r in runs]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread} ({len(values)})"


def minutes(runs: Sequence[Record]) -> str:
    """The median training time."""
    return f"{statistics.median(r['seconds'] for r in runs) / 60:.1f}" if runs else "-"


def crf_rows(kept: Kept) -> list[list[str]]:
    """Ours with a CRF against ours without."""
    rows = []
    for model, task in kept.lines():
        if not task.endswith(CRF):
            continue
        spec = SPECS[task]
        field_runs, softmax = (
            kept.of(model, name, "ours") for name in (task, task.removesuffix(CRF))
        )
        if field_runs and softmax:
            errors = errors_of(kept.of(model, task, "peer"))
            noise = noise_of(spec, field_runs, softmax, errors) * spec.scale
            apart = difference(spec, field_runs, softmax) * spec.scale
            cells = [shown(spec, runs, spec.metrics[0]) for runs in (field_runs, softmax)]
            good = "yes" if apart >= -noise else "**no**"
            rows.append([spec.folder, model, *cells, f"{apart:+.2f}", f"{noise:.2f}", good])
    return rows


def write_tables(name: str, kept: Kept, machine: report.Machine) -> None:
    """The tables, from all runs that are kept."""
    lines = kept.lines()
    intro = (
        "Fine-tuned from the same weights on the same cut files, scored with the last weights by "
        "the same meters. Both: fused AdamW, weight decay 0.01, 10% warm-up, linear decay, "
        "clipping at 1, dropout 0.1, the same longest sequence; a CRF learns 100 times as fast as "
        "the encoder. Peer: transformers' Trainer, batches grouped by length and padded to their "
        "longest row; with a CRF pytorch-crf on its emissions. Training sets are cut for runs of "
        "a few minutes on two cores: scores are for comparing the sides, no records. In percent, "
        "mean ± deviation (runs). Noise: half the 95% interval of the difference of means (t, "
        "pooled deviation of the seeds); with one seed twice the standard error that the scored "
        "rows allow. Within: ours is not below the peer by more than that. Minutes: training."
    )
    header = ["task", "model", "train / scored", "rate, batch, epochs", "metric", "ours", "peer",
              "difference", "noise", "within", "other (ours / peer)", "minutes (ours / peer)",
              "date"]  # fmt: skip
    sections = [intro, report.table(header, [quality_row(kept, *line) for line in lines])]
    if against := crf_rows(kept):
        header = ["task", "model", "CRF", "softmax", "difference", "noise", "not below"]
        sections += ["Ours with a CRF and with softmax:", report.table(header, against)]
    notes = [f"- {task}: {SPECS[task].note}" for _, task in lines if SPECS[task].note]
    if notes:
        sections += ["\n".join(dict.fromkeys(notes))]
    if machines := sorted({r["machine"] for r in kept.records} - {machine.sentence()}):
        sections += ["Some runs elsewhere. " + " ".join(machines)]
    figures: dict[str, object] = {
        f"{task}, {model}": {
            side: [r["figures"][SPECS[task].metrics[0]] for r in kept.of(model, task, side)]
            for side in SIDES
        }
        for model, task in lines
    }
    report.publish(name, "Fine-tuning: scores against transformers", sections, figures, machine)
