"""`attention`: which token each head looks from and to, in four readings.

maps            softmax(Q K^T / sqrt(H)), each row sums to 1 (Vaswani et al. 2017)
norm_weighted   || a_ij f(x_j) ||, f the value and output projections of the head: what a large
                weight on a short vector moves is little (Kobayashi et al. 2020, arXiv 2004.10102)
rollout         maps averaged over heads, mixed half and half with the identity for the residual,
                multiplied from the first layer on (Abnar and Zuidema 2020, arXiv 2005.00928)
entropy, distance and the shares that go to [CLS], [SEP], the token itself and its neighbours
                figures of a head (Clark et al. 2019, arXiv 1906.04341)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bertkit.batch import Batch
from bertkit.errors import DataError
from bertkit.explain.heads import head_grid, head_views, token_matrix
from bertkit.explain.hooks import Site, capture, still, trace
from bertkit.explain.opening import Model, Opened, open_model
from bertkit.explain.page import Section
from bertkit.explain.pictures import Look, heat, terse
from bertkit.explain.result import Floats, Result, counted
from bertkit.explain.tables import digits, grid
from bertkit.explain.wording import named, say
from bertkit.explain.words import Segmenter
from bertkit.tasks.asking import pack

if TYPE_CHECKING:
    from rich.console import RenderableType

CAUTION = (
    "Attention shows where a head gathers from, not what the answer depends on: it is not "
    "attribution; a head that looks at [SEP] often does nothing, and what a token passes on has "
    "already been mixed with its neighbours in the layers below."
)
CAUTION_ZH = (
    "注意力显示一个头从哪里取信息，而不是答案取决于什么：注意力不是归因；"
    "看向 [SEP] 的头往往什么也没做，而且一个词元传出的内容在下面各层里已经混入了邻近词元。"
)
# Tokens, and numbers of single heads' maps, beyond which a page leaves these out: they grow with
# the square of the tokens.
PAGE_TOKENS = 64
PAGE_NUMBERS = 300_000
FIGURES = ("entropy", "distance", "to_cls", "to_sep", "to_self", "to_previous", "to_next")


@dataclass(frozen=True)
class HeadFigures:
    """Figures of each head, [L, N], means over the tokens that look.

    Attributes:
        entropy: of a row of the map, in nats.
        distance: mean distance in tokens.
        to_cls: share of the weight that goes to [CLS].
        to_sep: to the [SEP]s.
        to_self: to the token itself.
        to_previous: to the one before.
        to_next: to the one behind.
    """

    entropy: Floats
    distance: Floats
    to_cls: Floats
    to_sep: Floats
    to_self: Floats
    to_previous: Floats
    to_next: Floats


@dataclass(frozen=True)
class AttentionResult(Result):
    """All heads on one text or pair.

    Attributes:
        model: its name.
        texts: the user's own, one or two.
        tokens: [S] labels.
        spans: [S] the characters of its text under each token; None for special ones.
        words: [W] the user's words.
        bounds: [W] (first, last) tokens of each word, last exclusive.
        maps: [L, N, S, S] from each token (row) to each (column).
        norm_weighted: [L, N, S, S].
        rollout: [L, S, S]; layer l from the input on.
        heads: figures of each head.
    """

    verb: ClassVar[str] = "attention"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    texts: tuple[str, ...]
    tokens: tuple[str, ...]
    spans: tuple[tuple[int, int] | None, ...]
    words: tuple[str, ...]
    bounds: tuple[tuple[int, int], ...]
    maps: Floats
    norm_weighted: Floats
    rollout: Floats
    heads: HeadFigures

    def between_words(self, kind: str = "maps") -> Floats:
        """[..., W, W] from word to word: summed over what is looked at, mean over what looks.

        Special tokens are left out, so that rows need not sum to 1 (Clark et al. 2019, section 4).

        Args:
            kind: "maps", "norm_weighted" or "rollout".
        """
        whole: Floats = getattr(self, kind)
        to = np.stack([whole[..., a:b].sum(-1) for a, b in self.bounds], -1)
        return np.stack([to[..., a:b, :].mean(-2) for a, b in self.bounds], -2)

    def title(self) -> str:
        """What was asked."""
        return say("Attention: {texts}", texts=" / ".join(self.texts))

    def table(self) -> RenderableType:
        """A row a head."""
        return _head_table(self.title(), self.heads)

    def sections(self) -> list[Section]:
        """All heads, one head's matrix, rollout; heads by their figures."""
        tokens, figures = len(self.tokens), _head_sections(self.heads, "heads.")
        # Both kinds of maps where there is room in the page's JSON, else one.
        kinds = [("maps", say("attention")), ("norm_weighted", say("norm-weighted"))]
        kinds = kinds[: PAGE_NUMBERS // self.maps.size]
        left = "" if len(kinds) == 2 else say("Norm-weighted maps are in --json and --npz.")
        if tokens > PAGE_TOKENS or not kinds:
            left = say(
                "The text has {n} tokens and the model {m} heads: too much for maps of single "
                "heads on a page. They are in --json and --npz.",
                n=f"{tokens:,}",
                m=self.heads.entropy.size,
            )
            return [Section(say("Single heads"), "", left), *figures]
        views = Section(
            say("All heads"),
            head_views(*self.heads.entropy.shape),
            say("From each token (rows) to each (columns), each head by itself; choose one."),
        )
        note = say("Rows look, columns are looked at; the deepest colour is this head's largest.")
        body = token_matrix(kinds, self.maps, self.tokens)
        one = Section(say("One head, token by token"), body, f"{note} {left}".strip())
        last = len(self.rollout) - 1
        look = Look(say("share"), figure=terse, square=True)
        rolled = heat("rollout", self.rollout[last], self.tokens, self.tokens, look, places=(last,))
        note = say("All layers multiplied, with the residual; from each token down to the inputs.")
        return [views, one, Section(say("Rollout"), rolled, note), *figures]


@dataclass(frozen=True)
class AttentionCorpusResult(Result):
    """Figures of each head over many texts.

    Attributes:
        model: its name.
        texts: how many were read.
        tokens: how many looked.
        cut: texts that were longer than the model reads, and cut.
        heads: means over all tokens.
    """

    verb: ClassVar[str] = "attention"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    texts: int
    tokens: int
    cut: int
    heads: HeadFigures

    def title(self) -> str:
        """What was asked."""
        return say(
            "Attention over {texts} ({tokens})",
            texts=counted(self.texts, "texts"),
            tokens=counted(self.tokens, "tokens"),
        )

    def table(self) -> RenderableType:
        """A row a head."""
        return _head_table(self.title(), self.heads)

    def sections(self) -> list[Section]:
        """Heads by their figures."""
        return _head_sections(self.heads, "heads.")


def _head_table(title: str, heads: HeadFigures) -> RenderableType:
    rows = [
        [f"{at[0] + 1}.{at[1] + 1}", *(digits(getattr(heads, name)[at]) for name in FIGURES)]
        for at in np.ndindex(*heads.entropy.shape)
    ]
    names = [named(name).replace("_", " ") for name in FIGURES]
    note = (
        "entropy in nats; distance in tokens; the rest: shares of the weight that go to [CLS], "
        "to [SEP], to the token itself, to the one before, to the one behind; means over all "
        "tokens, of which the first has none before and the last none behind"
    )
    return grid(title, ["head", *names], rows, note=note)


def _head_sections(heads: HeadFigures, where: str) -> list[Section]:
    names = {
        "entropy": (say("Entropy of each head: low looks at few tokens"), say("nats")),
        "distance": (say("Mean distance of each head"), say("tokens")),
        "to_sep": (say("Share of the weight on [SEP]"), say("share")),
        "to_previous": (say("Share of the weight on the token before"), say("share")),
        "to_next": (say("Share of the weight on the token behind"), say("share")),
    }
    return [
        Section(heading, head_grid(f"{where}{name}", getattr(heads, name), unit))
        for name, (heading, unit) in names.items()
    ]


def attention(
    model: Model, text: str, pair: str | None = None, *, segmenter: Segmenter | None = None
) -> AttentionResult:
    """All heads of all layers on one text.

    Args:
        model: a name, or what `bertkit.load` gave; any head or none.
        text: the text.
        pair: the second text.
        segmenter: "jieba" for Chinese words of several characters.

    Raises:
        DataError: the text is empty or longer than the model reads.
        CheckpointError: there is no such model, or it is broken.
    """
    opened = open_model(model)
    sentence = opened.read(text, pair, segmenter)
    layers = range(1, opened.model.config.num_hidden_layers + 1)
    values = [Site("value", layer) for layer in layers]
    with still(opened.model), capture(opened.encoder, values) as captured:
        maps = torch.cat(trace(opened.encoder, sentence.batch(), want_maps=True).maps)
        normed = norm_weighted(opened, maps, [captured[site][0] for site in values])
    real = maps.new_ones(1, maps.shape[-1], dtype=torch.bool)
    sums = head_sums(maps[:, None], real, _separators(opened, [sentence.ids]))
    return AttentionResult(
        opened.name,
        sentence.texts,
        sentence.labels,
        sentence.spans,
        tuple(word.text for word in sentence.words),
        tuple((word.first, word.last) for word in sentence.words),
        maps.cpu().numpy(),
        normed.cpu().numpy(),
        rollout(maps.mean(1)).cpu().numpy(),
        figures(sums, maps.shape[-1]),
    )


def norm_weighted(opened: Opened, maps: Tensor, values: Sequence[Tensor]) -> Tensor:
    """[L, N, S, S] || a_ij f_n(x_j) || with f_n(x) = (x W_V + b_V) W_O of head n, without b_O.

    Args:
        opened: the model.
        maps: [L, N, S, S].
        values: L times [S, D], what passed the value projections.
    """
    found = []
    for layer, weights, value in zip(opened.encoder.encoder.layer, maps, values, strict=True):
        own: Any = layer
        out = own.attention.output.dense.weight.unflatten(1, (len(weights), -1))  # [D, N, H]
        moved = torch.einsum("snh,dnh->nsd", value.unflatten(1, (len(weights), -1)), out)
        found.append(weights * moved.norm(dim=-1)[:, None, :])
    return torch.stack(found)


def rollout(means: Tensor) -> Tensor:
    """[L, S, S]: (I + A_l) / 2 multiplied from layer 1 to l (Abnar and Zuidema 2020, equation 1).

    Args:
        means: [L, S, S] maps averaged over heads; rows sum to 1.
    """
    one = torch.eye(means.shape[-1], dtype=means.dtype, device=means.device)
    found: list[Tensor] = []
    for mean in means:
        step = (mean + one) / 2
        found.append(step @ found[-1] if found else step)
    return torch.stack(found)


def _separators(opened: Opened, rows: Sequence[Sequence[int]]) -> Tensor:
    """[B, S] True at each [SEP]."""
    longest = max(map(len, rows))
    found = torch.zeros(len(rows), longest, dtype=torch.bool, device=opened.encoder.device)
    for i, row in enumerate(rows):
        for j, token in enumerate(row):
            found[i, j] = token == opened.tokenizer.sep_token_id
    return found


def head_sums(maps: Tensor, real: Tensor, separators: Tensor) -> Tensor:
    """[7, L, N] float64 on the CPU: sums over all real tokens of the figures in FIGURES.

    Args:
        maps: [L, B, N, S, S].
        real: [B, S] True at real tokens.
        separators: [B, S] True at [SEP].
    """
    size = maps.shape[-1]
    at = torch.arange(size, device=maps.device)
    apart = (at[:, None] - at).abs().to(maps.dtype)
    rows = real[None, :, None, :].to(maps.dtype)

    def diagonal(offset: int) -> Tensor:
        return maps.diagonal(offset, -2, -1).sum((1, 3))

    # Rows at padding are zero, so that they add nothing.
    found = [
        -(torch.xlogy(maps, maps).sum(-1) * rows).sum((1, 3)),
        (maps * apart).sum((1, 3, 4)),
        maps[..., 0].sum((1, 3)),
        (maps * separators[None, :, None, None, :]).sum((1, 3, 4)),
        *(diagonal(offset) for offset in (0, -1, 1)),
    ]
    return torch.stack(found).double().cpu()


def figures(sums: Tensor, tokens: int) -> HeadFigures:
    """Means of `head_sums` over so many tokens."""
    return HeadFigures(*(part.numpy() for part in sums / max(tokens, 1)))


# Numbers in the maps of one batch: 64 MB in fp32.
MOST_NUMBERS = 16 << 20


def attention_over(
    model: Model,
    texts: Iterable[str],
    *,
    report: Callable[[int], None] = lambda done: None,
) -> AttentionCorpusResult:
    """Figures of each head over many texts, memory flat.

    Args:
        model: a name, or what `bertkit.load` gave.
        texts: any number; those longer than the model reads are cut, and counted.
        report: told how many texts are done.

    Raises:
        DataError: there is no text.
    """
    opened = open_model(model)
    config = opened.model.config
    sums = torch.zeros(7, config.num_hidden_layers, config.num_attention_heads).double()
    count = tokens = cut = 0
    with still(opened.model):
        for rows, too_long in _row_batches(opened, texts):
            cut += too_long
            count, tokens = count + len(rows), tokens + sum(map(len, rows))
            batch: Batch = pack(rows)
            maps = torch.stack(trace(opened.encoder, batch, want_maps=True).maps)
            real = torch.arange(maps.shape[-1]) < batch.lengths[:, None]
            sums += head_sums(maps, real.to(maps.device), _separators(opened, rows))
            report(count)
    if not count:
        raise DataError("there is no text: every line is blank")
    return AttentionCorpusResult(opened.name, count, tokens, cut, figures(sums, tokens))


def _row_batches(opened: Opened, texts: Iterable[str]) -> Iterator[tuple[list[list[int]], int]]:
    """Rows of ids of like length whose maps fit, and how many of them were cut."""
    heads = opened.model.config.num_attention_heads * opened.model.config.num_hidden_layers
    source = iter(texts)
    while ahead := list(islice(source, 512)):
        rows = opened.tokenizer([text for text in ahead if text.strip()] or [""])["input_ids"]
        rows = sorted((row for row in rows if len(row) > 2), key=len)
        part: list[list[int]] = []
        too_long = 0
        for row in rows:
            size = min(len(row), opened.max_length)
            if part and (len(part) + 1) * size * size * heads > MOST_NUMBERS:
                yield part, too_long
                part, too_long = [], 0
            too_long += len(row) > opened.max_length
            part.append([*row[: size - 1], row[-1]])
        if part:
            yield part, too_long
