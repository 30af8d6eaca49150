"""The machine: devices, formats, seeds, and settings put back afterwards."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from bertkit import runtime
from bertkit.errors import UsageError

CPU = torch.device("cpu")


def test_start_pins_determinism_and_puts_it_back() -> None:
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert not torch.are_deterministic_algorithms_enabled()
    with runtime.start("cpu", "fp32") as machine:
        assert torch.are_deterministic_algorithms_enabled()
        assert (machine.rank, machine.world) == (0, 1)
        assert machine.device == CPU
        assert machine.dtype == torch.float32
        assert machine.threads == torch.get_num_threads()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory == filled  # type: ignore[attr-defined]


def test_start_puts_things_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), runtime.start("cpu"):
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99", "nonsense:1"])
def test_unknown_devices_are_refused_in_words(name: str) -> None:
    with pytest.raises(UsageError, match=name.split(":")[0]):
        runtime.pick_device(name)


def test_precision() -> None:
    assert runtime.pick_dtype(CPU, "fp32") == torch.float32
    assert runtime.pick_dtype(CPU, "bf16") == torch.bfloat16
    wanted = torch.bfloat16 if runtime.has_bf16(CPU) else torch.float32
    assert runtime.pick_dtype(CPU) == wanted


@pytest.mark.parametrize(
    ("capabilities", "able"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
        ({"avx2": True, "avx512_bf16": False}, False),
        ({}, False),
    ],
)
def test_bf16_only_where_the_processor_has_it(
    capabilities: dict[str, bool], able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert runtime.has_bf16(CPU) is able


def test_autocast_multiplies_in_the_format_and_keeps_fp32_otherwise() -> None:
    x = torch.ones(2, 2)
    for dtype in (torch.float32, torch.bfloat16):
        machine = runtime.Runtime(CPU, dtype, 0, 1, 1)
        with machine.autocast():
            assert (x @ x).dtype == dtype
    assert (x @ x).dtype == torch.float32


def test_one_rank_sums_to_itself() -> None:
    machine = runtime.Runtime(CPU, torch.float32, 0, 1, 1)
    assert machine.sum(torch.tensor([3.0])).item() == 3.0


def test_dropout_seeds_differ_by_seed_step_and_part_and_repeat() -> None:
    def draw(seed: int, step: int, part: int) -> float:
        torch.manual_seed(runtime.step_seed(seed, step, part))
        return torch.rand(()).item()

    places = [(seed, step, part) for seed in (0, 1, 2**62) for step in range(4) for part in (0, 1)]
    drawn = [draw(*place) for place in places]
    assert len(set(drawn)) == len(places)
    assert drawn == [draw(*place) for place in places]


def test_a_compiler_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not runtime.has_compiler(CPU)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert runtime.has_compiler(CPU)


def test_matrix_peak_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(x * 0.5 for x in range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w: None)
    assert runtime.matrix_peak(CPU, torch.float32) == 2 * 4096 * 768 * 3072 / 0.5


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps holes in its heap")
def test_freed_memory_goes_back() -> None:
    # 64 KiB each is below glibc's own bound for single mappings: all of it comes from the heap.
    pieces = [bytearray(b"x" * 65536) for _ in range(2000)]
    full = resident()
    del pieces[0::4], pieces[0::3], pieces[0::2]  # three quarters go, in holes between the others
    runtime.return_freed_memory()
    assert resident() < full - 60e6


def test_other_c_libraries_keep_what_they_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    runtime._malloc_trim.cache_clear()
    try:
        assert runtime._malloc_trim() is None
        runtime.return_freed_memory()
    finally:
        runtime._malloc_trim.cache_clear()
