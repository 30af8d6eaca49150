"""What `perturb-vector` gives: one text's positions, and means over a file (steering.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bertkit.explain.page import MOST_PARTS, Section, rest
from bertkit.explain.pictures import Look, bars, heat, layer_names, percent
from bertkit.explain.result import Floats, Result, headed, masked_in
from bertkit.explain.tables import Grid, digits
from bertkit.explain.wording import named, say

if TYPE_CHECKING:
    from rich.console import RenderableType

CAUTION = (
    "A push shows what the rest of the model does with a vector that it may never meet by itself: "
    "that a direction moves the answer does not say that the model uses it, and a push tells "
    "something only where random pushes of the same length do much less."
)
CAUTION_ZH = (
    "推动一个向量，显示模型其余部分如何处理一个它自己也许从不会产生的向量：某个方向能改变答案，"
    "并不说明模型在使用它；只有当同样长度的随机推动作用小得多时，结果才有意义。"
)


@dataclass(frozen=True)
class Control:
    """Random directions: mean and deviation, [N, K] each, of N layers and K steps.

    Attributes:
        logit: of the target.
        logit_deviation: its.
        probability: of the target.
        probability_deviation: its.
        kl: KL(without a push || with it) in nats.
        kl_deviation: its.
        flips: the share of directions that change the likeliest word.
    """

    logit: Floats
    logit_deviation: Floats
    probability: Floats
    probability_deviation: Floats
    kl: Floats
    kl_deviation: Floats
    flips: Floats


@dataclass(frozen=True)
class PushedAt:
    """One position, pushed in N layers along R directions by K steps.

    Attributes:
        token: its index in `tokens`.
        label: the user's own characters there.
        target: the word or label that is watched and pushed towards.
        against: the one that is left.
        layers: [N] 0 for the embeddings.
        norm: [N] the vector's length: the unit of the steps.
        directions: [R] names.
        singular_values: [N, k] of d logits / d vector, the logits less their mean.
        slope: [R, N] d logit of the target / d step, at 0.
        logit: [R, N, K] the target's.
        probability: [R, N, K] the target's.
        kl: [R, N, K] KL(without a push || with it) in nats.
        likeliest: [R, N, K, k] probabilities of the likeliest words.
        names: [R][N][K][k] these words.
        control: random directions.
    """

    token: int
    label: str
    target: str
    against: str
    layers: list[int]
    norm: Floats
    directions: list[str]
    singular_values: Floats
    slope: Floats
    logit: Floats
    probability: Floats
    kl: Floats
    likeliest: Floats
    names: list[list[list[list[str]]]]
    control: Control


@dataclass(frozen=True)
class PushResult(Result):
    """The asked positions of one text.

    Attributes:
        model: its name.
        texts: the user's own, one or two.
        tokens: [S] labels, asked words in brackets.
        reads: "words", "label of the text" or "label of the word".
        steps: [K] in lengths of the vector, ascending, 0 among them.
        positions: the asked ones.
    """

    verb: ClassVar[str] = "perturb-vector"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    texts: tuple[str, ...]
    tokens: tuple[str, ...]
    reads: str
    steps: list[float]
    positions: list[PushedAt]

    def title(self) -> str:
        """What was asked."""
        return say("Pushed vectors: {texts}", texts=" / ".join(self.texts))

    def table(self) -> RenderableType:
        """A table a position, a row a layer and direction."""
        from rich.console import Group

        return Group(*(_table(at, self.steps) for at in self.positions))

    def sections(self) -> list[Section]:
        """For each direction the target's probability, layer by step; the same at random."""
        found = [
            section
            for i, at in enumerate(self.positions[:MOST_PARTS])
            for section in _sections(at, f"positions.{i}", self.steps)
        ]
        return [*found, *rest(self.positions)]


def _table(at: PushedAt, steps: Sequence[float]) -> RenderableType:
    title = say(
        "{at} (token {n}): probability of {target} and the likeliest",
        at=at.label,
        n=at.token,
        target=at.target,
    )
    rows, ends = [], []
    for n, layer in enumerate(layers_of(at.layers)):
        for r, direction in enumerate(at.directions):
            cells = [
                f"{digits(at.probability[r, n, k])} {at.names[r][n][k][0]}"
                for k in range(len(steps))
            ]
            rows.append(["" if r else layer, named(direction), *cells])
        control = (at.control.probability[n], at.control.probability_deviation[n])
        rows.append(["", say("random: mean"), *map(digits, control[0])])
        rows.append(["", say("random: deviation"), *map(digits, control[1])])
        ends.append(len(rows) - 1)
    note = (
        "columns: steps in lengths of the vector, 0 is no push; random: over random directions, "
        f"the control; towards {at.target} is away from {at.against}"
    )
    columns = ("layer", "direction", *step_names(steps))
    return Grid(title, columns, rows, ("direction",), 2, note, ends)


