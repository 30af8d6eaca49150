"""`score` and `pairs`: how probable the model finds texts, and which of two (tasks/score.py)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bertkit.errors import DataError
from bertkit.explain.opening import Model, Opened, open_model
from bertkit.explain.page import Section
from bertkit.explain.pictures import bars, brief, coloured_text, grouped_bars
from bertkit.explain.result import Floats, Result, counted
from bertkit.explain.tables import digits, grid
from bertkit.explain.wording import named, say
from bertkit.explain.words import Segmenter
from bertkit.infer.minimal_pairs import MinimalPair
from bertkit.tasks.score import Method, ScoredText, Scorer, WordScore

if TYPE_CHECKING:
    from rich.console import RenderableType

CAUTION = (
    "A pseudo-log-likelihood adds up how well each token is guessed from all others; it ranks "
    "texts of like length and topic, but it is no probability of a text, and longer texts score "
    "lower."
)
CAUTION_ZH = (
    "伪对数似然把每个词元由其余词元猜中的程度相加；它可以给长度和话题相近的文本排序，"
    "但它不是文本的概率，文本越长分数越低。"
)
PAIRS_CAUTION = (
    "The share of pairs whose good text scores higher; both texts differ in length or in the "
    "frequency of words too, and a share on few pairs is uncertain by about 1 / sqrt(pairs)."
)
PAIRS_CAUTION_ZH = (
    "好句得分更高的对所占的比例；两句还可能在长度或词频上不同，"
    "而且对数少时比例的不确定度约为 1/√对数。"
)
_NOTE = "a token: mean log-probability of its tokens; score: their sum, in nats"
# Texts and pairs that a result of a file names.
SHOWN = 20


@dataclass(frozen=True)
class ScoreResult(Result):
    """One text, word by word.

    Attributes:
        model: its name.
        method: "within-word" or "original".
        text: the user's own.
        score: its pseudo-log-likelihood in nats.
        tokens: how many it has.
        pseudo_perplexity: exp of minus the mean of a token.
        words: with their scores.
    """

    verb: ClassVar[str] = "score"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    method: str
    text: str
    score: float
    tokens: int
    pseudo_perplexity: float
    words: list[WordScore]

    def title(self) -> str:
        """What was asked."""
        return say("Score: {text}", text=self.text)

    def table(self) -> RenderableType:
        """A row a word."""
        title = (
            f"{self.text}\n{self.score:.4f} {say('nats')}, {counted(self.tokens, 'tokens')}, "
            f"{named('pseudo-perplexity')} {brief(self.pseudo_perplexity)}"
        )
        rows = [
            [word.word, f"{word.score:.4f}", digits(math.exp(word.score))] for word in self.words
        ]
        return grid(title, ("word", "log-probability", "probability"), rows)

    def sections(self) -> list[Section]:
        """The text in the colours of its scores, and a bar a word."""
        values = np.array([word.score for word in self.words])
        words = [word.word for word in self.words]
        ends = [0, *(word.end for word in self.words)]
        gaps = [self.text[end : word.start] for end, word in zip(ends, self.words, strict=False)]
        drawn = coloured_text("words.*.score", values, words, [*gaps, self.text[ends[-1] :]])
        note = say(
            "Together {score} nats; pseudo-perplexity {perplexity}. Deep colour and a long bar: a "
            "word that the model did not expect.",
            score=f"{self.score:.4f}",
            perplexity=brief(self.pseudo_perplexity),
        )
        heading = say("Log-probability of each word in nats")
        return [
            Section(heading, drawn, note),
            Section(say("Word by word"), bars("words.*.score", values, words)),
        ]


class TextScore(NamedTuple):
    """A text with its score in nats, how many tokens it has, and the score's mean of a token."""

    text: str
    score: float
    tokens: int
    mean: float


