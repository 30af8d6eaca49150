"""Ways in which a state can be pushed: towards a word, at random, where the answer moves most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertkit.errors import UsageError
from bertkit.explain.onward import Rest
from bertkit.explain.opening import Opened


@dataclass(frozen=True)
class Pushes:
    """Which ways and how far.

    Attributes:
        steps: sizes in lengths of the vector; each is walked forwards and backwards, and 0 too.
        towards: a word or label; None: the asked word, or else the second likeliest.
        against: the word or label that is left; None: the likeliest, or where that is the one
            above, the second likeliest.
        layers: 0 for the embeddings; None: all.
        random: how many random directions a layer, the control.
        singular: how many singular directions of d logits / d vector a layer.
        seed: of the random ones.
    """

    steps: tuple[float, ...] = (0.2, 0.5, 1.0)
    towards: str | None = None
    against: str | None = None
    layers: tuple[int, ...] | None = None
    random: int = 8
    singular: int = 2
    seed: int = 0

    def grid(self) -> list[float]:
        """All steps, ascending.

        Raises:
            UsageError: a size is none.
        """
        if not self.steps or not all(0 < step < math.inf for step in self.steps):
            raise UsageError(f"steps {list(self.steps)}: sizes are above 0; both ways are walked")
        sizes = sorted(set(self.steps))
        return [-size for size in reversed(sizes)] + [0.0, *sizes]

    def chosen(self, count: int) -> list[int]:
        """The layers, of a model with `count` of them beside the embeddings.

        Raises:
            UsageError: there is no such layer, or no control.
        """
        if self.random < 2 or self.singular < 0:
            raise UsageError("at least 2 random directions are the control; none is below 0")
        layers = range(count + 1) if self.layers is None else sorted(set(self.layers))
        for layer in layers:
            if not 0 <= layer <= count:
                raise UsageError(f"layer {layer}: the model has layers 0 (embeddings) to {count}")
        return list(layers)


def output_rows(opened: Opened) -> Tensor:
    """[C, D] what the head multiplies with for each word or label: its output embeddings."""
    model: Any = opened.model
    decoder = model.get_output_embeddings()
    weight: Tensor = (decoder if decoder is not None else model.classifier).weight.detach()
    return weight


def unit(vectors: Tensor) -> Tensor:
    """[..., D] of length 1; a vector of zeros stays as it is."""
    lengths: Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / lengths.clamp_min(torch.finfo(vectors.dtype).tiny)


def embedding_direction(opened: Opened, target: int, against: int) -> Tensor:
    """[D] from the output embedding of one word or label to that of another."""
    rows = output_rows(opened)
    return unit(rows[target] - rows[against])


def gradient_direction(rest: Rest, target: int, against: int) -> Tensor:
    """[D] where the target's logit gains most on the other's, for a very small push."""
    count = len(rest.readout.logits(rest.state[None])[0])
    weights = rest.state.new_zeros(1, count)
    weights[0, target] += 1
    weights[0, against] -= 1
    return unit(rest.slope().back(weights)[0])


def generator(*keys: int) -> np.random.Generator:
    """Of numbers that are a function of the keys alone, which may be below 0."""
    return np.random.default_rng([key & 0xFFFFFFFF for key in keys])


def random_directions(keys: Sequence[int], count: int, like: Tensor) -> Tensor:
    """[count, D] evenly over all directions; a function of the keys alone.

    Args:
        keys: a seed, and numbers of what the directions are for.
        count: how many.
        like: [D], for size, type and device.
    """
    drawn = generator(*keys).standard_normal((count, len(like)))
    return unit(torch.from_numpy(drawn)).to(like)


def singular_directions(
    rest: Rest, count: int, *, centred: bool = True, seed: int = 0, tolerance: float | None = None
) -> tuple[Tensor, Tensor]:
    """The directions in which the logits move most for a small push: of J = d logits / d state.

    J itself, C x D, is never made: J d comes from a forward derivative and J^T w from a backward
    one, of some directions at a time, and the largest eigenvectors of J^T J from a block Krylov
    space (Musco and Musco 2015, arXiv 1504.05477), which in the end is the whole space.

    Args:
        rest: the model behind the state.
        count: how many, largest first; at most D, and as many as logits can move apart.
        centred: of the logits less their mean, since what moves all alike moves no probability.
        seed: where the search begins.
        tolerance: of what is left of J^T J v - s^2 v, in shares of the largest s^2, which itself is
            then known to the square of that; None: as exactly as the states' numbers allow.

    Returns:
        [count] singular values and [count, D] unit directions, both float64.
    """
    slope = rest.slope()

    def gram(directions: Tensor) -> Tensor:
        moved = slope.along(directions)
        if centred:
            moved = moved - moved.mean(-1, keepdim=True)
        return slope.back(moved)

    count = min(count, len(rest.readout.names) - centred)
    if not count:
        return rest.state.new_zeros(0).double(), rest.state.new_zeros(0, len(rest.state)).double()
    if tolerance is None:
        tolerance = torch.finfo(rest.state.dtype).eps ** 0.5
    values, vectors = leading(gram, count, rest.state, tolerance, seed)
    return values.clamp_min(0).sqrt(), vectors


def leading(
    apply: Callable[[Tensor], Tensor], count: int, like: Tensor, tolerance: float, seed: int
) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues [count] and eigenvectors [count, D] of a symmetric D x D matrix.

    Args:
        apply: [n, D] -> [n, D], each row multiplied with the matrix.
        count: how many, at most D.
        like: [D], of the type and on the device that `apply` works with.
        tolerance: of what is left of A v - a v, in shares of the largest eigenvalue.
        seed: where the search begins.
    """
    size = len(like)
    # Wider blocks take fewer rounds, but more products in all (on a trained mini, twice as many).
    count, width = min(count, size), min(count + 2, size)
    block = random_directions([seed], width, like).double()
    basis, image = block.new_zeros(0, size), block.new_zeros(0, size)
    while True:
        for _ in range(2):  # once is not enough where the block nearly lies in the basis
            block = block - (block @ basis.T) @ basis
            block = torch.linalg.qr(block.T).Q.T
        basis = torch.cat([basis, block])
        image = torch.cat([image, apply(block.to(like)).double()])
        small = basis @ image.T
        values, turns = torch.linalg.eigh((small + small.T) / 2)
        values, turns = values.flip(0)[:count], turns.flip(1)[:, :count].T
        left = (turns @ image - values[:, None] * (turns @ basis)).norm(dim=1)
        if len(basis) == size or float(left.max()) <= tolerance * float(values[0].abs()):
            return values, turns @ basis
        block = image[-len(block) :][: size - len(basis)]
