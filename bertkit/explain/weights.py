"""`perturb-weights`: change one weight tensor at a time and see what the model's answers lose.

For each tensor and each change (weight_changes.py): growth of the loss, KL divergence of the
changed answers from the unchanged ones, how often the best answer is another. Beside them the
diagonal of the empirical Fisher information (Kirkpatrick et al. 2017, arXiv 1612.00796, section
2.1) and what the gradient alone predicts: gradient . change, the first term of Taylor's series.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bertkit.errors import UsageError
from bertkit.explain.corpus import PROBABILITY
from bertkit.explain.effects import Clean, answer_clean, effect, run_from
from bertkit.explain.hooks import restored, still
from bertkit.explain.opening import Model, Opened, open_model
from bertkit.explain.page import Section
from bertkit.explain.pictures import Look, bars, heat, layer_names
from bertkit.explain.questions import Given, Head, asked_batches, head_of, one_text
from bertkit.explain.result import Floats, Result, counted
from bertkit.explain.tables import digits, grid
from bertkit.explain.weight_changes import (
    CHANGES,
    By,
    Change,
    Unit,
    differentiable,
    units_of,
)
from bertkit.explain.wording import named, say

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class WeightsResult(Result):
    """What changes of weights did; P tensors or groups of them, C changes.

    Attributes:
        model: its name.
        asked: what the questions were: "masked words", "labels of texts", ...
        texts: how many were read.
        questions: how many were asked.
        cut: texts that were longer than the model reads, and cut.
        loss: of the unchanged model, mean cross-entropy of a question in nats; where nobody knows
            the right answers, of its own best ones.
        changes: [C] their names.
        tensors: [P] names of tensors, or of the modules or layers that are changed together.
        labels: [P] the same, short.
        sizes: [P] how many numbers each holds.
        fisher: [P] mean squared gradient of a text's mean loss, over texts and numbers.
        growth: [P, C] of the loss, in nats.
        predicted: [P, C] the growth that the gradient predicts.
        kl: [P, C] KL(unchanged || changed), mean of a question, in nats.
        flips: [P, C] share of the questions whose best answer is another.
        kinds: [K] what there is in a layer.
        grid: [C, L, K] `kl` by layer and kind; NaN where nothing was changed.
    """

    verb: ClassVar[str] = "perturb-weights"
    caution: ClassVar[str] = (
        "Each row is one change by itself: tensors can stand in for each other, so small effects "
        "of single ones do not add up to that of several, and the gradient's prediction holds for "
        "small changes only."
    )
    caution_zh: ClassVar[str] = (
        "每一行只改动一处：张量之间可以互相替代，单独改动的小影响不能相加成同时改动的影响；"
        "由梯度作出的预测只对小改动成立。"
    )

    model: str
    asked: str
    texts: int
    questions: int
    cut: int
    loss: float
    changes: list[str]
    tensors: list[str]
    labels: list[str]
    sizes: list[int]
    fisher: Floats
    growth: Floats
    predicted: Floats
    kl: Floats
    flips: Floats
    kinds: list[str]
    grid: Floats

    def title(self) -> str:
        """What was asked."""
        return say(
            "Changed weights: {p} of them, {asked} in {texts}, loss {loss}",
            p=len(self.tensors),
            asked=counted(self.questions, self.asked),
            texts=counted(self.texts, "texts"),
            loss=f"{self.loss:.4f}",
        )

    def table(self) -> RenderableType:
        """A row a tensor; of several changes the loss alone, so that a terminal has room."""
        several = len(self.changes) > 1
        note = "Fisher: mean squared gradient of the loss; "
        note += (
            "the rest: growth of the loss; --json, --npz and --html have KL, flips and predictions"
            if several
            else f"{self.changes[0]}: growth of the loss, what the gradient predicts of it, KL of "
            "the answers, questions with another best answer"
        )
        rows = []
        for i, label in enumerate(self.labels):
            cells = [digits(growth, "+") for growth in self.growth[i]]
            if not several:
                cells += [digits(self.predicted[i, 0], "+"), digits(self.kl[i, 0])]
                cells += [f"{self.flips[i, 0]:.1%}"]
            rows.append([_called(label), digits(self.fisher[i]), *cells])
        figures = self.changes if several else ("loss", "predicted", "KL", "flips")
        return grid(self.title(), ("weights", "Fisher", *figures), rows, note=note)

    def sections(self) -> list[Section]:
        """Layer by kind for each change; all tensors; Fisher."""
        found = []
        layers, kinds = layer_names(self.grid.shape[1] + 1)[1:], [_called(k) for k in self.kinds]
        labels, changes = [_called(x) for x in self.labels], [named(x) for x in self.changes]
        note = say("KL divergence of the changed answers from the unchanged ones, in nats.")
        for c, change in enumerate(changes if kinds else ()):
            drawn = heat("grid", self.grid[c], layers, kinds, Look(say("nats")), places=(c,))
            found.append(Section(say("Layer by kind: {change}", change=change), drawn, note))
        for name, heading, unit in (
            ("growth", say("Growth of the loss in nats"), say("nats")),
            ("predicted", say("The growth that the gradient predicts"), say("nats")),
            ("flips", say("Share of questions with another best answer"), say("share")),
        ):
            drawn = heat(name, getattr(self, name), labels, changes, Look(unit))
            found.append(Section(heading, drawn))
        note = say("Mean squared gradient: how sharply the answers depend on a single number.")
        drawn = bars("fisher", self.fisher, labels)
        return [*found, Section(say("Fisher information"), drawn, note)]


def _called(label: str) -> str:
    """A tensor's label: where it belongs, its module, which of the module's tensors it is."""
    parts = re.fullmatch(r"(L\d+ |emb |mlm )?(.+?)( weight| bias)?", label)
    assert parts is not None
    return "".join(named(part) for part in parts.groups(""))


def perturb_weights(
    model: Model,
    texts: str | Iterable[Given],
    *,
    changes: Sequence[str] = CHANGES,
    tensors: Sequence[str] = ("*",),
    by: By = "tensor",
    seed: int = 0,
    probability: float = PROBABILITY,
    report: Callable[[int], None] = lambda texts: None,
) -> WeightsResult:
    """Change weights, one tensor or group at a time; the model is as before afterwards.

    Tensors that no answer depends on are left out (a pooler that no head reads). The word
    embeddings are the decoder's matrix too, where both are tied.

    Args:
        model: one with a masked-word head, or one that labels texts or words or finds answers.
            Without labels, the right answer is the unchanged model's own best.
        texts: one, or any number; memory stays flat. One with [MASK] in it asks there. For models
            of pairs, tuples of two.
        changes: of weight_changes.py: "zero", "noise:0.1", "quantise:8", "quantise:8:row",
            "reinitialise".
        tensors: globs of names.
        by: what is changed together: a "tensor", a "module" (layer x kind), a "layer".
        seed: of noise, new weights and the choice of masked words.
        probability: that a token is masked.
        report: is told how many texts are done.

    Raises:
        MissingHeadError: the model has no head that chooses.
        UsageError: no such change, or no such tensor.
        DataError: there is no text.
    """
    opened, kinds = open_model(model), [Change.read(text) for text in changes]
    head, units = head_of(opened), units_of(opened, tensors, by)
    sums: _Sums | None = None
    with still(opened.model):
        for asked in asked_batches(opened, texts, seed=seed, probability=probability):
            clean = answer_clean(opened, head, asked)
            if sums is None:
                units = read_units(opened, head, clean, units)
                sums = _Sums(len(units), len(kinds))
            sums.add_clean(clean, slopes := _slopes(opened, head, clean, units))
            jobs = [(u, c) for u in range(len(units)) for c in range(len(kinds))]
            for number, (u, c) in enumerate(jobs, 1):
                found = changed(opened, head, clean, units[u], kinds[c], seed, slopes[u].sums)
                sums.found[u, c] += found
                left = -(-len(asked.counts) * (len(jobs) - number) // len(jobs))
                report(sums.texts - left)
    assert sums is not None
    return _result(opened, head, units, [kind.label for kind in kinds], sums)


def read_units(opened: Opened, head: Head, clean: Clean, units: Sequence[Unit]) -> list[Unit]:
    """The units that some answer depends on.

    Raises:
        UsageError: there is none.
    """
    parameters = [p for unit in units for p in unit.parameters.values()]
    reached = {
        id(p)
        for p, slope in zip(parameters, _gradient(opened, head, clean, 0, parameters), strict=True)
        if slope is not None
    }
    found = [unit for unit in units if any(id(p) in reached for p in unit.parameters.values())]
    if not found:
        raise UsageError(f"no answer ({head.what}) depends on the weights named")
    return found


class _Slope:
    """Gradients of a unit over the texts of a batch."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.squares = 0.0


