"""Modules that have shapes and no numbers, for weights to be put in."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# What torch's own modules fill new parameters with.
_INITIALISERS = {"normal_", "trunc_normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_",
                 "xavier_normal_", "zero_", "zeros_", "fill_", "ones_", "constant_"}  # fmt: skip
_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.rand,
              torch.randn}  # fmt: skip


class Outline(TorchFunctionMode):
    """Modules built under it have shapes and no numbers; none of their initialisers runs.

    (`with torch.device("meta")` would have torch import its compiler, seconds of work, to fill
    nothing at all.)
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        if func in _FACTORIES:
            kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Without the collector of cycles: over all that torch has imported, a pass takes 50 ms."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
