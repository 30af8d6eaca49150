"""`prune`: write a smaller model: layers dropped, feed-forwards narrowed, heads zeroed.

    layers   dropped whole: the one behind is given what the one before gave on
    width    each feed-forward keeps its most important inner units, as many in every layer, for
             config.json has one `intermediate_size`
    heads    their values and their columns of W_O become zero; the format cannot drop them

The folder opens in transformers and gives the logits of the whole model with these parts masked.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bertkit.checkpoint.files import CONFIG_NAME
from bertkit.checkpoint.hub import resolve_model
from bertkit.checkpoint.layout import WEIGHTS_NAME
from bertkit.errors import UsageError
from bertkit.explain.ablation import AblationResult, ablate
from bertkit.explain.effects import answer_clean, effect, run_from
from bertkit.explain.hooks import still
from bertkit.explain.inner_units import best_units
from bertkit.explain.opening import Model, Opened, open_model
from bertkit.explain.page import Section
from bertkit.explain.pictures import bars
from bertkit.explain.questions import Given, asked_batches, head_of
from bertkit.explain.result import Result, counted
from bertkit.explain.tables import digits, grid
from bertkit.explain.wording import named, say

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Size:
    """A model's size.

    Attributes:
        model: "before" or "after".
        layers: how many.
        width: of the feed-forwards, `intermediate_size`.
        parameters: how many numbers.
        megabytes: of them.
    """

    model: str
    layers: int
    width: int
    parameters: int
    megabytes: float


@dataclass(frozen=True)
class Lost:
    """What the smaller model answers, beside the whole one.

    Attributes:
        asked: what the questions were: "masked words", "labels of texts", ...
        texts: how many were read.
        questions: how many were asked.
        losses: before and after, mean cross-entropy in nats; where nobody knows the right answers,
            of the whole model's own best ones.
        kl: KL(before || after), mean of a question, in nats.
        flips: share of the questions whose best answer is another.
    """

    asked: str
    texts: int
    questions: int
    losses: tuple[float, float]
    kl: float
    flips: float


@dataclass(frozen=True)
class PruneResult(Result):
    """A smaller model and what it lost.

    Attributes:
        model: the whole one's name.
        folder: of the smaller one.
        layers: numbers from 1 of those that were dropped.
        heads: (layer, head) from 1 of those that were zeroed, by the whole model's numbers.
        sizes: before and after.
        lost: None without texts.
    """

    verb: ClassVar[str] = "prune"
    caution: ClassVar[str] = (
        "The loss is that of the smaller model as it was cut; some training afterwards wins much "
        "of it back, and which parts matter is judged one part at a time on these texts alone."
    )
    caution_zh: ClassVar[str] = (
        "这里的损失是刚裁剪完的模型的；再训练一段时间可以挽回其中大部分；"
        "哪些部分重要，是在这些文本上逐个部分判断的。"
    )

    model: str
    folder: str
    layers: list[int]
    heads: list[tuple[int, int]]
    sizes: list[Size]
    lost: Lost | None

    def title(self) -> str:
        """What was done."""
        before, after = self.sizes
        return say(
            "Pruned: {folder}, {n} -> {m} parameters ({share})",
            folder=self.folder,
            n=f"{before.parameters:,}",
            m=f"{after.parameters:,}",
            share=f"{after.parameters / before.parameters:.1%}",
        )

    def table(self) -> RenderableType:
        """Before and after."""
        before, after = self.sizes
        gone = say(" (without {layers})", layers=self._dropped()) if self.layers else ""
        zeroed = ", ".join(f"{i}.{j}" for i, j in self.heads)
        rows = [
            [say("layers"), str(before.layers), f"{after.layers}{gone}"],
            [say("feed-forward width"), f"{before.width:,}", f"{after.width:,}"],
            [say("zeroed heads"), "", zeroed or say("none")],
            [say("megabytes"), f"{before.megabytes:,.1f}", f"{after.megabytes:,.1f}"],
        ]
        if self.lost is not None:
            losses = self.lost.losses
            rows.append([say("loss"), f"{losses[0]:.4f}", f"{losses[1]:.4f}"])
            rows.append([say("KL of the answers"), "", digits(self.lost.kl)])
            rows.append([say("other best answers"), "", f"{self.lost.flips:.1%}"])
        return grid(self.title(), ("", "before", "after"), rows, texts=("after",))

    def _dropped(self) -> str:
        return ", ".join(map(str, self.layers)) or say("none")

    def sections(self) -> list[Section]:
        """Size and loss, before and after."""
        names = [named(size.model) for size in self.sizes]
        drawn = bars("sizes.*.parameters", [size.parameters for size in self.sizes], names)
        note = say(
            "Dropped layers: {layers}; feed-forwards {before} -> {after} wide; {heads} heads "
            "zeroed.",
            layers=self._dropped(),
            before=f"{self.sizes[0].width:,}",
            after=f"{self.sizes[1].width:,}",
            heads=len(self.heads),
        )
        found = [Section(say("Parameters"), drawn, note)]
        if self.lost is not None:
            note = say(
                "{asked} in {texts}.",
                asked=counted(self.lost.questions, self.lost.asked),
                texts=counted(self.lost.texts, "texts"),
            )
            drawn = bars("lost.losses", list(self.lost.losses), names)
            found.append(Section(say("Loss in nats"), drawn, note))
        return found


def prune(
    model: Model,
    out: str | os.PathLike[str],
    *,
    layers: int | Sequence[int] = (),
    heads: int | Sequence[tuple[int, int]] = (),
    width: int | None = None,
    texts: Iterable[Given] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> PruneResult:
    """Write a smaller model with its tokenizer and its head; the model itself is not changed.

    Args:
        model: of any kind; counts of the least important parts and losses need one with a
            masked-word head, or one that labels texts or words or finds answers.
        out: the new folder.
        layers: their numbers from 1; or how many, those without which the loss grows least.
        heads: (layer, head) from 1, as the whole model numbers them; or how many, likewise.
        width: inner units that each feed-forward keeps.
        texts: what importance and losses are measured on; they are read several times.
        seed: of the choice of masked words.
        overwrite: replace a model that is in the folder.

    Raises:
        UsageError: no such layer, head or width; nothing or everything is pruned; `out` holds a
            model or is the model itself; counts without texts.
        DataError: there is no text.
        CheckpointError: there is no such model, or the folder cannot be written.
    """
    opened, folder = open_model(model), Path(out)
    check_folder(opened, folder, overwrite)
    if texts is not None and iter(texts) is texts:
        texts = list(texts)
    dropped, zeroed = _parts(opened, layers, heads, texts, seed)
    config = opened.model.config
    if width is not None and not 1 <= width <= config.intermediate_size:
        raise UsageError(f"the width {width}: it may be 1 to {config.intermediate_size}")
    if not dropped and not zeroed and width in (None, config.intermediate_size):
        raise UsageError("nothing is to be pruned: name layers, heads or a width")
    kept = None
    if width is not None and width < config.intermediate_size:
        kept = best_units(opened, width, texts, seed)
    smaller = pruned(opened, dropped, zeroed, kept)
    lost = None if texts is None else compare(opened, smaller, texts, seed)
    smaller.model.save_pretrained(folder, overwrite=overwrite)
    smaller.tokenizer.save_pretrained(folder)
    sizes = [_size("before", opened.model), _size("after", smaller.model)]
    return PruneResult(opened.name, str(folder), dropped, zeroed, sizes, lost)


def check_folder(opened: Opened, folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds a model, or is the model itself.

    Raises:
        UsageError: naming it.
    """
    own = Path(opened.name) if opened.name else None
    if own is not None and own.is_dir() and resolve_model(own).resolve() == folder.resolve():
        raise UsageError(f"{folder} is the model itself; name another folder")
    for name in (CONFIG_NAME, WEIGHTS_NAME, "tokenizer.json", "vocab.txt"):
        if (folder / name).exists() and not overwrite:
            raise UsageError(f"{folder} holds a model already; say overwrite to replace it")