class _Sums:
    """What is added up over the batches."""

    def __init__(self, units: int, changes: int) -> None:
        self.texts = self.questions = self.cut = 0
        self.loss = 0.0
        self.squares = np.zeros(units)
        # Growth, KL, flips, predicted growth.
        self.found = torch.zeros(units, changes, 4, dtype=torch.float64)

    def add_clean(self, clean: Clean, slopes: Sequence[_Slope]) -> None:
        self.texts += len(clean.asked.counts)
        self.questions += len(clean.losses)
        self.cut += clean.asked.cut
        self.loss += float(clean.losses.double().sum())
        self.squares += [slope.squares for slope in slopes]


def _gradient(
    opened: Opened, head: Head, clean: Clean, number: int, parameters: Sequence[nn.Parameter]
) -> tuple[Tensor | None, ...]:
    """Of one text's summed loss."""
    alone = one_text(clean.asked, number)
    labels = clean.labels[(clean.asked.owners == number).to(clean.labels.device)]
    with torch.enable_grad(), differentiable(parameters):
        hidden = run_from(opened.encoder, alone, -1)
        loss = head.loss(hidden, alone, labels)
        return torch.autograd.grad(loss, list(parameters), allow_unused=True)


def _slopes(opened: Opened, head: Head, clean: Clean, units: Sequence[Unit]) -> list[_Slope]:
    """Text by text: sums of gradients, and squares of the gradients of texts' mean losses."""
    slopes = [_Slope() for _ in units]
    named = [(u, name, p) for u, unit in enumerate(units) for name, p in unit.parameters.items()]
    for number in range(len(clean.asked.counts)):
        questions = max(int((clean.asked.owners == number).sum()), 1)
        found = _gradient(opened, head, clean, number, [p for _, _, p in named])
        for (u, name, _), slope in zip(named, found, strict=True):
            if slope is None:
                continue
            slopes[u].squares += float(slope.flatten().dot(slope.flatten())) / questions**2
            if name in slopes[u].sums:
                slopes[u].sums[name] += slope
            else:
                slopes[u].sums[name] = slope
    return slopes


