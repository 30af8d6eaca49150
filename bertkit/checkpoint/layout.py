"""Weights in files, as Hugging Face lays them out, and as Google's BERT and older tools did.

A model folder holds `config.json` and its weights in `model.safetensors`; that is all we write. We
also read shards with an index, the pickled `pytorch_model.bin` of old (`pickled.py`), and Google's
original checkpoints (`bundle.py`). Whatever the file, tensors come out under today's names
(`names.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from bertkit.checkpoint.bundle import read_bundle
from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.files import CONFIG_NAME, check_inside, read_json, sync, write_atomically
from bertkit.checkpoint.names import (
    BIAS,
    DECODER,
    DECODER_BIAS,
    WORDS,
    from_google,
    is_optimiser,
    present_name,
)
from bertkit.checkpoint.pickled import one_line, read_pickled
from bertkit.errors import CheckpointError, ConfigError

WEIGHTS_NAME = "model.safetensors"
_OLD_WEIGHTS_NAME = "pytorch_model.bin"
_GOOGLE_INDEX = "bert_model.ckpt.index"
_WEIGHT_FILES = (
    WEIGHTS_NAME,
    f"{WEIGHTS_NAME}.index.json",
    _OLD_WEIGHTS_NAME,
    f"{_OLD_WEIGHTS_NAME}.index.json",
    _GOOGLE_INDEX,
)

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 64  # bytes, as torch aligns its own memory
# A large BERT's table of tensors takes 50 kB, its index 40 kB; a hostile one could take the memory.
_MAX_HEADER_BYTES = 10_000_000
_MAX_INDEX_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as a file has it: mapped from there where that can be, with the name it has there.

    A write to it copies its page and never reaches the file.
    """

    tensor: Tensor
    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of a model folder.

    Attributes:
        path: the file that was opened: the weights themselves, or the index of their shards.
        stored: by today's names.
        unknown: names of tensors that were left unread, for no BERT has such.
    """

    path: Path
    stored: dict[str, Stored]
    unknown: tuple[str, ...] = ()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors alone, by today's names."""
        return {name: stored.tensor for name, stored in self.stored.items()}


def write_model_folder(folder: Path, state: Mapping[str, Tensor], config: BertConfig) -> None:
    """Write `config.json` and `model.safetensors`, each atomically; what stood there is replaced.

    Args:
        folder: made where it is missing.
        state: a state_dict; the tied output matrix is written once, as transformers does.
        config: its `dtype` is written as the weights have it.

    Raises:
        CheckpointError: the disk is full or failed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WEIGHTS_NAME, without_copies(state))
        settings = BertConfig.from_dict(config.to_dict(), dtype=_dtype_of(state))
        write_atomically(folder / CONFIG_NAME, settings.to_json_string().encode())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror or error}") from error


def without_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` less a tied output matrix and its bias, which other names in it already give."""
    if not _same(state, WORDS, DECODER):
        return dict(state)
    copies = (DECODER, DECODER_BIAS) if _same(state, BIAS, DECODER_BIAS) else (DECODER,)
    return {name: t for name, t in state.items() if name not in copies}


def _same(state: Mapping[str, Tensor], name: str, other: str) -> bool:
    """Whether two names stand for one memory."""
    one, two = state.get(name), state.get(other)
    return one is not None and two is not None and one.data_ptr() == two.data_ptr()


