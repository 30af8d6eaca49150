"""BertConfig: the shape of a BERT, under the names and in the file that Hugging Face uses."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path
from typing import Any, ClassVar, Self

from bertkit.checkpoint.families import why_not_bert
from bertkit.checkpoint.files import (
    CONFIG_NAME,
    check_inside,
    config_file,
    read_json,
    write_atomically,
)
from bertkit.checkpoint.hub import NO_UPLOAD, resolve_model, why_no_model
from bertkit.errors import CheckpointError, ConfigError, UsageError
from bertkit.settings import SIZES

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")

# The largest value that each dimension may take: far above any BERT, far below what a hostile
# file would need to exhaust the machine while the model is laid out.
_LIMITS = {
    "vocab_size": 10_000_000,
    "hidden_size": 65_536,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 4_096,
    "intermediate_size": 1_048_576,
    "max_position_embeddings": 1_048_576,
    "type_vocab_size": 65_536,
}
_MAX_LABELS = 100_000
_MAX_BYTES = 10_000_000  # 100,000 labels with long names, twice; a plain one has 700
_UNSUPPORTED = {
    "is_decoder": "is a decoder; bertkit has encoders only",
    "add_cross_attention": "has cross-attention; bertkit has encoders only",
    "is_encoder_decoder": "is an encoder with a decoder; bertkit has encoders only",
}
# Asked of a configuration by scripts, and without meaning for an encoder: written only where they
# were given.
_ONLY_WHEN_GIVEN = ("is_decoder", "add_cross_attention", "is_encoder_decoder",
                    "chunk_size_feed_forward", "bos_token_id", "eos_token_id")  # fmt: skip
# Written to config.json only when they differ from the default, as transformers does.
_ONLY_WHEN_SET = ("output_attentions", "output_hidden_states", "return_dict", "dtype",
                  "problem_type", "architectures", "position_embedding_type")  # fmt: skip


class BertConfig:
    """The dimensions and constants of a BERT, with Hugging Face's names and defaults.

    Settings that bertkit does not know are kept as attributes and written back by
    `save_pretrained`. The number of labels and their names are one thing: give `num_labels`,
    `id2label` or `label2id`.

    Raises:
        ConfigError: a value makes no sense, or asks for what BERT is not.
    """

    model_type: ClassVar[str] = "bert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    is_encoder_decoder: bool = False
    chunk_size_feed_forward: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    tie_word_embeddings: bool = True
    problem_type: str | None = None
    architectures: list[str] | None = None
    dtype: str | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    id2label: dict[int, str]
    label2id: dict[str, int]

    def __init__(self, **settings: Any) -> None:
        model_type = settings.pop("model_type", self.model_type)
        if model_type != self.model_type:
            raise ConfigError(why_not_bert(model_type))
        paths = [settings.pop(name, None) for name in ("_name_or_path", "name_or_path")]
        self._name_or_path = str(paths[1] or paths[0] or "")
        for old in ("torch_dtype", "dtype"):
            if (dtype := settings.pop(old, None)) is not None:
                self.dtype = str(dtype).removeprefix("torch.")
        names = {key: settings.pop(key, None) for key in ("id2label", "label2id", "num_labels")}
        for name, value in settings.items():
            if hasattr(type(self), name) and name not in _FIELDS:
                raise ConfigError(f"{name!r} cannot be the name of a setting")
            setattr(self, name, copy.deepcopy(value))
        self._set_labels(**names)
        self.validate()

    @classmethod
    def of_size(cls, size: str, **settings: Any) -> Self:
        """The configuration of a named size: tiny, mini, small, medium, base or large.

        Args:
            size: a name of `bertkit.settings.SIZES`.
            settings: any setting, `vocab_size` above all; they win over the size's own.
        """
        if size not in SIZES:
            raise ConfigError(f"no size is called {size!r}; there are {', '.join(SIZES)}")
        layers, hidden, heads = SIZES[size]
        hidden = settings.get("hidden_size", hidden)
        own = {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "intermediate_size": 4 * hidden,
        }
        return cls(**(own | settings))

    @property
    def num_labels(self) -> int:
        """How many labels the model tells apart; setting it renames them LABEL_0, LABEL_1, ..."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if count != len(self.id2label):
            self._set_labels(None, None, count)

    @property
    def use_return_dict(self) -> bool:
        """The same as `return_dict`, by the name that older scripts use."""
        return self.return_dict

    @property
    def torch_dtype(self) -> str | None:
        """The same as `dtype`, by the name that older scripts use."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, dtype: Any) -> None:
        self.dtype = None if dtype is None else str(dtype).removeprefix("torch.")

    @property
    def name_or_path(self) -> str:
        """What `from_pretrained` was asked for; never written."""
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, name: str | os.PathLike[str]) -> None:
        self._name_or_path = os.fspath(name)

    def update(self, settings: dict[str, Any]) -> None:
        """Set what a table of settings names.

        Raises:
            ConfigError: a value makes no sense.
        """
        for name, value in settings.items():
            setattr(self, name, value)
        self.validate()

    def _set_labels(self, id2label: Any, label2id: Any, num_labels: Any) -> None:
        if id2label is None and label2id is not None:
            if not isinstance(label2id, dict):
                raise ConfigError("label2id must be a table of label to number")
            id2label = dict(zip(map(str, label2id.values()), label2id, strict=True))
        if id2label is not None:
            id2label = _labels(id2label)
        if num_labels is not None and (id2label is None or num_labels != len(id2label)):
            _check_int("num_labels", num_labels, 1, _MAX_LABELS)
            id2label = None
        if id2label is None:
            id2label = _default_labels(2 if num_labels is None else num_labels)
        self.id2label = id2label
        self.label2id = {label: number for number, label in id2label.items()}

    def validate(self) -> None:
        """Check every value.

        Raises:
            ConfigError: naming the setting, its value and what it may be.
        """
        for name, limit in _LIMITS.items():
            _check_int(name, getattr(self, name), 0 if name == "num_hidden_layers" else 1, limit)
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError(
                f"hidden_act is {_short(self.hidden_act)}; bertkit has {', '.join(ACTIVATIONS)}"
            )
        if self.position_embedding_type != "absolute":
            raise ConfigError(
                f"position_embedding_type is {_short(self.position_embedding_type)}; "
                "bertkit has 'absolute' only"
            )
        for name, reason in _UNSUPPORTED.items():
            if getattr(self, name, False):
                raise ConfigError(f"{name} is set: the model {reason}")
        _check_float("hidden_dropout_prob", self.hidden_dropout_prob, 0, 1)
        _check_float("attention_probs_dropout_prob", self.attention_probs_dropout_prob, 0, 1)
        if self.classifier_dropout is not None:
            _check_float("classifier_dropout", self.classifier_dropout, 0, 1)
        _check_float("initializer_range", self.initializer_range, 0, 1e3)
        _check_float("layer_norm_eps", self.layer_norm_eps, 0, 1)
        if self.pad_token_id is not None:
            _check_int("pad_token_id", self.pad_token_id, 0, self.vocab_size - 1)
        for name in ("tie_word_embeddings", "output_attentions", "output_hidden_states"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {_short(getattr(self, name))}; it is true or false")

    @classmethod
    def from_dict(cls, settings: dict[str, Any], **overrides: Any) -> Self:
        """A configuration from the table in a config.json; `overrides` win."""
        labels = {"num_labels", "id2label", "label2id"}
        names = settings.get("id2label")
        if isinstance(names, dict) and labels & overrides.keys() == {"num_labels"}:
            if overrides["num_labels"] == len(names):
                del overrides["num_labels"]  # the names that go with it stay
        if labels & overrides.keys():
            settings = {name: v for name, v in settings.items() if name not in labels}
        return cls(**(settings | overrides))

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str], **overrides: Any) -> Self:
        """Read one config.json.

        Raises:
            ConfigError: one line that names the file.
            CheckpointError: the folder is no model's, or the file a link that leads out of it.
        """
        folder = Path(path).parent
        if Path(path).name == CONFIG_NAME and folder.is_dir() and not os.path.lexists(path):
            raise CheckpointError(why_no_model(folder))
        check_inside(Path(path))
        settings = read_json(Path(path), _MAX_BYTES)
        try:
            return cls.from_dict(settings, **overrides)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> Self:
        """Read the configuration of a model folder, a run folder, a file or a hub id.

        Raises:
            ConfigError: the file cannot be read, or describes something that is not a BERT.
            CheckpointError: there is no such folder or model.
        """
        source = pretrained_model_name_or_path
        path = Path(source)
        if not path.is_file():
            folder = resolve_model(
                source,
                revision=revision,
                token=token,
                offline=local_files_only,
                cache_dir=cache_dir,
            )
            path = config_file(folder)
        config = cls.from_json_file(path, **overrides)
        config.name_or_path = source
        return config

    def to_dict(self) -> dict[str, Any]:
        """Every setting by its name, extra ones too, as config.json holds them."""
        found: dict[str, Any] = {
            name: getattr(self, name) for name in _FIELDS if name not in _ONLY_WHEN_GIVEN
        }
        found |= {name: value for name, value in self.__dict__.items() if name != "_name_or_path"}
        for name in _ONLY_WHEN_SET:
            if found[name] == getattr(type(self), name):
                del found[name]
        if self.id2label == _default_labels(2):
            del found["id2label"], found["label2id"]
        found["model_type"] = self.model_type
        return copy.deepcopy(found)

    def to_diff_dict(self) -> dict[str, Any]:
        """The same as `to_dict`, by the name that scripts use for what a file holds."""
        return self.to_dict()

    def to_json_file(self, path: str | os.PathLike[str]) -> None:
        """Write one file of any name."""
        write_atomically(Path(path), self.to_json_string().encode())

    def to_json_string(self) -> str:
        """The text of config.json: sorted, indented by two, with a final newline."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False
    ) -> None:
        """Write `config.json` into a folder, which is made where it is missing.

        Raises:
            UsageError: `push_to_hub` is asked for; nothing is uploaded from here.
        """
        if push_to_hub:
            raise UsageError(NO_UPLOAD)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(save_directory) / CONFIG_NAME, self.to_json_string().encode())

    def push_to_hub(self, *_: Any, **__: Any) -> None:
        """Refused: nothing is uploaded from here.

        Raises:
            UsageError: always, with what to do instead.
        """
        raise UsageError(NO_UPLOAD)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BertConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


_FIELDS = [name for name in BertConfig.__annotations__ if name != "model_type"]


def _default_labels(count: int) -> dict[int, str]:
    return {number: f"LABEL_{number}" for number in range(count)}


def _labels(id2label: Any) -> dict[int, str]:
    if not isinstance(id2label, dict) or not 0 < len(id2label) <= _MAX_LABELS:
        raise ConfigError(f"id2label must be a table of 1 to {_MAX_LABELS:,} labels")
    try:
        by_number = {int(number): str(label) for number, label in id2label.items()}
    except (TypeError, ValueError):
        raise ConfigError("id2label must map numbers to names") from None
    if sorted(by_number) != list(range(len(id2label))):
        raise ConfigError(f"id2label must number its labels 0 to {len(id2label) - 1}, each once")
    return dict(sorted(by_number.items()))


def _check_int(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} is {_short(value)}; it must be a whole number, {low} to {high}")


def _check_float(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise ConfigError(f"{name} is {_short(value)}; it must be a number, {low} to {high}")


def _short(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
