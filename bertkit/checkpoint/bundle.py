"""TensorFlow's checkpoint files (a "tensor bundle"), read without TensorFlow and without trust.

    PREFIX.index                  a sorted table of tensors: type, shape, place, checksum
    PREFIX.data-00000-of-00001    their bytes, end to end

The index is a table in LevelDB's format (github.com/google/leveldb, doc/table_format.md): blocks
of keys that share prefixes, a block of pointers to them, a footer. Its values are the protocol
buffers BundleHeaderProto (under the empty key) and BundleEntryProto of
tensorflow/core/protobuf/tensor_bundle.proto. Every block and every tensor that is read has its
CRC-32C checked. Text variables and partitioned ones are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertkit.checkpoint.crc32c import crc32c, unmasked
from bertkit.checkpoint.files import check_inside
from bertkit.errors import CheckpointError

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48
# Far above any BERT (a large one with its optimiser: 1,200 keys, 120 kB); a file beyond them is
# broken or hostile, and shared prefixes could make a small one claim gigabytes.
_MAX_INDEX_BYTES, _MAX_ENTRIES, _MAX_KEY = 4_000_000, 20_000, 512
_MAX_SHARDS, _MAX_DIMENSIONS = 1024, 8
# DataType of tensorflow/core/framework/types.proto, as far as weights use it.
_DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    6: torch.int8,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    19: torch.float16,
}


class _Broken(ValueError):
    """The bytes are not what the format says."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where one tensor lies."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    sliced: bool


def read_bundle(index: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor | None]:
    """The tensors of a checkpoint by TensorFlow's own names.

    Args:
        index: the `.index` file; the data files lie beside it.
        wanted: which tensors to read and check, by name.

    Returns:
        Every name; with None those that are not wanted. The tensors are mapped from the file, and
        private to this process.

    Raises:
        CheckpointError: a file is missing, damaged or hostile. One line that names it.
    """
    prefix = index.name.removesuffix(".index")
    shards, entries = _read_index(index)
    _check_overlaps(index, entries)
    mapped: dict[int, NDArray[np.uint8]] = {}
    found: dict[str, Tensor | None] = dict.fromkeys(entries)
    for name, entry in entries.items():
        if wanted(name):
            path = index.with_name(f"{prefix}.data-{entry.shard:05d}-of-{shards:05d}")
            if entry.shard not in mapped:
                mapped[entry.shard] = _map(path)
            try:
                found[name] = _tensor(mapped[entry.shard], entry)
            except _Broken as error:
                raise CheckpointError(f"{path}: {name[:80]!r}: {error}") from None
    return found


def _read_index(path: Path) -> tuple[int, dict[str, _Entry]]:
    """The number of data files, and every entry."""
    check_inside(path)
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_INDEX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        if len(raw) > _MAX_INDEX_BYTES:
            raise _Broken(f"over {_MAX_INDEX_BYTES // 1_000_000} MB")
        table = dict(_table(raw))
        shards = _header(table.pop(b"", b""))
        entries = {key.decode(): _entry(value, shards) for key, value in table.items()}
    except ValueError as error:  # _Broken, and keys that are not UTF-8
        raise CheckpointError(f"{path}: damaged or no TensorFlow index: {error}") from None
    return shards, entries


