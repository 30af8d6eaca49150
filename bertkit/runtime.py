"""The machine under a run: device, number format, threads, seeds, ranks."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from bertkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where a run computes.

    Attributes:
        device: the device of this process.
        dtype: what matrix products are made in: bf16 where the processor has it, else fp32.
        rank: the number of this process, 0 to world - 1.
        world: how many processes share the global batch.
        threads: CPU threads of this process; bit-identical resuming needs the same number.
        replicas: copies of the model among which a step's examples and the threads are shared.
    """

    device: torch.device
    dtype: torch.dtype
    rank: int
    world: int
    threads: int
    replicas: int = 1

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Matrix products in `dtype`; parameters stay in fp32."""
        enabled = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype if enabled else None, enabled=enabled):
            yield

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place; every rank gets the same bits."""
        if self.world > 1:
            dist.all_reduce(values)
        return values


@contextlib.contextmanager
def start(device: str | None = None, precision: str = "auto") -> Iterator[Runtime]:
    """Set up this process for training, under torchrun or alone, and tidy up after it.

    Plain indexing's backward pass and others add in an order that changes from run to run with
    two threads; the deterministic algorithms do not, so a CPU run can be repeated bit for bit.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = pick_device(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if place.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # Filling fresh memory with NaN guards no result here and costs 5% of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    else:
        torch.cuda.set_device(place)
        torch.set_float32_matmul_precision("high")
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Runtime(place, pick_dtype(place, precision), rank, world, threads)
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        if world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def pick_device(name: str | None = None) -> torch.device:
    """The named device, else the GPU of this rank, else the CPU.

    Raises:
        UsageError: there is no such device here.
    """
    if name is None:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"no device is called {name!r}; say cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"bertkit runs on cpu and cuda, not on {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"no {name!r} here: this machine has {torch.cuda.device_count()} GPUs")
    return device


def pick_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """What matrix products are made in; "auto" takes bf16 only where the hardware multiplies it.

    A processor without bf16 instructions emulates them: 19 against 124 GFLOP/s in fp32 (Zen 3).
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    return torch.bfloat16 if has_bf16(device) else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16 matrix products."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile can work: a C++ compiler for the CPU, Triton for a GPU."""
    if device.type == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError:
            return False
        return True
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def return_freed_memory() -> None:
    """Give back to the system what has been freed, where the C library is glibc.

    Rows of ever other lengths leave holes of ever other sizes in its heap, which grows on.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return getattr(library, "malloc_trim", None)


def step_seed(seed: int, step: int, part: int) -> int:
    """What one micro-batch's dropout is seeded by: a function of (seed, step, part)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + part) & (2**64 - 1)
    # torch's CPU generator reads the low 32 bits only: bring the others down (splitmix64).
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> shift) * factor & (2**64 - 1)
    return (mixed ^ mixed >> 31) & (2**63 - 1)


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of several matrix products of the shapes that BERT-base has."""
    rows = 4096 if device.type == "cpu" else 16384
    x = torch.randn(rows, 768, device=device).to(dtype)
    w = torch.randn(3072, 768, device=device).to(dtype)
    best = float("inf")
    for _ in range(5 if device.type == "cpu" else 50):
        begin = time.perf_counter()
        torch.nn.functional.linear(x, w)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * rows * 768 * 3072 / best
