"""qa: the stretch of a passage that answers a question, or that there is none.

Devlin et al. 2018 (arXiv 1810.04805), sections 4.2 and 4.3: question and passage as a pair, a start
and an end score for each token. Long passages are read in overlapping windows; of a token the score
counts in the window where it has most context.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bertkit.errors import DataError
from bertkit.model.task_heads import BertForQuestionAnswering
from bertkit.tasks.answer_metrics import AnswerMeter
from bertkit.tasks.encode import Window, encode, encode_spans, framed, windows
from bertkit.tasks.options import TaskOptions
from bertkit.tasks.records import QuestionRow
from bertkit.tasks.task import (
    Feature,
    Meter,
    Prediction,
    Task,
    TaskBatch,
    named_labels,
)
from bertkit.text.scripts import script_of

if TYPE_CHECKING:
    from bertkit.text.tokenizer import BertTokenizer

Spans = Sequence[tuple[int, int]]
# Tokens of an answer, at most: 30 in BERT's run_squad. In Chinese nearly every character is one,
# and 50 is the default of CLUE's baseline for CMRC 2018. Of CMRC 2018's dev set 5.1% of the
# questions have no answer of 30 characters or fewer, 0.9% none of 50 or fewer.
ANSWER_TOKENS, CHINESE_ANSWER_TOKENS = 30, 50


class Passage(NamedTuple):
    """Where a window's part of the passage is.

    Attributes:
        place: of its first token in the window.
        window: which tokens of the passage it holds.
        spans: the characters under each token of the whole passage.
    """

    place: int
    window: Window
    spans: Spans


class Candidate(NamedTuple):
    """An answer: its score, its characters, its two logits."""

    score: float
    start: int
    end: int
    start_logit: float
    end_logit: float


class Answer(Task[QuestionRow]):
    """The answer to a question, cut from its passage.

    Args:
        tokenizer: the model's own.
        options: lengths, windows, how many answers compete and when none is given.
    """

    name = "qa"
    metric = "f1"
    head = "qa_outputs."

    def __init__(self, tokenizer: BertTokenizer, options: TaskOptions) -> None:
        super().__init__(tokenizer, options)
        self.max_length = options.max_length or min(self.max_length, 384)
        # A question never takes more than half of what the model reads.
        self.query = min(options.max_query_length, (self.max_length - 3) // 2)

    @property
    def longest_answer(self) -> int:
        """How many tokens an answer may have."""
        chinese = self.options.squad_metric == "cmrc"
        usual = CHINESE_ANSWER_TOKENS if chinese else ANSWER_TOKENS
        return self.options.max_answer_length or usual

    @property
    def model_class(self) -> Any:
        """BertForQuestionAnswering."""
        return BertForQuestionAnswering

    def label_settings(self) -> dict[str, Any]:
        """Start and end have no names."""
        return named_labels(["LABEL_0", "LABEL_1"]) | {"problem_type": None}

    def check(self, row: QuestionRow) -> None:
        """Any answer is known."""

    def features_of(
        self, rows: Sequence[QuestionRow], labelled: bool = True
    ) -> list[list[Feature]]:
        """As many windows as a passage needs; each different passage is tokenized once.

        Of a labelled question whose answers are not in its passage there are none: nothing can be
        learned from it.
        """
        contexts = {row.context: row.place for row in rows}
        texts = encode_spans(self.tokenizer, list(contexts), list(contexts.values()))
        passages = dict(zip(contexts, texts, strict=True))
        questions = encode(
            self.tokenizer, [row.question for row in rows], [row.place for row in rows]
        )
        return [
            list(self._windows(row, question, *passages[row.context], labelled))
            for row, question in zip(rows, questions, strict=True)
        ]

    def _windows(
        self, row: QuestionRow, question: list[int], ids: list[int], spans: Spans, labelled: bool
    ) -> Iterator[Feature]:
        cut, question = max(len(question) - self.query, 0), question[: self.query]
        room = self.max_length - len(question) - self.tokenizer.num_special_tokens_to_add(True)
        answer = _answer_tokens(row, spans) if labelled else None
        if labelled and row.answers and answer is None:
            return
        for window in windows([1] * len(ids), room, self.options.doc_stride):
            read, second = framed(self.tokenizer, question, ids[window.start : window.end])
            target, extra = None, None
            if answer is not None:
                start, end = answer
                # A window without the whole answer says so with [CLS]; so does no answer.
                inside = window.start <= start and end < window.end
                shift = second - window.start
                target = (start + shift, end + shift) if inside else (0, 0)
            elif not labelled:
                extra = Passage(second, window, spans)
            yield Feature(read, second, range(len(read)), target, extra, cut)

    def targets(self, features: Sequence[Feature]) -> Tensor:
        """[B, 2] int64: the positions in the window where the answer starts and ends; 0: none."""
        return torch.tensor([f.target for f in features]).view(-1, 2)

    def logits(self, model: Any, batch: TaskBatch) -> Tensor:
        """[T, 2], start and end."""
        return model.ragged(batch)  # type: ignore[no-any-return]

    def items(self, batch: TaskBatch) -> int:
        """One a window."""
        return len(batch.lengths)

    def losses(self, model: Any, logits: Tensor, batch: TaskBatch) -> Tensor:
        """[B]: the mean of the cross-entropies of start and end, over all tokens of a window."""
        assert batch.targets is not None
        logs = _beside(logits, batch).log_softmax(1)
        return -logs.gather(1, batch.targets.unsqueeze(1)).squeeze(1).mean(-1)

    def log_probabilities(self, logits: Tensor, batch: TaskBatch) -> list[Tensor]:
        """For each window [2, tokens]: its tokens compete, as starts and as ends."""
        parts = logits.float().split(batch.lengths.tolist())
        return [part.log_softmax(0).T for part in parts]

    def decode_rows(
        self,
        rows: Sequence[QuestionRow],
        features: Sequence[Sequence[Feature]],
        scores: Sequence[Sequence[Tensor]],
    ) -> list[Prediction]:
        """For each row `{"id", "answer", "score", "start", "end", "null_odds", "n_best"}`.

        `score` is the softmax over the `n_best` answers, as BERT's run_squad computes it;
        `null_odds` is how much better "no answer" scores than the best answer. "" from 0 to 0 is
        no answer.
        """
        return [self._decode(*of_row) for of_row in zip(rows, features, scores, strict=True)]

    def _decode(
        self, row: QuestionRow, features: Sequence[Feature], scores: Sequence[Tensor]
    ) -> dict[str, Any]:
        found: list[Candidate] = []
        no_answer: Candidate | None = None
        for feature, score in zip(features, scores, strict=True):
            logits = score.double().numpy()
            start, end = logits[0].tolist()
            if no_answer is None or start + end < no_answer.score:
                no_answer = Candidate(start + end, 0, 0, start, end)
            found += self._candidates(logits, feature.extra)
        assert no_answer is not None
        found = _best(found, self.options.n_best_size)
        best = found[0].score if found else 0.0
        null_odds = no_answer.score - best
        if self.options.no_answer or not found:
            found = _best([*found, no_answer], self.options.n_best_size)
            if no_answer not in found:
                found.append(no_answer)
        n_best = _answers(row.context, found)
        given = next((answer for answer in n_best if answer["answer"]), n_best[0])
        if self.options.no_answer and null_odds > self.options.null_threshold:
            given = n_best[found.index(no_answer)]
        chosen = {key: given[key] for key in ("answer", "score", "start", "end")}
        return {"id": row.id, **chosen, "null_odds": null_odds, "n_best": n_best}

    def _candidates(self, logits: NDArray[np.float64], passage: Passage) -> list[Candidate]:
        """The best answers that start where this window counts."""
        place, window, spans = passage
        starts, ends = logits[place : place + window.end - window.start].T
        longest = min(self.longest_answer, len(ends))
        own = slice(window.first - window.start, window.last - window.start)
        if not longest or own.start >= own.stop:
            return []
        padded = np.pad(ends, (0, longest - 1), constant_values=-np.inf)
        reach = np.lib.stride_tricks.sliding_window_view(padded, longest)[own]
        total = (starts[own, None] + reach).ravel()
        most = min(self.options.n_best_size, len(total))
        chosen = np.argpartition(-total, most - 1)[:most]
        found = []
        for flat in chosen[np.isfinite(total[chosen])].tolist():
            first = own.start + flat // longest
            last = first + flat % longest
            start, end = spans[window.start + first][0], spans[window.start + last][1]
            found.append(
                Candidate(float(total[flat]), start, end, float(starts[first]), float(ends[last]))
            )
        return found

    def meter(self) -> Meter:
        """Exact match and F1."""
        usual = "squad2" if self.options.no_answer else "squad"
        return AnswerMeter(self.options.squad_metric or usual)


def learn_answers(rows: Iterable[QuestionRow], options: TaskOptions) -> TaskOptions:
    """The options with what training rows tell: may answers be missing, which metric, how long.

    Raises:
        DataError: there are no rows.
    """
    rows = iter(rows)
    first = list(islice(rows, 200))
    if not first:
        raise DataError("there are no training rows")
    missing = options.no_answer or any(row.answers == () for row in first)
    missing = missing or any(row.answers == () for row in rows)
    text = "".join(row.context[:500] for row in first)
    chinese = sum(script_of(char) == "Han" for char in text) * 2 > len(text)
    metric = options.squad_metric or ("squad2" if missing else "cmrc" if chinese else "squad")
    usual = CHINESE_ANSWER_TOKENS if chinese or metric == "cmrc" else ANSWER_TOKENS
    longest = options.max_answer_length or usual
    return replace(options, no_answer=missing, squad_metric=metric, max_answer_length=longest)


def find_answer(row: QuestionRow) -> tuple[int, int] | None:
    """The characters of the first answer that the passage holds, nearest to where it should be."""
    for answer in row.answers or ():
        size = len(answer.text)
        if not size:
            continue
        if answer.start >= 0 and row.context.startswith(answer.text, answer.start):
            return answer.start, answer.start + size
        before = row.context.rfind(answer.text, 0, max(answer.start, 0) + size)
        after = row.context.find(answer.text, max(answer.start, 0))
        if places := [place for place in (before, after) if place >= 0]:
            start = min(places, key=lambda place: abs(place - answer.start))
            return start, start + size
    return None


def _answer_tokens(row: QuestionRow, spans: Spans) -> tuple[int, int] | None:
    """The first and the last token of the answer; -1 twice: no answer; None: not told, not there.

    An answer is not there where the passage does not hold it, or no token stands under it.
    """
    if row.answers is None:
        return None
    if not row.answers:
        return -1, -1
    found = find_answer(row)
    if found is None:
        return None
    first = bisect_right([end for _, end in spans], found[0])
    last = bisect_left([start for start, _ in spans], found[1]) - 1
    return (first, last) if first <= last else None


def _beside(logits: Tensor, batch: TaskBatch) -> Tensor:
    """[T, 2] -> [B, S, 2] fp32, the lowest number where nothing is."""
    parts = logits.float().split(batch.lengths.tolist())
    return pad_sequence(list(parts), batch_first=True, padding_value=torch.finfo(torch.float32).min)


def _best(found: list[Candidate], most: int) -> list[Candidate]:
    """Best first, each stretch of characters once; of equals the one that starts first."""
    ordered = sorted(found, key=lambda one: (-one.score, one.start, one.end))
    return list({(one.start, one.end): one for one in reversed(ordered)}.values())[::-1][:most]


def _answers(context: str, found: Sequence[Candidate]) -> list[dict[str, Any]]:
    weights = np.exp([one.score - max(other.score for other in found) for one in found])
    answers = []
    for one, weight in zip(found, (weights / weights.sum()).tolist(), strict=True):
        end = _with_marks(context, one.end) if one.end > one.start else one.end
        answers.append(
            {
                "answer": context[one.start : end],
                "score": weight,
                "start": one.start,
                "end": end,
                "start_logit": one.start_logit,
                "end_logit": one.end_logit,
            }
        )
    return answers


def _with_marks(text: str, end: int) -> int:
    """Behind the combining marks that belong to the last character: tokens do not cover them."""
    while end < len(text) and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return end