def _table(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every key and value of a LevelDB table, in order."""
    if len(raw) < _FOOTER or raw[-8:] != _MAGIC:
        raise _Broken("it does not end as such a file ends")
    footer = raw[-_FOOTER:]
    at = _handle(footer, 0)[2]  # that of the meta index, which holds nothing of ours
    count, end = 0, 0
    for _, value in _block(raw, *_handle(footer, at)[:2]):
        offset, size, _ = _handle(value, 0)
        if offset < end:
            raise _Broken("its blocks overlap")
        end = offset + size
        for key, content in _block(raw, offset, size):
            count += 1
            if count > _MAX_ENTRIES:
                raise _Broken(f"over {_MAX_ENTRIES} entries")
            yield key, content


def _handle(raw: bytes, at: int) -> tuple[int, int, int]:
    offset, at = _varint(raw, at)
    size, at = _varint(raw, at)
    return offset, size, at


def _block(raw: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of one block; each key is written as its difference from the last."""
    if offset + size + 5 > len(raw) - _FOOTER or size < 4:
        raise _Broken("a block lies outside the file")
    body, kind = raw[offset : offset + size], raw[offset + size]
    stored = int.from_bytes(raw[offset + size + 1 : offset + size + 5], "little")
    if crc32c(raw[offset : offset + size + 1]) != unmasked(stored):
        raise _Broken("the checksum of a block is wrong")
    if kind:
        raise _Broken("a block is compressed; TensorFlow writes plain ones")
    end = size - 4 - 4 * int.from_bytes(body[-4:], "little")
    if end < 0:
        raise _Broken("a block has more restarts than bytes")
    at, key, first = 0, b"", True
    while at < end:
        shared, at = _varint(body, at)
        fresh, at = _varint(body, at)
        length, at = _varint(body, at)
        if shared > len(key) or at + fresh + length > end or shared + fresh > _MAX_KEY:
            raise _Broken("an entry is longer than its block, or its name too long")
        last, key = key, key[:shared] + body[at : at + fresh]
        if key <= last and not first:
            raise _Broken("its names are not in order")
        first = False
        yield key, body[at + fresh : at + fresh + length]
        at += fresh + length


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= len(raw):
            break
        byte = raw[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise _Broken("a number has no end")


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: their numbers, with a number or bytes each."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(raw, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(raw, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise _Broken("an entry is not a protocol buffer")
        if at + size > len(raw):
            raise _Broken("an entry ends early")
        part = raw[at : at + size]
        yield tag >> 3, part if kind == 2 else int.from_bytes(part, "little")
        at += size


def _header(raw: bytes) -> int:
    """The number of data files. (BundleHeaderProto: num_shards 1, endianness 2, version 3.)"""
    fields = dict(_fields(raw))
    shards, big_endian = fields.get(1, 0), fields.get(2, 0)
    if not isinstance(shards, int) or not 0 < shards <= _MAX_SHARDS:
        raise _Broken("it does not say how many data files there are")
    if big_endian:
        raise _Broken("it was written on a big-endian machine")
    return shards


def _entry(raw: bytes, shards: int) -> _Entry:
    """BundleEntryProto: dtype 1, shape 2, shard_id 3, offset 4, size 5, crc32c 6, slices 7."""
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    sliced = False
    for number, value in _fields(raw):
        if number in numbers and isinstance(value, int):
            numbers[number] = value
        elif number == 2 and isinstance(value, bytes):
            shape = _shape(value)
        elif number == 7:
            sliced = True
    if numbers[3] >= shards:
        raise _Broken("a tensor lies in a data file that is not there")
    return _Entry(numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6], sliced)


def _shape(raw: bytes) -> tuple[int, ...]:
    """TensorShapeProto: dim 2, of which size 1 (absent: 0)."""
    found: list[int] = []
    for number, value in _fields(raw):
        if number == 2 and isinstance(value, bytes):
            size = dict(_fields(value)).get(1, 0)
            if not isinstance(size, int) or size >= 2**48:
                raise _Broken("a tensor has no sizes")
            found.append(size)
    if len(found) > _MAX_DIMENSIONS:
        raise _Broken(f"a tensor has over {_MAX_DIMENSIONS} dimensions")
    return tuple(found)


def _check_overlaps(path: Path, entries: dict[str, _Entry]) -> None:
    """Refuse tensors that share bytes: a small file could claim, and keep us reading, terabytes."""
    end = (0, 0)
    for entry in sorted(entries.values(), key=lambda e: (e.shard, e.offset, e.size)):
        if (entry.shard, entry.offset) < end and entry.size:
            raise CheckpointError(f"{path}: damaged or no TensorFlow index: its tensors overlap")
        end = max(end, (entry.shard, entry.offset + entry.size))


def _map(path: Path) -> NDArray[np.uint8]:
    check_inside(path)
    try:
        if not path.stat().st_size:
            return np.zeros(0, np.uint8)
        return np.memmap(path, np.uint8, mode="c")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _tensor(data: NDArray[np.uint8], entry: _Entry) -> Tensor:
    """One tensor out of its data file, its sizes and its checksum checked."""
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None or entry.sliced:
        raise _Broken("in parts" if entry.sliced else f"of TensorFlow's type {entry.dtype}")
    count = 1
    for size in entry.shape:
        count *= size
    if count * dtype.itemsize != entry.size:
        raise _Broken(f"of shape {list(entry.shape)} is said to have {entry.size} bytes")
    if entry.offset + entry.size > len(data):
        raise _Broken("lies beyond the end of the file, which is cut short")
    part = data[entry.offset : entry.offset + entry.size]
    if crc32c(part) != unmasked(entry.checksum):
        raise _Broken("its checksum is wrong; the file is damaged")
    if not count:
        return torch.empty(entry.shape, dtype=dtype)
    if part.ctypes.data % dtype.itemsize:
        part = part.copy()
    return torch.from_numpy(part).view(dtype).reshape(entry.shape)
