"""Text to token shards: `bertkit prepare` against datasets.map (tokenise + group), MB/s.

    python -m benchmarks.bench_prepare --corpus TRAIN.txt.gz --vocab VOCAB.txt

Each run is a process of its own with a fresh folder and fresh caches; rounds are interleaved. The
corpus is uncompressed first, so that neither side waits for gzip. Times are of whole processes; a
second ratio leaves out the peer's imports, not ours. Memory is the peak of the process tree, shared
pages counted once (PSS). Ours also splits sentences, counts duplicates, sets a held-out share aside
and hashes what it writes; the peer does not.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import cyclopts
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs as a plain script

from benchmarks import peers, report
from benchmarks.peers import MapSettings

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    Attributes:
        corpus: text, plain or .gz; blank lines between documents.
        tokenizer: a model folder with a tokenizer; or give vocab.
        vocab: a vocab.txt, made into an uncased tokenizer folder.
        lengths: row lengths that the peer groups to.
        workers: processes of both sides.
        rounds: interleaved rounds.
        megabytes: only the first so many MB of the corpus; 0 takes all.
        work: where to write; None: a temporary folder.
        name: results/NAME.md.
    """

    corpus: Path
    tokenizer: Path | None = None
    vocab: Path | None = None
    lengths: list[int] = field(default_factory=lambda: [128, 512])
    workers: int = 2
    rounds: int = 3
    megabytes: float = 0.0
    work: Path | None = None
    name: str = "prepare"


@dataclass(frozen=True, slots=True)
class Run:
    """One preparation: its time, its process tree's peak memory, what it left on disk.

    `seconds` is the whole process; `work_seconds` leaves the peer's imports out (ours: the same).
    """

    seconds: float
    work_seconds: float
    peak_bytes: int
    tokens: int
    disk_bytes: int


def watch(command: Sequence[str], environment: dict[str, str] | None = None) -> tuple[str, Run]:
    """Run a command; its stdout, wall-clock seconds and the peak memory of its process tree."""
    start = time.perf_counter()
    peak = 0
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, cwd=ROOT, env={**os.environ, **(environment or {})}
        )
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{err.read()[-2000:]}")
        return out.read(), Run(seconds, seconds, peak, 0, 0)


def tree_memory(pid: int) -> int:
    """Bytes of a process and its descendants; a page they share counts once over all of them."""
    total = 0
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total


def disk_bytes(paths: Sequence[Path]) -> int:
    """Bytes of files, folders taken whole."""
    files = [f for path in paths for f in ([path] if path.is_file() else path.rglob("*"))]
    return sum(f.stat().st_size for f in files if f.is_file())


def run_ours(corpus: Path, tokenizer: Path, out: Path, workers: int) -> Run:
    """`bertkit prepare`, start-up counted."""
    command = [sys.executable, "-m", "bertkit", "prepare", str(corpus)]
    command += ["--tokenizer", str(tokenizer), "--out", str(out), "--workers", str(workers)]
    _, run = watch([*command, "--quiet"])
    indexes = [json.loads(path.read_text()) for path in out.glob("*/index.json")]
    tokens = sum(shard["tokens"] for index in indexes for shard in index["shards"])
    size = disk_bytes([path.parent for path in out.glob("*/index.json")])
    shutil.rmtree(out)
    return Run(run.seconds, run.seconds, run.peak_bytes, tokens, size)


def run_peer(corpus: Path, tokenizer: Path, out: Path, length: int, settings: MapSettings) -> Run:
    """Tokenise and group with datasets.map."""
    command = [sys.executable, "-m", "benchmarks.peers", "tokenise", str(corpus)]
    command += ["--tokenizer", str(tokenizer), "--out", str(out), "--length", str(length)]
    command += ["--workers", str(settings.workers), "--passes", str(settings.passes)]
    command += ["--batch", str(settings.batch)] + (["--threads"] if settings.threads else [])
    text, run = watch(command)
    told = json.loads(text.strip().splitlines()[-1])
    size = disk_bytes(list(out.glob("rows*.arrow")))
    shutil.rmtree(out)
    return Run(run.seconds, told["seconds"], run.peak_bytes, told["tokens"], size)


def candidates(workers: int) -> list[MapSettings]:
    """Ways to drive datasets.map, of which the fastest is the peer.

    Two passes are run_mlm.py's own; one pass writes every token once instead of twice; the last
    leaves the parallelism to the Rust tokenizer's threads instead of processes.
    """
    return [
        MapSettings(workers=workers, passes=2),
        MapSettings(workers=workers, passes=1),
        MapSettings(workers=workers, passes=1, batch=5000),
        MapSettings(workers=1, passes=1, threads=True),
    ]


