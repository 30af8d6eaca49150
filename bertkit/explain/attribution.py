"""`attribute`: which words of the input made the model say that (contributions.py, aims.py)."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from bertkit.explain.aims import aims_of
from bertkit.explain.asked_scores import Aim
from bertkit.explain.contributions import AttributionOptions, Contributions, contributions_of
from bertkit.explain.opening import Model, Opened, open_model
from bertkit.explain.page import MOST_PARTS, Section, rest
from bertkit.explain.pictures import bars, brief, coloured_text
from bertkit.explain.result import Floats, Result, headed
from bertkit.explain.tables import digits, grid
from bertkit.explain.wording import named, say
from bertkit.explain.words import CONTINUED, Segmenter, Sentence

if TYPE_CHECKING:
    from rich.console import RenderableType

_log = logging.getLogger("bertkit")
CAUTION = (
    "The values share one number of this model out among the words, against one baseline and by "
    "one method: another baseline or method shares it out otherwise, words that act only together "
    "have no fair shares, and nothing is said about causes outside of the model."
)
CAUTION_ZH = (
    "这些值按一种方法、相对一个基线，把该模型的一个数分摊到各个词上：换基线或方法，分法就不同；"
    "只有共同出现才起作用的词没有公平的份额；它们也不说明模型之外的因果。"
)
# A sum of integrated gradients may miss f(text) - f(baseline) by this share of the sum of the
# words' absolute values before it is told.
MOST_DELTA = 0.05
# Blocks of the longest bar in the terminal.
_BLOCKS = 24


class WordValue(NamedTuple):
    """What a word of the text contributes; `word` is in brackets where it was masked."""

    word: str
    start: int
    end: int
    segment: int
    value: float


@dataclass(frozen=True)
class Attribution:
    """One number that the model says, shared out.

    Attributes:
        name: what is said, and of which word.
        label: what is said, without the word.
        value: the number at the text.
        baseline_value: at the baseline; NaN where the method has none.
        delta: the sum of `token_values` less (value - baseline_value); NaN as before.
        token_values: [S] of each token; empty where words were hidden as wholes.
        tokens: [S] labels, asked words in brackets.
        words: the user's own, with the sums of their tokens. NaN: it cannot be left out.
        note: what a reader must know.
    """

    name: str
    label: str
    value: float
    baseline_value: float
    delta: float
    token_values: Floats
    tokens: tuple[str, ...]
    words: list[WordValue]
    note: str

    @property
    def size(self) -> float:
        """The sum of the words' absolute values."""
        return math.fsum(abs(word.value) for word in self.words if not math.isnan(word.value))

    @property
    def loose(self) -> bool:
        """The sum misses by more than MOST_DELTA of the words' absolute values."""
        # What is zero but for rounding misses nothing.
        return abs(self.delta) > MOST_DELTA * self.size + 1e-6 * abs(self.value)


@dataclass(frozen=True)
class AttributionResult(Result):
    """One text and what the model says of it.

    Attributes:
        model: its name.
        texts: the user's own, one or two.
        method: one of contributions.py's.
        quantity: "logit" or "probability".
        baseline: of integrated gradients, else "".
        steps: of integrated gradients, else 0.
        targets: the numbers that are explained.
    """

    verb: ClassVar[str] = "attribute"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    texts: tuple[str, ...]
    method: str
    quantity: str
    baseline: str
    steps: int
    targets: list[Attribution]

    def title(self) -> str:
        """What was asked."""
        return say(
            "Attribution ({method}): {texts}",
            method=named(self.method),
            texts=" / ".join(self.texts),
        )

    def table(self) -> RenderableType:
        """A table a target, with bars."""
        from rich.console import Group

        return Group(*(self._table(target) for target in self.targets))

    def _table(self, target: Attribution) -> RenderableType:
        rows = []
        known = [abs(word.value) for word in target.words if not math.isnan(word.value)]
        most = max(known, default=0.0) or 1.0
        for word in target.words:
            missing = math.isnan(word.value)
            blocks = 0 if missing else round(_BLOCKS * abs(word.value) / most)
            bar = ("+" if word.value >= 0 else "-") * blocks
            rows.append([word.word, "–" if missing else digits(word.value, "+"), bar])
        note = "–: the asked word itself" if len(known) < len(target.words) else ""
        return grid(
            headed(named(target.name), self._told(target)), ("word", "value", ""), rows, note=note
        )

    def _told(self, target: Attribution) -> str:
        """The number, in words."""
        told = f"{named(self.quantity)} {brief(target.value)}"
        if not math.isnan(target.baseline_value):
            told = say(
                "{told}, at the baseline ({baseline}) {value}; the values miss the difference by "
                "{delta}",
                told=told,
                baseline=self.baseline,
                value=brief(target.baseline_value),
                delta=brief(target.delta),
            )
        note = named(target.note).rstrip(".。")
        return say("{told}. {note}", told=told, note=note) if note else told

    def sections(self) -> list[Section]:
        """The text in colours, bars of words, and of tokens where words have several."""
        found = []
        for i, target in enumerate(self.targets[:MOST_PARTS]):
            of = f"targets.{i}.words.*.value"
            values = np.array([word.value for word in target.words])
            words = [word.word for word in target.words]
            drawn = coloured_text(of, values, words, gaps(self.texts, target.words))
            note = say("{told}. Blue pushes it up, orange down.", told=self._told(target))
            heading = say("What makes the model say {target}", target=named(target.name))
            found.append(Section(heading, drawn, note))
            found.append(Section(say("Word by word"), bars(of, values, words)))
            if len(target.token_values) and _has_pieces(target):
                drawn = bars(f"targets.{i}.token_values", target.token_values, target.tokens)
                found.append(Section(say("Token by token"), drawn))
        return [*found, *rest(self.targets)]


