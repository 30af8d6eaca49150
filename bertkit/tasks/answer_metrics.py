"""Exact match and F1 of answers, as the scripts of SQuAD 1.1, SQuAD 2.0 and CMRC 2018 define them.

All figures are percentages, as the scripts print them. DRCD has no script of its own; its published
figures are those of CMRC's.
"""

from __future__ import annotations

import re
import string
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from bertkit.errors import UsageError
from bertkit.tasks.outcomes import Floats, LabelFigures, Outcome, ScoredMeter, ratio, unlabelled
from bertkit.tasks.records import QuestionRow
from bertkit.tasks.treebank import words

METRICS = ("squad", "squad2", "cmrc")
# What only SQuAD 2.0 has, where there are questions of the kind.
_SQUAD2 = (
    *(f"{kind}_{name}" for kind in ("HasAns", "NoAns") for name in ("exact", "f1", "total")),
    *("best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh", "tuned_null_threshold"),
)

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# CMRC's list also names a double ellipsis, which never equals one character: "…" stays.
_NO_CHINESE_MARKS = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_HAN_OR_REST = re.compile("[\u4e00-\u9fa5]|[^\u4e00-\u9fa5]+")


def normalize_answer(text: str) -> str:
    """SQuAD's: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def squad_scores(predicted: str, answers: Sequence[str], version_2: bool) -> tuple[float, float]:
    """Exact match (0 or 1) and F1 over words, the best over the right answers.

    Args:
        predicted: the answer given; "" is none.
        answers: those that count as right.
        version_2: as SQuAD 2.0's script: answers that are nothing once normalised do not count,
            and where no answer is left, only the empty one is right. SQuAD 1.1's gives no F1 to
            what shares no word, even if both sides are empty.
    """
    said = normalize_answer(predicted)
    right = [normalize_answer(answer) for answer in answers]
    if version_2:
        right = [answer for answer in right if answer] or [""]
    exact = max((said == answer for answer in right), default=False)
    return float(exact), max((_word_f1(said, answer, version_2) for answer in right), default=0.0)


def _word_f1(said: str, right: str, version_2: bool) -> float:
    if version_2 and not (said and right):
        return float(said == right)
    said_words, right_words = said.split(), right.split()
    same = (Counter(said_words) & Counter(right_words)).total()
    return _f1(same, len(said_words), len(right_words))


def _f1(same: int, said: int, right: int) -> float:
    if not same:
        return 0.0
    precision, recall = same / said, same / right
    return (2 * precision * recall) / (precision + recall)


def mixed_segments(text: str) -> list[str]:
    """CMRC's segments of a text without its marks: Han characters one by one, words elsewhere."""
    plain = text.lower().strip().translate(_NO_CHINESE_MARKS)
    segments: list[str] = []
    for stretch in _HAN_OR_REST.findall(plain):
        segments += [stretch] if "\u4e00" <= stretch[0] <= "\u9fa5" else words(stretch)
    return segments


