"""What every benchmark shares: the machine's name, interleaved rounds, tables, the last JSON line.

A figure here is a ratio to a peer measured in the same command. Rounds run A B A B ..., so that a
machine that slows down (heat, a neighbour) slows both sides, and ratios are taken pair by pair.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cyclopts
import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "tokenizers", "datasets")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_vnni")
# Flags carry the names of the settings, as bertkit's own command line does.
FLAGS = cyclopts.Parameter(
    name_transform=str, consume_multiple=True, negative_bool="no_", negative_iterable=()
)
# Matrix products whose best rate is "the machine's measured matrix peak" (rows, inner, columns).
# The first is the feed-forward of BERT-base on 4,096 tokens; a GPU needs a larger one to fill up.
CPU_SHAPES = ((4096, 768, 3072),)
GPU_SHAPES = ((4096, 768, 3072), (32768, 768, 3072), (8192, 8192, 8192))


@dataclass(frozen=True, slots=True)
class Machine:
    """What a reader needs to judge a figure: processor, its matrix formats, versions, threads."""

    cpu: str
    cores: int
    cpu_flags: tuple[str, ...]
    memory_gib: float
    threads: int
    gpu: str | None
    python: str
    versions: dict[str, str]

    def sentence(self) -> str:
        """The machine in one line of Markdown."""
        flags = ", ".join(self.cpu_flags) or "none of " + ", ".join(CPU_FLAGS)
        packages = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        gpu = f"GPU {self.gpu}; " if self.gpu else ""
        return (
            f"Machine: {gpu}{self.cpu}, {self.cores} cores ({flags}), {self.memory_gib:.0f} GiB, "
            f"{self.threads} threads; Python {self.python}, {packages}."
        )


def describe_machine(device: str = "cpu") -> Machine:
    """Read the machine's description from /proc, torch and the installed packages."""
    cpuinfo = _read("/proc/cpuinfo")
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    known = set(fields.get("flags", "").split())
    model = f"{fields.get('model name', platform.processor() or 'unknown CPU')}"
    if "cpu family" in fields:
        # A hypervisor often hides the model ("AMD EPYC"): family and model still tell Zen 3 from 4.
        model += f" (family {fields['cpu family']} model {fields.get('model', '?')})"
    return Machine(
        cpu=model,
        cores=os.cpu_count() or 1,
        cpu_flags=tuple(flag for flag in CPU_FLAGS if flag in known),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if device.startswith("cuda") else None,
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
    )


def synchronize(device: str) -> None:
    """Wait for the GPU's queue, so that a clock read next tells the truth."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def matrix_peak(dtype: torch.dtype, device: str = "cpu", seconds: float = 1.0) -> float:
    """The best rate of plain matrix products in FLOP/s, over several shapes and repetitions.

    Args:
        dtype: of both factors; fp32 on a GPU uses TF32 where that is switched on.
        device: where to multiply.
        seconds: how long to try each shape.
    """
    best = 0.0
    for rows, inner, columns in GPU_SHAPES if device.startswith("cuda") else CPU_SHAPES:
        left = torch.randn(rows, inner, device=device).to(dtype)
        right = torch.randn(inner, columns, device=device).to(dtype)
        out = left @ right
        repeats = 20 if device.startswith("cuda") else 1
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            synchronize(device)
            start = time.perf_counter()
            for _ in range(repeats):
                torch.matmul(left, right, out=out)
            synchronize(device)
            rate = 2 * rows * inner * columns * repeats / (time.perf_counter() - start)
            best = max(best, rate)
    return best


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest of several measurements."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 0) -> str:
        """As "median (min-max)"."""
        low, high = f"{self.minimum:,.{digits}f}", f"{self.maximum:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({low}-{high})"


def interleave(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure each side once a round, in turn: A B A B ...

    Args:
        sides: name -> a function that does the work once and returns its figure.
        rounds: how often; at least 1.
    """
    values: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, measure in sides.items():
            values[name].append(measure())
            say(f"round {number + 1}/{rounds} {name}: {values[name][-1]:,.2f}")
    return values


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """The spread of the ratios taken round by round."""
    return Spread.of([a / b for a, b in zip(numerator, denominator, strict=True)])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def publish(
    name: str, title: str, sections: Sequence[str], figures: dict[str, object], machine: Machine
) -> Path:
    """Write results/NAME.md, show it on stderr and print the figures as the last JSON line.

    Args:
        name: file name without ".md".
        title: the page's heading.
        sections: paragraphs and tables below the machine's description.
        figures: what the JSON object holds, beside the machine.
        machine: where it was measured.
    """
    command = "python -m " + " ".join([f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    # The command is kept so that anyone can run it again; folders of this machine say nothing.
    shown = command.replace(str(Path.cwd()) + "/", "").replace(str(Path.cwd().parent) + "/", "../")
    shown = re.sub(r"(?<=[ =])/(?:[^ /]+/)+", "", shown)
    date = time.strftime("%Y-%m-%d")
    page = [f"# {title}", f"{date}. {machine.sentence()}", f"```\n{shown}\n```", *sections]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.md"
    path.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    say("\n\n".join(page))
    print(json.dumps({"benchmark": name, **figures, "machine": asdict(machine)}), flush=True)
    return path


def say(message: str) -> None:
    """Talk goes to stderr; stdout is for the JSON line."""
    print(message, file=sys.stderr, flush=True)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