def changed(
    opened: Opened,
    head: Head,
    clean: Clean,
    unit: Unit,
    change: Change,
    seed: int,
    slopes: dict[str, Tensor],
) -> Tensor:
    """[4]: `effect` of one change on one batch, and the growth that the gradient predicts.

    Only the layers from the first changed one on are computed.
    """
    predicted = torch.zeros((), dtype=torch.float64)
    with restored(*unit.parameters.values()):
        for name, parameter in unit.parameters.items():
            before = parameter.detach().clone()
            change.apply(opened.model, name, parameter, seed)
            if name in slopes:
                moved = (parameter.detach() - before) * slopes[name]
                predicted += moved.sum(dtype=torch.float64).cpu()
        start = clean.states[max(unit.first, 0)]
        hidden = run_from(opened.encoder, clean.asked, unit.first, start)
        return torch.cat([effect(head, hidden, clean), predicted[None]])


def _result(
    opened: Opened, head: Head, units: Sequence[Unit], changes: list[str], sums: _Sums
) -> WeightsResult:
    found = (sums.found / sums.questions).numpy()
    sizes = [sum(p.numel() for p in unit.parameters.values()) for unit in units]
    kinds = list(dict.fromkeys(unit.kind for unit in units if unit.layer))
    grid = np.full((len(changes), len(opened.encoder.encoder.layer), len(kinds)), np.nan)
    for u, unit in enumerate(units):
        if unit.layer:
            grid[:, unit.layer - 1, kinds.index(unit.kind)] = found[u, :, 1]
    return WeightsResult(
        opened.name,
        head.what,
        sums.texts,
        sums.questions,
        sums.cut,
        sums.loss / sums.questions,
        changes,
        [unit.name for unit in units],
        [unit.label for unit in units],
        sizes,
        sums.squares / sums.texts / np.array(sizes),
        found[..., 0],
        found[..., 3],
        found[..., 1],
        found[..., 2],
        kinds,
        grid,
    )
