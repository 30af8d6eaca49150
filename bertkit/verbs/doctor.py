"""`bertkit doctor`: what this machine can do for bertkit, measured in a few seconds."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from typing import Any

from bertkit import __version__
from bertkit.verbs.options import Common

LIBRARIES = ("torch", "tokenizers", "safetensors", "numpy", "pyarrow", "jieba")
OPTIONAL = ("transformers", "tensorboard")


def doctor(*, common: Common | None = None) -> None:
    """Show versions, threads, precisions, the compiler, the measured matrix peak and free disk."""
    common = common or Common()
    facts = {**versions(), **machine(), **devices(common.device)}
    width = max(map(len, facts))
    common.show(facts, "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))


def versions() -> dict[str, Any]:
    """Of bertkit, of Python and of what bertkit stands on."""
    found: dict[str, Any] = {"bertkit": __version__, "python": platform.python_version()}
    for name in (*LIBRARIES, *OPTIONAL):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed" if name in OPTIONAL else f"MISSING: pip install {name}"
    return found


def machine() -> dict[str, Any]:
    """Processor, threads, memory, disk."""
    import torch

    return {
        "cpu": f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "free_disk_gib": round(shutil.disk_usage(".").free / 2**30, 1),
    }


def devices(name: str | None) -> dict[str, Any]:
    """Of the CPU and the GPU that would be used: the matrix peak, and whether torch compiles."""
    import torch

    from bertkit import runtime

    facts: dict[str, Any] = {}
    for device in dict.fromkeys((torch.device("cpu"), runtime.pick_device(name))):
        if device.type == "cuda":
            card = torch.cuda.get_device_properties(device)
            facts[str(device)] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
        for dtype in ("fp32", "bf16"):
            key = f"{device}_matrix_peak_{dtype}_gflops"
            if dtype == "bf16" and not runtime.has_bf16(device):
                facts[key] = "none: no bf16 instructions; fp32 is used"
            else:
                peak = runtime.matrix_peak(device, runtime.pick_dtype(device, dtype))
                facts[key] = round(peak / 1e9, 1)
        compiles = "yes" if runtime.has_compiler(device) else "no compiler: it is left off"
        facts[f"{device}_torch_compile"] = compiles
    return facts
