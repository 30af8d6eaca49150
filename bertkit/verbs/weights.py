"""`bertkit explain perturb-weights|ablate|prune`: what the parts of a model are for."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from bertkit.errors import UsageError
from bertkit.verbs.ask import Model
from bertkit.verbs.inside import Text, Where, opened_for
from bertkit.verbs.options import Common

Most = Annotated[int | None, Parameter(help="Read so many texts of the files at most.")]
Pair = Annotated[
    str | None, Parameter(help="The second text, for models that were fine-tuned on pairs.")
]


def perturb_weights(
    model: Model,
    text: Text = None,
    /,
    *,
    change: Annotated[
        list[str] | None,
        Parameter(
            help="zero, noise:0.1 (deviations), quantise:8 (bits), quantise:8:row, reinitialise; "
            "may be repeated. All four by default."
        ),
    ] = None,
    tensors: Annotated[
        list[str] | None, Parameter(help='Globs of tensor names, such as "*query*".')
    ] = None,
    by: Annotated[
        Literal["tensor", "module", "layer"],
        Parameter(help="What is changed together; module is layer x kind."),
    ] = "tensor",
    texts: Most = None,
    pair: Pair = None,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """Zero, shake, quantise, re-initialise each weight tensor: loss, KL, flips, Fisher."""
    where, common = where or Where(), common or Common()
    where.check(text)
    from bertkit.explain.weight_changes import CHANGES, Change
    from bertkit.explain.weights import perturb_weights

    named: dict[str, Any] = {"changes": change or CHANGES, "tensors": tensors or ("*",), "by": by}
    for one in named["changes"]:
        Change.read(one)
    with (
        opened_for(model, common, where.revision) as opened,
        _texts(where, common, "changing", text, pair, texts) as (given, report),
    ):
        seed = common.seed or 0
        result = perturb_weights(opened, given, **named, seed=seed, report=report)
    where.give(common, result)


def ablate(
    model: Model,
    text: Text = None,
    /,
    *,
    how: Annotated[
        Literal["zero", "mean"], Parameter(help="What takes the place of a part.")
    ] = "zero",
    texts: Most = None,
    pair: Pair = None,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """Take away each head, feed-forward and layer: loss, KL, flips, gate gradients."""
    where, common = where or Where(), common or Common()
    where.check(text)
    from bertkit.explain.ablation import ablate

    with (
        opened_for(model, common, where.revision) as opened,
        _texts(where, common, "ablating", text, pair, texts) as (given, report),
    ):
        result = ablate(opened, given, how=how, seed=common.seed or 0, report=report)
    where.give(common, result)


@Parameter(name="*")
@dataclass(kw_only=True)
class Pruned:
    """What goes."""

    layers: Annotated[
        str | None, Parameter(help="Layers to drop, by number from 1, such as 2,5.")
    ] = None
    least_layers: Annotated[
        int | None, Parameter(help="Drop so many layers: those that are missed least.")
    ] = None
    heads: Annotated[
        str | None, Parameter(help="Heads to zero, layer.head from 1, such as 1.3,2.4.")
    ] = None
    least_heads: Annotated[
        int | None, Parameter(help="Zero so many heads: those that are missed least.")
    ] = None
    width: Annotated[int | None, Parameter(help="Inner units that each feed-forward keeps.")] = None

    def named(self) -> dict[str, Any]:
        """As `prune` takes them.

        Raises:
            UsageError: a list cannot be read, or stands beside a count of the same.
        """
        for one, other in (("layers", "least_layers"), ("heads", "least_heads")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise UsageError(f"give --{one} or --{other}, not both")
        layers: Any = _read("layers", self.layers, r"\d+")
        heads: Any = _read("heads", self.heads, r"\d+\.\d+")
        if self.least_layers is not None:
            layers = self.least_layers
        else:
            layers = [int(layer) for layer in layers]
        if self.least_heads is not None:
            heads = self.least_heads
        else:
            heads = [tuple(map(int, head.split("."))) for head in heads]
        return {"layers": layers, "heads": heads, "width": self.width}


def _read(name: str, text: str | None, wanted: str) -> list[str]:
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    for word in words:
        if not re.fullmatch(wanted, word):
            example = "2,5" if name == "layers" else "1.3,2.4"
            raise UsageError(f"--{name} {text}: {word!r} cannot be read; write it as {example}")
    return words


def prune(
    model: Model,
    /,
    *,
    out: Annotated[Path, Parameter(help="The folder for the smaller model.")],
    pruned: Pruned | None = None,
    texts: Most = None,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """Write a smaller model: layers dropped, feed-forwards narrowed, heads zeroed."""
    pruned, where, common = pruned or Pruned(), where or Where(), common or Common()
    named = pruned.named()
    where.check(None if where.file else "")
    from bertkit.explain.pruning import check_folder, prune

    with opened_for(model, common, where.revision) as opened:
        check_folder(opened, out, where.overwrite)
        told = {**named, "seed": common.seed or 0, "overwrite": where.overwrite}
        if where.file:
            # Importance, units and losses each read all texts: a count of them would tell nothing.
            with where.texts(common, "pruning", texts) as (given, _):
                result = prune(opened, out, texts=given, **told)
        else:
            result = prune(opened, out, **told)
    where.give(common, result)


@contextmanager
def _texts(
    where: Where, common: Common, title: str, text: str | None, pair: str | None, most: int | None
) -> Generator[tuple[Any, Callable[[int], None]]]:
    """The text, the pair, or the texts of files, and what is told how many are done."""
    if most is not None and most < 1:
        raise UsageError(f"--texts {most}: at least 1 is read")
    if text is not None:
        yield text if pair is None else [(text, pair)], lambda done: None
        return
    if pair is not None:
        raise UsageError("--pair goes with one text, not with files")
    with where.texts(common, title, most) as both:
        yield both
