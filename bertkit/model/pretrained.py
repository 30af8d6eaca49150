"""from_pretrained and save_pretrained: models from and to Hugging Face folders."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.files import CONFIG_NAME
from bertkit.checkpoint.hub import resolve_model
from bertkit.checkpoint.layout import WEIGHTS_NAME, aligned, read_tensors, write_model_folder
from bertkit.errors import CheckpointError, UsageError

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Arguments of transformers that choose between ways of its own; here there is one way.
_WITHOUT_MEANING = ("attn_implementation", "low_cpu_mem_usage", "trust_remote_code",
                    "use_safetensors")  # fmt: skip
# The output matrix of a model that ties it: files may hold it a second time.
_TIED = "cls.predictions.decoder.weight"
_log = logging.getLogger("bertkit")


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of each tensor of a checkpoint, and of each parameter of the model.

    Attributes:
        source: the folder.
        used: parameters that the checkpoint gave.
        missing: parameters that it lacks; they were initialised afresh.
        unexpected: tensors of the checkpoint that this model has no place for.
        resized: parameters whose shape differs there; initialised afresh, as was asked for.
    """

    source: Path
    used: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    resized: tuple[str, ...]

    def __str__(self) -> str:
        """One line for people."""
        parts = [f"{self.source}: {len(self.used)} tensors loaded"]
        for names, what in (
            (self.missing, "not in the checkpoint, new and untrained"),
            (self.resized, "of another shape there, new and untrained"),
            (self.unexpected, "left out, this model has no such part"),
        ):
            if names:
                parts.append(f"{', '.join(_parts(names))} {what}")
        return "; ".join(parts)


class PretrainedModel(nn.Module):
    """A module with a BertConfig that reads and writes model folders."""

    base_model_prefix: ClassVar[str] = "bert"
    config: BertConfig
    load_report: LoadReport | None = None
    name_or_path: str = ""

    def init_weights(self, names: Iterable[str] | None = None) -> None:
        """Initialise the parameters called `names`; None: all."""
        raise AssertionError("each model says how its parameters begin")

    def tie_weights(self) -> None:
        """Make one parameter of those that share their numbers."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        config: BertConfig | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **settings: Any,
    ) -> Any:
        """Build the model of a folder, a run or a hub id, in eval mode.

        Weights that bertkit wrote are mapped from the file, not copied: a page is read when it is
        first used, and processes that open the same file share it. Heads that the checkpoint
        lacks are initialised, told in `load_report` and logged.

        Args:
            name_or_path: a model folder, a run folder, or an id on the Hugging Face hub.
            config: used instead of the folder's config.json.
            dtype: what the weights become; None or "auto" as stored. `torch_dtype` is the same.
            revision: branch, tag or commit of a hub model.
            token: for private hub models.
            local_files_only: take hub models from the local cache only; `offline` is the same.
            output_loading_info: return (model, dict of missing_keys, unexpected_keys, ...).
            ignore_mismatched_sizes: initialise a tensor of the wrong shape afresh.
            settings: settings of the configuration (num_labels, id2label, ...) that win over the
                file's; other names go to the class.

        Raises:
            CheckpointError: the folder or its weights are missing, broken, hostile, of other
                shapes than the configuration says, or lack a part of the encoder.
            ConfigError: config.json is broken, or not a BERT's.
        """
        offline = settings.pop("offline", False) or local_files_only
        wanted = _dtype(settings.pop("torch_dtype", dtype))
        own, for_class = _split(settings)
        folder = resolve_model(name_or_path, revision=revision, token=token, offline=offline)
        if config is None:
            config = BertConfig.from_json_file(folder / CONFIG_NAME, **own)
        else:
            config = BertConfig.from_dict(config.to_dict(), **own)
        model = cls._load(folder, config, wanted, ignore_mismatched_sizes, for_class)
        model.name_or_path = os.fspath(name_or_path)
        return (model, _loading_info(model.load_report)) if output_loading_info else model

    @classmethod
    def _load(
        cls,
        folder: Path,
        config: BertConfig,
        dtype: torch.dtype | None,
        ignore_mismatched_sizes: bool,
        for_class: dict[str, Any],
    ) -> Self:
        with torch.device("meta"):
            model = cls(config, **for_class)
        expected = dict(model.named_parameters())
        found, unexpected = _by_place(read_tensors(folder), expected, cls.base_model_prefix)
        if config.tie_word_embeddings:
            unexpected.discard(_TIED)
        resized = _resized(found, expected, folder)
        if resized and not ignore_mismatched_sizes:
            name = min(resized)
            raise CheckpointError(
                f"{folder}: {name} is {list(found[name].shape)} in the weights but "
                f"{list(expected[name].shape)} by the configuration"
            )
        used = {name: tensor for name, tensor in found.items() if name not in resized}
        missing = expected.keys() - found.keys()
        _check_encoder_is_there(missing, folder, cls.base_model_prefix)
        dtype = dtype or _stored_dtype(used, folder)
        given = {name: aligned(tensor).to(dtype) for name, tensor in used.items()}
        fresh = missing | resized
        given |= {name: torch.empty(expected[name].shape, dtype=dtype) for name in fresh}
        model.load_state_dict(given, strict=False, assign=True)
        model.tie_weights()
        if fresh:
            model.init_weights(fresh)
        config.dtype = str(dtype).removeprefix("torch.")
        names = (used, missing, unexpected, resized)
        model.load_report = LoadReport(folder, *(tuple(sorted(group)) for group in names))
        if fresh:
            _log.warning("%s", model.load_report)
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write `config.json` and `model.safetensors`; transformers 4 and 5 open the folder.

        Args:
            folder: made where it is missing.
            overwrite: False refuses a folder that already holds a model; True replaces its two
                files, each atomically.

        Raises:
            CheckpointError: the folder holds a model, or cannot be written.
        """
        target = Path(folder)
        if not overwrite:
            for name in (CONFIG_NAME, WEIGHTS_NAME):
                if (target / name).exists():
                    raise CheckpointError(f"{target / name}: already there; not overwritten")
        config = BertConfig.from_dict(self.config.to_dict(), architectures=[type(self).__name__])
        write_model_folder(target, self.state_dict(), config)