def _parts(
    opened: Opened,
    layers: int | Sequence[int],
    heads: int | Sequence[tuple[int, int]],
    texts: Iterable[Given] | None,
    seed: int,
) -> tuple[list[int], list[tuple[int, int]]]:
    """The layers to drop and the heads to zero, by their numbers from 1."""
    config = opened.model.config
    depth, count = config.num_hidden_layers, config.num_attention_heads
    found: AblationResult | None = None
    if isinstance(layers, int) or isinstance(heads, int):
        if texts is None:
            raise UsageError("which parts matter least is measured on texts; name them, or parts")
        found = ablate(opened, texts, seed=seed)
    if isinstance(layers, int):
        assert found is not None
        _check_count(layers, depth - 1, "layers")
        layers = [int(i) + 1 for i in found.layers.growth.argsort(kind="stable")[:layers]]
    dropped = sorted(set(layers))
    if dropped and not (1 <= dropped[0] and dropped[-1] <= depth and len(dropped) < depth):
        raise UsageError(
            f"layers {', '.join(map(str, dropped))}: the model has 1 to {depth}, and one must stay"
        )
    if isinstance(heads, int):
        assert found is not None
        stay = [(i + 1, j + 1) for i in range(depth) if i + 1 not in dropped for j in range(count)]
        _check_count(heads, len(stay), "heads")
        heads = sorted(stay, key=lambda at: found.heads.growth[at[0] - 1, at[1] - 1])[:heads]
    zeroed = sorted({(int(i), int(j)) for i, j in heads})
    for i, j in zeroed:
        if not (1 <= i <= depth and 1 <= j <= count):
            raise UsageError(f"head {i}.{j}: there are 1.1 to {depth}.{count}")
        if i in dropped:
            raise UsageError(f"head {i}.{j}: its layer is dropped")
    return dropped, zeroed


