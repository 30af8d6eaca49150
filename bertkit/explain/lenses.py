"""`lens`: what the model's own head reads from every layer (the logit lens).

BERT is post-LN: what a layer gives on has just been normalised, and the masked-word head is dense +
GELU + LayerNorm before the vocabulary. So a layer's reading is not a sum of contributions as it is
known from decoders; it is an intervention, "what if the head stood here". The tuned lens
(tuned.py; Belrose et al. 2023, arXiv 2303.08112) first turns a layer's states into the last
layer's coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertkit.errors import MissingHeadError
from bertkit.explain.asked import Question, has_words
from bertkit.explain.corpus import masked_batches
from bertkit.explain.hooks import still, trace
from bertkit.explain.opening import Model, Opened, open_model
from bertkit.explain.page import MOST_PARTS, Section, rest
from bertkit.explain.pictures import Look, bars, heat, layer_names
from bertkit.explain.readouts import Readout, note_of, questions_for, readout_of
from bertkit.explain.result import Floats, Result, headed, masked_in, token_of
from bertkit.explain.tables import digits, grid
from bertkit.explain.tuned import TunedLens
from bertkit.explain.wording import say
from bertkit.explain.words import Segmenter

if TYPE_CHECKING:
    from rich.console import RenderableType

CAUTION = (
    "Of each layer one sees what the model's last head would say if it stood behind it; BERT is "
    "post-LN and the head was trained on the last layer alone, so an early layer that reads badly "
    "may still hold the answer in a form that the head cannot read."
)
CAUTION_ZH = (
    "对每一层，看到的是假如把模型最后的预测头接在它后面会说什么；"
    "BERT 是 post-LN，预测头只在最后一层上训练过，所以浅层读得不好，"
    "并不说明它不含答案，可能只是预测头读不懂它的形式。"
)


@dataclass(frozen=True)
class LensAt:
    """One position read in all layers; index 0 is what the embeddings give.

    Attributes:
        token: its index in `tokens`.
        label: the user's own characters there.
        target: the word or label that is watched; None: no one is.
        names: [L + 1][k] the likeliest words or labels.
        probabilities: [L + 1, k] theirs.
        entropy: [L + 1] of the whole distribution, in nats.
        kl: [L + 1] KL(last layer || this layer) in nats.
        rank: [L + 1] the target's, 1 for the likeliest; None without a target.
        target_probability: [L + 1]; None without a target.
    """

    token: int
    label: str
    target: str | None
    names: list[list[str]]
    probabilities: Floats
    entropy: Floats
    kl: Floats
    rank: NDArray[np.int64] | None
    target_probability: Floats | None


@dataclass(frozen=True)
class LensResult(Result):
    """What the head reads in each layer at the asked positions.

    Attributes:
        model: its name.
        texts: the user's own, one or two.
        tokens: [S] labels, asked words in brackets.
        reads: "words", "label of the text" or "label of the word".
        tuned: a tuned lens was used.
        positions: the asked ones.
        note: what holds for this model alone, such as that its CRF is not read.
    """

    verb: ClassVar[str] = "lens"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    texts: tuple[str, ...]
    tokens: tuple[str, ...]
    reads: str
    tuned: bool
    positions: list[LensAt]
    note: str = ""

    def title(self) -> str:
        """What was asked."""
        kind = say("Tuned lens") if self.tuned else say("Lens")
        return headed(kind, " / ".join(self.texts))

    def table(self) -> RenderableType:
        """A table a position."""
        from rich.console import Group

        return Group(*(_table(at) for at in self.positions), *([self.note] if self.note else []))

    def sections(self) -> list[Section]:
        """Layer by rank, the target's way, the distance to the last layer."""
        found = [s for i, at in enumerate(self.positions[:MOST_PARTS]) for s in _sections(i, at)]
        return [*found, *rest(self.positions)]


def _sections(i: int, at: LensAt) -> list[Section]:
    layers = layer_names(len(at.entropy))
    picture = heat(
        f"positions.{i}.probabilities",
        at.probabilities,
        layers,
        [str(k + 1) for k in range(at.probabilities.shape[1])],
        Look(
            say("probability"),
            lambda row, column: at.names[row][column],
            outlined=lambda row, column: at.names[row][column] == at.target,
        ),
    )
    note = say("A row a layer, a column a rank; the figure and the colour are the probability.")
    if at.target is not None:
        note = f"{note} {say('Framed: {target}.', target=at.target)}"
    found = [Section(say("What the head reads at {at}", at=at.label), picture, note)]
    if at.target_probability is not None:
        drawn = bars(f"positions.{i}.target_probability", at.target_probability, layers)
        what = say("Probability of {target} at {at}", target=at.target, at=at.label)
        found.append(Section(what, drawn))
    drawn = bars(f"positions.{i}.kl", at.kl, layers)
    note = say("KL divergence of the last layer's distribution from each layer's, in nats.")
    return [*found, Section(say("Distance to the final answer at {at}", at=at.label), drawn, note)]


