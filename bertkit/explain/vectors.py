"""`vector`: the vector of a masked position (or another), layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bertkit.explain.asked import Question
from bertkit.explain.corpus import masked_batches
from bertkit.explain.hooks import still, trace
from bertkit.explain.opening import Model, Opened, open_model
from bertkit.explain.page import MOST_PARTS, Section, rest
from bertkit.explain.pictures import Look, bars, heat, layer_names
from bertkit.explain.readouts import questions_for
from bertkit.explain.result import Floats, Result, masked_in, token_of
from bertkit.explain.tables import digits, grid
from bertkit.explain.wording import say
from bertkit.explain.words import Segmenter

_NOTE = "norm: the vector's length; change: of the difference to the layer before"

if TYPE_CHECKING:
    from rich.console import RenderableType

CAUTION = (
    "Norms and neighbours describe the vector that each layer leaves at one position; that a word "
    "lies near it does not mean that the model uses it, and because BERT normalises behind every "
    "block, lengths are set by the LayerNorms and say little by themselves."
)
CAUTION_ZH = (
    "范数和近邻描述各层在一个位置上留下的向量；某个词离它近，并不说明模型用到了它；"
    "而且 BERT 在每个子层之后做归一化，长度由 LayerNorm 决定，单独看意义不大。"
)


class Near(NamedTuple):
    """A word whose embedding points the same way: 1 is the same direction."""

    word: str
    cosine: float


@dataclass(frozen=True)
class VectorAt:
    """One position in all layers; index 0 is what the embeddings give.

    Attributes:
        token: its index in `tokens`.
        label: the user's own characters there.
        hidden: [L + 1, D].
        norm: [L + 1] lengths.
        change: [L + 1] lengths of the difference to the layer before; NaN at 0.
        turn: [L + 1] cosines with the layer before; NaN at 0.
        to_last: [L + 1] cosines with the last layer.
        nearest: L + 1 lists of the nearest word embeddings.
    """

    token: int
    label: str
    hidden: Floats
    norm: Floats
    change: Floats
    turn: Floats
    to_last: Floats
    nearest: list[list[Near]]


@dataclass(frozen=True)
class VectorResult(Result):
    """The asked positions of one text.

    Attributes:
        model: its name.
        texts: the user's own, one or two.
        tokens: [S] labels.
        positions: the asked ones.
    """

    verb: ClassVar[str] = "vector"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    texts: tuple[str, ...]
    tokens: tuple[str, ...]
    positions: list[VectorAt]

    def title(self) -> str:
        """What was asked."""
        return say("The vector of a position: {texts}", texts=" / ".join(self.texts))

    def table(self) -> RenderableType:
        """A table a position."""
        from rich.console import Group

        return Group(*(_table(at) for at in self.positions))

    def sections(self) -> list[Section]:
        """Nearest words by layer, and how far the vector moved."""
        found = []
        for i, at in enumerate(self.positions[:MOST_PARTS]):
            layers = layer_names(len(at.norm))
            cosines = np.array([[near.cosine for near in row] for row in at.nearest])
            words = [[near.word for near in row] for row in at.nearest]
            picture = heat(
                f"positions.{i}.nearest.*.*.cosine",
                cosines,
                layers,
                [str(k + 1) for k in range(cosines.shape[1])],
                Look(
                    say("cosine"),
                    lambda row, column, words=words: words[row][column],  # type: ignore[misc]
                ),
            )
            note = say(
                "Each row is a layer; from left to right the word embeddings nearest in angle."
            )
            found.append(Section(say("Nearest words at {at}", at=at.label), picture, note))
            moved = bars(f"positions.{i}.change", at.change, layers)
            note = say("The length of the difference to the layer before.")
            found.append(Section(say("How far each layer moves {at}", at=at.label), moved, note))
        return [*found, *rest(self.positions)]


def _table(at: VectorAt) -> RenderableType:
    columns = ("layer", "norm", "change", "cosine: layer before", "nearest words")
    rows = []
    for i, name in enumerate(layer_names(len(at.norm))):
        words = " ".join(near.word for near in at.nearest[i])
        rows.append([name, *map(digits, (at.norm[i], at.change[i], at.turn[i])), words])
    title = token_of(at.label, at.token)
    return grid(title, columns, rows, texts=columns[-1:], note=_NOTE)


def vector(
    model: Model,
    text: str,
    pair: str | None = None,
    *,
    word: str | int | None = None,
    top_k: int = 10,
    segmenter: Segmenter | None = None,
) -> VectorResult:
    """The vector of each masked position in every layer.

    Of a model that labels words it is the first token of each word; of other fine-tuned models
    [CLS], unless `word` is named.

    Args:
        model: a name, or what `bertkit.load` gave.
        text: with [MASK] in it, or with `word`.
        pair: the second text.
        word: a word of the text (as it stands there, or its number from 0) to be masked.
        top_k: how many nearest words.
        segmenter: "jieba" for Chinese words of several characters.

    Raises:
        DataError: there is no mask and no such word, or the text is too long.
        CheckpointError: there is no such model, or it is broken.
    """
    opened = open_model(model)
    asked = questions_for(opened, text, pair, word=word, segmenter=segmenter)
    sentence = asked[0].sentence
    with still(opened.model):
        states = trace(opened.encoder, sentence.batch()).hidden
        positions = [_at(opened, question, states, top_k) for question in asked]
    return VectorResult(opened.name, sentence.texts, sentence.labels, positions)


def _at(opened: Opened, question: Question, states: list[Tensor], top_k: int) -> VectorAt:
    hidden = torch.stack([state[question.token] for state in states])
    norm, change, turn, to_last = moves(hidden[:, None])
    return VectorAt(
        question.token,
        question.label,
        hidden.cpu().numpy(),
        norm=norm[:, 0].cpu().numpy(),
        change=change[:, 0].cpu().numpy(),
        turn=turn[:, 0].cpu().numpy(),
        to_last=to_last[:, 0].cpu().numpy(),
        nearest=nearest_words(opened, hidden, top_k),
    )


def moves(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Norm, change, cosine with the layer before and with the last, each [L + 1, M].

    Args:
        hidden: [L + 1, M, D].
    """
    missing = hidden.new_full((1, hidden.shape[1]), torch.nan)
    change = (hidden[1:] - hidden[:-1]).norm(dim=-1)
    turn = torch.cosine_similarity(hidden[1:], hidden[:-1], dim=-1)
    to_last = torch.cosine_similarity(hidden, hidden[-1:].expand_as(hidden), dim=-1)
    return (
        hidden.norm(dim=-1),
        torch.cat([missing, change]),
        torch.cat([missing, turn]),
        to_last,
    )


