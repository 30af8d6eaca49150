"""`ablate`: take a head, a feed-forward or a whole layer away and see what the answers lose.

    head           its columns of the context are replaced: what it adds through W_O is gone, the
                   bias of W_O stays, for all heads share it
    feed-forward   its inner activations are replaced; the bias behind them stays
    layer          what it adds is replaced: it gives on what it was given, as if it were not there

Replaced by zero, or by the mean of the same over all tokens of the texts. Each part has a gate g,
part -> g part + (1 - g) replacement. `gate` is d loss / d g at g = 1, `importance` the mean of its
absolute value over the texts (Michel et al. 2019, arXiv 1905.10650, equation 2): both cost one pass
back for all parts together, whereas the effects cost a pass for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from bertkit.errors import UsageError
from bertkit.explain.corpus import PROBABILITY
from bertkit.explain.effects import Clean, answer_clean, effect, run_from
from bertkit.explain.heads import head_grid
from bertkit.explain.hooks import Site, capture, changing, still, trace
from bertkit.explain.opening import Model, Opened, open_model
from bertkit.explain.page import Section
from bertkit.explain.pictures import bars, layer_names
from bertkit.explain.questions import Asked, Given, Head, asked_batches, head_of
from bertkit.explain.readouts import note_of
from bertkit.explain.result import Floats, Result, counted
from bertkit.explain.tables import digits, grid
from bertkit.explain.wording import named, say

if TYPE_CHECKING:
    from rich.console import RenderableType

How = Literal["zero", "mean"]


@dataclass(frozen=True)
class PartFigures:
    """Figures of parts: [L, N] of heads, [L] of feed-forwards and of layers.

    Attributes:
        growth: of the loss when the part is taken away, in nats.
        kl: KL(unchanged || without the part), mean of a question, in nats.
        flips: share of the questions whose best answer is another.
        gate: d loss / d gate at gate 1.
        importance: mean over the texts of |d loss of the text / d gate|.
    """

    growth: Floats
    kl: Floats
    flips: Floats
    gate: Floats
    importance: Floats


@dataclass(frozen=True)
class AblationResult(Result):
    """What each head, feed-forward and layer is for.

    Attributes:
        model: its name.
        how: replaced by "zero" or by the "mean".
        asked: what the questions were: "masked words", "labels of texts", ...
        texts: how many were read.
        questions: how many were asked.
        cut: texts that were longer than the model reads, and cut.
        loss: of the unchanged model, mean cross-entropy of a question in nats; where nobody knows
            the right answers, of its own best ones.
        heads: [L, N].
        feed_forwards: [L].
        layers: [L].
        note: what holds for this model alone, such as that its CRF is not in the figures.
    """

    verb: ClassVar[str] = "ablate"
    caution: ClassVar[str] = (
        "A part that is not missed may have stand-ins that do its work when it is gone, so the "
        "effects of several do not add up; and a model without a part sees states that it never "
        "met in training."
    )
    caution_zh: ClassVar[str] = (
        "去掉后没有影响的部分可能有替补接手它的工作，所以多个部分的影响不能相加；"
        "而且缺了一部分的模型会遇到训练时从未见过的状态。"
    )

    model: str
    how: str
    asked: str
    texts: int
    questions: int
    cut: int
    loss: float
    heads: PartFigures
    feed_forwards: PartFigures
    layers: PartFigures
    note: str = ""

    def title(self) -> str:
        """What was asked."""
        return say(
            "Ablation by {how}: {asked} in {texts}, loss {loss}",
            how=named(self.how),
            asked=counted(self.questions, self.asked),
            texts=counted(self.texts, "texts"),
            loss=f"{self.loss:.4f}",
        )

    def table(self) -> RenderableType:
        """A row a part."""
        rows = [
            [label, digits(loss, "+"), digits(kl), f"{flips:.1%}", digits(gate, "+"), digits(size)]
            for label, (loss, kl, flips, gate, size) in self.rows()
        ]
        note = (
            "loss: how much it grows without the part; flips: questions with another best answer; "
            "gate: d loss / d (the part's strength); importance: mean size of that of a text"
        )
        note = f"{self.note} {note}".strip()
        return grid(
            self.title(), ("part", "loss", "KL", "flips", "gate", "importance"), rows, note=note
        )

    def rows(self) -> Iterator[tuple[str, list[float]]]:
        """Each part with its five figures, layer by layer."""
        for layer in range(len(self.layers.kl)):
            for head in range(self.heads.kl.shape[1]):
                name = named(f"head {layer + 1}.{head + 1}")
                yield name, _figures(self.heads, (layer, head))
            yield named(f"feed-forward {layer + 1}"), _figures(self.feed_forwards, (layer,))
            yield named(f"layer {layer + 1}"), _figures(self.layers, (layer,))

    def sections(self) -> list[Section]:
        """Layer by head; bars for the rest."""
        growth, kl = say("Growth of the loss without it, in nats"), say("KL divergence, in nats")
        found = []
        for name, what, unit in (
            ("growth", growth, say("nats")),
            ("kl", kl, say("nats")),
            ("importance", say("Importance by its gate's gradient"), say("nats")),
        ):
            drawn = head_grid(f"heads.{name}", getattr(self.heads, name), unit)
            found.append(Section(say("Each head: {what}", what=what), drawn))
        names = layer_names(len(self.layers.kl) + 1)[1:]
        for part, heading in (
            ("feed_forwards", "Each feed-forward: {what}"),
            ("layers", "Each layer: {what}"),
        ):
            of = getattr(self, part)
            for name, what in (("growth", growth), ("kl", kl)):
                drawn = bars(f"{part}.{name}", getattr(of, name), names)
                found.append(Section(say(heading, what=what), drawn))
        return found


def _figures(of: PartFigures, at: tuple[int, ...]) -> list[float]:
    return [float(x[at]) for x in (of.growth, of.kl, of.flips, of.gate, of.importance)]


class Means(NamedTuple):
    """What stands in for parts, by layers.

    Attributes:
        context: L times [D], or 0.
        widened: L times [I], or 0.
        added: L times [D], or 0.
    """

    context: Sequence[Tensor | float]
    widened: Sequence[Tensor | float]
    added: Sequence[Tensor | float]


def ablate(
    model: Model,
    texts: str | Iterable[Given],
    *,
    how: How = "zero",
    seed: int = 0,
    probability: float = PROBABILITY,
    report: Callable[[int], None] = lambda texts: None,
) -> AblationResult:
    """Take each head, feed-forward and layer away by itself; nothing of the model is changed.

    Args:
        model: one with a masked-word head, or one that labels texts or words or finds answers.
            Without labels, the right answer is the unchanged model's own best.
        texts: one, or any number; memory stays flat. One with [MASK] in it asks there. For models
            of pairs, tuples of two. For means they are read twice.
        how: what stands in for a part: "zero", or the "mean" of the same over all tokens.
        seed: of the choice of masked words.
        probability: that a token is masked.
        report: is told how many texts are done.

    Raises:
        MissingHeadError: the model has no head that chooses.
        UsageError: texts that can be read once alone are given for means.
        DataError: there is no text.
    """
    opened = open_model(model)
    head, config = head_of(opened), opened.model.config
    layers, count = config.num_hidden_layers, config.num_attention_heads
    if how == "mean" and iter(texts) is texts:
        raise UsageError("means need a second look at the texts; give a list, or Texts of files")

    def batches() -> Iterator[Asked]:
        return asked_batches(opened, texts, seed=seed, probability=probability)

    with still(opened.model):
        nothing = [0.0] * layers
        zeros = Means(nothing, nothing, nothing)
        means = zeros if how == "zero" else mean_parts(opened, batches())
        sums = _Sums(layers, count)
        for asked in batches():
            sums.add(opened, head, answer_clean(opened, head, asked), means, report)
    parts = sums.figures()
    return AblationResult(
        opened.name,
        how,
        head.what,
        sums.texts,
        sums.questions,
        sums.cut,
        sums.loss / sums.questions,
        PartFigures(*(parts[:, :count, i] for i in range(5))),
        PartFigures(*(parts[:, count, i] for i in range(5))),
        PartFigures(*(parts[:, count + 1, i] for i in range(5))),
        note_of(opened),
    )


class _Sums:
    """What is added up over the batches; N heads, the feed-forward and the layer a layer."""

    def __init__(self, layers: int, heads: int) -> None:
        self.effects = torch.zeros(layers, heads + 2, 3, dtype=torch.float64)
        self.slopes = torch.zeros(layers, heads + 2, 2, dtype=torch.float64)
        self.texts = self.questions = self.cut = 0
        self.loss = 0.0

    def add(
        self, opened: Opened, head: Head, clean: Clean, means: Means, report: Callable[[int], None]
    ) -> None:
        layers, parts = self.effects.shape[:2]
        count = len(clean.asked.counts)
        self.slopes += gate_slopes(opened, head, clean, means)
        for layer in range(layers):
            for part in range(parts):
                hidden = without(opened, clean, layer, part, means)
                self.effects[layer, part] += effect(head, hidden, clean)
            report(self.texts + count * (layer + 1) // layers)
        self.texts, self.questions = self.texts + count, self.questions + len(clean.losses)
        self.cut += clean.asked.cut
        self.loss += float(clean.losses.double().sum())

    def figures(self) -> Floats:
        """[L, N + 2, 5] in the order of PartFigures."""
        slopes = self.slopes / torch.tensor([self.questions, self.texts])
        found: Floats = torch.cat([self.effects / self.questions, slopes], -1).numpy()
        return found


def without(opened: Opened, clean: Clean, layer: int, part: int, means: Means) -> Tensor:
    """[R, D]: the answer without one part; only the layers from that on are computed.

    Args:
        opened: the model.
        clean: the unchanged model on a batch.
        layer: from 0.
        part: a head from 0; N is the feed-forward, N + 1 the whole layer.
        means: what stands in for it.
    """
    asked, count = clean.asked, opened.model.config.num_attention_heads
    start = clean.states[layer]
    if part == count + 1:
        if layer + 1 == len(opened.encoder.encoder.layer):
            start = start.index_select(0, asked.rows)
        return run_from(opened.encoder, asked, layer + 1, start + means.added[layer])
    size = opened.model.config.hidden_size // count
    mine = slice(part * size, (part + 1) * size)

    def replaced(context: Tensor) -> Tensor:
        stand_in = means.context[layer]
        changed = context.clone()
        changed[:, mine] = stand_in[mine] if isinstance(stand_in, Tensor) else stand_in
        return changed

    def emptied(widened: Tensor) -> Tensor:
        return torch.zeros_like(widened) + means.widened[layer]

    site = Site("widened" if part == count else "context", layer + 1)
    with changing(opened.encoder, {site: emptied if part == count else replaced}):
        return run_from(opened.encoder, asked, layer, start)


def mean_parts(opened: Opened, batches: Iterable[Asked]) -> Means:
    """Means over all tokens: of contexts, of inner activations, of what layers add."""
    layers = range(1, opened.model.config.num_hidden_layers + 1)
    sites = [Site(kind, layer) for kind in ("context", "widened") for layer in layers]
    sums: list[Tensor] = []
    tokens = 0
    for asked in batches:
        tokens += len(asked.batch.input_ids)
        with capture(opened.encoder, sites) as kept:
            states = trace(opened.encoder, asked.batch).hidden
        seen = [kept[site][0].double().sum(0) for site in sites]
        seen += [(states[i] - states[i - 1]).double().sum(0) for i in layers]
        sums = [a + b for a, b in zip(sums, seen, strict=True)] if sums else seen
    means = [(part / max(tokens, 1)).to(opened.model.dtype) for part in sums]
    count = len(layers)
    return Means(means[:count], means[count : 2 * count], means[2 * count :])


def gate_slopes(opened: Opened, head: Head, clean: Clean, means: Means) -> Tensor:
    """[L, N + 2, 2] float64: d loss / d gate of the summed loss; |the same| of texts' mean losses.

    Each text has gates of its own, so that one pass back gives them all.
    """
    layers, count = len(opened.encoder.encoder.layer), opened.model.config.num_attention_heads
    asked, device = clean.asked, opened.encoder.device
    questions = torch.bincount(asked.owners, minlength=len(asked.counts)).clamp(min=1)
    gates = torch.ones(
        layers, count + 2, len(asked.counts), dtype=opened.model.dtype, device=device
    ).requires_grad_()
    with torch.enable_grad(), gated(opened, asked, gates, means) as wrap:
        # No gradient goes to the model's own parameters.
        hidden = run_from(opened.encoder, asked, -1, wrap=wrap)
        total = head.loss(hidden, asked, clean.labels)
        slopes = torch.autograd.grad(total, gates)[0].double().cpu()
    return torch.stack([slopes.sum(-1), (slopes / questions).abs().sum(-1)], -1)


@contextmanager
def gated(
    opened: Opened, asked: Asked, gates: Tensor, means: Means
) -> Iterator[Callable[[int, Tensor, Tensor], Tensor]]:
    """Inside, heads and feed-forwards pass their gates; layers do by the function that is given.

    Args:
        opened: the model.
        asked: the batch.
        gates: [L, N + 2, B], a gate for each part and text.
        means: what takes the place of what a gate keeps back.
    """
    count = gates.shape[1] - 2
    last = len(gates) - 1

    def opening(layer: int, part: int | slice) -> Tensor:
        """The gates of each row: [..., rows]."""
        lengths = asked.counts if layer == last else asked.batch.lengths
        wide: Tensor = gates[layer, part].repeat_interleave(lengths.to(gates.device), -1)
        return wide

    def of_heads(layer: int) -> Callable[[Tensor], Tensor]:
        def change(context: Tensor) -> Tensor:
            gate = opening(layer, slice(count)).t()[..., None]  # [rows, N, 1]
            stand_in = torch.as_tensor(means.context[layer]).to(context)
            stand_in = stand_in.expand(context.shape[-1])
            away = (context - stand_in).unflatten(-1, (count, -1))
            changed: Tensor = context + ((gate - 1) * away).flatten(1)
            return changed

        return change

    def of_widened(layer: int) -> Callable[[Tensor], Tensor]:
        return lambda widened: (
            widened + (opening(layer, count)[:, None] - 1) * (widened - means.widened[layer])
        )

    def of_layer(layer: int, before: Tensor, after: Tensor) -> Tensor:
        gate = opening(layer, count + 1)[:, None]
        return after + (gate - 1) * (after - before - means.added[layer])

    changes: dict[Site, Callable[[Tensor], Tensor]] = {}
    for layer in range(len(gates)):
        changes[Site("context", layer + 1)] = of_heads(layer)
        changes[Site("widened", layer + 1)] = of_widened(layer)
    with changing(opened.encoder, changes):
        yield of_layer