def read_weights(folder: Path) -> Weights:
    """All weights of a model folder, mapped from the disk, not read.

    Raises:
        CheckpointError: no weights are there, or a file is damaged, hostile or unreadable. One
            line that names the file.
    """
    for name in _WEIGHT_FILES:
        path = folder / name
        if path.is_symlink() or path.exists():
            return _read_weights(path)
    others = sorted(folder.glob("*.ckpt*.index"))
    if len(others) > 1:
        names = ", ".join(path.name for path in others[:5])
        raise CheckpointError(f"{folder}: several checkpoints ({names}); leave one in a folder")
    if others:
        return _read_weights(others[0])
    raise CheckpointError(
        f"{folder}: no weights: neither {WEIGHTS_NAME} nor {_OLD_WEIGHTS_NAME}, nor Google's "
        f"{_GOOGLE_INDEX}"
    )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of `read_weights` by today's names."""
    return read_weights(folder).tensors


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file atomically: beside, synced, renamed.

    The library's own writer starts tensors at any multiple of 8 bytes. Mapped from there, matrix
    kernels round differently than on torch's own memory: here they start at multiples of 64.

    Raises:
        CheckpointError: the disk is full or failed; what stood at `path` is untouched.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Tensors of odd sizes come last, where they push no other off its place.
    ordered = sorted(tensors.items(), key=lambda item: (item[1].nbytes % _ALIGNMENT != 0, item[0]))
    try:
        with beside.open("wb") as file:
            file.write(_header(ordered, metadata or {}))
            for _, tensor in ordered:
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _header(ordered: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]) -> bytes:
    """The start of a safetensors file: the length of the table, the table, blanks."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        table[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    raw = json.dumps(table, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % _ALIGNMENT)
    return len(raw).to_bytes(8, "little") + raw


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """All tensors of one safetensors file, mapped from the disk.

    The size of the header (at most 10 MB), the sizes of the tensors and the size of the file are
    checked against each other before anything is mapped.

    Raises:
        CheckpointError: the file is missing, damaged or not a safetensors file.
    """
    check_inside(path)
    try:
        with path.open("rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
        if header > _MAX_HEADER_BYTES:
            raise ValueError(f"its header is said to have {header:,} bytes")
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {one_line(error)}") from error
    except Exception as error:  # the library's own, and whatever torch says of strange sizes
        raise CheckpointError(
            f"{path}: damaged or no safetensors file: {one_line(error)}"
        ) from error


def _read_weights(path: Path) -> Weights:
    """The weights of one file of any kind, or of the shards that it names."""
    check_inside(path)
    if path.suffix == ".index":
        return _read_google(path)
    stored = _read_shards(path) if path.suffix == ".json" else _read_file(path)
    return Weights(path, _present(stored, path))


def _read_file(path: Path) -> list[Stored]:
    check_inside(path)
    read = read_tensor_file if path.suffix == ".safetensors" else read_pickled
    return [Stored(tensor, path, name) for name, tensor in read(path).items()]


def _read_shards(index: Path) -> list[Stored]:
    """The tensors that an index names, from the shards beside it."""
    try:
        shard_of = read_json(index, _MAX_INDEX_BYTES).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(f"{index}: has no weight_map")
    for name in shard_of.values():
        # Joined to the folder unchecked, "../../x" or "/x" would have us read any file.
        plain = isinstance(name, str) and not {"/", "\\", "\0", ":"} & set(name)
        if not plain or not name.endswith((".safetensors", ".bin")):
            shown = repr(name) if isinstance(name, str | int | None) else type(name).__name__
            raise CheckpointError(f"{index}: {shown[:80]} is not the name of a shard in its folder")
    found: dict[str, Stored] = {}
    for shard in sorted(set(shard_of.values())):
        if not (path := index.parent / shard).is_file():
            raise CheckpointError(f"{index}: names the shard {shard[:80]!r}, which is missing")
        found |= {s.name: s for s in _read_file(path) if shard_of.get(s.name) == shard}
    if missing := shard_of.keys() - found.keys():
        name = min(missing)[:80]
        raise CheckpointError(f"{index}: {name!r} is not in the shard that it names")
    return list(found.values())


def _read_google(index: Path) -> Weights:
    """A checkpoint that TensorFlow wrote, its matrices turned as PyTorch has them."""
    read = read_bundle(index, lambda name: from_google(name) is not None)
    stored, unknown = {}, []
    for name, tensor in read.items():
        if place := from_google(name):
            assert tensor is not None
            present, turned = place
            if turned and tensor.dim() == 2:
                tensor = tensor.T.contiguous()
            stored[present] = Stored(tensor, index, name)
        elif not is_optimiser(name):
            unknown.append(name)
    return Weights(index, stored, tuple(unknown))


def _present(stored: Iterable[Stored], path: Path) -> dict[str, Stored]:
    """Tensors by today's names."""
    found: dict[str, Stored] = {}
    for one in stored:
        name = present_name(one.name)
        if name in found:
            raise CheckpointError(f"{path}: holds {name[:80]!r} twice, once as {one.name[:80]!r}")
        if name is not None:
            found[name] = one
    bias, other = found.get(DECODER_BIAS), found.get(BIAS)
    if bias is not None and (other is None or _equal(bias.tensor, other.tensor)):
        found[BIAS] = found.pop(DECODER_BIAS)
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _dtype_of(state: Mapping[str, Tensor]) -> str | None:
    kinds = {str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else None
