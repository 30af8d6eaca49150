"""`weak`: where a model guesses masked words badly, by frequency, part of word, position, script.

Every masked position of a text file goes into one group of each breakdown, as running sums: the
count, the loss, its square. So the mean over the groups of a breakdown, weighted by their counts,
is the total loss. The words are counted in a pass of its own, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from bertkit.errors import MissingHeadError, UsageError
from bertkit.explain.asked import has_words
from bertkit.explain.corpus import PROBABILITY, MaskedTexts, masked_batches
from bertkit.explain.hooks import still
from bertkit.explain.opening import Model, Opened, open_model
from bertkit.explain.page import Section
from bertkit.explain.pictures import grouped_bars
from bertkit.explain.position_kinds import BREAKDOWNS, Ints, Sorter
from bertkit.explain.result import Floats, Result, headed, masked_in
from bertkit.explain.tables import grid, with_error
from bertkit.explain.wording import named, say
from bertkit.model.bert import readers_at
from bertkit.text.wordcount import count_words

if TYPE_CHECKING:
    from rich.console import RenderableType

CAUTION = (
    "The figures tell where masked words are guessed badly in this file, not why: the groups "
    "overlap (rare words have more pieces), and the standard errors take the positions as "
    "independent."
)
CAUTION_ZH = (
    "这些数值说明在这个文件里哪些地方的遮词猜得不好，而不说明原因：各种分组互相重叠"
    "（生僻词的片段更多），标准误把各个位置当作相互独立。"
)


@dataclass(frozen=True)
class Figures:
    """Means over the positions of each of G groups, with the standard errors of the means.

    Attributes:
        loss: [G] cross-entropy of what stood there, in nats.
        loss_error: [G]; NaN where there is one position.
        accuracy: [G] how often it was the likeliest.
        accuracy_error: [G]; NaN where there is one, and where none or all are right: 0 would
            claim to be certain.
    """

    loss: Floats
    loss_error: Floats
    accuracy: Floats
    accuracy_error: Floats


@dataclass(frozen=True)
class Breakdown:
    """All masked positions in G groups; groups without any are left out.

    Attributes:
        by: what the groups differ in.
        names: G of them.
        count: [G] positions.
        figures: of the model.
        other: of the other model, on the same positions; None: there is none.
        change: other - model, position by position, so that its errors are those of pairs.
    """

    by: str
    names: list[str]
    count: Ints
    figures: Figures
    other: Figures | None = None
    change: Figures | None = None


@dataclass(frozen=True)
class WeakResult(Result):
    """Masked-word loss and accuracy over a text file, broken down.

    Attributes:
        model: its name.
        other: the name of the model that it is compared with; None: it is not.
        texts: how many were read.
        positions: how many were masked.
        cut: texts that were longer than the model reads.
        rare_below: words seen fewer times than this were dropped from the counting, to bound
            memory, and count as seen once; 0: none.
        overall: everything, as one group.
        breakdowns: by frequency, part of word, position, length, script.
    """

    verb: ClassVar[str] = "weak"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    other: str | None
    texts: int
    positions: int
    cut: int
    rare_below: int
    overall: Breakdown
    breakdowns: list[Breakdown]

    def title(self) -> str:
        """What was asked."""
        beside = say(" against {other}", other=self.other) if self.other is not None else ""
        return headed(say("Loss by position") + beside, masked_in(self.positions, self.texts))

    def table(self) -> RenderableType:
        """A table a breakdown."""
        from rich.console import Group
        from rich.text import Text

        note = say(
            "loss in nats; ±: one standard error, left out of one position and of a share 0 or 1"
        )
        if self.other is not None:
            note += say("; after: {other}; change: after less before", other=self.other)
        parts = (self.overall, *self.breakdowns)
        return Group(Text(self.title()), *map(_table, parts), Text(note, style="dim"))

    def sections(self) -> list[Section]:
        """Loss and accuracy of each breakdown; with another model both, and the change."""
        note = say("A thin line is one standard error on either side of a mean.")
        found = []
        parts = [("overall", self.overall)]
        parts += [(f"breakdowns.{i}", part) for i, part in enumerate(self.breakdowns)]
        for place, part in parts:
            for kind, unit in (("loss", say("Loss in nats")), ("accuracy", say("Accuracy"))):
                what = say("{figure} by {what}", figure=unit, what=named(part.by))
                drawn = self._drawn(place, part, kind)
                found.append(Section(unit if part.by == "all" else what, drawn, note))
                note = ""
        return found

    def _drawn(self, place: str, part: Breakdown, kind: str) -> str:
        counted = zip(part.names, part.count, strict=True)
        names = [f"{named(name)} ({count:,})" for name, count in counted]
        sides = [("figures", self.model, part.figures)]
        if part.other is not None and part.change is not None:
            sides[0] = ("figures", say("before: {model}", model=self.model), part.figures)
            sides.append(("other", say("after: {model}", model=self.other), part.other))
            sides.append(("change", say("change"), part.change))
        return grouped_bars(
            [(f"{place}.{at}.{kind}", name, getattr(side, kind)) for at, name, side in sides],
            names,
            [getattr(side, f"{kind}_error") for _, _, side in sides],
        )


def _table(part: Breakdown) -> RenderableType:
    sides = {"": part.figures, "after: ": part.other, "change: ": part.change}
    there = {name: side for name, side in sides.items() if side is not None}
    # Losses first: where three of them fill a line, the accuracies follow in a table below.
    cells = {
        f"{label}{kind}": [
            with_error(mean, error, "+" if label == "change: " else "")
            for mean, error in zip(getattr(side, kind), getattr(side, f"{kind}_error"), strict=True)
        ]
        for kind in ("loss", "accuracy")
        for label, side in there.items()
    }
    counts = [f"{count:,}" for count in part.count]
    return grid(
        named(part.by),
        ("", "positions", *cells),
        zip(map(named, part.names), counts, *cells.values(), strict=True),
    )


def weak_over(
    model: Model,
    texts: Iterable[str],
    *,
    other: Model | None = None,
    seed: int = 0,
    probability: float = PROBABILITY,
    max_words: int = 2_000_000,
    report: Callable[[int], None] = lambda done: None,
) -> WeakResult:
    """Where a model guesses masked words badly, and where another one does better.

    Args:
        model: one with a masked-word head.
        texts: read twice, so a list or Texts of files; memory stays flat.
        other: one with the same tokenizer, asked at the very same positions.
        seed: of the choice of masked positions, as `lens_over`'s.
        probability: that a token is masked.
        max_words: the bound on distinct words in memory, about 130 bytes each.
        report: told how many texts are done.

    Raises:
        MissingHeadError: a model has no masked-word head.
        UsageError: the tokenizers differ, or `texts` can be read once only.
        DataError: there is no text.
    """
    if iter(texts) is texts:
        raise UsageError("the texts are read twice, for their words too; give a list or files")
    opened = [open_model(one) for one in ((model,) if other is None else (model, other))]
    for one in opened:
        if not has_words(one.model):
            raise MissingHeadError(
                f"{one.name}: has no masked-word head; masked words are what is asked"
            )
    if other is not None:
        _check_same_tokenizer(*opened)
    normalizer = opened[0].tokenizer.engine.normalizer
    assert normalizer is not None
    counter = count_words(texts, normalizer, max_words)
    sorter = Sorter(opened[0].tokenizer, counter.words())
    tallies = [Tally(names, len(opened)) for _, names in BREAKDOWNS]
    read = cut = 0
    # The one that reads less says where texts are cut, so that both are asked the same.
    shorter = min(opened, key=lambda one: one.max_length)
    drawn: dict[str, Any] = {"seed": seed, "probability": probability}
    for masked in masked_batches(shorter, texts, **drawn, report=report):
        read, cut = read + len(masked.numbers), cut + masked.cut
        figures = np.concatenate([losses_at(one, masked) for one in opened], 1)
        for tally, groups in zip(tallies, sorter.groups(masked), strict=True):
            tally.add(groups, figures)
    overall, *parts = (
        tally.breakdown(by) for tally, (by, _) in zip(tallies, BREAKDOWNS, strict=True)
    )
    names = [one.name for one in opened]
    second = names[1] if other is not None else None
    positions = int(overall.count.sum())
    return WeakResult(names[0], second, read, positions, cut, counter.pruned_below, overall, parts)


def _check_same_tokenizer(one: Opened, other: Opened) -> None:
    first, second = one.tokenizer, other.tokenizer
    same = first.get_vocab() == second.get_vocab()
    if not same or repr(first.engine.normalizer) != repr(second.engine.normalizer):
        raise UsageError(
            f"{other.name}: its tokenizer is not that of {one.name}; losses of other tokens cannot "
            "be compared, name models with one tokenizer"
        )


# Positions whose logits are made at once: 128 are 16 MB for a 30,522-word vocabulary.
_ROWS = 128


def losses_at(opened: Opened, masked: MaskedTexts) -> NDArray[np.float64]:
    """[M, 2] loss in nats, and 1 where what stood there is the likeliest, at masked positions."""
    device = opened.encoder.device
    batch = masked.batch.to(device)
    found = []
    with still(opened.model):
        readers = readers_at(batch, masked.batch.mlm_positions)
        hidden = opened.encoder.encode(batch, readers)
        for rows, labels in zip(
            hidden.split(_ROWS), batch.mlm_labels.to(device).split(_ROWS), strict=True
        ):
            logits = opened.model.cls.predictions(rows)
            logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            loss = -logs.gather(1, labels[:, None]).squeeze(1)
            found.append(torch.stack([loss, (logs.argmax(-1) == labels).to(loss)], 1))
    return torch.cat(found).double().cpu().numpy()


class Tally:
    """Running sums of figures and of their squares, group by group.

    Args:
        names: of the groups.
        models: 1, or 2 whose figures are compared position by position.
    """

    def __init__(self, names: list[str], models: int) -> None:
        self.names = names
        self.count = np.zeros(len(names), dtype=np.int64)
        self.sums = np.zeros((2, len(names), 2 if models == 1 else 6))

    def add(self, groups: Ints, figures: NDArray[np.float64]) -> None:
        """Count [M, 2] figures, or [M, 4] of two models, into [M] groups."""
        if figures.shape[1] == 4:
            figures = np.concatenate([figures, figures[:, 2:] - figures[:, :2]], 1)
        np.add.at(self.count, groups, 1)
        np.add.at(self.sums[0], groups, figures)
        np.add.at(self.sums[1], groups, figures**2)

    def breakdown(self, by: str) -> Breakdown:
        """Means and standard errors of the groups that have any."""
        there = np.flatnonzero(self.count)
        count = self.count[there]
        sums, squares = self.sums[:, there]
        means = sums / count[:, None]
        spread = np.maximum(squares - sums * means, 0) / np.maximum(count - 1, 1)[:, None]
        spread[count == 1] = np.nan
        errors = np.sqrt(spread / count[:, None])
        shares = slice(1, 4, 2)  # the accuracies, not their change
        errors[:, shares][np.isin(means[:, shares], (0, 1))] = np.nan
        sides = [
            Figures(means[:, i], errors[:, i], means[:, i + 1], errors[:, i + 1])
            for i in range(0, means.shape[1], 2)
        ]
        return Breakdown(by, [self.names[i] for i in there], count, *sides)
