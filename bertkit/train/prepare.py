"""`bertkit prepare`: text to token shards, once.

    OUT/train/  OUT/dev/     the shards (bertkit.data.shards), the held-out documents in dev
    OUT/manifest.json        what they were made from, hashed, and the report; written last
    OUT/.work/               only while unfinished: the plan, and a part file for each chunk done

First every chunk of documents becomes a part file, in any order, by any number of processes; then
the parts are read in order into the shards. So the bytes depend on the text, the tokenizer and the
options alone. A run that was interrupted finds its parts and makes only those that are missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from bertkit.data.shards import TokenStore
from bertkit.errors import DataError, StaleDataError, UsageError
from bertkit.text.corpus import CorpusReport
from bertkit.text.sources import apart_from, expand_sources
from bertkit.text.tokenizer import BertTokenizer
from bertkit.text.vocab import ScriptCoverage
from bertkit.train.merge import Merged, MergeSettings, SplitReport, merge_parts
from bertkit.train.parts import Chunk, ChunkEncoder, EncodeSettings, chunked, make_parts
from bertkit.train.plan import (
    Corpus,
    Estimate,
    Plan,
    PrepareOptions,
    differences,
    encode_settings,
    estimate,
    keep_input,
    make_plan,
)

__all__ = [
    "Manifest",
    "PrepareEvent",
    "PrepareOptions",
    "PrepareReport",
    "SplitReport",
    "prepare",
    "read_manifest",
]

MANIFEST, WORK = "manifest.json", ".work"


class PrepareEvent(Struct, frozen=True):
    """One step forward, for whoever shows progress.

    Attributes:
        stage: "size" comes once, before anything is written: `done` bytes will be written, `total`
            are free; then "encode", in bytes of text; then "merge", in part files.
        done: how far it is.
        total: of how much; for "encode" an estimate, and 0 where there is more than that.
        scripts: with "size", how the tokenizer fares with each script in a sample of the text.
    """

    stage: Literal["size", "encode", "merge"]
    done: int
    total: int
    scripts: list[ScriptCoverage] = []


Progress = Callable[[PrepareEvent], None]


class PrepareReport(Struct, frozen=True):
    """What was read and written.

    Attributes:
        files, documents, characters, cut, skipped, first_bad: see CorpusReport.
        duplicates: documents that copy an earlier one; dropped with `dedup`.
        single_sentence_documents: they make no pair of following sentences.
        held_out: "nothing", "documents", or "end of one document" where there are too few.
        train, dev: the two splits.
        unknown_tokens: how many of the tokens are [UNK].
        bytes_on_disk, bytes_per_token: of the shards.
        parts, parts_kept: chunks of work, and those that an earlier, interrupted run had done.
        scripts: how the tokenizer fares with each script in a sample of the text.
    """

    files: int
    documents: int
    characters: int
    cut: int
    skipped: dict[str, int]
    first_bad: list[str]
    duplicates: int
    single_sentence_documents: int
    held_out: str
    train: SplitReport
    dev: SplitReport
    unknown_tokens: int
    bytes_on_disk: int
    bytes_per_token: float
    parts: int
    parts_kept: int = 0
    scripts: list[ScriptCoverage] = []


class Manifest(Struct, frozen=True):
    """The contents of manifest.json."""

    plan: Plan
    report: PrepareReport


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a DATA folder.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = Path(folder) / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        raise DataError("there is no prepared data here; run bertkit prepare", path) from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"is no manifest ({error}); prepare again", path) from error


def prepare(
    sources: Sequence[str],
    tokenizer_dir: str | Path,
    out: str | Path,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
) -> PrepareReport:
    """Make token shards of text.

    Called again with the same text, tokenizer and options, it continues where it was interrupted,
    or returns the report of what is already there.

    Args:
        sources: files, folders, globs; "-" for standard input.
        tokenizer_dir: a model folder with a tokenizer.
        out: the DATA folder to make.
        options: see PrepareOptions.
        progress: called with each step forward.

    Raises:
        DataError: the text is bad, too little, or the disk is full.
        StaleDataError: `out` holds shards of other text, another tokenizer or other options.
        UsageError: an option is out of range, or `out` is a file or lies in a folder of `sources`.
        CheckpointError: the tokenizer cannot be read.
    """
    options = options or PrepareOptions()
    _check(options)
    out = apart_from(sources, Path(out))
    work = out / WORK
    tell = progress or (lambda event: None)
    tokenizer = BertTokenizer.from_pretrained(str(tokenizer_dir))
    names = expand_sources(sources)
    with _writing(out):
        files = keep_input(names, work)
        plan = make_plan(files, tokenizer, options)
        if (done := _finished(out, plan, options.overwrite)) is not None:
            shutil.rmtree(work, ignore_errors=True)
            return done
        settings = encode_settings(plan, tokenizer_dir, options)
        corpus = Corpus(files, options.corpus)
        size = estimate(files, options.corpus, ChunkEncoder(settings))
        _tell_size(out, size, tell)
        _start_work(work, plan)
        parts, kept = _encode_all(corpus, settings, work, options.workers, size.text, tell)
        merged = merge_parts(
            parts,
            work,
            MergeSettings(
                plan.vocab_size,
                tokenizer.unk_token_id,
                options.words != "none",
                options.held_out,
                options.dedup,
            ),
            lambda done: tell(PrepareEvent("merge", done, len(parts))),
        )
        report = _report(corpus.report, merged, len(parts), size.scripts)
        tokenizer.save_pretrained(work / "tokenizer")  # without it nobody could read the shards
        _commit(out, Manifest(plan, report))
    return msgspec.structs.replace(report, parts_kept=kept)


def _report(
    corpus: CorpusReport, merged: Merged, parts: int, scripts: list[ScriptCoverage]
) -> PrepareReport:
    return PrepareReport(
        files=corpus.files,
        documents=corpus.documents,
        characters=corpus.characters,
        cut=corpus.cut,
        skipped=dict(sorted(corpus.skipped.items())),
        first_bad=corpus.first_bad,
        parts=parts,
        scripts=scripts,
        bytes_per_token=round(
            merged.bytes_on_disk / max(1, merged.train.tokens + merged.dev.tokens), 4
        ),
        **msgspec.structs.asdict(merged),
    )


def _check(options: PrepareOptions) -> None:
    if not 0 <= options.held_out <= 0.5:
        raise UsageError(f"the held-out share is {options.held_out}; it must lie in 0 to 0.5")
    if options.workers < 1:
        raise UsageError(f"workers is {options.workers}; it must be 1 or more")
    if options.user_dict is not None and options.words != "jieba":
        raise UsageError("a user dictionary is for jieba: set words to jieba too")


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn a full disk and the like into one line; what is finished stays."""
    if out.is_file():
        raise UsageError(f"--out {out} is a file; name a folder")
    try:
        yield
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}; run again to continue"
        raise DataError(what, error.filename or out) from error
    except BrokenProcessPool as error:
        what = "a worker process was killed (out of memory?); run again with fewer workers"
        raise DataError(what + ", what is done is kept", out) from error


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.absolute().parent)


