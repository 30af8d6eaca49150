"""Meters for tags: spans as seqeval's strict mode and conlleval count them; plain labels a word.

The two ways differ only in a predicted entity that begins with an I- tag, which no CRF and no
decoder that knows the scheme gives: conlleval counts it, strict mode does not. Such an entity of a
prediction carries `"strict": False`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from bertkit.tasks.metrics import LabelCounts
from bertkit.tasks.outcomes import (
    Counts,
    Floats,
    LabelFigures,
    Outcome,
    ScoredMeter,
    average_line,
    ratio,
    unlabelled,
)
from bertkit.tasks.records import Span, TagRow

# What a confusion matrix calls a span that the other side does not have.
OUTSIDE = "O"


def predicted_spans(prediction: Any, strict: bool = True) -> set[Span]:
    """The spans of a prediction; with `strict`, without those that begin with an I- tag."""
    return {
        Span(e["start"], e["end"], e["entity_group"])
        for e in prediction
        if not strict or e.get("strict", True)
    }


class SpanCounts:
    """Right, predicted and gold spans by type.

    Attributes:
        tp: by type, how many spans are predicted with the right type and both ends right.
        predicted: by type, how many are predicted.
        gold: by type, how many there are.
    """

    def __init__(self) -> None:
        self.tp: Counter[str] = Counter()
        self.predicted: Counter[str] = Counter()
        self.gold: Counter[str] = Counter()

    def add(self, gold: set[Span], predicted: set[Span]) -> None:
        """Count the spans of one text."""
        self.gold.update(span.label for span in gold)
        self.predicted.update(span.label for span in predicted)
        self.tp.update(span.label for span in gold & predicted)

    def merge(self, other: SpanCounts) -> None:
        """Add what another has counted."""
        self.tp.update(other.tp)
        self.predicted.update(other.predicted)
        self.gold.update(other.gold)

    def types(self) -> list[str]:
        """Types that occur on either side, sorted."""
        return sorted({*self.gold, *self.predicted})

    def columns(self) -> tuple[Floats, Floats, Floats, Counts]:
        """Precision, recall, f1 and support of each of `types()`."""
        names = self.types()
        tp, predicted, gold = (
            np.array([side[name] for name in names], np.int64)
            for side in (self.tp, self.predicted, self.gold)
        )
        return (*span_f1(tp, predicted, gold), gold)

    def figures(self) -> dict[str, float]:
        """Micro, macro and weighted precision, recall and f1, as seqeval."""
        names, columns = ("precision", "recall", "f1"), self.columns()
        sums = (side.total() for side in (self.tp, self.predicted, self.gold))
        micro = dict(zip(names, span_f1(*(np.array(n) for n in sums)), strict=True))
        figures = {f"micro_{name}": float(value) for name, value in micro.items()}
        gold = columns[3]
        for name, values in zip(names, columns[:3], strict=True):
            figures[f"macro_{name}"] = float(ratio(values.sum(), len(values)))
            figures[f"weighted_{name}"] = float(ratio((values * gold).sum(), gold.sum()))
        return figures

    def lines(self) -> list[LabelFigures]:
        """As seqeval's classification_report."""
        columns, figures, total = self.columns(), self.figures(), self.gold.total()
        lines = [
            LabelFigures(name, float(p), float(r), float(f), int(n))
            for name, p, r, f, n in zip(self.types(), *columns, strict=True)
        ]
        kinds = ("micro", "macro", "weighted")
        return lines + [average_line(f"{kind} avg", kind, figures, total) for kind in kinds]


def span_f1(tp: Any, predicted: Any, gold: Any) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and f1 in seqeval's order of operations, on which the last digit hangs."""
    precision, recall = ratio(tp, predicted), ratio(tp, gold)
    return precision, recall, ratio(2 * precision * recall, precision + recall)


def word_tags(
    words: Sequence[tuple[int, int]], spans: Iterable[Span], loose: Iterable[Span] = ()
) -> list[str]:
    """IOB2 tags of words: those inside a span are its; where spans overlap the first has them.

    The spans in `loose` begin with an I- tag.
    """
    tags = [OUTSIDE] * len(words)
    at = 0
    for span in sorted(spans):
        while at < len(words) and words[at][0] < span.start:
            at += 1
        begin = "I-" if span in loose else "B-"
        while at < len(words) and words[at][1] <= span.end:
            tags[at] = begin + span.label
            begin, at = "I-", at + 1
    return tags


def span_errors(
    gold: set[Span], predicted: set[Span]
) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """What went wrong, and which types stood for which.

    Returns:
        How often of each kind: "type" (ends right), "boundary" (type right, the two overlap),
        "missed" (any other gold span) and "spurious" (any other predicted one); and a count for
        each (gold type, predicted type), O where the other side has no span with these ends.
    """
    errors: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    ends = {(span.start, span.end): span.label for span in predicted}
    right_ends = {(span.start, span.end) for span in gold}
    touched: set[Span] = set()
    for span in gold:
        other = ends.get((span.start, span.end), OUTSIDE)
        pairs[span.label, other] += 1
        if other == span.label:
            continue
        if other != OUTSIDE:
            errors["type"] += 1
            continue
        near = {p for p in predicted - gold if p.label == span.label and _overlap(p, span)}
        errors["boundary" if near else "missed"] += 1
        touched |= near
    for span in predicted:
        if (span.start, span.end) not in right_ends:
            pairs[OUTSIDE, span.label] += 1
            errors["spurious"] += span not in touched
    return errors, pairs


def _overlap(one: Span, other: Span) -> bool:
    return one.start < other.end and other.start < one.end


