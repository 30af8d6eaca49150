"""Tensors in files, as Hugging Face lays them out, and the table of the names they go by.

A model folder holds `config.json` and its weights in `model.safetensors`; we also read shards with
an index, and the pickled `pytorch_model.bin` of old (through torch's weights-only reader, which
runs no code). The names are those of transformers' BERT, which are also the names of our modules,
so that reading and writing needs no conversion, only the removal of what history has left in files.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.files import CONFIG_NAME, read_json, sync, write_atomically
from bertkit.errors import CheckpointError, ConfigError

WEIGHTS_NAME = "model.safetensors"
_OLD_WEIGHTS_NAME = "pytorch_model.bin"
_WEIGHT_FILES = (
    WEIGHTS_NAME,
    f"{WEIGHTS_NAME}.index.json",
    _OLD_WEIGHTS_NAME,
    f"{_OLD_WEIGHTS_NAME}.index.json",
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

# The key table: how names in older files end, and how they end today.
_RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_WORDS = "bert.embeddings.word_embeddings.weight"
_BIAS = "cls.predictions.bias"
# What the output matrix computes with. Tied, it is the word embeddings, and files leave it out or
# hold it twice; untied, transformers 5 wants both, and reads the bias from here.
_DECODER, _DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
# A buffer that transformers saved until 2023: 0, 1, 2, ...
_DROPPED = "embeddings.position_ids"


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
    words, decoder = state.get(_WORDS), state.get(_DECODER)
    if words is None or decoder is None or words.data_ptr() != decoder.data_ptr():
        return dict(state)
    return {name: t for name, t in state.items() if name not in (_DECODER, _DECODER_BIAS)}


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All weights of a model folder by their present-day names, mapped from the disk, not read.

    The tensors are private to this process: a write to one copies its page and never reaches the
    file. Their addresses are what the file makes them: see `aligned`.

    Raises:
        CheckpointError: no weights are there, or a file is damaged, hostile or unreadable. One
            line that names the file.
    """
    for name in _WEIGHT_FILES:
        if (path := folder / name).is_file():
            tensors = _read_shards(path) if name.endswith(".json") else _read_file(path)
            return _present_names(tensors, path)
    raise CheckpointError(f"{folder}: no weights: neither {WEIGHTS_NAME} nor {_OLD_WEIGHTS_NAME}")


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
        raise CheckpointError(f"{path}: cannot be written: {_line(error)}") from error
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

    The size of the header (at most 100 MB), the sizes of the tensors and the size of the file are
    checked against each other before anything is mapped.

    Raises:
        CheckpointError: the file is missing, damaged or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, RuntimeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: damaged or no safetensors file: {_line(error)}") from error


def aligned(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy of it where a file has put it elsewhere than torch puts its own memory.

    Matrix kernels round differently on such addresses; a model is to compute the same bits
    wherever its weights came from.
    """
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def _read_file(path: Path) -> dict[str, Tensor]:
    return read_tensor_file(path) if path.suffix == ".safetensors" else _read_pickled(path)


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors that an index names, from the shards beside it."""
    try:
        shard_of = read_json(index).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(f"{index}: has no weight_map")
    for name in shard_of.values():
        # Joined to the folder unchecked, "../../x" or "/x" would have us read any file.
        plain = isinstance(name, str) and not {"/", "\\", "\0", ":"} & set(name)
        if not plain or not name.endswith((".safetensors", ".bin")):
            raise CheckpointError(f"{index}: {name!r} is not the name of a shard in its folder")
    found: dict[str, Tensor] = {}
    for shard in sorted(set(shard_of.values())):
        if not (path := index.parent / shard).is_file():
            raise CheckpointError(f"{index}: names the shard {shard!r}, which is missing")
        tensors = _read_file(path)
        found |= {name: t for name, t in tensors.items() if shard_of.get(name) == shard}
    if missing := shard_of.keys() - found.keys():
        raise CheckpointError(f"{index}: {min(missing)!r} is not in the shard that it names")
    return found


def _read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin`: torch's restricted reader, which knows tensors and no code."""
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_stored(path)
        # Files from before 2020 are not zip files and cannot be mapped.
        tree = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: the pickle holds more than tensors, which could run code when "
            f"loaded ({_line(error)})"
        ) from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(f"{path}: damaged or no torch file: {_line(error)}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: holds a {type(tree).__name__}, not a table of tensors")
    for name, tensor in tree.items():
        _check_pickled(path, name, tensor)
    return {name: tensor.detach().contiguous() for name, tensor in tree.items()}


def _check_stored(path: Path) -> None:
    """Refuse a zip file that says it is larger inside than outside; torch only stores."""
    with zipfile.ZipFile(path) as archive:
        inside = sum(entry.file_size for entry in archive.infolist())
    if inside > path.stat().st_size:
        raise CheckpointError(f"{path}: compressed; torch never writes such a file")


def _check_pickled(path: Path, name: Any, tensor: Any) -> None:
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise CheckpointError(f"{path}: {str(name)[:80]!r} is not a tensor with a name")
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    # Strides of zero can make a file of some bytes claim to hold terabytes.
    if not dense or tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise CheckpointError(f"{path}: the tensor {name[:80]!r} is larger than the file")


def _present_names(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        present = name.removeprefix("module.")
        for old, new in _RENAMED.items():
            present = present.removesuffix(old) + new if present.endswith(old) else present
        if present in found:
            raise CheckpointError(f"{path}: holds {present!r} twice, once as {name!r}")
        if not present.endswith(_DROPPED):
            found[present] = tensor
    if _DECODER_BIAS in found:
        found[_BIAS] = found.pop(_DECODER_BIAS)
    return found


def _dtype_of(state: Mapping[str, Tensor]) -> str | None:
    kinds = {str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else None


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
