"""from_pretrained and save_pretrained: models from and to Hugging Face folders."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.families import family_of
from bertkit.checkpoint.files import CONFIG_NAME, config_file
from bertkit.checkpoint.finite import check_finite
from bertkit.checkpoint.hub import NO_UPLOAD, resolve_model
from bertkit.checkpoint.layout import (
    WEIGHTS_NAME,
    Stored,
    Weights,
    read_weights,
    write_model_folder,
)
from bertkit.checkpoint.names import DECODER, DECODER_BIAS, WORDS
from bertkit.checkpoint.report import LoadReport, untrained_heads
from bertkit.errors import CheckpointError, UsageError
from bertkit.model.outline import Outline, no_collection
from bertkit.runtime import pick_device

__all__ = ["LoadReport", "PretrainedModel"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Arguments of transformers that choose between ways of its own; here there is one way.
_WITHOUT_MEANING = ("attn_implementation", "low_cpu_mem_usage", "trust_remote_code",
                    "use_safetensors")  # fmt: skip
_log = logging.getLogger("bertkit")


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

    def untie_bias(self) -> None:
        """Keep a second bias beside the decoder's; of models that have a decoder."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: BertConfig | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        device_map: object = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **settings: Any,
    ) -> Any:
        """Build the model of a folder, a run or a hub id, in eval mode.

        Weights are mapped from the file, not copied: they cost memory when they are first used, and
        processes that open the same file share it. (Changed to another dtype, they are copied;
        so are the `.bin` files of before 2020 and the matrices of Google's.) All are checked for
        NaN and infinity. Heads that the checkpoint lacks are initialised, told in `load_report`
        and logged.

        Args:
            pretrained_model_name_or_path: a model folder, a run folder, or an id on the Hugging
                Face hub.
            config: used instead of the folder's config.json.
            dtype: what the weights become; None or "auto" as stored. `torch_dtype` is the same.
            revision: branch, tag or commit of a hub model.
            token: for private hub models.
            local_files_only: take hub models from the local cache only; `offline` is the same.
            device_map: one device, such as "cpu", "cuda:1", 0, a torch.device or {"": "cuda"};
                "auto" takes the best there is. None leaves the model on the CPU.
            output_loading_info: return (model, dict of missing_keys, unexpected_keys, ...).
            ignore_mismatched_sizes: initialise a tensor of the wrong shape afresh.
            settings: `cache_dir`, where hub models are kept; settings of the configuration
                (num_labels, id2label, ...) that win over the file's; other names go to the class.

        Raises:
            CheckpointError: the folder or its weights are missing, broken, hostile, of other
                shapes than the configuration says, not finite, or lack a part of the encoder.
            ConfigError: config.json is broken, or not a BERT's.
            UsageError: device_map names no device of this machine, or several.
        """
        source, device = pretrained_model_name_or_path, _device(device_map)
        offline = settings.pop("offline", False) or local_files_only
        cache_dir = settings.pop("cache_dir", None)
        wanted = _dtype(settings.pop("torch_dtype", dtype))
        own, for_class = _split(settings)
        folder = resolve_model(
            source, revision=revision, token=token, offline=offline, cache_dir=cache_dir
        )
        told = config is not None or "num_hidden_layers" in own
        config = _configuration(config, folder, own)
        weights = read_weights(folder)
        model = cls.from_weights(weights, config, wanted, ignore_mismatched_sizes, **for_class)
        if not told:
            check_no_layer_is_left(model)
        model.name_or_path = model.config.name_or_path = os.fspath(source)
        model = model if device is None else model.to(device)
        return (model, _loading_info(model.load_report)) if output_loading_info else model

    @classmethod
    def from_weights(
        cls,
        weights: Weights,
        config: BertConfig,
        dtype: torch.dtype | None = None,
        ignore_mismatched_sizes: bool = False,
        **for_class: Any,
    ) -> Self:
        """As `from_pretrained`, with files that were opened before.

        Args:
            weights: of `read_weights`.
            config: kept by the model, its `dtype` set.
            dtype: what the weights become; None: as stored.
            ignore_mismatched_sizes: initialise a tensor of the wrong shape afresh.
            for_class: further arguments of the class.
        """
        notes = _untie(weights, config)
        ours = str(cls.__init__.__module__).startswith("bertkit.")
        # A class of a user's own makes more than parameters: buffers, constants. Those that the
        # checkpoint lacks stay as its constructor left them.
        with Outline() if ours else contextlib.nullcontext(), no_collection():
            model = cls(config, **for_class)
        if DECODER_BIAS in weights.stored:
            model.untie_bias()
        expected = dict(model.named_parameters())
        found, unexpected = _by_place(weights.stored, expected, cls.base_model_prefix)
        unexpected.update(weights.unknown)
        if config.tie_word_embeddings:
            unexpected.discard(DECODER)
        missing = expected.keys() - found.keys()
        _check_encoder_is_there(missing, weights, cls.base_model_prefix)
        resized = _resized(found, expected, ignore_mismatched_sizes)
        used = {name: stored for name, stored in found.items() if name not in resized}
        check_finite(used.values())
        dtype = dtype or _stored_dtype(used, weights.path)
        given = {name: stored.tensor.to(dtype) for name, stored in used.items()}
        fresh = missing | resized
        if ours:
            given |= {name: torch.empty(expected[name].shape, dtype=dtype) for name in fresh}
        model.load_state_dict(given, strict=False, assign=True)
        model.tie_weights()
        if not ours:
            _fill_buffers(model.to(dtype), weights, unexpected)
        elif fresh:
            model.init_weights(fresh)
        config.dtype = str(dtype).removeprefix("torch.")
        model.load_report = LoadReport(
            source=weights.path.parent,
            used=tuple(sorted(used)),
            missing=tuple(sorted(missing)),
            unexpected=tuple(sorted(unexpected)),
            resized=tuple(sorted(resized)),
            untrained=untrained_heads({name: stored.tensor for name, stored in used.items()}),
            notes=notes,
        )
        if not model.load_report.is_clean:
            _log.warning("%s", model.load_report)
        return model.eval()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        overwrite: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
        **settings: Any,
    ) -> None:
        """Write `config.json` and `model.safetensors`; transformers 4 and 5 open the folder.

        Args:
            save_directory: made where it is missing.
            overwrite: False refuses a folder that already holds a model; True replaces its two
                files, each atomically.
            state_dict: written instead of the model's own.
            is_main_process: False writes nothing, as the other processes of a run should.
            settings: `safe_serialization`, `max_shard_size` and `save_function` of transformers
                mean nothing here: there is one file, and it is never a pickle; `push_to_hub` may
                be False.

        Raises:
            CheckpointError: the folder holds a model, or cannot be written.
            UsageError: a pickle is asked for.
        """
        if settings.pop("push_to_hub", False):
            self.push_to_hub()
        if unknown := settings.keys() - {"safe_serialization", "max_shard_size", "save_function"}:
            raise TypeError(f"save_pretrained() got an unexpected argument {min(unknown)!r}")
        if not settings.get("safe_serialization", True):
            raise UsageError("safe_serialization=False: models are saved as safetensors only")
        if not is_main_process:
            return
        target = Path(save_directory)
        if not overwrite:
            for name in (CONFIG_NAME, WEIGHTS_NAME):
                if (target / name).exists():
                    raise CheckpointError(f"{target / name}: already there; not overwritten")
        config = BertConfig.from_dict(self.config.to_dict(), architectures=[type(self).__name__])
        write_model_folder(target, state_dict or self.state_dict(), config)

    def push_to_hub(self, *_: Any, **__: Any) -> None:
        """Refused: nothing is uploaded from here.

        Raises:
            UsageError: always, with what to do instead.
        """
        raise UsageError(NO_UPLOAD)