def layers_of(layers: Sequence[int]) -> list[str]:
    """The names of some layers."""
    names = layer_names(max(layers, default=0) + 1)
    return [names[layer] for layer in layers]


def step_names(steps: Sequence[float]) -> list[str]:
    """Steps with their sign."""
    return [f"{step:+g}" if step else "0" for step in steps]


def _sections(at: PushedAt, where: str, steps: Sequence[float]) -> list[Section]:
    rows, columns = layers_of(at.layers), step_names(steps)
    what = say("Probability of {target} at {at}", target=at.target, at=at.label)
    note = say(
        "A row a layer, a column a step in lengths of the vector; in the squares the likeliest "
        "word, and the probability of {target}, framed where it is the likeliest. Without a push "
        "{word} is.",
        target=at.target,
        word=at.names[0][0][steps.index(0.0)][0],
    )
    most = float(max(at.probability.max(), at.control.probability.max()))
    found = []
    for r, direction in enumerate(at.directions):
        look = Look(
            say("probability"),
            lambda n, k, r=r: at.names[r][n][k][0],  # type: ignore[misc]
            most=most,
            outlined=lambda n, k, r=r: at.names[r][n][k][0] == at.target,  # type: ignore[misc]
        )
        of = f"{where}.probability"
        picture = heat(of, at.probability[r], rows, columns, look, places=(r,))
        found.append(Section(headed(what, named(direction)), picture, note))
    look = Look(
        say("probability"),
        lambda n, k: say("{n} % changed", n=percent(float(at.control.flips[n, k]))),
        most=most,
    )
    control = heat(f"{where}.control.probability", at.control.probability, rows, columns, look)
    note = say(
        "The control: mean over random directions; above, the share of them that change the "
        "likeliest word."
    )
    found.append(Section(headed(what, named("random")), control, note))
    if at.singular_values.shape[1]:
        drawn = bars(f"{where}.singular_values.*.0", at.singular_values[:, 0], rows)
        note = say(
            "The largest singular value of d logits / d vector, by layer: the logits less their "
            "mean move by so much for a push of length 1, at first."
        )
        found.append(Section(say("How sensitive the answer at {at} is", at=at.label), drawn, note))
    return found


@dataclass(frozen=True)
class PushCorpusResult(Result):
    """Means over masked positions of many texts, by N layers and K steps.

    Attributes:
        model: its name.
        texts: how many were read.
        positions: how many masked positions of them were pushed.
        steps: [K] in lengths of the vector.
        layers: [N] 0 for the embeddings.
        singular_value: [N] mean of the largest one.
        random_kl: [N, K] KL(without a push || with it) in nats, random directions.
        random_flips: [N, K] how often the likeliest word changes.
        singular_kl: [N, K] the same along each vector's largest singular direction.
        singular_flips: [N, K] the same.
    """

    verb: ClassVar[str] = "perturb-vector"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    texts: int
    positions: int
    steps: list[float]
    layers: list[int]
    singular_value: Floats
    random_kl: Floats
    random_flips: Floats
    singular_kl: Floats
    singular_flips: Floats

    def title(self) -> str:
        """What was asked."""
        return say("Pushed vectors: {texts}", texts=masked_in(self.positions, self.texts))

    def table(self) -> RenderableType:
        """A row a layer and kind of direction."""
        rows = []
        for n, layer in enumerate(layers_of(self.layers)):
            for name, kl, flips in (
                ("random", self.random_kl, self.random_flips),
                ("singular", self.singular_kl, self.singular_flips),
            ):
                both = zip(kl[n], flips[n], strict=True)
                cells = (f"{digits(a)} {float(b):.0%}" for a, b in both)
                rows.append([layer if name == "random" else "", named(name), *cells])
        note = (
            "columns: steps in lengths of the vector, 0 is no push; in each KL in nats, and how "
            "often the likeliest word changes; singular: the direction in which logits move most"
        )
        columns = ("layer", "direction", *step_names(self.steps))
        return Grid(self.title(), columns, rows, (), 2, note)

    def sections(self) -> list[Section]:
        """KL and flips of both kinds, in the same colours."""
        rows, columns = layers_of(self.layers), step_names(self.steps)
        most = float(max(self.random_kl.max(), self.singular_kl.max()))
        note = say("A row a layer, a column a step in lengths of the vector.")
        found = []
        for kind, name in (("singular", "largest singular direction"), ("random", "random")):
            for figure, what, look in (
                ("kl", say("KL of the answer in nats"), Look(say("nats"), most=most)),
                (
                    "flips",
                    say("How often the likeliest word changes"),
                    Look(say("share"), most=1.0),
                ),
            ):
                of = f"{kind}_{figure}"
                drawn = heat(of, getattr(self, of), rows, columns, look)
                found.append(Section(headed(what, named(name)), drawn, note))
        drawn = bars("singular_value", self.singular_value, rows)
        return [*found, Section(say("Mean of the largest singular value"), drawn)]