def _check_count(count: int, most: int, what: str) -> None:
    if not 0 <= count <= most:
        raise UsageError(f"{count} {what}: at most {most} can go")


@torch.no_grad()
def pruned(
    opened: Opened,
    dropped: Sequence[int],
    zeroed: Sequence[tuple[int, int]],
    kept: Sequence[Tensor] | None,
) -> Opened:
    """A smaller copy of a model.

    Args:
        opened: the whole model.
        dropped: layers from 1.
        zeroed: (layer, head) from 1.
        kept: for each layer of the whole model the inner units that stay; None: all.
    """
    model = copy.deepcopy(opened.model)
    encoder: Any = model.base_model.encoder
    size = model.config.hidden_size // model.config.num_attention_heads
    for layer, head in zeroed:
        attention, mine = encoder.layer[layer - 1].attention, slice((head - 1) * size, head * size)
        attention.self.value.weight[mine] = 0
        attention.self.value.bias[mine] = 0
        attention.output.dense.weight[:, mine] = 0
    for layer, chosen in zip(encoder.layer, kept, strict=True) if kept is not None else ():
        units = chosen.to(model.device)
        widen, narrow = layer.intermediate.dense, layer.output.dense
        _replace(widen, widen.weight[units], widen.bias[units])
        _replace(narrow, narrow.weight[:, units], narrow.bias)
        model.config.intermediate_size = len(units)
    stay = [layer for i, layer in enumerate(encoder.layer, 1) if i not in dropped]
    encoder.layer = nn.ModuleList(stay)
    model.config.num_hidden_layers = len(stay)
    return Opened(model, opened.tokenizer, opened.name)


def _replace(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    linear.weight, linear.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    linear.out_features, linear.in_features = weight.shape


def compare(before: Opened, after: Opened, texts: Iterable[Given], seed: int = 0) -> Lost:
    """The answers of two models with one head to the same questions."""
    head, other = head_of(before), head_of(after)
    total = torch.zeros(3, dtype=torch.float64)
    loss, read, questions = 0.0, 0, 0
    with still(before.model), still(after.model):
        for asked in asked_batches(before, texts, seed=seed):
            clean = answer_clean(before, head, asked)
            total += effect(other, run_from(after.encoder, asked, -1), clean)
            loss += float(clean.losses.double().sum())
            read, questions = read + len(asked.counts), questions + len(clean.losses)
    growth, kl, flips = (total / questions).tolist()
    loss /= questions
    return Lost(head.what, read, questions, (loss, loss + growth), kl, flips)


def _size(name: str, model: Any) -> Size:
    config = model.config
    megabytes = model.get_memory_footprint() / 1e6
    return Size(
        name, config.num_hidden_layers, config.intermediate_size, model.num_parameters(), megabytes
    )
