"""`perturb-vector`: push the vector of one position and see how the answer changes.

A push is a share of the vector's own length, so that layers can be compared. Random pushes of the
same length are the control: what they do as well is no finding about a direction.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bertkit.data.order import uniform
from bertkit.errors import MissingHeadError, UsageError
from bertkit.explain.asked import Question, has_words
from bertkit.explain.corpus import masked_batches
from bertkit.explain.directions import (
    Pushes,
    embedding_direction,
    gradient_direction,
    random_directions,
    singular_directions,
)
from bertkit.explain.hooks import still
from bertkit.explain.onward import Rest, in_passes, states_of
from bertkit.explain.opening import Model, Opened, open_model
from bertkit.explain.pushed import Control, PushCorpusResult, PushedAt, PushResult
from bertkit.explain.readouts import Readout, number_of, questions_for, readout_of
from bertkit.explain.words import Segmenter
from bertkit.tasks.asking import pack


def perturb_vector(
    model: Model,
    text: str,
    pair: str | None = None,
    *,
    word: str | int | None = None,
    pushes: Pushes | None = None,
    top_k: int = 5,
    segmenter: Segmenter | None = None,
) -> PushResult:
    """Push the vectors of the asked positions in every layer, and run the rest of the model.

    Args:
        model: one with a masked-word head, or one that labels texts or words.
        text: with [MASK] in it, or with `word`, of a model with a masked-word head.
        pair: the second text.
        word: a word of the text to be masked; of models that label words, the one asked about.
        pushes: directions, steps and layers.
        top_k: how many of the likeliest words are told.
        segmenter: "jieba" for Chinese words of several characters.

    Raises:
        MissingHeadError: the model has no head that can be read.
        UsageError: a push makes no sense.
        DataError: there is no mask and no such word, or the text is too long.
    """
    opened, pushes = open_model(model), pushes or Pushes()
    readout, steps = readout_of(opened), pushes.grid()
    layers = pushes.chosen(opened.model.config.num_hidden_layers)
    asked = questions_for(opened, text, pair, word=word, segmenter=segmenter)
    sentence = asked[0].sentence
    with still(opened.model):
        found = [_pushed_at(opened, readout, one, (layers, steps, pushes, top_k)) for one in asked]
    return PushResult(opened.name, sentence.texts, sentence.labels, readout.what, steps, found)


# Of singular directions in means over a file: the values are right to one in ten thousand.
TOLERANCE = 0.01


class Measured(NamedTuple):
    """What pushes do, R directions by K steps; on the CPU.

    Attributes:
        logit: [R, K] of the target.
        probability: [R, K] its own.
        kl: [R, K] KL(without a push || with it) in nats.
        best: [R, K, k] numbers of the likeliest words.
        likely: [R, K, k] their probabilities.
    """

    logit: Tensor
    probability: Tensor
    kl: Tensor
    best: Tensor
    likely: Tensor


def measured(
    rest: Rest, vectors: Tensor, steps: Sequence[float], target: int, top_k: int
) -> Measured:
    """Push a state along directions; the step 0 is a pass by itself, as the model's own is.

    Args:
        rest: the model behind the state.
        vectors: [R, D] of length 1.
        steps: K of them, 0 among them, in lengths of the state.
        target: the word that is watched.
        top_k: how many of the likeliest.
    """
    state, width = rest.state, min(top_k, len(rest.readout.names))
    scale = torch.tensor(steps, dtype=state.dtype, device=state.device) * state.norm()
    pushed = state + vectors[:, None] * scale[:, None]  # [R, K, D]
    own = _logs(rest.logits(pushed[0, steps.index(0.0)][None]))[1]

    def figures(states: Tensor) -> Tensor:
        logits, logs = _logs(rest.logits(states))
        top = logs[:, : len(rest.readout.names)].topk(width)
        kl = (own.exp() * (own - logs)).sum(-1).clamp_min(0)
        parts = (logits[:, target], logs[:, target].exp(), kl)
        return torch.cat([torch.stack(parts, 1), top.values.exp(), top.indices.to(logs)], 1)

    nothing = figures(pushed[0, steps.index(0.0)][None])
    moving = [k for k, step in enumerate(steps) if step]
    table = nothing.expand(len(vectors), len(steps), -1).clone()
    some = in_passes(figures, pushed[:, moving].flatten(0, 1), len(rest.hidden))
    table[:, moving] = some.unflatten(0, (len(vectors), len(moving)))
    table = table.cpu()
    logit, probability, kl = table[..., :3].unbind(-1)
    likely, best = table[..., 3:].split(width, -1)
    return Measured(logit, probability, kl, best.long(), likely)


def _logs(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and log-probabilities, fp32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits, logits.log_softmax(-1)


def _aims(
    opened: Opened, readout: Readout, rest: Rest, question: Question, pushes: Pushes
) -> tuple[int, int]:
    """The word that is pushed towards, and the one that is left."""
    logits = rest.logits(rest.state[None])[0, : len(readout.names)]
    first, second = logits.topk(2).indices.tolist()
    target = second if question.target is None else question.target
    if pushes.towards is not None:
        target = number_of(opened, readout, pushes.towards)
    against = second if target == first else first
    if pushes.against is not None:
        against = number_of(opened, readout, pushes.against)
    if target == against:
        raise UsageError(f"{readout.names[target]!r} cannot be pushed towards and away from")
    return int(target), int(against)


def _pushed_at(
    opened: Opened,
    readout: Readout,
    question: Question,
    how: tuple[list[int], list[float], Pushes, int],
) -> PushedAt:
    layers, steps, pushes, top_k = how
    token, encoder = question.token, opened.encoder
    states = states_of(encoder, question.sentence.batch(), token)
    rests = [Rest(encoder, readout, states[layer], layer, token) for layer in layers]
    target, against = _aims(opened, readout, rests[-1], question, pushes)
    straight = embedding_direction(opened, target, against).to(states[0])
    found, controls, slopes, sizes = [], [], [], []
    for rest in rests:
        values, singular = singular_directions(rest, pushes.singular, seed=pushes.seed)
        turned = _turned(rest, singular.to(states[0]), target)
        ways = torch.stack([straight, gradient_direction(rest, target, against), *turned])
        found.append(measured(rest, ways, steps, target, top_k))
        slopes.append(rest.slope().along(ways)[:, target] * rest.state.norm())
        sizes.append(values)
        drawn = random_directions([pushes.seed, token], pushes.random, rest.state)
        controls.append(measured(rest, drawn, steps, target, 1))
    word = readout.names[target]
    return PushedAt(
        token=token,
        label=question.label,
        target=word,
        against=readout.names[against],
        layers=layers,
        norm=np.array([float(rest.state.norm()) for rest in rests]),
        directions=[
            f"towards {word}, embedding",
            f"towards {word}, gradient",
            *(f"singular {i + 1}" for i in range(len(sizes[0]))),
        ],
        singular_values=torch.stack(sizes).cpu().numpy(),
        slope=torch.stack(slopes, 1).cpu().numpy(),
        logit=torch.stack([one.logit for one in found], 1).numpy(),
        probability=torch.stack([one.probability for one in found], 1).numpy(),
        kl=torch.stack([one.kl for one in found], 1).numpy(),
        likeliest=torch.stack([one.likely for one in found], 1).numpy(),
        names=_named(readout, torch.stack([one.best for one in found], 1).tolist()),
        control=_control(controls, steps),
    )


def _named(readout: Readout, numbers: list[list[list[list[int]]]]) -> list[list[list[list[str]]]]:
    return [
        [[[readout.names[i] for i in cell] for cell in row] for row in layers] for layers in numbers
    ]


def _turned(rest: Rest, vectors: Tensor, target: int) -> list[Tensor]:
    """A singular direction has no sign of its own: forwards is where the target's logit rises."""
    if not len(vectors):
        return []
    slopes = rest.slope().along(vectors)[:, target]
    return list(torch.where(slopes[:, None] < 0, -vectors, vectors))


