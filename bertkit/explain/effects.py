"""What a change of a model does to its answers: loss, KL and flips at fixed questions of texts.

The unchanged states at each layer's boundary are kept for a batch, so that a change in layer i
costs the layers from i on; that is the same computation, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bertkit.explain.opening import Opened
from bertkit.explain.questions import Asked, Head
from bertkit.model.bert import BertModel
from bertkit.model.buckets import Spans

# Log-probabilities are made this many bytes at a time: near the cache of a CPU.
CHUNK_BYTES = 16 << 20


class Clean(NamedTuple):
    """The unchanged model on a batch.

    Attributes:
        asked: the batch.
        states: L + 1 times what goes into a layer, [T, D]; the last one [R, D], for the head.
        logs: [Q, C] its answers.
        chances: [Q, C] the same as probabilities.
        best: [Q, 1] the likeliest.
        labels: [Q] the right ones; where nobody knows them, its own best.
        losses: [Q] cross-entropy in nats.
    """

    asked: Asked
    states: list[Tensor]
    logs: Tensor
    chances: Tensor
    best: Tensor
    labels: Tensor
    losses: Tensor


Wrap = Callable[[int, Tensor, Tensor], Tensor]


def run_from(
    encoder: BertModel,
    asked: Asked,
    first: int,
    hidden: Tensor | None = None,
    *,
    keep: list[Tensor] | None = None,
    wrap: Wrap = lambda layer, before, after: after,
) -> Tensor:
    """The layers from one on, the last one for the asked rows alone.

    Args:
        encoder: the model's `base_model`.
        asked: the batch.
        first: -1 begins with the embeddings; 0 to L - 1 with that layer; L does nothing.
        hidden: what goes into that layer, [T, D].
        keep: is given what goes into each layer, and at last the answer.
        wrap: is given the number of a layer from 0 and its rows before and after it, and says what
            goes on.

    Returns:
        [R, D].
    """
    batch, layers = asked.batch, encoder.encoder.layer
    if first < 0:
        hidden = encoder.embeddings(batch.input_ids, batch.token_type_ids, batch.position_ids)
    assert hidden is not None
    spans = Spans.of(batch.lengths, hidden.device)
    for i in range(max(first, 0), len(layers)):
        if keep is not None:
            keep.append(hidden)
        rows: tuple[Tensor | None, Spans | None] = (None, None)
        before = hidden
        if i == len(layers) - 1:
            rows = (asked.rows, Spans.of(asked.counts, hidden.device, spans.longest))
            before = hidden.index_select(0, asked.rows)
        hidden = wrap(i, before, layers[i](hidden, spans, *rows)[0])
    if not layers and first < 0:
        hidden = hidden.index_select(0, asked.rows)
    if keep is not None:
        keep.append(hidden)
    return hidden


def answer_clean(opened: Opened, head: Head, asked: Asked) -> Clean:
    """The model as it is, with what goes into each of its layers."""
    states: list[Tensor] = []
    hidden = run_from(opened.encoder, asked, -1, keep=states)
    logs = torch.cat([head.logs(hidden[part], asked) for part in _parts(head, hidden, None)])
    best = logs.argmax(-1, keepdim=True)
    labels = best.squeeze(-1) if asked.labels is None else asked.labels
    losses = -logs.gather(-1, labels[:, None]).squeeze(-1)
    return Clean(asked, states, logs, logs.exp(), best, labels, losses)


def effect(head: Head, hidden: Tensor, clean: Clean) -> Tensor:
    """[3] float64 on the CPU: summed over the questions, what a change did.

    Growth of the cross-entropy, KL(unchanged || changed), and how often the best answer is beaten
    by another.

    Args:
        head: of the changed model.
        hidden: [R, D] of the changed model.
        clean: the unchanged model on the same batch.
    """
    total = torch.zeros(3, dtype=torch.float64)
    for part in _parts(head, hidden, clean.logs.shape[-1]):
        logs, labels = head.logs(hidden[part], clean.asked), clean.labels[part]
        growth = -logs.gather(-1, labels[:, None]).squeeze(-1) - clean.losses[part]
        kl = (clean.logs[part] - logs).mul_(clean.chances[part]).sum(-1).clamp_min(0)
        flips = logs.amax(-1) > logs.gather(-1, clean.best[part]).squeeze(-1)
        found = torch.stack([growth.double().sum(), kl.double().sum(), flips.double().sum()])
        total += found.cpu()
    return total


def _parts(head: Head, hidden: Tensor, width: int | None) -> Iterator[slice]:
    """Rows whose log-probabilities of this width are made at once."""
    step = len(hidden)
    if head.single:
        step = max(16, CHUNK_BYTES // (4 * (width or 1 << 15)))
    for start in range(0, len(hidden), step):
        yield slice(start, start + step) if head.single else slice(None)