def best_peer(corpus: Path, tokenizer: Path, work: Path, options: Options) -> MapSettings:
    """The fastest way to drive datasets.map on this machine, from one run of each."""
    times = {}
    for settings in candidates(options.workers):
        run = run_peer(corpus, tokenizer, work / "peer", options.lengths[0], settings)
        times[settings] = run.work_seconds
        report.say(f"{settings}: {run.work_seconds:.1f} s")
    return min(times, key=lambda settings: times[settings])


def plain_corpus(options: Options, work: Path) -> Path:
    """The corpus uncompressed, cut at the last blank line within `megabytes`."""
    source = options.corpus
    raw = gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()
    if options.megabytes:
        raw = raw[: int(options.megabytes * 1e6)].rpartition(b"\n\n")[0] + b"\n"
    path = work / "corpus.txt"
    path.write_bytes(raw)
    return path


def result_row(name: str, runs: Sequence[Run], megabytes: float, ours: Sequence[Run]) -> list[str]:
    """One side's line of the table."""
    speed = report.Spread.of([megabytes / run.seconds for run in runs])
    whole = [run.seconds for run in ours]
    ratio = report.ratios([run.seconds for run in runs], whole)
    strict = report.ratios([run.work_seconds for run in runs], whole)
    return [
        name,
        speed.text(2),
        f"{max(run.peak_bytes for run in runs) / 2**20:,.0f} MiB",
        f"{runs[0].disk_bytes / runs[0].tokens:.2f}",
        f"{runs[0].tokens:,}",
        "-" if runs is ours else ratio.text(2),
        "-" if runs is ours else strict.text(2),
    ]


app = cyclopts.App(default_parameter=report.FLAGS)


@app.default
def main(options: Annotated[Options, cyclopts.Parameter(name="*")]) -> None:
    """Measure `bertkit prepare` and datasets.map on one corpus."""
    if (options.tokenizer is None) == (options.vocab is None):
        raise SystemExit("give either --tokenizer DIR or --vocab FILE")
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        measure(options, Path(folder))


def measure(options: Options, work: Path) -> None:
    """Find the peer's best settings, then run both sides in turn and write the table."""
    corpus = plain_corpus(options, work)
    megabytes = corpus.stat().st_size / 1e6
    tokenizer = options.tokenizer
    if tokenizer is None:
        assert options.vocab is not None
        tokenizer = peers.tokenizer_folder(options.vocab, work / "tokenizer")
    settings = best_peer(corpus, tokenizer, work, options)
    runs: dict[str, list[Run]] = {}

    def rate(name: str, run: partial[Run]) -> float:
        runs.setdefault(name, []).append(run())
        return megabytes / runs[name][-1].seconds

    peer = partial(run_peer, corpus, tokenizer, work / "peer", settings=settings)
    sides = {
        f"datasets.map, rows of {n}": partial(rate, f"datasets.map, rows of {n}", partial(peer, n))
        for n in options.lengths
    }
    ours = partial(run_ours, corpus, tokenizer, work / "ours", options.workers)
    sides["bertkit prepare"] = partial(rate, "bertkit prepare", ours)
    report.interleave(sides, options.rounds)
    header = ["side", "MB/s", "peak memory", "bytes a token", "tokens", "ours is faster by"]
    header.append("peer's imports not counted")
    body = [
        result_row(name, done, megabytes, runs["bertkit prepare"]) for name, done in runs.items()
    ]
    intro = (
        f"{megabytes:.1f} MB of text, {options.workers} workers, {options.rounds} interleaved "
        f"rounds, fresh caches, median (min-max). The peer is the fastest of "
        f"{len(candidates(options.workers))} ways to drive datasets.map: {settings}. Times "
        "are of whole processes; the last column leaves out the peer's imports, not ours. "
        "Peak memory: process tree, PSS."
    )
    figures: dict[str, object] = {
        "megabytes": megabytes,
        "peer": str(settings),
        "work_seconds": {name: [run.work_seconds for run in done] for name, done in runs.items()},
        "seconds": {name: [run.seconds for run in done] for name, done in runs.items()},
        "peak_bytes": {name: [run.peak_bytes for run in done] for name, done in runs.items()},
    }
    sections = [intro, report.table(header, body)]
    machine = report.describe_machine()
    report.publish(options.name, "Preparing text", sections, figures, machine)


if __name__ == "__main__":
    app()