def gaps(texts: tuple[str, ...], words: list[WordValue]) -> list[str]:
    """What stands between words; a line ends between two texts."""
    found, segment, at = [], 0, 0
    for word in words:
        before = texts[segment][at : word.start] if word.segment == segment else ""
        if word.segment != segment:
            before = texts[segment][at:] + "\n" + texts[word.segment][: word.start]
        found.append(before)
        segment, at = word.segment, word.end
    return [*found, texts[segment][at:]]


def _has_pieces(target: Attribution) -> bool:
    return any(label.lstrip("[").startswith(CONTINUED) for label in target.tokens)


def attribute(
    model: Model,
    text: str,
    pair: str | None = None,
    *,
    word: str | int | None = None,
    target: str | None = None,
    against: str | None = None,
    options: AttributionOptions | None = None,
    segmenter: Segmenter | None = None,
) -> AttributionResult:
    """Which words of a text made the model say that.

    Args:
        model: one that guesses masked words, labels texts or words, or finds answers.
        text: with [MASK] in it, or with `word`, for masked words; the question for answers.
        pair: the second text; the passage.
        word: one to be masked, which then is its own target; or one whose label is asked: as it
            stands in the text ("New York": both words), or its number from 0.
        target: what the model may say: a token, a label, a type of entity, an answer ("": that
            there is none). None: what it does say; of a tagger each entity that it finds.
        against: another one; what is explained is the difference of both.
        options: method, quantity, baseline and steps.
        segmenter: "jieba" for Chinese words of several characters.

    Raises:
        UsageError: the model cannot be asked so, has no such label or token, or Captum is missing.
        DataError: there is no mask, word, entity or answer as asked, or the text is too long.
        MissingHeadError: the model has no head that can be asked.
    """
    opened, options = open_model(model), options or AttributionOptions()
    result = attributed(opened, text, pair, word, target, against, options, segmenter)
    for found in result.targets:
        if found.loose:
            _log.warning(
                "%s: the values miss f(text) - f(baseline) by %.3g, more than %.0f%% of their "
                "absolute sum %.3g: take more steps than %d",
                *(found.name, abs(found.delta), 100 * MOST_DELTA, found.size, options.steps),
            )
    return result


def attributed(
    opened: Opened,
    text: str,
    pair: str | None,
    word: str | int | None,
    target: str | None,
    against: str | None,
    options: AttributionOptions,
    segmenter: Segmenter | None,
) -> AttributionResult:
    """As `attribute`, without a word about sums that miss."""
    asked = {"word": word, "target": target, "against": against}
    aims = aims_of(opened, text, pair, segmenter=segmenter, **asked)  # type: ignore[arg-type]
    targets = [_of(opened, aim, contributions_of(opened, aim, options)) for aim in aims]
    path = options.method == "integrated-gradients"
    return AttributionResult(
        opened.name,
        aims[0].sentence.texts,
        options.method,
        options.quantity,
        options.baseline if path else "",
        options.steps if path else 0,
        targets,
    )


def _of(opened: Opened, aim: Aim, found: Contributions) -> Attribution:
    sentence = aim.sentence
    total = math.fsum(found.tokens.tolist())
    return Attribution(
        aim.name,
        aim.label,
        found.value,
        found.baseline_value,
        total - (found.value - found.baseline_value),
        found.tokens,
        sentence.labels,
        [
            WordValue(_shown(sentence, number), word.start, word.end, word.segment, float(value))
            for number, (word, value) in enumerate(zip(sentence.words, found.words, strict=True))
        ],
        aim.note,
    )


def _shown(sentence: Sentence, number: int) -> str:
    """A word as the user wrote it, in brackets where it was masked."""
    word = sentence.words[number]
    masked = sentence.labels[word.first] != _written(sentence, word.first, word.segment)
    return f"[{word.text}]" if masked else word.text


def _written(sentence: Sentence, token: int, segment: int) -> str:
    span = sentence.spans[token]
    assert span is not None
    return sentence.texts[segment][slice(*span)]