def _tell_size(out: Path, size: Estimate, tell: Progress) -> None:
    """Say how much will be written; for a while it stands there twice, as parts and as shards."""
    free = shutil.disk_usage(_existing(out)).free
    tell(PrepareEvent("size", size.disk, free, size.scripts))
    if 2 * size.disk > free:
        what = f"{2 * size.disk:,} bytes are needed while preparing, {free:,} are free"
        raise DataError(f"the disk is too full: about {what}", out)


def _finished(out: Path, plan: Plan, overwrite: bool) -> PrepareReport | None:
    """The report of finished shards of the same plan.

    Raises:
        StaleDataError: what is there was made from something else.
    """
    plan_file = out / WORK / "plan.json"
    if (out / MANIFEST).exists():
        try:
            manifest = read_manifest(out)
            found = differences(manifest.plan, plan)
            if not found:
                for split in ("train", "dev")[: 1 + (manifest.report.dev.tokens > 0)]:
                    TokenStore(out / split)  # raises if the files are not those of the index
                return msgspec.structs.replace(manifest.report, parts_kept=manifest.report.parts)
        except DataError as error:
            if not overwrite:
                raise DataError(f"{error.what}; replace it with --overwrite", error.path) from error
        else:
            _refuse_stale(out, found, overwrite)
    elif plan_file.exists() and any((out / WORK).glob("part-*")):
        found = _no_part_fits(msgspec.json.decode(plan_file.read_bytes(), type=Plan), plan)
        _refuse_stale(out, found and f"{found} (and is unfinished)", overwrite)
    elif not overwrite:
        for split in ("train", "dev"):
            if (out / split).exists():
                raise DataError("is in the way; choose another folder, or --overwrite", out / split)
    return None


def _no_part_fits(old: Plan, new: Plan) -> str:
    """Why no part of unfinished shards will serve the new plan; "" if some may.

    Each part is checked against its own text before it is used. So a bad row can be mended in its
    file, or skipped, or read in another encoding, and the work goes on.
    """
    parted = {name: new.options.get(name) for name in ("words", "user_dict")}
    same_files = [f.name for f in old.inputs] == [f.name for f in new.inputs]
    inputs = old.inputs if same_files else new.inputs
    as_new = msgspec.structs.replace(new, options=old.options | parted, inputs=inputs)
    return differences(old, as_new)


def _refuse_stale(out: Path, found: str, overwrite: bool) -> None:
    if found and not overwrite:
        (out / WORK / "stdin.txt").unlink(missing_ok=True)
        what = f"was made from {found}; choose another --out, or replace it with --overwrite"
        raise StaleDataError(what, out)


def _start_work(work: Path, plan: Plan) -> None:
    """Make the work folder for this plan, keeping the parts of an interrupted run."""
    work.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev", "tokenizer"):
        shutil.rmtree(work / split, ignore_errors=True)
    _write_synced(work / "plan.json", msgspec.json.encode(plan))


def _write_synced(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _encode_all(
    corpus: Corpus,
    settings: EncodeSettings,
    work: Path,
    workers: int,
    size: int,
    tell: Progress,
) -> tuple[list[Path], int]:
    """Make the part files; returns their paths in order, and how many were there."""
    paths: list[Path] = []
    kept = done = 0

    def jobs() -> Iterator[tuple[Path, Chunk]]:
        for number, chunk in enumerate(chunked(corpus)):
            paths.append(work / f"part-{number:06d}")
            yield paths[-1], chunk

    with closing(make_parts(jobs(), settings, workers)) as parts:
        for was_there, length in parts:
            kept += was_there
            done += length
            tell(PrepareEvent("encode", done, size if done < size else 0))
    tell(PrepareEvent("encode", done, done))
    return paths, kept


def _commit(out: Path, manifest: Manifest) -> None:
    """Put the new shards in the place of the old; the manifest comes last."""
    work = out / WORK
    (out / MANIFEST).unlink(missing_ok=True)
    for split in ("train", "dev", "tokenizer"):
        if (out / split).exists():
            shutil.rmtree(out / split)
        if (work / split).exists():
            os.replace(work / split, out / split)
    _write_synced(out / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    shutil.rmtree(work)
