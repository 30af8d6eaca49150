"""tag: entities and other labels of words, in windows of any text, by softmax or a CRF.

Only the first token of each word is read (Devlin et al. 2018, arXiv 1810.04805, section 5.3); the
model's scores of all words of a text, each from the window where it has most context, are one
sequence, whatever its length.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bertkit.errors import DataError, UsageError
from bertkit.model.crf_head import BertCrfForTokenClassification
from bertkit.model.task_heads import BertForTokenClassification
from bertkit.tasks.encode import Window, encode, framed, windows
from bertkit.tasks.options import TaskOptions
from bertkit.tasks.records import Place, Span, TagRow
from bertkit.tasks.schemes import OUTSIDE, PLAIN, SCHEMES, parse, tag_set, to_spans, to_tags
from bertkit.tasks.span_metrics import TagMeter
from bertkit.tasks.task import (
    Feature,
    Meter,
    Prediction,
    Task,
    TaskBatch,
    named_labels,
    unknown_label,
)
from bertkit.text.sentences import word_spans

if TYPE_CHECKING:
    from bertkit.model.crf import Crf
    from bertkit.text.tokenizer import BertTokenizer


class TagScores(NamedTuple):
    """Of one window: logits [words, C], and what decodes them; all on the CPU."""

    logits: Tensor
    crf: Crf | None


class Entities(list[dict[str, Any]]):
    """The prediction for a text: a list of entities.

    Attributes:
        confidence: the least probability that the model gave to one of the tags that it chose, O
            too; 1.0 where there is no word.
    """

    def __init__(self, entities: Iterable[dict[str, Any]] = (), confidence: float = 1.0) -> None:
        super().__init__(entities)
        self.confidence = confidence


class Tag(Task[TagRow]):
    """Labelled stretches of a text.

    Features made with `labelled` read the words that they train, the others those that have most
    context in them; either way all features of a row together read each word once, in order.

    Args:
        tokenizer: the model's own.
        labels: the tags, in the order of their numbers.
        options: `scheme` says how they are to be read.
    """

    name = "tag"
    metric = "f1"

    def __init__(
        self, tokenizer: BertTokenizer, labels: Sequence[str], options: TaskOptions
    ) -> None:
        super().__init__(tokenizer, options)
        self.labels, self.scheme = list(labels), options.scheme or "BIO"
        if self.scheme not in SCHEMES:
            raise UsageError(f"scheme is {self.scheme!r}; it may be {', '.join(SCHEMES)}")
        self.numbers = {label: number for number, label in enumerate(self.labels)}
        self.plain = self.scheme == PLAIN
        if self.plain:
            self.metric, self.types = "accuracy", self.labels
        else:
            kinds = dict.fromkeys(parse(label).type for label in self.labels)
            self.types = [kind for kind in kinds if kind]

    @property
    def model_class(self) -> Any:
        """A token classifier, with a CRF where the options ask for one."""
        return BertCrfForTokenClassification if self.options.crf else BertForTokenClassification

    def label_settings(self) -> dict[str, Any]:
        """The tags, and whether there is a CRF."""
        return named_labels(self.labels) | {"problem_type": None, "crf": self.options.crf}

    def check(self, row: TagRow) -> None:
        """Refuse an entity type that the model does not know."""
        for span in row.entities or ():
            if span.label not in self.types:
                where = f" of {row.text[span.start : span.end]!r}"
                raise unknown_label(span.label, self.types, row.place, where)

    def unreachable(self, row: TagRow) -> list[Span]:
        """The entities that no prediction can equal: a boundary inside a word, or an overlap.

        In training one with a boundary inside a word stands for all words that it touches, if they
        are free; one that overlaps with another is left out.
        """
        exact, _ = _placed(words_of(row), row.entities or (), self.plain)
        return [span for span in row.entities or () if exact.get(span, 0) < 1]

    def features_of(self, rows: Sequence[TagRow], labelled: bool = True) -> list[list[Feature]]:
        """As many windows as a row needs; words stay whole."""
        words = [words_of(row) for row in rows]
        known = self._pieces(rows, words)
        return [
            list(self._windows(row, spans, [known[row.text[a:b]] for a, b in spans], labelled))
            for row, spans in zip(rows, words, strict=True)
        ]

    def _pieces(
        self, rows: Sequence[TagRow], words: Sequence[Sequence[tuple[int, int]]]
    ) -> dict[str, list[int]]:
        """The tokens of each different word: at least one, at most a window's worth."""
        seen: dict[str, Place] = {}
        for row, spans in zip(rows, words, strict=True):
            for start, end in spans:
                seen.setdefault(row.text[start:end], row.place)
        room = self.max_length - self.tokenizer.num_special_tokens_to_add()
        unknown = [self.tokenizer.unk_token_id]
        ids = encode(self.tokenizer, list(seen), list(seen.values()))
        return {word: (pieces or unknown)[:room] for word, pieces in zip(seen, ids, strict=True)}

    def _windows(
        self,
        row: TagRow,
        words: Sequence[tuple[int, int]],
        pieces: Sequence[list[int]],
        labelled: bool,
    ) -> Iterator[Feature]:
        sizes = [len(ids) for ids in pieces]
        room = self.max_length - self.tokenizer.num_special_tokens_to_add()
        cuts = windows(sizes, room, self.options.doc_stride)
        gold = None
        if labelled and row.entities is not None:
            self.check(row)
            gold = _placed(words, row.entities, self.plain)[1]
            cuts = _around(gold, cuts)
        for cut in cuts:
            tokens = [token for ids in pieces[cut.start : cut.end] for token in ids]
            ids, split = framed(self.tokenizer, tokens)
            places, place = [], 1
            for size in sizes[cut.start : cut.end]:
                places.append(place)
                place += size
            places = places[cut.first - cut.start : cut.last - cut.start]
            target = None
            if gold is not None:
                target = self._numbers(gold, cut)
                places = [p for p, number in zip(places, target, strict=True) if number >= 0]
                target = [number for number in target if number >= 0]
            yield Feature(ids, split, places, target)

    def _numbers(self, gold: Sequence[Span], cut: Window) -> list[int]:
        """The tags' numbers of the words that a window trains; -1 for a word without a label."""
        inside = [
            Span(max(start, cut.first) - cut.first, min(end, cut.last) - cut.first, label)
            for start, end, label in gold
            if start < cut.last and end > cut.first
        ]
        if self.plain:
            numbers = [-1] * (cut.last - cut.first)
            for start, _, label in inside:
                numbers[start] = self.numbers[label]
            return numbers
        return [self.numbers[t] for t in to_tags(inside, cut.last - cut.first, self.scheme)]

    def targets(self, features: Sequence[Feature]) -> Tensor:
        """[M] int64: the tags' numbers."""
        return torch.tensor([n for f in features for n in f.target], dtype=torch.int64)

    def logits(self, model: Any, batch: TaskBatch) -> Tensor:
        """[M, C]."""
        return model.ragged(batch, batch.positions)  # type: ignore[no-any-return]

    def items(self, batch: TaskBatch) -> int:
        """Words; with a CRF windows."""
        return len(batch.lengths) if self.options.crf else len(batch.positions)

    def losses(self, model: Any, logits: Tensor, batch: TaskBatch) -> Tensor:
        """[M] cross-entropies of words, or [B] negative log-likelihoods of windows."""
        assert batch.targets is not None
        if self.options.crf:
            found: Tensor = model.crf.log_likelihood(logits.float(), batch.targets, batch.counts)
            return -found
        return F.cross_entropy(logits.float(), batch.targets, reduction="none")

    def log_probabilities(self, logits: Tensor, batch: TaskBatch) -> list[Tensor]:
        """[M, C]: the tags of each word compete, without a CRF."""
        return [logits.float().log_softmax(-1)]

    def scores(self, model: Any, batch: TaskBatch) -> list[Any]:
        """For each feature a TagScores."""
        crf = model.crf if self.options.crf else None
        if crf is not None and crf.transitions.device.type != "cpu":
            crf = copy.deepcopy(crf).cpu()
        return [TagScores(logits, crf) for logits in super().scores(model, batch)]

    def decode_rows(
        self,
        rows: Sequence[TagRow],
        features: Sequence[Sequence[Feature]],
        scores: Sequence[Sequence[TagScores]],
    ) -> list[Prediction]:
        """For each row `[{"entity_group", "score", "word", "start", "end"}, ...]`.

        The score of an entity is, with a CRF, its probability over all taggings; with softmax the
        mean over its words of the probability of the tag chosen, as transformers' pipelines have
        it. Tags that softmax puts together illegally are read as conlleval reads them, and such
        entities have `"strict": False` beside.
        """
        if not rows:
            return []
        logits = torch.cat([one.logits for row in scores for one in row])
        counts = torch.tensor([sum(len(one.logits) for one in row) for row in scores])
        crf = scores[0][0].crf
        sure = logits.softmax(-1) if crf is None else crf.marginals(logits, counts)
        tags = sure.argmax(-1) if crf is None else crf.decode(logits, counts)
        chosen = sure.gather(-1, tags[:, None])[:, 0].double()
        ends = counts.cumsum(0).tolist()
        numbers = tags.tolist()
        spans = [
            to_spans([self.labels[n] for n in numbers[a:b]], self.scheme)
            for a, b in pairwise([0, *ends])
        ]
        places = torch.tensor(
            [
                (a + span.start, a + span.end)
                for a, row in zip([0, *ends], spans, strict=False)
                for span in row
            ],
            dtype=torch.int64,
        ).view(-1, 2)
        if crf is None:
            sums = F.pad(chosen.cumsum(0), (1, 0))
            scored = (sums[places[:, 1]] - sums[places[:, 0]]) / (places[:, 1] - places[:, 0])
        else:
            scored = crf.span_probability(logits, tags, counts, places)
        sure_of, of_words = iter(scored.tolist()), chosen.tolist()
        return [
            Entities(
                self._entities(row, found, [self.labels[n] for n in numbers[a:b]], sure_of),
                min(of_words[a:b], default=1.0),
            )
            for row, found, (a, b) in zip(rows, spans, pairwise([0, *ends]), strict=True)
        ]

    def _entities(
        self, row: TagRow, found: Sequence[Span], tags: Sequence[str], scores: Iterator[float]
    ) -> list[dict[str, Any]]:
        words = words_of(row)
        entities = []
        for first, last, label in found:
            start, end = words[first][0], words[last - 1][1]
            entity = {"entity_group": label, "score": next(scores), "word": row.text[start:end]}
            entity |= {"start": start, "end": end}
            if not self.plain:
                spelled = to_tags([Span(0, last - first, label)], last - first, self.scheme)
                if list(tags[first:last]) != spelled:
                    entity["strict"] = False
            entities.append(entity)
        return entities

    def meter(self) -> Meter:
        """Precision, recall and F1 of spans; accuracy of plain labels."""
        return TagMeter(self.types, self.scheme)


