"""What became of a checkpoint when it was opened, and which of its heads were ever trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

# How the tensors of each head begin, by what people call it.
HEADS = {
    "masked words": "cls.predictions",
    "next sentence": "cls.seq_relationship",
    "classifier": "classifier",
    "question answering": "qa_outputs",
    "CRF": "crf",
    "pooler": "bert.pooler",
}


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of each tensor of a checkpoint, and of each parameter of the model.

    Attributes:
        source: the folder.
        used: parameters that the checkpoint gave.
        missing: parameters that it lacks; they were initialised afresh.
        unexpected: tensors of the checkpoint that this model has no place for.
        resized: parameters whose shape differs there; initialised afresh, as was asked for.
        untrained: heads that the checkpoint holds as they were initialised, by their prefix.
        notes: what else there is to say, a clause each.
    """

    source: Path
    used: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    resized: tuple[str, ...]
    untrained: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether all was there and trained; else from_pretrained logs the report as a warning."""
        return not (self.missing or self.resized or self.untrained or self.notes)

    def __str__(self) -> str:
        """One line for people."""
        parts = [f"{self.source}: {len(self.used)} tensors loaded"]
        for names, what in (
            (self.missing, "not in the checkpoint, new and untrained"),
            (self.resized, "of another shape there, new and untrained"),
            (self.untrained, "never trained: as it was initialised"),
            (self.unexpected, "left out, this model has no such part"),
        ):
            if names:
                parts.append(f"{', '.join(_parts(names))} {what}")
        return "; ".join([*parts, *self.notes])

    def table(self) -> str:
        """A line for each part of the model: how many tensors were used, are missing, and so on."""
        groups = {
            "used": self.used,
            "missing": self.missing,
            "resized": self.resized,
            "unexpected": self.unexpected,
        }
        shown = {title: names for title, names in groups.items() if names or title == "used"}
        parts = _parts([name for names in shown.values() for name in names])
        width = max(map(len, [*parts, "part"]))
        lines = ["  ".join([f"{'part':<{width}}", *(f"{title:>10}" for title in shown)])]
        for part in parts:
            counts = [sum(_part(name) == part for name in names) for names in shown.values()]
            cells = [f"{count if count else '-':>10}" for count in counts]
            remark = "  never trained" if part in self.untrained else ""
            lines.append("  ".join([f"{part:<{width}}", *cells]) + remark)
        return "\n".join([*lines, *self.notes])


def heads_of(names: Collection[str]) -> list[str]:
    """The heads, as keys of HEADS, that tensors of these names make up."""
    full = {name if name.startswith("bert.") else f"bert.{name}" for name in names} | set(names)
    return [head for head, start in HEADS.items() if any(n.startswith(f"{start}.") for n in full)]


def untrained_heads(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The prefixes of heads that hold the numbers they were initialised with.

    Only of the masked-word head can that be told: training moves its biases off zero in a step.
    """
    start = HEADS["masked words"]
    names = ("bias", "transform.LayerNorm.weight", "transform.LayerNorm.bias")
    found = [tensors.get(f"{start}.{name}") for name in names]
    bias, weight, shift = found
    # Where the head has two biases, this one is added to the logits.
    bias = tensors.get(f"{start}.decoder.bias", bias)
    if bias is None or weight is None or shift is None:
        return ()
    return (start,) if is_initial(bias, weight, shift) else ()


def is_initial(bias: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> bool:
    """Whether a masked-word head was never trained.

    So are some published ones, such as those of the Chinese whole-word-masking models: their
    output bias is all zero, and their LayerNorm still 1 and 0.

    Args:
        bias: [V], of the output.
        norm_weight: [D], of the transform's LayerNorm.
        norm_bias: [D], of the same.
    """
    still = not bias.any() and not norm_bias.any()
    return still and bool((norm_weight == 1).all())


def _parts(names: Iterable[str]) -> list[str]:
    """`cls.predictions` for all of its parameters, each part once."""
    return sorted({_part(name) for name in names})


def _part(name: str) -> str:
    return ".".join(name.split(".")[:2])
