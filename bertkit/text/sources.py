"""Where text comes from: files, folders, globs, saved datasets, standard input; also compressed."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import json
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from bertkit.errors import DataError, UsageError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
# What reading a file that is missing, broken or cut short raises.
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)


def expand_sources(sources: Sequence[str]) -> list[str]:
    """The files that folders, globs and names stand for, each once, sorted within each source.

    Raises:
        DataError: a source does not exist, or holds no file of a known kind.
    """
    files: list[str] = []
    for source in map(str, sources):
        if source == "-":
            found = ["-"]
        elif os.path.isdir(source):
            found = list(_folder_files(Path(source)))
        elif os.path.exists(source):
            found = [source]
        else:
            names = sorted(glob.glob(source, recursive=True))
            found = [
                f for n in names for f in (_folder_files(Path(n)) if os.path.isdir(n) else [n])
            ]
        if not found:
            is_folder = os.path.isdir(source)
            raise DataError(
                "holds no text files (.txt .jsonl .csv .tsv .parquet, also .gz .zst)"
                if is_folder
                else "no such file or folder, and nothing matches it",
                source,
            )
        files += found
    if not files:
        raise DataError("no text was given; name files, folders or globs, or - for standard input")
    return list(dict.fromkeys(files))


def apart_from(sources: Sequence[str], out: Path) -> Path:
    """`out`, unless it lies in a folder of the sources: the next run would read it as text.

    Raises:
        UsageError: it does.
    """
    for source in map(Path, sources):
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise UsageError(
                f"{out} lies in {source}, whose files are the text; name another --out"
            )
    return out


def kind_of(path: str) -> str:
    """The extension that tells how a file is read, without that of its compression."""
    stem, last = os.path.splitext(path.lower())
    return os.path.splitext(stem)[1] if last in COMPRESSED else last


def _folder_files(folder: Path) -> Iterator[str]:
    """All files of known kinds below a folder, sorted; hidden ones are passed over."""
    if (folder / "dataset_dict.json").is_file():
        yield from _dataset_dict_files(folder)
    elif (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        yield from _dataset_files(folder)
    else:
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                yield from () if path.is_symlink() else _folder_files(path)
            elif kind_of(path.name) in (*ROWS, ".txt"):
                yield str(path)


def _dataset_dict_files(folder: Path) -> Iterator[str]:
    """A saved DatasetDict: its "train" split; all splits where there is none of that name."""
    splits = _named(folder / "dataset_dict.json", "splits", folder)
    for split in ["train"] if "train" in splits else splits:
        yield from _dataset_files(folder / split)


def _dataset_files(folder: Path) -> Iterator[str]:
    entries = _named(folder / "state.json", "_data_files", folder)
    for entry in entries:
        yield str(folder / entry)


def _named(path: Path, key: str, folder: Path) -> list[str]:
    """Names of files or folders beside a saved dataset's JSON file; none may lead out of it."""
    try:
        entries = json.loads(path.read_bytes())[key]
        names = [e["filename"] if isinstance(e, dict) else e for e in entries]
        if all(isinstance(n, str) and n == os.path.basename(n) and n.strip(".") for n in names):
            return names
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise DataError("is not the record of a saved Hugging Face dataset", path)


@contextmanager
def open_source(source: str) -> Generator[BinaryIO, None, None]:
    """The bytes of a file, decompressed while read; "-" is standard input, which stays open."""
    if source == "-":
        yield sys.stdin.buffer
        return
    ending = os.path.splitext(source.lower())[1]
    with open(source, "rb") as raw:
        if ending == ".zst":
            # Not zstandard's own reader: it takes a file that breaks off for one that ends.
            import pyarrow as pa

            stream = pa.CompressedInputStream(pa.PythonFile(raw, "rb"), "zstd")
            opened: IO[bytes] = io.BufferedReader(stream, 1 << 17)
        elif ending in COMPRESSED:
            openers: dict[str, Callable[[BinaryIO], IO[bytes]]] = {
                ".gz": lambda f: cast(IO[bytes], gzip.GzipFile(fileobj=f)),
                ".bz2": lambda f: cast(IO[bytes], bz2.BZ2File(f)),
                ".xz": lambda f: cast(IO[bytes], lzma.LZMAFile(f)),
            }
            opened = openers[ending](raw)
        else:
            opened = raw
        with opened:
            yield cast(BinaryIO, opened)
