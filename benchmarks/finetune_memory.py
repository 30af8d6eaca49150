"""Peak memory in evaluation as the file grows, each in a process of its own.

A dev file is written into itself 1, 4, 16 times; the model is fine-tuned for a few steps, which is
all the same to memory. `bertkit evaluate` reads, predicts and scores the file; peak memory is that
of its process tree. Run as a program, this module is the stream of rows below that verb.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs as a plain script

from benchmarks import bench_prepare, report
from benchmarks.finetune_tasks import Job, TaskSpec, read_records, write_records

# Rows of the first file: more than are read ahead at once, so that what grows later is growth.
ROWS = {"stsb": 1500, "wikiann_en": 1500, "squad_v1": 700}
STEPS = 2
STREAM = "stream"


def grown(spec: TaskSpec, path: Path, times: int, folder: Path) -> tuple[Path, int]:
    """The file written into itself so many times, ids made unique, and its number of records."""
    header, records = read_records(path, spec.form)
    many = [_renamed(spec, record, turn) for turn in range(times) for record in records]
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{spec.folder}-x{times}{path.suffix}"
    write_records(out, spec.form, header, many)
    return out, len(many)


def _renamed(spec: TaskSpec, record: Any, turn: int) -> Any:
    """A question with an id, and a passage, of its own: files do not repeat their passages."""
    if spec.form != "squad":
        return record
    context, question = record
    return f"{context} {turn}", {**question, "id": f"{question['id']}-{turn}"}


def fine_tuned(job: Job, work: Path) -> Path:
    """A model folder for the task."""
    from benchmarks import finetune_ours
    from bertkit.train.finetune import finetune

    recipe = finetune_ours.recipe_of(job.spec, 0, "auto")
    recipe.train.epochs, recipe.train.steps = None, STEPS
    out = work / "runs" / f"{job.spec.name}-memory"
    finetune(
        job.spec.task, job.model, job.files.train, None, None, out, recipe,
        overwrite=True, quiet=True,
    )  # fmt: skip
    return out


def command_of(via: str, run: Path, path: Path, out: Path) -> list[str]:
    """The command whose memory is watched."""
    if via == STREAM:
        return [sys.executable, str(Path(__file__).resolve()), str(run.resolve()), str(path)]
    verb = [sys.executable, "-m", "bertkit", "evaluate", str(run.resolve()), str(path)]
    return [*verb, "--out", str(out), "--overwrite", "--quiet", "--json"]


def measure(jobs: Sequence[Job], work: Path, growth: Sequence[int], via: str, name: str) -> None:
    """The table and the JSON line."""
    body: list[list[str]] = []
    figures: dict[str, object] = {}
    for job in jobs:
        run = fine_tuned(job, work)
        peaks: list[int] = []
        for times in growth:
            path, records = grown(job.spec, job.files.dev, times, work / "grown")
            command = command_of(via, run, path.resolve(), (work / "evaluated").resolve())
            _, seen = bench_prepare.watch(command)
            peaks.append(seen.peak_bytes)
            body.append(
                [
                    job.spec.name,
                    f"x{times}",
                    f"{records:,}",
                    f"{path.stat().st_size / 1e6:.1f}",
                    f"{seen.seconds:.0f}",
                    f"{seen.peak_bytes / 1e6:,.0f}",
                    f"{seen.peak_bytes / peaks[0]:.2f}",
                ]
            )
            report.say(" | ".join(body[-1]))
            path.unlink()
        shutil.rmtree(run)
        figures[job.spec.name] = {"growth": list(growth), "peak_bytes": peaks}
    what = "the stream of rows" if via == STREAM else "`bertkit evaluate`"
    models = ", ".join(dict.fromkeys(job.model_name for job in jobs))
    intro = (
        f"{models}. Peak memory of {what} (process tree, shared pages once), each in a process of "
        "its own, on a dev file written into itself so many times."
    )
    header = ["task", "file", "rows", "MB", "seconds", "peak MB", "against the first"]
    machine = report.describe_machine()
    title = "Evaluation: peak memory as the file grows"
    report.publish(name, title, [intro, report.table(header, body)], figures, machine)


def stream(run: str, path: str) -> dict[str, Any]:
    """Predict and score a file row by row."""
    from bertkit.checkpoint.config import BertConfig
    from bertkit.checkpoint.files import config_file
    from bertkit.infer.engine import predict_rows
    from bertkit.tasks.build import saved_task
    from bertkit.tasks.formats import open_rows
    from bertkit.text.tokenizer import BertTokenizer

    folder = Path(run) / "model"
    config = BertConfig.from_json_file(config_file(folder))
    task = saved_task(config, BertTokenizer.from_pretrained(folder))
    model, meter = task.model_class.from_pretrained(folder), task.meter()
    for row, prediction in predict_rows(task, model, open_rows(path, task.name).rows()):
        meter.add(row, prediction)
    return meter.figures()


if __name__ == "__main__":
    print(json.dumps(stream(*sys.argv[1:]), default=str))
