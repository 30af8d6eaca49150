"""Opening a model of BERT-base size: time and memory, ours and transformers', and both imports.

    python -m benchmarks.bench_load

Every measurement is a process of its own, sides in turn. The folder is one that transformers wrote;
it is read once before, so that both find it in the page cache. `open` is from_pretrained alone, the
libraries imported before; `ready` runs from the start of the process to a model in hand, imports
included. Memory is the process's peak resident set (VmHWM, Linux), and by how much from_pretrained
raised it. Ours checks every number for NaN and infinity meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import cyclopts

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs as a plain script

from benchmarks import report

ROOT = Path(__file__).resolve().parents[1]
# What one process does; it prints seconds of from_pretrained, and resident KiB before and after.
# (The peak that getrusage tells would be the parent's where that is higher.)
OPEN = """
import sys, time
from {library} import {name}
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("VmHWM"))
before = peak()
start = time.perf_counter()
model = {name}.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - start
print(seconds, before, peak())
"""
IMPORTS = {
    "import bertkit": "import bertkit",
    "import transformers": "import transformers",
    "bertkit.BertModel at hand": "from bertkit import BertModel",
    "transformers.BertModel at hand": "from transformers import BertModel",
    "import torch": "import torch",
    "python alone": "pass",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    Attributes:
        size: of the model: base, or a smaller one for a quick look.
        rounds: interleaved rounds.
        name: results/NAME.md.
    """

    size: str = "base"
    rounds: int = 5
    name: str = "load"


@dataclass(frozen=True, slots=True)
class Opened:
    """One process that opened a model: seconds, and MiB of memory."""

    seconds: float
    ready_seconds: float
    peak: float
    raised: float


def run(code: str, *arguments: str) -> tuple[float, str]:
    """Seconds of a whole Python process, and what it printed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{code}\nfailed:\n{done.stderr[-2000:]}")
    return seconds, done.stdout


def open_model(library: str, name: str, folder: Path) -> Opened:
    """Open a model in a process of its own."""
    whole, out = run(OPEN.format(library=library, name=name), str(folder))
    seconds, before, after = map(float, out.split())
    return Opened(seconds, whole, after / 1024, (after - before) / 1024)


def write_folder(folder: Path, size: str) -> None:
    """A model with random weights, as transformers saves it."""
    code = (
        "import sys; from bertkit import BertForPreTraining, BertConfig;"
        "BertForPreTraining(BertConfig.of_size(sys.argv[1])).save_pretrained(sys.argv[2])"
    )
    run(code, size, str(folder / "ours"))
    code = (
        "import sys; from transformers import BertForPreTraining;"
        "BertForPreTraining.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
    )
    run(code, str(folder / "ours"), str(folder / "model"))


def opened_row(name: str, ours: list[Opened], theirs: list[Opened]) -> list[str]:
    """One class's line: seconds, memory, and the ratios ours to theirs, round by round."""
    cells = [name]
    for field, digits in (("seconds", 3), ("ready_seconds", 2), ("peak", 0), ("raised", 0)):
        one, other = ([getattr(o, field) for o in side] for side in (ours, theirs))
        cells += [report.Spread.of(one).text(digits), report.Spread.of(other).text(digits)]
        ratio = report.ratios(one, [max(value, 0.01) for value in other])
        cells.append(f"**{ratio.text(2)}**")
    return cells


app = cyclopts.App(default_parameter=report.FLAGS)


@app.default
def main(options: Annotated[Options, cyclopts.Parameter(name="*")] = Options()) -> None:
    """Measure from_pretrained and the imports, ours and transformers'."""
    with tempfile.TemporaryDirectory() as work:
        write_folder(Path(work), options.size)
        measure(options, Path(work) / "model")


def measure(options: Options, folder: Path) -> None:
    """Run all sides in turn and write the tables."""
    for path in folder.iterdir():
        path.read_bytes()  # into the page cache
    opened: dict[str, list[Opened]] = {}

    def once(library: str, name: str) -> float:
        found = open_model(library, name, folder)
        opened.setdefault(f"{library}.{name}", []).append(found)
        return found.seconds

    names = ("BertModel", "BertForMaskedLM")
    libraries = ("bertkit", "transformers")
    sides = {f"{lib}.{name}": partial(once, lib, name) for name in names for lib in libraries}
    imports = {name: partial(lambda code: run(code)[0], code) for name, code in IMPORTS.items()}
    report.interleave(sides, options.rounds)
    times = report.interleave(imports, options.rounds)
    header = ["class"]
    for what in ("open, s", "ready, s", "peak, MiB", "raised by, MiB"):
        header += [f"{what}: ours", "transformers", "ratio"]
    rows = [
        opened_row(name, opened[f"bertkit.{name}"], opened[f"transformers.{name}"])
        for name in names
    ]
    lines = [[name, report.Spread.of(values).text(3)] for name, values in times.items()]
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    ready = [o.ready_seconds for o in opened["bertkit.BertModel"]]
    against = report.ratios(ready, times["transformers.BertModel at hand"])
    intro = (
        f"A {options.size} model, {size:,.0f} MiB, written by transformers, in the page cache; "
        f"{options.rounds} interleaved rounds, each a process of its own; median (min-max). Ours "
        "looks for NaN and infinity in every tensor that it uses."
    )
    sections = [
        intro,
        report.table(header, rows),
        "Whole processes that only import:",
        report.table(["process", "seconds"], lines),
        "From the start of the process to a BertModel with its weights, ours, against "
        f"transformers' import of its class alone: **{against.text(2)}**.",
    ]
    figures: dict[str, object] = {
        "open_seconds": {n: [o.seconds for o in side] for n, side in opened.items()},
        "ready_seconds": {n: [o.ready_seconds for o in side] for n, side in opened.items()},
        "peak_mib": {n: [o.peak for o in side] for n, side in opened.items()},
        "raised_mib": {n: [o.raised for o in side] for n, side in opened.items()},
        "import_seconds": times,
        "mebibytes": size,
    }
    title = "Opening a model"
    report.publish(options.name, title, sections, figures, report.describe_machine())


if __name__ == "__main__":
    app()