def _table(at: LensAt) -> RenderableType:
    columns = ["layer", "entropy", "KL"] + (["rank"] if at.rank is not None else [])
    rows = []
    for i, name in enumerate(layer_names(len(at.entropy))):
        rank = [] if at.rank is None else [f"{at.rank[i]:,}"]
        best = zip(at.names[i], at.probabilities[i], strict=True)
        words = "  ".join(f"{word} {digits(p)}" for word, p in best)
        rows.append([name, digits(at.entropy[i]), digits(at.kl[i]), *rank, words])
    title = token_of(at.label, at.token, at.target)
    note = "entropy, and KL to the last layer's answer, in nats"
    note += "; rank: the target's, 1 for the likeliest" if at.rank is not None else ""
    return grid(title, [*columns, "likeliest"], rows, texts=["likeliest"], note=note)


def lens(
    model: Model,
    text: str,
    pair: str | None = None,
    *,
    word: str | int | None = None,
    target: str | None = None,
    tuned: TunedLens | None = None,
    top_k: int = 10,
    segmenter: Segmenter | None = None,
) -> LensResult:
    """Read the asked positions in every layer with the model's own head.

    Args:
        model: one with a masked-word head, or one that labels texts or words.
        text: with [MASK] in it, or with `word`, of a model with a masked-word head.
        pair: the second text.
        word: a word of the text to be masked; its own pieces are then the targets.
        target: a token of the vocabulary, or a label, whose rank is told.
        tuned: of `train_lens` or `TunedLens.load`; None: the raw lens.
        top_k: how many of the likeliest.
        segmenter: "jieba" for Chinese words of several characters.

    Raises:
        MissingHeadError: the model has no head that can be read.
        UsageError: there is no such target, or the tuned lens is another model's.
        DataError: there is no mask and no such word, or the text is too long.
    """
    opened = open_model(model)
    readout = readout_of(opened)
    if tuned is not None:
        tuned.check(opened)
    asked = questions_for(opened, text, pair, word=word, target=target, segmenter=segmenter)
    sentence = asked[0].sentence
    with still(opened.model):
        states = trace(opened.encoder, sentence.batch()).hidden
        positions = [_at(readout, question, states, tuned, top_k) for question in asked]
    return LensResult(
        opened.name,
        sentence.texts,
        sentence.labels,
        readout.what,
        tuned is not None,
        positions,
        note_of(opened),
    )


def _at(
    readout: Readout, question: Question, states: list[Tensor], tuned: TunedLens | None, top_k: int
) -> LensAt:
    hidden = torch.stack([state[question.token] for state in states])
    logs = log_probabilities(readout, hidden, tuned)
    # A model may have more rows than the tokenizer has tokens: these name nothing.
    best = logs[:, : len(readout.names)].topk(min(top_k, len(readout.names)))
    target, rank, chosen = question.target, None, None
    if target is not None:
        chosen = logs[:, target].exp().cpu().numpy()
        rank = (1 + (logs > logs[:, target, None]).sum(-1)).cpu().numpy()
    return LensAt(
        question.token,
        question.label,
        None if target is None else readout.names[target],
        [[readout.names[i] for i in row] for row in best.indices.tolist()],
        best.values.exp().cpu().numpy(),
        entropy_of(logs).cpu().numpy(),
        kl_to_last(logs).cpu().numpy(),
        rank,
        chosen,
    )


def log_probabilities(readout: Readout, hidden: Tensor, tuned: TunedLens | None) -> Tensor:
    """[L + 1, C] of one position's [L + 1, D] states, fp32 at least."""
    if tuned is not None:
        hidden = torch.stack([tuned.turned(i, hidden[i]) for i in range(len(hidden))])
    logits = readout.logits(hidden)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def entropy_of(logs: Tensor) -> Tensor:
    """[...] nats of log-probabilities [..., C]."""
    return -(logs.exp() * logs).sum(-1)


def kl_to_last(logs: Tensor) -> Tensor:
    """[L + 1] KL(last || each) in nats of log-probabilities [L + 1, C]."""
    return (logs[-1].exp() * (logs[-1] - logs)).sum(-1).clamp_min(0)


