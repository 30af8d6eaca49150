"""A file that grows stretch by stretch, and goes on where it stopped after a kill at any instant.

FILE.partial     what is written so far
FILE.progress    what it is made from (checksums), and how much of it is sure to be on the disk

Both are gone when FILE is there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from bertkit.checkpoint.files import sync, write_atomically
from bertkit.errors import DataError, StaleDataError, UsageError
from bertkit.tasks.records import Where

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


# What a file is made from, and how it is said that this was not the same.
_OTHER = {"input": "another input", "model": "another model", "options": "other options"}


class Done(msgspec.Struct):
    """FILE.progress.

    Attributes:
        made_from: a checksum of each thing that the file follows from: input, model, options.
        rows: how many rows of the input are dealt with.
        size: bytes of FILE.partial that they take.
        dropped: (where, why) of rows that the model could not take.
        cut: how many rows lost their ends.
        finished: all rows are dealt with.
    """

    made_from: dict[str, str]
    rows: int = 0
    size: int = 0
    dropped: list[tuple[Where, str]] = msgspec.field(default_factory=list)
    cut: int = 0
    finished: bool = False


class PartialFile:
    """FILE while it is being made; see `open_partial`.

    Attributes:
        path: FILE.
        done: how far it is.
    """

    def __init__(self, path: Path, made_from: dict[str, str]) -> None:
        self.path, self.done = path, Done(made_from)
        self.partial, self.progress = _beside(path)
        self._file: BinaryIO

    def commit(self, text: str, rows: int, dropped: Iterable[tuple[Where, str]] = ()) -> None:
        """Add the text of so many rows, and have it on the disk before it is counted."""
        raw = text.encode()
        self._file.write(raw)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.rows += rows
        self.done.size += len(raw)
        self.done.dropped += dropped
        self._save()

    def finish(self) -> None:
        """All rows are dealt with: from now on the result's own files may be there."""
        self.done.finished = True
        self._save()

    def become(self) -> None:
        """Give what was written its name."""
        self.partial.replace(self.path)
        sync(self.path.parent)
        self.progress.unlink()

    def remove(self) -> None:
        """Drop it: what was written has become other files."""
        self.partial.unlink()
        self.progress.unlink()

    def lines(self) -> Iterator[bytes]:
        """What was written."""
        with self.partial.open("rb") as file:
            yield from file

    def _save(self) -> None:
        write_atomically(self.progress, msgspec.json.encode(self.done))

    def _begin(self, overwrite: bool) -> None:
        """Take up what an earlier run left, or begin anew.

        Raises:
            StaleDataError: it was made from something else.
            DataError: it is broken.
        """
        size = os.fstat(self._file.fileno()).st_size
        before = None if overwrite else read_done(self.path)
        if before is None and size and not overwrite:
            what = f"is no part that {self.progress.name} tells of; say --overwrite to begin anew"
            raise DataError(what, self.partial)
        if before is not None and before.rows:
            self._check(before)
        if before is not None and before.rows and size >= before.size:
            self.done = before
        self._file.truncate(self.done.size)
        self._file.seek(self.done.size)
        self._save()

    def _check(self, before: Done) -> None:
        mine = self.done.made_from
        if changed := [name for name in mine if mine[name] != before.made_from.get(name)]:
            what = f"was begun with {' and '.join(map(_OTHER.__getitem__, changed))}"
            raise StaleDataError(f"{what}; say --overwrite to begin anew", self.partial)


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + ".partial"), path.with_name(path.name + ".progress")


def read_done(path: Path) -> Done | None:
    """How far an earlier run is with FILE; None: there was none."""
    try:
        return msgspec.json.decode(_beside(path)[1].read_bytes(), type=Done)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def take_result(path: Path, made_from: dict[str, str]) -> Done | None:
    """Of a run that was killed behind its last byte: FILE has its name, FILE.progress is left."""
    done, (partial, progress) = read_done(path), _beside(path)
    if done is None or not done.finished or partial.exists() or not path.exists():
        return None
    if done.made_from != made_from or path.stat().st_size != done.size:
        return None
    progress.unlink()
    return done


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """Write a file, too large for memory, so that it is whole or not there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8", newline="") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def open_partial(path: Path, made_from: dict[str, str], overwrite: bool) -> Iterator[PartialFile]:
    """Begin FILE, or go on with it; no two processes at once.

    Args:
        path: FILE.
        made_from: a checksum of each thing that it follows from: input, model, options.
        overwrite: begin anew, whatever is there.

    Raises:
        UsageError: another process is at it.
        StaleDataError: what is there was made from something else.
        DataError: what is there is broken.
    """
    file = PartialFile(path, made_from)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file.partial, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(handle, "r+b") as file._file:
        if fcntl is not None:
            try:
                fcntl.flock(file._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(f"{file.partial}: another process is writing it") from error
        file._begin(overwrite)
        yield file


def checksum(paths: Iterable[Path]) -> str:
    """Of the names and contents of files."""
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.name}\0{digest}\n".encode())
    return whole.hexdigest()