class TagMeter(ScoredMeter[TagRow]):
    """Spans: precision, recall, f1 by seqeval's strict mode and by conlleval; plain labels.

    Args:
        types: entity types, or, with the scheme "plain", all labels, in the model's order.
        scheme: "plain" if every word has a label of its own and there are no spans.

    Attributes:
        strict: counts by type, the strict way.
        conlleval: counts by type, conlleval's way.
        errors: how often of each kind of `span_errors`.
    """

    def __init__(self, types: Sequence[str], scheme: str = "BIO") -> None:
        self.types, self.plain = list(types), scheme == "plain"
        self.strict, self.conlleval = SpanCounts(), SpanCounts()
        self.errors: Counter[str] = Counter()
        self.pairs: Counter[tuple[str, str]] = Counter()
        # Words are counted where all rows say what their words are.
        self.words, self.right_words, self.wordless = 0, 0, 0

    def _gold(self, row: TagRow) -> set[Span]:
        if row.entities is None:
            raise unlabelled(row.place)
        return set(row.entities)

    def add(self, row: TagRow, prediction: Any) -> None:
        """Count one text; `prediction` is [{"entity_group", "score", "word", "start", "end"}]."""
        gold, predicted = self._gold(row), predicted_spans(prediction)
        errors, pairs = span_errors(gold, predicted)
        self.pairs.update(pairs)
        if self.plain:
            self.words += len(gold)
            self.right_words += len(gold & predicted)
            return
        self.errors.update(errors)
        everything = predicted_spans(prediction, strict=False)
        self.strict.add(gold, predicted)
        self.conlleval.add(gold, everything)
        if row.words is None:
            self.wordless += 1
            return
        right = word_tags(row.words, gold)
        said = word_tags(row.words, everything, everything - predicted)
        self.right_words += sum(a == b for a, b in zip(right, said, strict=True))
        self.words += len(row.words)

    def outcome(self, row: TagRow, prediction: Any) -> Outcome:
        """Score: the strict f1 of the row. Confidence: of the tag that the model was least sure of.

        A list of entities that does not say so (`tag.Entities` does) has that of its least sure.

        Counts [3]: right, predicted and gold spans (plain: words).
        """
        gold, predicted = self._gold(row), predicted_spans(prediction)
        judgements = tuple(
            (float(e["score"]), Span(e["start"], e["end"], e["entity_group"]) in gold)
            for e in prediction
        )
        tp, both = len(gold & predicted), len(gold) + len(predicted)
        return Outcome(
            score=2 * tp / both if both else 1.0,
            wrong=gold != predicted,
            confidence=getattr(
                prediction, "confidence", min((score for score, _ in judgements), default=1.0)
            ),
            gold=_listed(row.text, gold),
            predicted=_listed(row.text, predicted),
            judgements=judgements,
            counts=(float(tp), float(len(predicted)), float(len(gold))),
        )

    def merge(self, other: Self) -> None:
        """Add another meter's counts."""
        assert other.plain == self.plain, "meters of different models do not add up"
        self.strict.merge(other.strict)
        self.conlleval.merge(other.conlleval)
        self.errors.update(other.errors)
        self.pairs.update(other.pairs)
        self.words += other.words
        self.right_words += other.right_words
        self.wordless += other.wordless

    def confusion(self) -> tuple[list[str], Counts]:
        """Names [C], and [C, C] how often the right type (row) was predicted as which (column).

        Spans are compared where both ends agree; those of one side only stand in the row or the
        column of O. Of plain labels there is no O unless a word was not predicted at all.
        """
        seen = {name for pair in self.pairs for name in pair}
        first = [] if self.plain and OUTSIDE not in seen else [OUTSIDE]
        names = list(dict.fromkeys([*first, *self.types, *sorted(seen)]))
        at = {name: i for i, name in enumerate(names)}
        matrix: Counts = np.zeros((len(names),) * 2, np.int64)
        for (gold, predicted), count in self.pairs.items():
            matrix[at[gold], at[predicted]] = count
        return names, matrix

    def _labels(self) -> LabelCounts:
        names, matrix = self.confusion()
        return LabelCounts(matrix, names, None)

    def figures(self) -> dict[str, float]:
        """Spans: precision, recall, f1 (strict, micro), macro, weighted, conlleval_*, accuracy.

        Accuracy is that of the words' IOB2 tags, and is there if every row says what its words are.
        Plain: accuracy and scikit-learn's averages over words.
        """
        if self.plain:
            return self._labels().figures()
        figures = self.strict.figures()
        names = ("precision", "recall", "f1")
        found = {name: figures[f"micro_{name}"] for name in names}
        loose = self.conlleval.figures()
        found |= {f"conlleval_{name}": loose[f"micro_{name}"] for name in names}
        if not self.wordless:
            found["accuracy"] = self.right_words / self.words if self.words else 0.0
        return found | figures

    @property
    def says_nothing(self) -> bool:
        """No entity was predicted, in any row."""
        return not self.plain and not self.conlleval.predicted.total()

    def per_label(self) -> list[LabelFigures]:
        """As the classification_report of seqeval (strict), or of scikit-learn for plain labels."""
        return self._labels().lines() if self.plain else self.strict.lines()

    def resampled(self, sums: Floats) -> dict[str, Floats]:
        """Strict precision, recall and f1; plain: accuracy."""
        tp, predicted, gold = np.moveaxis(sums, -1, 0)
        if self.plain:
            return {"accuracy": ratio(tp, gold)}
        return dict(zip(("precision", "recall", "f1"), span_f1(tp, predicted, gold), strict=True))


def _listed(text: str, spans: set[Span]) -> str:
    return "; ".join(f"{s.label} {text[s.start : s.end]!r}" for s in sorted(spans))