def nearest_words(opened: Opened, hidden: Tensor, top_k: int) -> list[list[Near]]:
    """For each of [M, D] vectors the word embeddings with the largest cosine."""
    words = opened.encoder.embeddings.word_embeddings.weight.detach()[: len(opened.tokenizer)]
    directions = words / words.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    cosines = hidden / hidden.norm(dim=-1, keepdim=True).clamp_min(1e-12) @ directions.T
    best = cosines.topk(min(top_k, len(words)))
    return [
        [
            Near(name, float(cosine))
            for name, cosine in zip(
                opened.tokenizer.convert_ids_to_tokens(ids), values, strict=True
            )
        ]
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class VectorCorpusResult(Result):
    """Means over the masked positions of many texts; index 0 is what the embeddings give.

    Attributes:
        model: its name.
        texts: how many were read.
        positions: how many were masked.
        norm, change, turn, to_last: [L + 1] means of what VectorAt has.
        norm_deviation: [L + 1] standard deviations of the norms.
    """

    verb: ClassVar[str] = "vector"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    texts: int
    positions: int
    norm: Floats
    norm_deviation: Floats
    change: Floats
    turn: Floats
    to_last: Floats

    def title(self) -> str:
        """What was asked."""
        return say("Vectors of {texts}", texts=masked_in(self.positions, self.texts))

    def table(self) -> RenderableType:
        """A row a layer."""
        rows = [
            [name, *map(digits, (self.norm[i], self.change[i], self.turn[i], self.to_last[i]))]
            for i, name in enumerate(layer_names(len(self.norm)))
        ]
        columns = ("layer", "norm", "change", "cosine: layer before", "cosine: last layer")
        return grid(self.title(), columns, rows, note=_NOTE)

    def sections(self) -> list[Section]:
        """How far each layer moves the vectors."""
        names = layer_names(len(self.norm))
        return [
            Section(say("Mean change in each layer"), bars("change", self.change, names)),
            Section(say("Mean cosine with the last layer"), bars("to_last", self.to_last, names)),
        ]


def vector_over(
    model: Model,
    texts: Iterable[str],
    *,
    seed: int = 0,
    probability: float = 0.15,
    report: Callable[[int], None] = lambda done: None,
) -> VectorCorpusResult:
    """Means of the vectors at randomly masked positions of many texts, memory flat.

    Args:
        model: a name, or what `bertkit.load` gave.
        texts: any number.
        seed: of the choice of masked positions.
        probability: that a token is masked.
        report: told how many texts are done.

    Raises:
        DataError: there is no text.
    """
    opened = open_model(model)
    sums: Tensor | None = None
    count = read = 0
    with still(opened.model):
        drawn: dict[str, Any] = {"seed": seed, "probability": probability}
        for masked in masked_batches(opened, texts, **drawn, report=report):
            read += len(masked.numbers)
            at = masked.batch.mlm_positions.to(opened.encoder.device)
            states = trace(opened.encoder, masked.batch).hidden
            picked = torch.stack([state.index_select(0, at) for state in states]).double()
            norm, change, turn, to_last = moves(picked)
            one = torch.stack([norm, norm**2, change, turn, to_last]).sum(-1).cpu()
            sums = one if sums is None else sums + one
            count += len(at)
    assert sums is not None
    norm, square, change, turn, to_last = sums / max(count, 1)
    spread = (square - norm**2).clamp_min(0).sqrt()
    return VectorCorpusResult(
        opened.name, read, count, *(x.numpy() for x in (norm, spread, change, turn, to_last))
    )