def _split(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the configuration, and arguments of the class."""
    own: dict[str, Any] = {}
    for_class: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "num_labels" or name in BertConfig.__annotations__:
            own[name] = value
        elif name not in _WITHOUT_MEANING:
            for_class[name] = value
    return own, for_class


def _by_place(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, Tensor], set[str]]:
    """Tensors by the name of the parameter they are for, and the names of those for none.

    An encoder by itself is written without the prefix that it has inside a model with heads.
    """
    found: dict[str, Tensor] = {}
    unexpected = set()
    for name, tensor in tensors.items():
        for place in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
            if place in expected and place not in found:
                found[place] = tensor
                break
        else:
            unexpected.add(name)
    return found, unexpected


def _resized(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path) -> set[str]:
    for name, tensor in found.items():
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{folder}: {name} is stored as {tensor.dtype}, not as floats")
    return {name for name, tensor in found.items() if tensor.shape != expected[name].shape}


def _check_encoder_is_there(missing: Iterable[str], folder: Path, prefix: str) -> None:
    """A head may begin anew, and the pooler; an encoder with a hole is no checkpoint."""
    for name in sorted(missing):
        if name.removeprefix(f"{prefix}.").startswith(("embeddings.", "encoder.")):
            raise CheckpointError(f"{folder}: the weights lack {name}; not a whole BERT encoder")


def _stored_dtype(used: Mapping[str, Tensor], folder: Path) -> torch.dtype:
    """The dtype of the weights; where they are mixed, the one that holds them all."""
    if not used:
        raise CheckpointError(f"{folder}: no tensor of the weights fits this model")
    dtypes = {tensor.dtype for tensor in used.values()}
    dtype = dtypes.pop()
    for other in dtypes:
        dtype = torch.promote_types(dtype, other)
    return dtype


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or dtype == "auto":
        return None
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), dtype)
    if dtype not in _DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in _DTYPES)
        raise UsageError(f"dtype is {dtype!r}; it may be auto, {names}")
    assert isinstance(dtype, torch.dtype)
    return dtype


def _loading_info(report: LoadReport | None) -> dict[str, list[str]]:
    assert report is not None
    return {
        "missing_keys": list(report.missing),
        "unexpected_keys": list(report.unexpected),
        "mismatched_keys": list(report.resized),
        "error_msgs": [],
    }


def _parts(names: Iterable[str]) -> list[str]:
    """`cls.predictions` for all of its parameters: the first two words of a name, each once."""
    return sorted({".".join(name.split(".")[:2]) for name in names})