@dataclass(frozen=True)
class LensCorpusResult(Result):
    """Means over the masked positions of many texts; index 0 is what the embeddings give.

    Attributes:
        model: its name.
        tuned: a tuned lens was used.
        texts: how many were read.
        positions: how many were masked.
        loss: [L + 1] cross-entropy of what stood there, in nats.
        accuracy: [L + 1] how often it was the likeliest.
        entropy: [L + 1] in nats.
        kl: [L + 1] KL(last layer || this layer) in nats.
    """

    verb: ClassVar[str] = "lens"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    tuned: bool
    texts: int
    positions: int
    loss: Floats
    accuracy: Floats
    entropy: Floats
    kl: Floats

    def title(self) -> str:
        """What was asked."""
        kind = say("Tuned lens") if self.tuned else say("Lens")
        return headed(kind, masked_in(self.positions, self.texts))

    def table(self) -> RenderableType:
        """A row a layer."""
        rows = [
            [name, *map(digits, (self.loss[i], self.accuracy[i], self.entropy[i], self.kl[i]))]
            for i, name in enumerate(layer_names(len(self.loss)))
        ]
        note = "KL: to the last layer's answer; loss, entropy and KL in nats"
        columns = ("layer", "loss", "accuracy", "entropy", "KL")
        return grid(self.title(), columns, rows, note=note)

    def sections(self) -> list[Section]:
        """A bar a layer for each figure."""
        names = layer_names(len(self.loss))
        return [
            Section(say("Accuracy at masked words"), bars("accuracy", self.accuracy, names)),
            Section(say("Loss in nats"), bars("loss", self.loss, names)),
            Section(say("Distance to the final answer (KL, nats)"), bars("kl", self.kl, names)),
        ]


def lens_over(
    model: Model,
    texts: Iterable[str],
    *,
    tuned: TunedLens | None = None,
    seed: int = 0,
    probability: float = 0.15,
    report: Callable[[int], None] = lambda done: None,
) -> LensCorpusResult:
    """How well the head reads each layer at randomly masked positions of many texts.

    Args:
        model: one with a masked-word head.
        texts: any number; memory stays flat.
        tuned: None: the raw lens.
        seed: of the choice of masked positions.
        probability: that a token is masked.
        report: told how many texts are done.

    Raises:
        MissingHeadError: the model has no masked-word head.
        UsageError: the tuned lens is another model's.
        DataError: there is no text.
    """
    opened = open_model(model)
    check_words(opened)
    if tuned is not None:
        tuned.check(opened)
    sums = torch.zeros(4, opened.model.config.num_hidden_layers + 1, dtype=torch.float64)
    count = read = 0
    with still(opened.model):
        drawn: dict[str, Any] = {"seed": seed, "probability": probability}
        for masked in masked_batches(opened, texts, **drawn, report=report):
            read += len(masked.numbers)
            count += len(masked.batch.mlm_labels)
            device = opened.encoder.device
            at, labels = masked.batch.mlm_positions.to(device), masked.batch.mlm_labels.to(device)
            states = trace(opened.encoder, masked.batch).hidden
            picked = [state.index_select(0, at) for state in states]
            sums += _sums(opened, picked, labels, tuned)
    loss, accuracy, entropy, kl = (sums / max(count, 1)).numpy()
    return LensCorpusResult(
        opened.name, tuned is not None, read, count, loss, accuracy, entropy, kl
    )


def check_words(opened: Opened) -> None:
    """Raise MissingHeadError without a masked-word head, which figures of a corpus need."""
    if not has_words(opened.model):
        raise MissingHeadError(
            f"{opened.name}: has no masked-word head; over a file the lens reads masked words"
        )


# Positions whose logits are made at once: 13 layers of 32 are 51 MB for a 30,522-word vocabulary.
_ROWS = 32


def _sums(opened: Opened, states: list[Tensor], labels: Tensor, tuned: TunedLens | None) -> Tensor:
    """[4, L + 1] sums of loss, hits, entropy and KL over [M, D] states of all layers."""
    head = opened.model.cls.predictions
    total = torch.zeros(4, len(states), dtype=torch.float64)
    for start in range(0, len(labels), _ROWS):
        part = slice(start, start + _ROWS)
        hidden = [
            s[part] if tuned is None else tuned.turned(i, s[part]) for i, s in enumerate(states)
        ]
        logits = head(torch.stack(hidden))
        logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        chosen = logs.gather(-1, labels[part].expand(len(states), -1).unsqueeze(-1)).squeeze(-1)
        hits = logs.argmax(-1) == labels[part]
        kl = (logs[-1].exp() * (logs[-1] - logs)).sum(-1).clamp_min(0)
        total += (
            torch.stack([-chosen, hits.to(chosen), entropy_of(logs), kl]).sum(-1).double().cpu()
        )
    return total