@dataclass(frozen=True)
class ScoreCorpusResult(Result):
    """The scores of many texts.

    Attributes:
        model: its name.
        method: "within-word" or "original".
        scores: [n] pseudo-log-likelihoods in nats, in order.
        tokens: [n] how many tokens each text has.
        pseudo_perplexity: exp of minus the mean over all tokens.
        least: the texts whose tokens were least expected, worst first.
    """

    verb: ClassVar[str] = "score"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    method: str
    scores: Floats
    tokens: NDArray[np.int64]
    pseudo_perplexity: float
    least: list[TextScore]

    def title(self) -> str:
        """What was asked."""
        return say("Scores of {texts}", texts=counted(len(self.scores), "texts"))

    def table(self) -> RenderableType:
        """The texts least expected."""
        title = say(
            "{scores}: pseudo-perplexity {perplexity} over {tokens}; least expected:",
            scores=self.title(),
            perplexity=brief(self.pseudo_perplexity),
            tokens=counted(int(self.tokens.sum()), "tokens"),
        )
        rows = [[f"{text.mean:.3f}", f"{text.score:.2f}", text.text] for text in self.least]
        return grid(title, ("a token", "score", "text"), rows, texts=("text",), note=_NOTE)

    def sections(self) -> list[Section]:
        """The texts least expected."""
        drawn = bars(
            "least.*.mean",
            np.array([text.mean for text in self.least]),
            [text.text for text in self.least],
        )
        note = say(
            "Of all {n} texts, the {m} whose tokens have the lowest mean log-probability, worst "
            "first; the bars are these means in nats. Pseudo-perplexity of all: {perplexity}.",
            n=f"{len(self.scores):,}",
            m=len(self.least),
            perplexity=brief(self.pseudo_perplexity),
        )
        return [Section(say("The texts least expected"), drawn, note)]


def _scorer(opened: Opened, method: Method, segmenter: Segmenter | None) -> Scorer:
    return Scorer(opened.model, opened.tokenizer, method, segmenter=segmenter)


def score(
    model: Model,
    text: str,
    *,
    method: Method = "within-word",
    segmenter: Segmenter | None = None,
) -> ScoreResult:
    """The pseudo-log-likelihood of one text, word by word.

    Args:
        model: one with a masked-word head.
        text: of any length; beyond what the model reads, each token is seen in a window.
        method: what is hidden with a token: "within-word" the rest of its word too (Kauf and
            Ivanova 2023), "original" nothing else (Salazar et al. 2020).
        segmenter: "jieba" for Chinese words of several characters.

    Raises:
        DataError: there is no token in the text.
        MissingHeadError: the model lacks the head, or the head was never trained.
    """
    opened = open_model(model)
    found = _scorer(opened, method, segmenter).score([text])[0]
    if not found.ids:
        raise DataError("the text is empty; give at least one word")
    mean = found.score / len(found.ids)
    return ScoreResult(
        opened.name, method, text, found.score, len(found.ids), _exp(-mean), found.words
    )


