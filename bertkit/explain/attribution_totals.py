"""`attribute_over`: which words push most on average, label by label, in bounded memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from bertkit.data.order import uniform
from bertkit.errors import DataError
from bertkit.explain.aims import MASKED_WORDS, VALUE, asks_for_a_word
from bertkit.explain.attribution import (
    CAUTION,
    CAUTION_ZH,
    MOST_DELTA,
    AttributionResult,
    attributed,
)
from bertkit.explain.contributions import AttributionOptions
from bertkit.explain.opening import Model, Opened, open_model
from bertkit.explain.page import MOST_PARTS, Section, rest
from bertkit.explain.pictures import bars, brief
from bertkit.explain.result import Result, counted
from bertkit.explain.tables import digits, grid
from bertkit.explain.wording import named, say
from bertkit.explain.words import Segmenter

if TYPE_CHECKING:
    from rich.console import RenderableType

_log = logging.getLogger("bertkit")
# Different words kept, over all labels; beyond them the rarest half is forgotten.
MOST_WORDS = 100_000
# Words that a label shows, upwards and downwards each, and labels that a table shows.
SHOWN_WORDS, SHOWN_LABELS = 10, MOST_PARTS


class WordTotal(NamedTuple):
    """A word: how often it was seen, its mean value then, and its mean over all that was said."""

    word: str
    times: int
    mean: float
    average: float


@dataclass(frozen=True)
class LabelTotal:
    """What the model said one label of.

    Attributes:
        label: a label, a type of entity, ...
        said: how often it was explained.
        mean: of the numbers that were explained.
        words: those that push up most by `average`, most first, and then those that push down.
    """

    label: str
    said: int
    mean: float
    words: list[WordTotal]


class Totals:
    """Sums of words' values.

    Attributes:
        targets: numbers that were added.
        forgotten: words that were forgotten; one may be counted again when it comes again.
    """

    def __init__(self, most: int = MOST_WORDS) -> None:
        self.targets = self.forgotten = 0
        self._most = most
        self._said: dict[str, tuple[int, float]] = {}
        self._words: dict[tuple[str, str], tuple[int, float]] = {}

    def add(self, label: str, value: float, words: Iterable[tuple[str, float]]) -> None:
        """Count one number with its words; values that are NaN are passed over."""
        self.targets += 1
        times, total = self._said.get(label, (0, 0.0))
        self._said[label] = times + 1, total + value
        for word, pushed in words:
            if not math.isnan(pushed):
                times, total = self._words.get((label, word), (0, 0.0))
                self._words[label, word] = times + 1, total + pushed
        if len(self._words) > self._most:
            ranked = sorted(self._words.items(), key=lambda item: (item[1][0], abs(item[1][1])))
            left = ranked[len(ranked) - self._most // 2 :]
            self.forgotten += len(ranked) - len(left)
            self._words = dict(left)

    def labels(self) -> list[LabelTotal]:
        """All labels, most often said first."""
        by_label: dict[str, list[WordTotal]] = {label: [] for label in self._said}
        for (label, word), (times, total) in self._words.items():
            said = self._said[label][0]
            by_label[label].append(WordTotal(word, times, total / times, total / said))
        found = []
        for label, (said, total) in sorted(self._said.items(), key=lambda x: (-x[1][0], x[0])):
            ranked = sorted(by_label[label], key=lambda word: (-word.average, word.word))
            up = [word for word in ranked if word.average > 0][:SHOWN_WORDS]
            down = [word for word in ranked if word.average < 0][-SHOWN_WORDS:]
            found.append(LabelTotal(label, said, total / said, up + down))
        return found


@dataclass(frozen=True)
class AttributionCorpusResult(Result):
    """Which words push what the model says of many texts.

    Attributes:
        model: its name.
        method: one of contributions.py's.
        quantity: "logit" or "probability".
        texts: how many were explained.
        skipped: how many were not: too long, or nothing to be asked of them.
        reason: why the first of these was not.
        targets: the numbers that were explained, over all texts.
        loose: how many of these miss f(text) - f(baseline) by more than MOST_DELTA.
        labels: of each label, most often said first, the words that push most.
        forgotten: rare words that were forgotten, so that memory stays bounded.
    """

    verb: ClassVar[str] = "attribute"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    method: str
    quantity: str
    texts: int
    skipped: int
    reason: str
    targets: int
    loose: int
    labels: list[LabelTotal]
    forgotten: int

    def title(self) -> str:
        """What was asked."""
        return say(
            "Attribution ({method}) over {texts}",
            method=named(self.method),
            texts=counted(self.texts, "texts"),
        )

    def table(self) -> RenderableType:
        """A row a word, by label."""
        return _table(self.title(), self.labels)

    def sections(self) -> list[Section]:
        """Bars, by label."""
        return _sections(self.labels, self.quantity)


def _table(title: str, labels: list[LabelTotal]) -> RenderableType:
    """A row a word, by label."""
    rows = []
    for label in labels[:SHOWN_LABELS]:
        for i, word in enumerate(label.words):
            head = (_called(label), f"{label.said:,}") if i == 0 else ("", "")
            values = (digits(word.average, "+"), digits(word.mean, "+"))
            rows.append([*head, word.word, *values, f"{word.times:,}"])
    columns = ("label", "said", "word", "average", "each time", "times")
    note = (
        "said: how often the label was explained; average: a word's values over all of these; "
        "each time: over the times that it was there"
    )
    return grid(title, columns, rows, texts=("word",), note=note)


def _sections(labels: list[LabelTotal], quantity: str) -> list[Section]:
    """Bars, by label."""
    found = []
    for i, label in enumerate(labels[:SHOWN_LABELS]):
        values = np.array([word.average for word in label.words])
        drawn = bars(f"labels.{i}.words.*.average", values, [word.word for word in label.words])
        note = say(
            "Sum of a word's values over the {n} times that {label} was explained, divided by "
            "these; the mean {quantity} was {mean}.",
            n=f"{label.said:,}",
            label=_called(label),
            quantity=named(quantity),
            mean=brief(label.mean),
        )
        found.append(Section(say("Which words push {label}", label=_called(label)), drawn, note))
    return [*found, *rest(labels)]


def _called(label: LabelTotal) -> str:
    """A label, which is the model's own but where it has none to give."""
    return named(label.label) if label.label in (MASKED_WORDS, VALUE) else label.label