def _configuration(given: BertConfig | None, folder: Path, own: dict[str, Any]) -> BertConfig:
    """A copy of the configuration that was given, else the folder's; `own` settings win."""
    if given is None:
        return BertConfig.from_json_file(config_file(folder), **own)
    return BertConfig.from_dict(given.to_dict(), **own)


def _device(device_map: object) -> torch.device | None:
    """The one device that a device_map of transformers names."""
    if device_map is None:
        return None
    if isinstance(device_map, Mapping):
        places = {str(place): place for place in device_map.values()}
        if len(places) != 1:
            raise UsageError(f"device_map names {len(places)} devices; a model lives on one here")
        device_map = next(iter(places.values()))
    if isinstance(device_map, int) and not isinstance(device_map, bool):
        device_map = f"cuda:{device_map}"
    if str(device_map) in ("balanced", "balanced_low_0", "sequential"):
        raise UsageError(
            f"device_map={device_map!r} spreads a model over devices; here it lives on one: say "
            "'auto', 'cpu' or 'cuda:0'"
        )
    return pick_device(None if device_map == "auto" else str(device_map))


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


def _untie(weights: Weights, config: BertConfig) -> tuple[str, ...]:
    """Let a decoder that has numbers of its own keep them, whatever the configuration says."""
    words = weights.stored.get(WORDS) or weights.stored.get(WORDS.removeprefix("bert."))
    decoder = weights.stored.get(DECODER)
    if not config.tie_word_embeddings or words is None or decoder is None:
        return ()
    one, other = words.tensor, decoder.tensor
    if one.shape != other.shape or one.data_ptr() == other.data_ptr() or torch.equal(one, other):
        return ()
    config.tie_word_embeddings = False
    return ("its decoder is not its word embeddings, though config.json says so: kept apart",)