def words_of(row: TagRow) -> Sequence[tuple[int, int]]:
    """The stretches that are labelled as wholes: the row's own words, else BERT's basic ones."""
    return word_spans(row.text) if row.words is None else row.words


def learn_tags(rows: Iterable[TagRow], scheme: str) -> tuple[list[str], str]:
    """The tags for the entities of training rows, O first, types sorted; and the scheme.

    Raises:
        DataError: there are no entities.
    """
    types: set[str] = set()
    plain, row = True, None
    for row in rows:
        types.update(span.label for span in row.entities or ())
        plain = plain and row.words is not None and row.entities is not None
        plain = plain and [span[:2] for span in row.entities or ()] == [
            *map(tuple, row.words or ())
        ]
    if not types:
        path = row.place.path if row is not None else None
        raise DataError("the training rows have no labelled entity or word", path)
    scheme = scheme or (PLAIN if plain else "BIO")
    if scheme not in SCHEMES:
        raise UsageError(f"scheme is {scheme!r}; it may be {', '.join(SCHEMES)}")
    return tag_set(sorted(types, key=lambda name: (name != OUTSIDE, name)), scheme), scheme


def _placed(
    words: Sequence[tuple[int, int]], entities: Sequence[Span], plain: bool
) -> tuple[dict[Span, int], list[Span]]:
    """Entities that words can spell (how often each), and all as disjoint stretches of words."""
    starts, ends = [start for start, _ in words], [end for _, end in words]
    free = [True] * len(words)
    exact: dict[Span, int] = {}
    placed = []
    for must_fit in (True, False):
        for span in sorted(entities, key=lambda span: (span.start, -span.end)):
            first, last = bisect_right(ends, span.start), bisect_left(starts, span.end)
            fits = first < last and (starts[first], ends[last - 1]) == span[:2]
            fits = fits and (not plain or last - first == 1)
            if fits != must_fit or first >= last or not all(free[first:last]):
                continue
            free[first:last] = [False] * (last - first)
            placed.append(Span(first, last, span.label))
            if fits:
                exact[span] = exact.get(span, 0) + 1
    return exact, sorted(placed)


def _around(gold: Sequence[Span], cuts: Sequence[Window]) -> list[Window]:
    """Windows between which no entity is cut, if it lies whole in one of them.

    Only training needs this: a part of an entity is no example of anything.
    """
    starts = [span.start for span in gold]
    bounds = [0]
    for one, other in pairwise(cuts):
        bound = other.first
        number = bisect_left(starts, bound) - 1
        if number >= 0 and gold[number].end > bound:
            start, end, _ = gold[number]
            whole = [
                b for b, fits in ((start, start >= other.start), (end, end <= one.end)) if fits
            ]
            bound = min(whole, key=lambda b: abs(b - bound), default=bound)
        bounds.append(max(bound, bounds[-1]))
    bounds.append(cuts[-1].last)
    return [
        Window(cut.start, cut.end, *bounds[number : number + 2]) for number, cut in enumerate(cuts)
    ]