def attribute_over(
    model: Model,
    texts: Iterable[str | tuple[str, str | None]],
    *,
    target: str | None = None,
    against: str | None = None,
    options: AttributionOptions | None = None,
    segmenter: Segmenter | None = None,
    seed: int = 0,
    take: Callable[[AttributionResult], None] = lambda result: None,
) -> AttributionCorpusResult:
    """Which words push most on average, label by label.

    Where the model needs a word to be asked about (a text without a mask; a tagger that labels
    every word), one of each text is drawn: a function of the seed and the text's number.

    Args:
        model: as `attribute`'s.
        texts: any number, or pairs: (text, pair), (question, passage).
        target: as `attribute`'s.
        against: as `attribute`'s.
        options: method, quantity, baseline and steps.
        segmenter: "jieba" for Chinese words of several characters.
        seed: of the words that are drawn.
        take: is given each text's result, in order, to be written somewhere.

    Raises:
        UsageError: as `attribute`.
        DataError: no text can be explained; the reason of the first.
    """
    opened, options = open_model(model), options or AttributionOptions()
    asked = _Asked(target, against, options, segmenter, seed)
    totals, skipped, done, loose = Totals(), list[str](), 0, 0
    for found in _explained(opened, texts, asked, skipped):
        take(found)
        done += 1
        for one in found.targets:
            loose += one.loose
            totals.add(one.label, one.value, [(word.word, word.value) for word in one.words])
    if not done:
        raise DataError(skipped[0] if skipped else "there is no text: every line is blank")
    if loose:
        _log.warning(
            "%d of %d sums miss f(text) - f(baseline) by more than %.0f%% of their words' absolute "
            "sum: take more steps than %d",
            *(loose, totals.targets, 100 * MOST_DELTA, options.steps),
        )
    return AttributionCorpusResult(
        opened.name,
        options.method,
        options.quantity,
        done,
        len(skipped),
        skipped[0] if skipped else "",
        totals.targets,
        loose,
        totals.labels(),
        totals.forgotten,
    )


class _Asked(NamedTuple):
    """What is asked of every text."""

    target: str | None
    against: str | None
    options: AttributionOptions
    segmenter: Segmenter | None
    seed: int


def _explained(
    opened: Opened,
    texts: Iterable[str | tuple[str, str | None]],
    asked: _Asked,
    skipped: list[str],
) -> Iterator[AttributionResult]:
    """Each text's result; why others have none goes to `skipped`: of the first one, the rest ""."""
    target, against, options, segmenter, seed = asked
    for number, given in enumerate(texts):
        text, pair = (given, None) if isinstance(given, str) else given
        try:
            word = None
            if target is None and asks_for_a_word(opened, text, pair):
                words = opened.read(text, pair, segmenter).words
                word = int(float(uniform(seed, number)) * len(words))
            found = attributed(opened, text, pair, word, target, against, options, segmenter)
        except DataError as error:
            skipped.append("" if skipped else f"text {number + 1}: {error}")
            continue
        yield found
