"""The `.bin` files of old: pickled tensors, through torch's restricted reader that runs no code."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bertkit.errors import CheckpointError

_ZIP = b"PK\3\4"
# What torch wrote until 2020 begins with: a pickle of its magic number.
_LEGACY = b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# The pickle of a large BERT's names and shapes takes 60 kB; the tensors lie beside it.
_MAX_PICKLE_BYTES = 4_000_000


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin`.

    Files in today's form (a zip archive) are mapped, not read.

    Raises:
        CheckpointError: the file is damaged, holds more than tensors, or claims more than it has.
            One line that names it.
    """
    try:
        zipped = _is_zip(path)
        tree = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own message tells how to switch the safety off; what counts is what it met.
        met = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{path}: refused: the pickle holds more than tensors"
            f"{f' ({met[1][:80]})' if met else ''}, which could run code when loaded; have whoever "
            "made it save model.state_dict() or, better, safetensors"
        ) from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(f"{path}: damaged or no torch file: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: holds a {type(tree).__name__}, not a table of tensors")
    for name, tensor in tree.items():
        _check(path, name, tensor)
    return {name: tensor.detach().contiguous() for name, tensor in tree.items()}


def one_line(error: BaseException) -> str:
    """What a library says, cut to one line of 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _is_zip(path: Path) -> bool:
    """Which of torch's two forms it is; a file that is neither is refused unread."""
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
    if start == _LEGACY:
        return False
    if not start.startswith(_ZIP):
        raise CheckpointError(f"{path}: damaged or no torch file: it begins as none does")
    # torch only stores: what is larger inside than outside would fill the memory.
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path}: compressed; torch never writes such a file")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(f"{path}: damaged or no torch file: larger inside than outside")
    pickles = [entry.file_size for entry in entries if entry.filename.endswith(".pkl")]
    if max(pickles, default=0) > _MAX_PICKLE_BYTES:
        raise CheckpointError(f"{path}: its table of tensors is over 4 MB; no BERT has so many")
    return True


def _check(path: Path, name: Any, tensor: Any) -> None:
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        shown = name[:80] if isinstance(name, str) else type(name).__name__
        raise CheckpointError(f"{path}: {shown!r} is not a tensor with a name")
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    # Strides of zero can make a file of some bytes claim to hold terabytes.
    if not dense or tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise CheckpointError(f"{path}: the tensor {name[:80]!r} is larger than the file")
