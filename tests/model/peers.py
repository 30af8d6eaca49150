"""Small models with random weights that transformers wrote, opened there and here."""

from __future__ import annotations

import copy
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import bertkit
from bertkit.batch import Batch

SETTINGS: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 512,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
POOLED = (
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
)
BY_TOKEN = ("BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering")
HEADS = ("BertForPreTraining", *POOLED, *BY_TOKEN)
KINDS = ("BertModel", *HEADS)
SIDES = ("none", "right", "left", "holes")
_kept = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


def labels_of(kind: str) -> dict[str, Any]:
    return {"num_labels": 5} if kind == "BertForTokenClassification" else {}


@lru_cache(maxsize=64)
def _written(kind: str, settings: tuple[tuple[str, Any], ...]) -> tuple[Any, Path]:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SETTINGS | labels_of(kind) | dict(settings))
    config._attn_implementation = "eager"
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too
            parameter.add_(torch.randn_like(parameter) * 0.05)
    folder = Path(tempfile.mkdtemp(dir=_kept.name))
    model.save_pretrained(folder)
    return model, folder


def folder_of(kind: str, **settings: Any) -> Path:
    """A folder that transformers wrote."""
    return _written(kind, tuple(sorted(settings.items())))[1]


def both(kind: str = "BertForPreTraining", **settings: Any) -> tuple[Any, Any]:
    """transformers' model, and ours opened from the folder that it wrote."""
    model, folder = _written(kind, tuple(sorted(settings.items())))
    return copy.deepcopy(model), getattr(bertkit, kind).from_pretrained(folder)


class _FirstReal(nn.Module):
    """transformers' pooler, made to read the first real token instead of the first column."""

    def __init__(self, pooler: nn.Module, real: Tensor) -> None:
        super().__init__()
        self.dense = pooler.dense
        self.first = real.int().argmax(1)

    def forward(self, hidden: Tensor) -> Tensor:
        first = hidden[torch.arange(len(hidden)), self.first]
        return torch.tanh(self.dense(first))  # type: ignore[operator]


class _RealOnly(nn.Linear):
    """transformers' answer head, made to leave padding out of the softmax."""

    def __init__(self, linear: nn.Linear, real: Tensor) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.weight, self.bias, self.real = linear.weight, linear.bias, real

    def forward(self, hidden: Tensor) -> Tensor:
        lowest = torch.finfo(hidden.dtype).min
        return super().forward(hidden).masked_fill(~self.real[..., None], lowest)


def as_designed(theirs: Any, mask: Tensor) -> Any:
    """transformers' model with our two meanings: what is pooled, and where answers may be."""
    real = mask.flatten(0, -2).bool()
    encoder = getattr(theirs, "bert", theirs)
    if encoder.pooler is not None:
        encoder.pooler = _FirstReal(encoder.pooler, real)
    if hasattr(theirs, "qa_outputs"):
        theirs.qa_outputs = _RealOnly(theirs.qa_outputs, real)
    return theirs


def rows(
    side: str, lengths: tuple[int, ...] = (17, 12, 1, 5), kind: str = "BertModel"
) -> dict[str, Tensor]:
    """Ids, segments and a mask of these lengths, padded on a side or with holes in the middle."""
    generator = torch.Generator().manual_seed(7)
    width = max(lengths)
    shape = (len(lengths), width)
    columns = torch.arange(width)
    length = torch.tensor(lengths)[:, None]
    mask = {
        "none": torch.ones(shape, dtype=torch.bool),
        "right": columns < length,
        "left": columns >= width - length,
        "holes": (torch.rand(shape, generator=generator) < 0.6) | (columns == min(3, width - 1)),
    }[side]
    inputs = {
        "input_ids": torch.randint(1, 211, shape, generator=generator),
        "token_type_ids": torch.randint(0, 2, shape, generator=generator),
        "attention_mask": mask.long(),
    }
    if kind == "BertForMultipleChoice":
        inputs = {name: x.view(-1, 2, width) for name, x in inputs.items()}
    return inputs


def targets(kind: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Labels of the kind that the model takes; some are -100 where that may be."""
    generator = torch.Generator().manual_seed(8)
    mask = inputs["attention_mask"]
    size = len(mask)

    def drawn(limit: int, *shape: int) -> Tensor:
        return torch.randint(0, limit, shape, generator=generator)

    def some(labels: Tensor) -> Tensor:
        chosen = (torch.rand(mask.shape, generator=generator) < 0.4) | (mask.cumsum(-1) == 1)
        return torch.where(chosen & (mask == 1), labels, -100)

    if kind == "BertForPreTraining":
        pairs = drawn(2, size)
        pairs[-1:] = -100 if size > 1 else 0
        return {"labels": some(inputs["input_ids"]), "next_sentence_label": pairs}
    if kind == "BertForMaskedLM":
        return {"labels": some(inputs["input_ids"])}
    if kind == "BertForTokenClassification":
        return {"labels": some(drawn(5, *mask.shape))}
    if kind == "BertForQuestionAnswering":
        # The first real token, the last one, and a column beyond the input.
        start = mask.argmax(-1)
        end = mask.shape[-1] - 1 - mask.flip(-1).argmax(-1)
        end[-1:] = mask.shape[-1] + 3 if size > 1 else end[-1]
        return {"start_positions": start, "end_positions": end}
    return {} if kind == "BertModel" else {"labels": drawn(2, size)}


def packed(inputs: dict[str, Tensor]) -> Batch:
    """The real tokens laid end to end, positions counting columns."""
    mask = inputs["attention_mask"].flatten(0, -2)
    real = mask.bool()
    columns = torch.arange(real.shape[1]).expand(real.shape)
    ids, types = (inputs[name].flatten(0, -2)[real] for name in ("input_ids", "token_type_ids"))
    lengths = real.sum(1)
    return Batch(ids, types, columns[real], lengths[lengths > 0])


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    return {name: grad.clone() for name, grad in found.items() if grad is not None}


def assert_close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
