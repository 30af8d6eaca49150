"""`compare`: how alike the layers of one model, or of two, represent the same texts.

Two models with one tokenizer are compared token by token, others word by word (units.py). The
figures are CKA, RSA, anisotropy, effective rank and participation ratio (similarity.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from bertkit.data.order import uniform
from bertkit.errors import DataError, UsageError
from bertkit.explain.hooks import still, trace
from bertkit.explain.opening import Model, Opened, open_model
from bertkit.explain.page import Section
from bertkit.explain.pictures import Look, bars, heat
from bertkit.explain.result import Floats, Result, counted, headed
from bertkit.explain.similarity import Pair, Sample, Sums, rsa
from bertkit.explain.tables import digits, grid
from bertkit.explain.units import Unit, Units, pooled, same_tokenizer, unit_batches
from bertkit.explain.wording import named, say

if TYPE_CHECKING:
    from rich.console import RenderableType

CAUTION = (
    "CKA and RSA compare the shape of two clouds of vectors and do not see a rotation: a high "
    "value does not mean that two layers serve the same use, and a few directions of large "
    "variance can decide it; figures of few vectors are uncertain."
)
CAUTION_ZH = (
    "CKA 和 RSA 比较的是两团向量的形状，看不见旋转：数值高并不说明两层的用途相同，"
    "少数方差很大的方向就可能决定结果；向量少时数值不可靠。"
)
# Numbers in all the sums at once, 1.6 GB; beyond it only every second (third ...) layer is read.
MOST_NUMBERS = 200_000_000
SAMPLE = 500
_FIGURES = {
    "anisotropy": "anisotropy (mean cosine)",
    "effective_rank": "effective rank",
    "participation_ratio": "participation ratio",
}
_COLUMNS = ("mean cosine", "effective rank", "participation ratio")
_NOTE = (
    "mean cosine: of two vectors of different tokens, words or texts (anisotropy); effective rank, "
    "participation ratio: how many directions carry the variance"
)


@dataclass(frozen=True)
class Spread:
    """How the vectors of one model lie, by layer; index 0 is what the embeddings give.

    Attributes:
        model: its name.
        layers: [L] the numbers of the layers.
        anisotropy: [L] the mean cosine of two vectors, over all pairs.
        effective_rank: [L] exp of the entropy of the singular values.
        participation_ratio: [L] how many directions carry the variance.
    """

    model: str
    layers: list[int]
    anisotropy: Floats
    effective_rank: Floats
    participation_ratio: Floats

    @property
    def names(self) -> list[str]:
        """Of the layers."""
        return [named(f"layer {layer}" if layer else "embeddings") for layer in self.layers]


@dataclass(frozen=True)
class CompareResult(Result):
    """Layers of one model against each other, or of two models.

    Attributes:
        unit: what has a vector: "token", "word" (mean of its tokens) or "text" (mean of them all).
        debiased: of CKA.
        texts: how many were read.
        vectors: how many were compared.
        sampled: of how many of them RSA took the distances.
        cut: texts that were longer than a model reads, and cut.
        cka: [A, B] of layers of the first model and of the second, or of the first again.
        rsa: [A, B] the same.
        spreads: of each model.
    """

    verb: ClassVar[str] = "compare"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    unit: str
    debiased: bool
    texts: int
    vectors: int
    sampled: int
    cut: int
    cka: Floats
    rsa: Floats
    spreads: list[Spread]

    def title(self) -> str:
        """What was asked."""
        return say(
            "Compared: {models}, {vectors} of {texts}",
            models=say(" and ").join(spread.model for spread in self.spreads),
            vectors=counted(self.vectors, f"{self.unit}s"),
            texts=counted(self.texts, "texts"),
        )

    def _names(self) -> tuple[list[str], list[str]]:
        """The layers of the first model, and of the last."""
        one, other = ([named(name) for name in self.spreads[i].names] for i in (0, -1))
        return one, other

    def table(self) -> RenderableType:
        """A row a layer, for each model."""
        from rich.console import Group

        two = len(self.spreads) == 2
        near = "CKA: same layer" if two else "CKA: layer before"
        alike = "best CKA (layer)" if two else "CKA: last layer"
        names, others = self._names()
        rows = []
        for i, name in enumerate(names):
            at = i if two else i - 1
            pair = [self.cka[i, at], self.rsa[i, at]] if 0 <= at < len(others) else [np.nan] * 2
            shown = digits(self.cka[i, -1])
            if two and np.isfinite(self.cka[i]).any():
                best = int(np.nanargmax(self.cka[i]))
                shown = f"{digits(self.cka[i, best])} ({self.spreads[1].layers[best]})"
            figures = _figures(self.spreads[0], i)
            rows.append([name, digits(pair[0]), shown, digits(pair[1]), *figures])
        columns = ("layer", near, alike, near.replace("CKA", "RSA"), *_COLUMNS)
        first = grid(self.title(), columns, rows, note="" if two else _NOTE)
        if not two:
            return first
        more = [[name, *_figures(self.spreads[1], i)] for i, name in enumerate(others)]
        return Group(first, grid(self.spreads[1].model, ("layer", *_COLUMNS), more, note=_NOTE))

    def sections(self) -> list[Section]:
        """Layer by layer, then the spread of each model."""
        names, others = self._names()
        against = say(
            "Rows: {first}; columns: {second}.",
            first=self.spreads[0].model,
            second=self.spreads[-1].model,
        )
        kind = (
            say(
                "Debiased: near 0 for layers that have nothing in common; 1 is equal up to "
                "rotation."
            )
            if self.debiased
            else say("Biased: not 0 even for layers that have nothing in common.")
        )
        ranks = say("Rank correlation of the distances of {n} vectors.", n=f"{self.sampled:,}")
        found = []
        for name, note in (("cka", kind), ("rsa", ranks)):
            look = Look(name.upper(), figure=_two_decimals, most=1.0)
            picture = heat(name, getattr(self, name), names, others, look)
            heading = say("{figure} of layers", figure=name.upper())
            found.append(Section(heading, picture, f"{against} {note}"))
        for number, spread in enumerate(self.spreads):
            for name, heading in _FIGURES.items():
                layers = others if number else names
                drawn = bars(f"spreads.{number}.{name}", getattr(spread, name), layers)
                found.append(Section(headed(spread.model, named(heading)), drawn))
        return found


def _two_decimals(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def brief_or_none(value: float, digits: int = 3) -> str:
    """A number with so many decimals; nothing where it is missing."""
    return f"{value:.{digits}f}" if np.isfinite(value) else ""


def _figures(spread: Spread, layer: int) -> list[str]:
    return [digits(getattr(spread, name)[layer]) for name in _FIGURES]


def compare(
    model: Model,
    text: str,
    other: Model | None = None,
    *,
    unit: Unit | None = None,
    debiased: bool = True,
    sample: int = SAMPLE,
    seed: int = 0,
) -> CompareResult:
    """Compare layers on one text: on few vectors, so that only large differences tell something.

    Arguments and errors are those of `compare_over`; the text is not a "text" of it.
    """
    return compare_over(
        model, [text], other, unit=unit, debiased=debiased, sample=sample, seed=seed
    )


def compare_over(
    model: Model,
    texts: Iterable[str],
    other: Model | None = None,
    *,
    unit: Unit | None = None,
    debiased: bool = True,
    sample: int = SAMPLE,
    seed: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> CompareResult:
    """Compare the layers of a model with each other, or with those of another, over many texts.

    Memory does not grow with the number of texts, but with the models: the sums hold L^2 D^2
    numbers; where that is more than 1.6 GB, layers are left out evenly.

    Args:
        model: a name, or what `bertkit.load` gave; any head or none.
        texts: any number; those longer than a model reads are cut, and counted.
        other: another model, or another checkpoint of the same.
        unit: "token", "word" or "text"; None: tokens, or words where the tokenizers differ.
        debiased: CKA from the unbiased HSIC.
        sample: vectors between whose pairs RSA takes distances.
        seed: of the sample.
        report: told how many texts are done.

    Raises:
        UsageError: the sample is less than 4, or the tokenizers differ and tokens were asked for.
        DataError: there are fewer than 4 vectors to compare.
    """
    if sample < 4:
        raise UsageError(f"a sample of {sample} vectors: RSA needs at least 4")
    models = [open_model(one) for one in (model, other) if one is not None]
    unit = _unit(models, unit)
    layers, pairs = plan(models)
    sums, drawn, read, cut = Sums(pairs), Sample(sample), 0, 0
    with ExitStack() as stack:
        for one in models:
            stack.enter_context(still(one.model))
        for units in unit_batches(models, texts, unit):
            matrices = _states(models, layers, units)
            sums.add(matrices)
            drawn.add(uniform(seed, *units.keys), matrices)
            read, cut = read + units.texts, cut + units.cut
            report(read)
    if sums.rows < 4:
        raise DataError(f"the texts hold {sums.rows} {unit}s to compare; at least 4 are needed")
    count = len(layers[0])
    return CompareResult(
        unit,
        debiased,
        read,
        sums.rows,
        len(drawn.draws),
        cut,
        _square(sums, pairs, count, debiased),
        rsa(drawn.matrices[:count], drawn.matrices[count:] or drawn.matrices),
        [_spread(one.name, layers[i], sums, count * i) for i, one in enumerate(models)],
    )


def _unit(models: Sequence[Opened], asked: Unit | None) -> Unit:
    """What has a vector: what was asked for, else the smallest thing that the models share."""
    same = same_tokenizer(models[0].tokenizer, models[-1].tokenizer)
    if asked == "token" and not same:
        raise UsageError(
            f"{models[0].name} and {models[1].name} cut texts into other tokens; compare words "
            "or texts"
        )
    return asked or ("token" if same else "word")


def plan(models: Sequence[Opened]) -> tuple[list[list[int]], list[Pair]]:
    """The layers of each model that are read, and which states, counted through, are compared."""
    configs = [one.model.config for one in models]
    step = 0
    while True:
        step += 1
        layers = [[*range(c.num_hidden_layers, 0, -step), 0][::-1] for c in configs]
        count = len(layers[0])
        if len(models) == 1:
            pairs = [(i, j) for i in range(count) for j in range(i, count)]
        else:
            pairs = list(product(range(count), range(count, count + len(layers[1]))))
        sizes = [c.hidden_size for c, kept in zip(configs, layers, strict=True) for _ in kept]
        sums = {*pairs, *((i, i) for i in range(len(sizes)))}
        if sum(sizes[i] * sizes[j] for i, j in sums) <= MOST_NUMBERS or step > 99:
            return layers, pairs


def _states(models: Sequence[Opened], layers: Sequence[list[int]], units: Units) -> list[Tensor]:
    """[M, D] float64 of each layer that is read, of one model behind the other, on one device."""
    found, count = [], units.keys.shape[1]
    for one, kept, batch, owners in zip(models, layers, units.batches, units.owners, strict=True):
        hidden = trace(one.encoder, batch).hidden
        found += [
            pooled(hidden[layer], owners, count).to(models[0].encoder.device) for layer in kept
        ]
    return found


def _square(sums: Sums, pairs: Sequence[Pair], count: int, debiased: bool) -> Floats:
    """[A, B] CKA of the pairs; of one model it is symmetric."""
    width = count if pairs[-1][1] < count else pairs[-1][1] + 1 - count
    found = np.empty((count, width))
    for i, j in pairs:
        value = sums.cka(i, j, debiased)
        if pairs[-1][1] < count:
            found[i, j] = found[j, i] = value
        else:
            found[i, j - count] = value
    return found


def _spread(name: str, layers: list[int], sums: Sums, first: int) -> Spread:
    places = range(first, first + len(layers))
    ranks = np.array([sums.ranks(i) for i in places])
    cosines = np.array([sums.anisotropy(i) for i in places])
    return Spread(name, layers, cosines, ranks[:, 0], ranks[:, 1])