def _by_place(
    stored: Mapping[str, Stored], expected: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, Stored], set[str]]:
    """Tensors by the name of the parameter they are for, and the names of those for none.

    An encoder by itself is written without the prefix that it has inside a model with heads.
    """
    found: dict[str, Stored] = {}
    unexpected = set()
    for name, one in stored.items():
        for place in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
            if place in expected and place not in found:
                found[place] = one
                break
        else:
            unexpected.add(name)
    return found, unexpected


def _fill_buffers(model: nn.Module, weights: Weights, unexpected: set[str]) -> None:
    """Buffers of classes that are not ours, which are no parameters, from the checkpoint."""
    for name, buffer in model.named_buffers():
        stored = weights.stored.get(name)
        if stored is not None and stored.tensor.shape == buffer.shape:
            buffer.copy_(stored.tensor)
            unexpected.discard(name)


def _resized(
    found: Mapping[str, Stored], expected: Mapping[str, Tensor], allowed: bool
) -> set[str]:
    """The names of tensors with another shape than the model's; refused where not `allowed`."""
    resized = set()
    for name, one in sorted(found.items()):
        if one.tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{one.path}: {name} is stored as {one.tensor.dtype}, not floats")
        if one.tensor.shape != expected[name].shape:
            resized.add(name)
            if not allowed:
                raise CheckpointError(
                    f"{one.path}: {name} is {list(one.tensor.shape)} in the weights but "
                    f"{list(expected[name].shape)} by the configuration; "
                    "ignore_mismatched_sizes=True begins it anew"
                )
    return resized


def _check_encoder_is_there(missing: Iterable[str], weights: Weights, prefix: str) -> None:
    """A head may begin anew, and the pooler; an encoder with a hole is no checkpoint."""
    for name in sorted(missing):
        if name.removeprefix(f"{prefix}.").startswith(("embeddings.", "encoder.")):
            family = family_of([*weights.stored, *weights.unknown])
            kind = f" (its tensors are named as those of {family} are)" if family else ""
            raise CheckpointError(
                f"{weights.path}: the weights lack {name}; not a whole BERT encoder{kind}"
            )


def check_no_layer_is_left(model: PretrainedModel) -> None:
    """Refuse a model that uses only the first layers of a checkpoint, where nobody asked for that.

    Raises:
        CheckpointError: naming the first tensor that its configuration has no place for.
    """
    report = model.load_report
    left = [n for n in report.unexpected if ".encoder.layer." in f".{n}"] if report else []
    if report and left:
        raise CheckpointError(
            f"{report.source}: the weights hold {left[0]}, but the configuration has "
            f"{model.config.num_hidden_layers} layers"
        )


def _stored_dtype(used: Mapping[str, Stored], path: Path) -> torch.dtype:
    """The dtype of the weights; where they are mixed, the one that holds them all."""
    if not used:
        raise CheckpointError(f"{path}: no tensor of the weights fits this model")
    dtypes = {stored.tensor.dtype for stored in used.values()}
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
