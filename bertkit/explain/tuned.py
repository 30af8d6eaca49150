"""The tuned lens: an affine map a layer that turns its states into the last layer's coordinates.

Belrose et al. 2023 (arXiv 2303.08112), here for masked words: h + A h + b, then the model's own
head; A and b begin at 0, the raw lens, and learn to bring the layer's distribution near the last
layer's, by KL(last || layer) at masked positions. Where a map does not help on texts that it was
not trained on, the raw lens stays, so that a tuned layer is no worse there than a raw one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bertkit.checkpoint.layout import read_tensor_file, write_tensors
from bertkit.errors import CheckpointError, DataError, MissingHeadError, UsageError
from bertkit.explain.asked import has_words
from bertkit.explain.corpus import MaskedTexts, masked_batches
from bertkit.explain.hooks import state_hash, still, trace
from bertkit.explain.opening import Model, Opened, open_model

# One text in so many is held out to judge the maps.
HELD_OUT = 10
# Positions whose logits are made at once.
_ROWS = 128


@dataclass(frozen=True)
class TunedLens:
    """Affine maps for the states 0 (the embeddings) to L - 1.

    Attributes:
        weight: [L, D, D]; row i of layer l's matrix makes the i-th number.
        bias: [L, D].
        made_for: `state_hash(model, vectors_only=True)` of the model that it was trained with.
    """

    weight: Tensor
    bias: Tensor
    made_for: str

    def turned(self, layer: int, hidden: Tensor) -> Tensor:
        """[..., D] of state `layer`, 0 to L, in the last layer's coordinates; L stays as it is."""
        if layer == len(self.bias):
            return hidden
        weight, bias = (x[layer].to(hidden) for x in (self.weight, self.bias))
        return hidden + hidden @ weight.T + bias

    def check(self, opened: Opened) -> None:
        """Raise UsageError where the lens was trained with another model."""
        config = opened.model.config
        wanted = (config.num_hidden_layers, config.hidden_size)
        if tuple(self.bias.shape) != wanted:
            raise UsageError(
                f"the tuned lens is of {len(self.bias)} layers of {self.bias.shape[1]}; "
                f"{opened.name} has {wanted[0]} of {wanted[1]}"
            )
        if state_hash(opened.model, vectors_only=True) != self.made_for:
            raise UsageError(
                f"the tuned lens was trained with other weights than {opened.name} has now; train "
                "one with this model"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file."""
        name = torch.frombuffer(bytearray.fromhex(self.made_for), dtype=torch.uint8)
        tensors = {"weight": self.weight, "bias": self.bias, "made_for": name}
        write_tensors(Path(path), tensors, METADATA)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TunedLens:
        """Read it again.

        Raises:
            CheckpointError: the file is missing, broken, or no tuned lens.
        """
        tensors = read_tensor_file(Path(path))
        weight, bias, name = (tensors.get(key) for key in ("weight", "bias", "made_for"))
        if weight is None or bias is None or name is None or bias.dim() != 2:
            raise CheckpointError(f"{path}: holds no tuned lens (weight, bias, made_for)")
        if weight.shape != (*bias.shape, bias.shape[-1]):
            shapes = f"weight {list(weight.shape)} and bias {list(bias.shape)}"
            raise CheckpointError(f"{path}: {shapes} make no tuned lens")
        return cls(weight, bias, bytes(name.tolist()).hex())


METADATA = {"format": "pt", "bertkit": "tuned lens"}


@dataclass(frozen=True)
class TunedLensReport:
    """What training did, on the texts held out.

    Attributes:
        steps: how many were taken.
        positions: masked positions that were held out.
        raw: L mean KL divergences from the last layer without a map, in nats.
        tuned: the same with the maps as they are saved.
    """

    steps: int
    positions: int
    raw: list[float]
    tuned: list[float]


def train_lens(
    model: Model,
    texts: Iterable[str],
    *,
    steps: int = 250,
    learning_rate: float = 1e-3,
    batch_tokens: int = 2048,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[TunedLens, TunedLensReport]:
    """Learn the maps of a model from plain texts.

    Args:
        model: one with a masked-word head; it is not changed.
        texts: read once for each epoch, so a list, or Texts of files; one in ten is held out.
        steps: a batch each, Adam with a rate that falls to 0.
        learning_rate: at the start.
        batch_tokens: tokens of a batch.
        seed: of the masks.
        report: takes progress, as steps done and in all.

    Raises:
        MissingHeadError: the model has no masked-word head.
        DataError: there are too few texts to hold one out.
    """
    opened = open_model(model)
    if not has_words(opened.model):
        raise MissingHeadError(f"{opened.name}: has no masked-word head; a tuned lens reads words")
    config, device = opened.model.config, opened.encoder.device
    layers, size = config.num_hidden_layers, config.hidden_size
    words = opened.encoder.embeddings.word_embeddings.weight
    dtype = torch.promote_types(words.dtype, torch.float32)
    weight = torch.zeros(layers, size, size, dtype=dtype, device=device, requires_grad=True)
    bias = torch.zeros(layers, size, dtype=dtype, device=device, requires_grad=True)
    made = TunedLens(weight, bias, state_hash(opened.model, vectors_only=True))
    optimizer = torch.optim.Adam([weight, bias], lr=learning_rate)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(steps, 1))
    done = 0
    batches = _endless(opened, texts, batch_tokens, seed)
    with still(opened.model):
        for masked in batches if steps else ():
            _learn(opened, masked, made)
            optimizer.step()
            falling.step()
            done += 1
            report(done, steps)
            if done == steps:
                break
    trained = replace(made, weight=weight.detach(), bias=bias.detach())
    return _kept(opened, texts, trained, done, seed)


def _is_held_out(number: int) -> bool:
    return number % HELD_OUT == HELD_OUT - 1


def _split(texts: Iterable[str], held_out: bool) -> Iterator[str]:
    return (text for number, text in enumerate(texts) if _is_held_out(number) == held_out)


def _endless(
    opened: Opened, texts: Iterable[str], batch_tokens: int, seed: int
) -> Iterator[MaskedTexts]:
    """Batches of all epochs, each masked anew."""
    epoch = 0
    while True:
        yield from masked_batches(
            opened, _split(texts, False), seed=seed + epoch, batch_tokens=batch_tokens
        )
        epoch += 1


def _states(opened: Opened, masked: MaskedTexts) -> list[Tensor]:
    """L + 1 times [M, D], the states of the masked positions."""
    at = masked.batch.mlm_positions.to(opened.encoder.device)
    return [state.index_select(0, at) for state in trace(opened.encoder, masked.batch).hidden]


def _learn(opened: Opened, masked: MaskedTexts, made: TunedLens) -> None:
    """Set the gradients of the maps; those of the model's parameters stay untouched."""
    states = _states(opened, masked)
    head: Any = opened.model.cls.predictions
    made.weight.grad, made.bias.grad = torch.zeros_like(made.weight), torch.zeros_like(made.bias)
    count = len(states[0])
    for start in range(0, count, _ROWS):
        part = slice(start, start + _ROWS)
        last = head(states[-1][part]).log_softmax(-1)
        for layer in range(len(states) - 1):
            # Leaves of their own: the graph of one layer is freed before the next is made.
            weight, bias = (x[layer].detach().requires_grad_() for x in (made.weight, made.bias))
            with torch.enable_grad():
                hidden = states[layer][part]
                turned = hidden + hidden @ weight.to(hidden).T + bias.to(hidden)
                logs = head(turned).log_softmax(-1)
                loss = (last.exp() * (last - logs)).sum() / count
                gradients = torch.autograd.grad(loss, [weight, bias])
            made.weight.grad[layer] += gradients[0]
            made.bias.grad[layer] += gradients[1]


def _kept(
    opened: Opened, texts: Iterable[str], trained: TunedLens, steps: int, seed: int
) -> tuple[TunedLens, TunedLensReport]:
    """The maps that help on the texts held out; where one does not, it becomes zero."""
    layers = len(trained.bias)
    sums, count = torch.zeros(2, layers, dtype=torch.float64), 0
    head: Any = opened.model.cls.predictions
    with still(opened.model):
        try:
            for masked in masked_batches(opened, _split(texts, True), seed=seed):
                states = _states(opened, masked)
                count += len(states[0])
                for start in range(0, len(states[0]), _ROWS):
                    last = head(states[-1][start : start + _ROWS]).log_softmax(-1)
                    for layer in range(layers):
                        hidden = states[layer][start : start + _ROWS]
                        for i, one in enumerate((hidden, trained.turned(layer, hidden))):
                            logs = head(one).log_softmax(-1)
                            sums[i, layer] += float((last.exp() * (last - logs)).sum())
        except DataError as error:
            raise DataError(
                f"no text could be held out; a tuned lens needs {HELD_OUT} texts or more"
            ) from error
    raw, tuned = sums / max(count, 1)
    helps = tuned <= raw
    keep = helps.to(trained.bias)
    weight, bias = trained.weight * keep[:, None, None], trained.bias * keep[:, None]
    best = torch.where(helps, tuned, raw)
    made = replace(trained, weight=weight, bias=bias)
    return made, TunedLensReport(steps, count, raw.tolist(), best.tolist())
