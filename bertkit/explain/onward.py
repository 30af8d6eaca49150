"""The rest of a model behind a layer: what it makes of states that were changed.

Many changed copies of one text go through in one pass, laid end to end. One copy by itself is
computed as the model's own pass computes it, so that a change by nothing gives the model's own
answer bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bertkit.batch import Batch
from bertkit.explain.hooks import trace
from bertkit.explain.readouts import Readout
from bertkit.model.bert import BertModel
from bertkit.model.buckets import Spans

# Of one pass. Copies are few enough that their logits stay small beside a large vocabulary's head.
PASS_TOKENS = 4096
PASS_COPIES = 64


def onward(
    encoder: BertModel, hidden: Tensor, layer: int, token: int, written_out: bool = False
) -> Tensor:
    """The last layer at one token of each copy.

    Args:
        encoder: in eval mode.
        hidden: [n, S, D] what `layer` gives on, in n copies of a text.
        layer: 0 for the embeddings; the layers behind it are run.
        token: the position that is read.
        written_out: attention in plain operations, which can be differentiated in both directions.

    Returns:
        [n, D].
    """
    copies, size = hidden.shape[:2]
    rows = torch.arange(copies, device=hidden.device) * size + token
    spans = Spans.of(torch.full((copies,), size), hidden.device)
    asking = (rows, Spans.of(torch.ones(copies, dtype=torch.long), hidden.device, size))
    flat, layers = hidden.flatten(0, 1), encoder.encoder.layer
    for number in range(layer, len(layers)):
        last = number + 1 == len(layers) and not written_out
        flat, _ = layers[number](flat, spans, *(asking if last else (None, None)), written_out)
    return flat if len(flat) == copies else flat.index_select(0, rows)


def states_of(encoder: BertModel, batch: Batch, token: int) -> list[Tensor]:
    """[S, D] of one text from the embeddings to the last layer.

    At `token` the last one is what the model computes where a head reads that token alone.
    """
    states = trace(encoder, batch).hidden
    if len(states) > 1:
        before = len(states) - 2
        states[-1] = states[-1].clone()
        states[-1][token] = onward(encoder, states[before][None], before, token)[0]
    return states


def in_passes(answer: Callable[[Tensor], Tensor], copies: Tensor, size: int) -> Tensor:
    """`answer` of so many copies at a time that a pass stays small.

    Args:
        answer: [m, ...] -> [m, ...], each row for itself.
        copies: [n, ...].
        size: tokens of a copy.
    """
    most = max(1, min(PASS_TOKENS // size, PASS_COPIES))
    return torch.cat([answer(part) for part in copies.split(most)])


class Rest(NamedTuple):
    """The rest of a model as a function of the state at one position, all others as they are.

    Attributes:
        encoder: in eval mode.
        readout: its head.
        hidden: [S, D] what the layer gives on.
        layer: 0 for the embeddings.
        token: the position that is changed, and read.
    """

    encoder: BertModel
    readout: Readout
    hidden: Tensor
    layer: int
    token: int

    @property
    def state(self) -> Tensor:
        """[D] the state at the position, unchanged."""
        return self.hidden[self.token]

    def logits(self, states: Tensor, written_out: bool = False) -> Tensor:
        """[n, D] states put at the position, each in a copy of its own -> [n, C]."""
        at = torch.tensor([self.token], device=states.device)
        copies = self.hidden.expand(len(states), *self.hidden.shape)
        changed = copies.index_copy(1, at, states.unsqueeze(1))
        read = onward(self.encoder, changed, self.layer, self.token, written_out)
        return self.readout.logits(read)

    def slope(self) -> Slope:
        """The derivative of the logits by the state: one pass, whatever is asked of it."""
        with torch.enable_grad():
            point = self.state[None].requires_grad_()
            logits = self.logits(point, written_out=True)
            weights = torch.zeros_like(logits, requires_grad=True)
            pulled = torch.autograd.grad(logits, point, weights, create_graph=True)[0]
        return Slope(point, logits, weights, pulled, len(self.hidden))


class Slope(NamedTuple):
    """J = d logits / d state, C x D, which is never made; the graph of a pass there and back.

    Attributes:
        point: [1, D] the state.
        logits: [1, C] of it.
        weights: [1, C] zeros.
        pulled: [1, D] J^T weights.
        size: tokens of the text.
    """

    point: Tensor
    logits: Tensor
    weights: Tensor
    pulled: Tensor
    size: int

    def along(self, directions: Tensor) -> Tensor:
        """[n, C] J d of [n, D] directions.

        J^T u is linear in u, and its derivative along d is J d: a pass backwards through that of
        J^T. (torch's forward mode gives the same, but compiles for seconds before it begins.)
        """
        return in_passes(partial(_pulled, self.pulled, self.weights), directions, self.size)

    def back(self, weights: Tensor) -> Tensor:
        """[n, D] J^T w of [n, C] weights of the logits: backward derivatives."""
        return in_passes(partial(_pulled, self.logits, self.point), weights, self.size)


def _pulled(of: Tensor, by: Tensor, some: Tensor) -> Tensor:
    """[n, Y]: for each [n, X] row r the derivative of r . `of` ([1, X]) by `by` ([1, Y])."""
    rows = some[:, None]
    found = torch.autograd.grad(of, by, rows, retain_graph=True, is_grads_batched=True)[0]
    return found[:, 0]
