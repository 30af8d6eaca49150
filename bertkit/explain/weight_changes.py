"""Changes of weight tensors, by name: which tensors there are, and what is done to one of them.

zero            all numbers 0
noise:S         plus normal noise of S times the tensor's own standard deviation
quantise:B      symmetric, to B bits: whole multiples of max |w| / (2^(B-1) - 1)
quantise:B:row  the same with a step for each row of a matrix
reinitialise    as a new model begins: normal, sd 0.02 (`initializer_range`) cut off at two
deviations, biases 0, LayerNorms 1 and 0 (Devlin et al. 2018)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from bertkit.errors import UsageError
from bertkit.explain.opening import Opened
from bertkit.model.initial import initialise

By = Literal["tensor", "module", "layer"]
CHANGES = ("zero", "noise:0.1", "quantise:8", "reinitialise")
# The modules of a layer as people call them.
KINDS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "heads out",
    "attention.output.LayerNorm": "norm 1",
    "intermediate.dense": "ff in",
    "output.dense": "ff out",
    "output.LayerNorm": "norm 2",
}


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to a tensor.

    Attributes:
        kind: "zero", "noise", "quantise" or "reinitialise".
        amount: standard deviations of noise, or bits.
        by_row: quantise each row with a step of its own.
    """

    kind: str
    amount: float = 0.0
    by_row: bool = False

    @classmethod
    def read(cls, text: str) -> Self:
        """From its name, as in the module's docstring.

        Raises:
            UsageError: there is no such change.
        """
        kind, *more = text.split(":")
        if kind in ("zero", "reinitialise") and not more:
            return cls(kind)
        if kind == "noise" and len(more) == 1 and _is_number(more[0]):
            return cls(kind, float(more[0]))
        bits = more[0] if more else ""
        if kind == "quantise" and bits.isdigit() and more[1:] in ([], ["row"]):
            if 2 <= int(bits) <= 16:
                return cls(kind, int(bits), len(more) == 2)
        raise UsageError(
            f"{text!r} is no change of weights; there are zero, noise:0.1 (deviations), "
            "quantise:8 (bits, 2 to 16), quantise:8:row and reinitialise"
        )

    @property
    def label(self) -> str:
        """For people."""
        if self.kind == "noise":
            return f"noise {self.amount:g} sd"
        if self.kind == "quantise":
            return f"{self.amount:g} bits{' a row' if self.by_row else ''}"
        return self.kind

    def apply(self, model: Any, name: str, tensor: Tensor, seed: int) -> None:
        """Change a parameter of a model in place; a function of the seed and the name alone."""
        with torch.no_grad():
            if self.kind == "zero":
                tensor.zero_()
            elif self.kind == "noise":
                tensor.add_(_noise(tensor, _seed(seed, name)), alpha=self.amount * _sd(tensor))
            elif self.kind == "quantise":
                tensor.copy_(quantised(tensor, int(self.amount), self.by_row))
            else:
                devices = [tensor.device] if tensor.device.type == "cuda" else []
                with torch.random.fork_rng(devices):
                    torch.manual_seed(_seed(seed, name))
                    initialise(model, model.config.initializer_range, [name])


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d*)?(e-?\d+)?|\.\d+", text) is not None


def _sd(tensor: Tensor) -> float:
    return float(tensor.std(correction=0))


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") >> 1


def _noise(like: Tensor, seed: int) -> Tensor:
    exact = torch.promote_types(like.dtype, torch.float32)
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=exact)
    return drawn.to(like)


def quantised(tensor: Tensor, bits: int, by_row: bool = False) -> Tensor:
    """Symmetric round-to-nearest: whole multiples of max |w| / (2^(bits - 1) - 1).

    Args:
        tensor: of any shape.
        bits: 2 to 16.
        by_row: a step for each row of a matrix; a vector has one step.
    """
    steps = 2 ** (bits - 1) - 1
    rows = by_row and tensor.dim() > 1
    most = tensor.abs().amax(-1, keepdim=True) if rows else tensor.abs().amax()
    step = most / steps
    return torch.where(step > 0, (tensor / step).round() * step, tensor)


class Unit(NamedTuple):
    """Tensors that are changed together.

    Attributes:
        name: of the tensor, or what the names of all begin with.
        label: for people, short.
        parameters: by their names.
        first: the first layer from 0 that reads them; -1: embeddings, L: the head.
        layer: from 1; 0 for what belongs to no layer.
        kind: what it is in its layer; "" for what belongs to no layer.
    """

    name: str
    label: str
    parameters: dict[str, nn.Parameter]
    first: int
    layer: int
    kind: str


def units_of(opened: Opened, tensors: Sequence[str], by: By) -> list[Unit]:
    """The tensors of a model whose names match one of the globs, in units.

    Args:
        opened: the model.
        tensors: globs of names, such as "*query*" or "bert.encoder.layer.0.*".
        by: a unit is a tensor, a module (a matrix with its bias: layer x kind) or a layer.

    Raises:
        UsageError: no name matches.
    """
    layers = len(opened.encoder.encoder.layer)
    embeddings = {id(parameter) for parameter in opened.encoder.embeddings.parameters()}
    units: dict[str, Unit] = {}
    names = [name for name, _ in opened.model.named_parameters()]
    for name, parameter in opened.model.named_parameters():
        if not any(fnmatchcase(name, glob) for glob in tensors):
            continue
        inside = re.search(r"(.*\bencoder\.layer\.(\d+))\.(.+)\.(\w+)$", name)
        module, _, last = name.rpartition(".")
        if inside is None:
            first = -1 if id(parameter) in embeddings else layers
            key, label = (name, _short(name)) if by == "tensor" else (module, _short(module))
            unit = Unit(key, label, {}, first, 0, "")
        else:
            number, kind = int(inside[2]), KINDS.get(inside[3], inside[3])
            kind = {"tensor": f"{kind} {last}", "module": kind, "layer": "all"}[by]
            key = {"tensor": name, "module": module, "layer": inside[1]}[by]
            unit = Unit(key, f"L{number + 1} {kind}", {}, number, number + 1, kind)
        units.setdefault(key, unit).parameters[name] = parameter
    if not units:
        wanted = ", ".join(tensors)
        raise UsageError(f"no tensor's name matches {wanted}; names are such as {names[0]}")
    return list(units.values())


def _short(name: str) -> str:
    """What belongs to no layer, such as "emb word weight" or "mlm norm bias"."""
    parts = [part for part in name.split(".") if part not in ("bert", "cls", "transform")]
    names = {"embeddings": "emb", "predictions": "mlm", "LayerNorm": "norm"}
    return " ".join(names.get(part, part.removesuffix("_embeddings")) for part in parts)


@contextmanager
def differentiable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, gradients reach these parameters, frozen ones too."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