def score_over(
    model: Model,
    texts: Iterable[str],
    *,
    method: Method = "within-word",
    segmenter: Segmenter | None = None,
    take: Callable[[ScoredText], None] = lambda scored: None,
    report: Callable[[int], None] = lambda done: None,
) -> ScoreCorpusResult:
    """The scores of many texts.

    Args:
        model: one with a masked-word head.
        texts: any number; of each only two numbers are kept.
        method: as `score`'s.
        segmenter: as `score`'s.
        take: is given each text with its words, in order, to be written somewhere.
        report: told how many texts are done.

    Raises:
        DataError: there is no text.
    """
    opened = open_model(model)
    scores: list[float] = []
    tokens: list[int] = []
    least: list[tuple[float, int, TextScore]] = []
    for number, scored in enumerate(_scorer(opened, method, segmenter).stream(texts)):
        take(scored)
        total, count = scored.score, len(scored.ids)
        one = TextScore(scored.text, total, count, total / max(count, 1))
        scores.append(one.score)
        tokens.append(one.tokens)
        report(len(scores))
        # The heap drops the text that was expected best.
        push = heapq.heappush if len(least) < SHOWN else heapq.heappushpop
        push(least, (-one.mean, -number, one))
    if not scores:
        raise DataError("there is no text: every line is blank")
    mean = math.fsum(scores) / max(sum(tokens), 1)
    worst = [one for _, _, one in sorted(least, key=lambda item: item[:2], reverse=True)]
    return ScoreCorpusResult(
        opened.name, method, np.array(scores), np.array(tokens), _exp(-mean), worst
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


class PairScore(NamedTuple):
    """A minimal pair with the scores of both texts in nats."""

    good: str
    bad: str
    kind: str
    good_score: float
    bad_score: float


@dataclass(frozen=True)
class KindScore:
    """The pairs of one kind: how many, and the share with the good text ahead."""

    kind: str
    pairs: int
    accuracy: float


@dataclass(frozen=True)
class PairsResult(Result):
    """Minimal pairs.

    Attributes:
        model: its name.
        method: "within-word" or "original".
        pairs: how many.
        accuracy: the share whose good text scores higher; a tie is not higher.
        kinds: the same by kind, in the order in which they come; one kind "" where none is told.
        margins: [n] score of the good text less that of the bad one, in nats.
        wrong: the pairs that were decided wrongly by most.
    """

    verb: ClassVar[str] = "pairs"
    caution: ClassVar[str] = PAIRS_CAUTION
    caution_zh: ClassVar[str] = PAIRS_CAUTION_ZH

    model: str
    method: str
    pairs: int
    accuracy: float
    kinds: list[KindScore]
    margins: Floats
    wrong: list[PairScore]

    def title(self) -> str:
        """What was asked."""
        return say(
            "{pairs}: {share} right",
            pairs=counted(self.pairs, "minimal pairs"),
            share=f"{self.accuracy:.1%}",
        )

    def table(self) -> RenderableType:
        """A row a kind."""
        rows = [
            [kind.kind or say("all"), f"{kind.pairs:,}", f"{kind.accuracy:.1%}"]
            for kind in self.kinds
        ]
        return grid(self.title(), ("kind", "pairs", "accuracy"), rows)

    def sections(self) -> list[Section]:
        """Accuracy by kind, and the worst mistakes."""
        kinds = [f"{kind.kind or say('all')} ({kind.pairs:,})" for kind in self.kinds]
        right = bars("kinds.*.accuracy", np.array([kind.accuracy for kind in self.kinds]), kinds)
        found = [Section(say("Share of pairs decided rightly"), right)]
        if self.wrong:
            drawn = grouped_bars(
                [
                    ("wrong.*.good_score", say("good"), [pair.good_score for pair in self.wrong]),
                    ("wrong.*.bad_score", say("bad"), [pair.bad_score for pair in self.wrong]),
                ],
                [f"{pair.good} / {pair.bad}" for pair in self.wrong],
            )
            note = say(
                "The bad texts that beat their good partners by most; scores in nats, a shorter "
                "bar is likelier."
            )
            found.append(Section(say("The worst mistakes"), drawn, note))
        return found


def pairs(
    model: Model,
    rows: Iterable[MinimalPair],
    *,
    method: Method = "within-word",
    segmenter: Segmenter | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> PairsResult:
    """How often the model prefers the good text of a minimal pair.

    Args:
        model: one with a masked-word head.
        rows: of `read_pairs`, or MinimalPairs of one's own.
        method: as `score`'s.
        segmenter: as `score`'s.
        report: told how many pairs are done.

    Raises:
        DataError: there is no pair.
    """
    opened = open_model(model)
    scorer = _scorer(opened, method, segmenter)
    margins: list[float] = []
    kinds: dict[str, list[bool]] = {}
    wrong: list[tuple[float, int, PairScore]] = []
    for number, pair in enumerate(_scored(scorer, rows)):
        margin = pair.good_score - pair.bad_score
        margins.append(margin)
        report(len(margins))
        kinds.setdefault(pair.kind, []).append(margin > 0)
        if margin <= 0:
            push = heapq.heappush if len(wrong) < SHOWN else heapq.heappushpop
            push(wrong, (-margin, -number, pair))
    if not margins:
        raise DataError("there is no pair")
    return PairsResult(
        opened.name,
        method,
        len(margins),
        sum(margin > 0 for margin in margins) / len(margins),
        [KindScore(kind, len(hits), sum(hits) / len(hits)) for kind, hits in kinds.items()],
        np.array(margins),
        [pair for _, _, pair in sorted(wrong, key=lambda item: item[:2], reverse=True)],
    )


def _scored(scorer: Scorer, rows: Iterable[MinimalPair]) -> Iterator[PairScore]:
    """Both texts of some hundred pairs at once, so that batches are full."""
    source = iter(rows)
    while ahead := list(islice(source, 256)):
        found = scorer.score([text for pair in ahead for text in (pair.good, pair.bad)])
        for i, pair in enumerate(ahead):
            good, bad = found[2 * i : 2 * i + 2]
            yield PairScore(pair.good, pair.bad, pair.kind, good.score, bad.score)
