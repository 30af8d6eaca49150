"""What a model returns: fields readable by name, by key, by index and as a tuple."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypedDict, TypeVar

from torch import Tensor

from bertkit.checkpoint.config import BertConfig
from bertkit.errors import UsageError


@dataclass
class ModelOutput:
    """Fields that are None are left out of keys, indices and tuples, as in transformers."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None, in field order."""
        return tuple(getattr(self, name) for name in self.keys())

    def keys(self) -> list[str]:
        """The names of the fields that are not None."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]

    def values(self) -> tuple[Any, ...]:
        """The values that are not None."""
        return self.to_tuple()

    def items(self) -> list[tuple[str, Any]]:
        """(name, value) of the fields that are not None."""
        return [(name, getattr(self, name)) for name in self.keys()]

    def get(self, name: str, default: Any = None) -> Any:
        """The field `name`, or `default` where it is None or unknown."""
        return getattr(self, name) if name in self else default

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in self:
                raise KeyError(key)
            return getattr(self, key)
        return self.to_tuple()[key]

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in {f.name for f in fields(self)}:
            raise KeyError(name)
        setattr(self, name, value)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __len__(self) -> int:
        return len(self.keys())

    def __iter__(self) -> Iterator[Any]:
        # As in transformers, iterating walks the names; unpack with `.to_tuple()`.
        return iter(self.keys())


@dataclass
class EncoderOutput(ModelOutput):
    """Of BertModel: [B, S, D], [B, D], L + 1 times [B, S, D], L times [B, N, S, S]."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class PretrainingOutput(ModelOutput):
    """Of BertForPreTraining: scalar loss, [B, S, V], [B, 2]."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class LogitsOutput(ModelOutput):
    """Of the models with one head: scalar loss, and logits of the head's own shape."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class AnswerOutput(ModelOutput):
    """Of BertForQuestionAnswering: scalar loss, [B, S] and [B, S]."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Asked(TypedDict, total=False):
    """What a padded call may ask for; None: as the configuration says.

    What comes after `return_dict` is taken, as in transformers, and must be None: an encoder has
    none of it. `use_cache` may say what it likes, for nothing is ever cached; so may
    `num_items_in_batch`, which transformers' Trainer hands in and its BERT does not read either.
    """

    output_attentions: bool | None
    output_hidden_states: bool | None
    return_dict: bool | None
    use_cache: bool | None
    num_items_in_batch: object
    head_mask: None
    encoder_hidden_states: None
    encoder_attention_mask: None
    past_key_values: None
    cache_position: None


# Why an argument that scripts pass as None may be nothing else.
_REFUSED = {
    "head_mask": "no head can be switched off here",
    "encoder_hidden_states": "bertkit has encoders only, without cross-attention",
    "encoder_attention_mask": "bertkit has encoders only, without cross-attention",
    "past_key_values": "bertkit has encoders only, which keep no past",
    "cache_position": "bertkit has encoders only, which keep no past",
}


Output = TypeVar("Output", bound=ModelOutput)


class Wants(NamedTuple):
    """What a padded call asked for, with the configuration filled in."""

    maps: bool
    states: bool
    names: bool

    @classmethod
    def of(cls, config: BertConfig, asked: Asked) -> Wants:
        """What was asked for, and what the configuration says of the rest.

        Raises:
            TypeError: the call was given an argument that no model has.
            UsageError: it was given one that no encoder has, and not as None.
        """
        if unknown := asked.keys() - Asked.__annotations__.keys():
            raise TypeError(f"forward() got an unexpected keyword argument {min(unknown)!r}")
        for name, reason in _REFUSED.items():
            if asked.get(name) is not None:
                raise UsageError(f"{name} must be None: {reason}")
        maps, states = asked.get("output_attentions"), asked.get("output_hidden_states")
        names = asked.get("return_dict")
        return cls(
            config.output_attentions if maps is None else bool(maps),
            config.output_hidden_states if states is None else bool(states),
            config.return_dict if names is None else bool(names),
        )

    def answer(self, output: Output) -> Output | tuple[Any, ...]:
        """The output, or its values as a tuple."""
        return output if self.names else output.to_tuple()