def _control(controls: list[Measured], steps: Sequence[float]) -> Control:
    """Mean and deviation over the random directions of each layer."""
    zero = steps.index(0.0)
    parts: list[Any] = []
    for name in ("logit", "probability", "kl"):
        drawn = torch.stack([getattr(one, name) for one in controls])  # [N, R, K]
        parts += [drawn.mean(1).numpy(), drawn.std(1).numpy()]
    best = torch.stack([one.best[..., 0] for one in controls])
    parts.append((best != best[..., zero : zero + 1]).double().mean(1).numpy())
    return Control(*parts)


def perturb_vector_over(
    model: Model,
    texts: Iterable[str],
    *,
    pushes: Pushes | None = None,
    positions: int = 64,
    probability: float = 0.15,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> PushCorpusResult:
    """How far the answers at masked words move, by layer and step, for two kinds of directions.

    Args:
        model: one with a masked-word head.
        texts: any number, read once; some of their masked positions are drawn evenly.
        pushes: steps, layers, random directions, seed; the largest singular direction is taken.
        positions: how many masked positions.
        probability: that a token is masked.
        report: told how many positions are done, and of how many.

    Raises:
        MissingHeadError: the model has no masked-word head.
        UsageError: a push makes no sense.
        DataError: there is no text.
    """
    opened, pushes = open_model(model), pushes or Pushes()
    if not has_words(opened.model):
        raise MissingHeadError(
            f"{opened.name}: has no masked-word head; files are asked masked words"
        )
    if positions < 1:
        raise UsageError(f"positions {positions}: at least 1 is pushed")
    readout, steps = readout_of(opened), pushes.grid()
    layers = pushes.chosen(opened.model.config.num_hidden_layers)
    read, drawn = _drawn(opened, texts, positions, probability, pushes.seed)
    sums = torch.zeros(4, len(layers), len(steps), dtype=torch.float64)
    sizes = torch.zeros(len(layers), dtype=torch.float64)
    with still(opened.model):
        for done, (ids, token, number) in enumerate(drawn):
            report(done, len(drawn))
            states = states_of(opened.encoder, pack([ids]), token)
            for i, layer in enumerate(layers):
                rest = Rest(opened.encoder, readout, states[layer], layer, token)
                size, sums_here = _moved(rest, steps, pushes, number)
                sizes[i] += size
                sums[:, i] += sums_here
    report(len(drawn), len(drawn))
    random_kl, random_flips, singular_kl, singular_flips = (sums / len(drawn)).numpy()
    return PushCorpusResult(
        opened.name,
        read,
        len(drawn),
        steps,
        layers,
        (sizes / len(drawn)).numpy(),
        random_kl,
        random_flips,
        singular_kl,
        singular_flips,
    )


def _moved(rest: Rest, steps: list[float], pushes: Pushes, number: int) -> tuple[float, Tensor]:
    """The largest singular value, and [4, K]: KL and flips, at random and along its direction."""
    values, vectors = singular_directions(rest, 1, seed=pushes.seed, tolerance=TOLERANCE)
    drawn = random_directions([pushes.seed, number, rest.token], pushes.random, rest.state)
    zero, rows = steps.index(0.0), []
    for ways in (drawn, vectors.to(rest.state)):
        found = measured(rest, ways, steps, 0, 1)
        best = found.best[..., 0]
        rows += [found.kl.double().mean(0), (best != best[:, zero, None]).double().mean(0)]
    return float(values[0]), torch.stack(rows)


def _drawn(
    opened: Opened, texts: Iterable[str], positions: int, probability: float, seed: int
) -> tuple[int, list[tuple[list[int], int, int]]]:
    """How many texts there are, and (ids, masked token, number) of some masked positions of them.

    The choice is a function of the seed, the text's number and the position.
    """
    heap: list[tuple[float, int, int, list[int]]] = []
    read = 0
    for masked in masked_batches(opened, texts, probability=probability, seed=seed):
        read += len(masked.numbers)
        ends = masked.batch.lengths.cumsum(0)
        owners = torch.searchsorted(ends, masked.batch.mlm_positions, right=True).tolist()
        starts, rows = (
            masked.batch.starts.tolist(),
            masked.batch.input_ids.split(masked.batch.lengths.tolist()),
        )
        for position, owner in zip(masked.batch.mlm_positions.tolist(), owners, strict=True):
            number, token = masked.numbers[owner], position - starts[owner]
            # One more key, so that this draw is not the one by which the token was masked.
            draw = float(uniform(seed, number, token, positions))
            push = heapq.heappush if len(heap) < positions else heapq.heappushpop
            push(heap, (-draw, number, token, rows[owner].tolist()))
    chosen = sorted(heap, key=lambda one: one[1:3])
    return read, [(ids, token, number) for _, number, token, ids in chosen]