def longest_common_run(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest run of segments that both hold."""
    longest = 0
    ending = [0] * (len(other) + 1)
    for segment in one:
        # From the right, so that ending[j] is still that of the segment before.
        for j in range(len(other), 0, -1):
            ending[j] = ending[j - 1] + 1 if segment == other[j - 1] else 0
        longest = max(longest, *ending)
    return longest


def cmrc_scores(predicted: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match (0 or 1) without CMRC's marks, and F1 by the longest common run of segments.

    Without right answers, which CMRC does not have, only the empty answer is right.
    """
    if not answers:
        return (float(not predicted),) * 2
    bare = [text.lower().strip().translate(_NO_CHINESE_MARKS) for text in (predicted, *answers)]
    said, f1 = mixed_segments(predicted), 0.0
    for answer in answers:
        right = mixed_segments(answer)
        f1 = max(f1, _f1(longest_common_run(right, said), len(said), len(right)))
    return float(bare[0] in bare[1:]), f1


def best_threshold(
    null_odds: Any, scores: Any, has_answer: Any, answered: Any, nothing: float = 0.0
) -> tuple[float, float]:
    """The threshold on null odds that gives the highest mean score on these questions.

    As SQuAD 2.0's script finds it: questions whose odds are above the threshold are given no
    answer. Equal odds are taken one by one, as there.

    Args:
        null_odds: [n] how much better no answer is than the best answer.
        scores: [n] the score of the best answer.
        has_answer: [n] whether the question has one.
        answered: [n] whether the best answer is not empty.
        nothing: the threshold if it is best to answer nothing at all; the script's is 0.0, made
            for probabilities. To use the threshold on odds, give one below all of them.

    Returns:
        The best mean score in percent, and the threshold.
    """
    odds = np.asarray(null_odds, np.float64)
    if not len(odds):
        return 0.0, nothing
    order = np.argsort(odds, kind="stable")
    gains = np.where(has_answer, scores, np.where(answered, -1.0, 0.0))[order]
    start = float(np.sum(~np.asarray(has_answer, bool)))
    reached = np.cumsum(np.concatenate([[start], gains]))
    best = int(reached.argmax())
    return float(100.0 * reached[best] / len(odds)), float(
        odds[order][best - 1]
    ) if best else nothing


class AnswerMeter(ScoredMeter[QuestionRow]):
    """Exact match and F1 of answers; for SQuAD 2.0 also by kind of question, and thresholds.

    A few numbers are kept for each question, no text.

    Args:
        metric: "squad" (1.1), "squad2" (2.0) or "cmrc" (CMRC 2018, DRCD).
    """

    def __init__(self, metric: str = "squad") -> None:
        if metric not in METRICS:
            raise UsageError(f"no answer metric {metric!r}; there are {', '.join(METRICS)}")
        self.metric = metric
        self.exact, self.f1, self.has_answer = array("d"), array("d"), array("b")
        # Of the best answer that is not empty, whatever the threshold.
        self.null_odds, self.best_exact, self.best_f1 = array("d"), array("d"), array("d")
        self.answered = array("b")

    def scores(self, row: QuestionRow, predicted: str) -> tuple[float, float]:
        """Exact match and F1 of one answer, 0 to 1."""
        if row.answers is None:
            raise unlabelled(row.place)
        right = [answer.text for answer in row.answers]
        if self.metric == "cmrc":
            return cmrc_scores(predicted, right)
        return squad_scores(predicted, right, self.metric == "squad2")

    def add(self, row: QuestionRow, prediction: Any) -> None:
        """Count one question.

        Args:
            row: the question.
            prediction: {"answer", "score", "start", "end", "id"}; for thresholds also "null_odds",
                and "n_best", whose first entry with an `answer` that is not empty is the best.
        """
        exact, f1 = self.scores(row, prediction["answer"])
        self.exact.append(exact)
        self.f1.append(f1)
        self.has_answer.append(bool(row.answers))
        if self.metric != "squad2" or prediction.get("null_odds") is None:
            return
        best = best_answer(prediction)
        if best != prediction["answer"]:
            exact, f1 = self.scores(row, best)
        self.null_odds.append(prediction["null_odds"])
        self.best_exact.append(exact)
        self.best_f1.append(f1)
        self.answered.append(bool(best))

    def outcome(self, row: QuestionRow, prediction: Any) -> Outcome:
        """Score: the F1. Wrong: no exact match. Counts [3]: exact, F1, questions."""
        exact, f1 = self.scores(row, prediction["answer"])
        score, right = float(prediction["score"]), exact == 1
        gold = " | ".join(dict.fromkeys(answer.text for answer in row.answers or ()))
        judgements = ((score, right),)
        return Outcome(
            f1, not right, score, gold, prediction["answer"], judgements, (exact, f1, 1.0)
        )

    def merge(self, other: Self) -> None:
        """Add another meter's numbers."""
        assert other.metric == self.metric, "meters of different metrics do not add up"
        for name in ("exact", "f1", "has_answer", "null_odds", "best_exact", "best_f1", "answered"):
            getattr(self, name).extend(getattr(other, name))

    def figures(self) -> dict[str, float]:
        """Exact, f1, total; squad2: HasAns_*, NoAns_*, best_exact, best_f1 and their thresholds.

        The script writes 0.0 where it is best to answer nothing; `tuned_null_threshold` is one
        that does so.
        """
        everything = np.ones(len(self.exact), dtype=bool)
        figures = self._means("", everything)
        if self.metric == "cmrc":
            figures["average"] = (figures["exact"] + figures["f1"]) / 2
        if self.metric == "squad2":
            has_answer = np.array(self.has_answer, bool)
            for prefix, which in (("HasAns_", has_answer), ("NoAns_", ~has_answer)):
                figures |= self._means(prefix, which) if which.any() else {}
            if self.null_odds:
                figures |= self._thresholds(has_answer)
        return figures

    def names(self) -> list[str]:
        """All figures."""
        return [*dict.fromkeys([*self.figures(), *(_SQUAD2 if self.metric == "squad2" else ())])]

    def _means(self, prefix: str, which: Any) -> dict[str, float]:
        total = int(which.sum())
        # Summed as the scripts do, one by one, on which the last digit hangs.
        mean = {
            name: 100.0 * sum(np.array(values)[which].tolist()) / total if total else 0.0
            for name, values in (("exact", self.exact), ("f1", self.f1))
        }
        return {prefix + k: v for k, v in mean.items()} | {prefix + "total": total}

    def _thresholds(self, has_answer: Any) -> dict[str, float]:
        assert len(self.null_odds) == len(self.exact), "some predictions lack null_odds"
        figures: dict[str, float] = {}
        for name, scores in (("exact", self.best_exact), ("f1", self.best_f1)):
            value, threshold = best_threshold(
                self.null_odds, scores, has_answer, np.array(self.answered, bool)
            )
            figures[f"best_{name}"], figures[f"best_{name}_thresh"] = value, threshold
        tuned = self.tuned_threshold()
        return figures if tuned is None else figures | {"tuned_null_threshold": tuned}

    def tuned_threshold(self) -> float | None:
        """The threshold on null odds with the best F1; None: predictions held no null odds."""
        if not self.null_odds:
            return None
        has_answer, answered = (np.array(a, bool) for a in (self.has_answer, self.answered))
        below_all = min(self.null_odds) - 1.0
        return best_threshold(self.null_odds, self.best_f1, has_answer, answered, below_all)[1]

    def per_label(self) -> list[LabelFigures]:
        """None: answers have no labels."""
        return []

    def resampled(self, sums: Floats) -> dict[str, Floats]:
        """Exact and f1."""
        exact, f1, rows = np.moveaxis(sums, -1, 0)
        return {"exact": 100.0 * ratio(exact, rows), "f1": 100.0 * ratio(f1, rows)}


def best_answer(prediction: Any) -> str:
    """The best answer of a prediction that is not empty; "" if it has none."""
    candidates = [prediction, *prediction.get("n_best", ())]
    return next((c["answer"] for c in candidates if c["answer"]), "")
