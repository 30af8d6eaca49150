"""Step folders survive SIGKILL at any instant, damage, and a full disk."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bertkit.checkpoint import store
from bertkit.checkpoint.store import (
    MANIFEST_NAME,
    list_steps,
    newest_step,
    save_step,
    step_number,
    verify_step,
)
from bertkit.errors import CheckpointError

FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 100, "state/cursor.json": b"[1]"}


def filler(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, content in FILES.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content + str(step).encode())

    return write


def save(root: Path, step: int, keep: int = 3) -> Path:
    return save_step(root, step, filler(step), keep)


def numbers(root: Path) -> list[int]:
    return [step_number(folder) for folder in list_steps(root)]


def test_a_saved_step_verifies_and_the_oldest_go(tmp_path: Path) -> None:
    root = tmp_path / "run" / "checkpoints"
    for step in (10, 20, 30, 40):
        folder = save(root, step, keep=2)
        assert folder == root / f"step-{step:08d}"
        assert verify_step(folder) == []
    assert numbers(root) == [30, 40]
    assert newest_step(root) == root / "step-00000040"
    assert (root / "step-00000040" / "state" / "cursor.json").read_bytes() == b"[1]40"


def test_without_any_step_there_is_no_newest(tmp_path: Path) -> None:
    assert newest_step(tmp_path / "missing") is None
    (tmp_path / "step-00000001.tmp").mkdir()
    (tmp_path / "notes").mkdir()
    assert newest_step(tmp_path) is None


def test_importing_the_store_loads_no_torch() -> None:
    code = "import sys, bertkit.checkpoint.store; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_a_second_save_of_a_step_replaces_the_first(tmp_path: Path) -> None:
    save(tmp_path, 5)

    def other(folder: Path) -> None:
        (folder / "other").write_bytes(b"other")

    folder = save_step(tmp_path, 5, other, 2)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert {path.name for path in folder.iterdir()} == {"other", MANIFEST_NAME}
    assert verify_step(folder) == []


def test_leftovers_of_a_killed_save_go_at_the_next(tmp_path: Path) -> None:
    (tmp_path / "step-00000007.tmp" / "deep").mkdir(parents=True)
    (tmp_path / "step-00000007.tmp" / "deep" / "half").write_bytes(b"x")
    (tmp_path / "mine.tmp").mkdir()
    save(tmp_path, 8)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.tmp", "step-00000008"}


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def swap(one: Path, two: Path) -> None:
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": lambda f: flip(f / "model.safetensors"),
    "flipped manifest": lambda f: flip(f / MANIFEST_NAME),
    "truncated": lambda f: os.truncate(f / "model.safetensors", 10),
    "grown": lambda f: (f / "config.json").write_bytes(b"{}20 "),
    "missing": lambda f: (f / "state" / "cursor.json").unlink(),
    "no manifest": lambda f: (f / MANIFEST_NAME).unlink(),
    "swapped": lambda f: swap(f / "config.json", f / "state" / "cursor.json"),
    "a folder in its place": lambda f: put_folder(f / "config.json"),
    "renamed": lambda f: shutil.copytree(f, f.with_name("step-00000099")),
    "outside": lambda f: (
        (f / MANIFEST_NAME).write_text(
            '{"format": 1, "step": 20, "files": {"../x": {"size": 1, "sha256": ""}}}'
        )
        and None
    ),
    "deep": lambda f: (f / MANIFEST_NAME).write_text("[" * 100_000),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_step_is_passed_over_and_said_so(tmp_path: Path, kind: str) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    DAMAGE[kind](tmp_path / "step-00000020")
    said: list[str] = []
    expected = 20 if kind == "renamed" else 10
    assert newest_step(tmp_path, said.append) == tmp_path / f"step-{expected:08d}"
    assert len(said) == 1
    assert "step-000000" in said[0]
    assert "\n" not in said[0]


def test_two_hundred_random_flips_are_all_seen(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    chance = random.Random(0)
    names = [path for path in folder.rglob("*") if path.is_file()]
    for _ in range(200):
        path = chance.choice(names)
        good = path.read_bytes()
        bad = bytearray(good)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        path.write_bytes(bytes(bad))
        whole = path.name == MANIFEST_NAME and _same_json(good, bytes(bad))
        assert bool(verify_step(folder)) != whole, path
        path.write_bytes(good)
    assert verify_step(folder) == []


def _same_json(one: bytes, two: bytes) -> bool:
    import json

    try:
        return bool(json.loads(one) == json.loads(two))
    except ValueError:
        return False


def test_a_damaged_later_step_takes_nobodys_place(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step, keep=2)
    os.truncate(tmp_path / "step-00000030" / "model.safetensors", 3)
    assert newest_step(tmp_path) == tmp_path / "step-00000020"
    save(tmp_path, 25, keep=2)
    assert numbers(tmp_path) == [20, 25, 30]
    save(tmp_path, 30, keep=2)
    assert numbers(tmp_path) == [25, 30]
    assert newest_step(tmp_path) == tmp_path / "step-00000030"


@pytest.mark.parametrize("where", ["write", "fsync", "manifest", "rename"])
def test_a_full_disk_leaves_the_step_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    save(tmp_path, 10)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_: object) -> None:
        raise full

    def half(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        fail()

    write = half if where == "write" else filler(20)
    with monkeypatch.context() as patched:
        if where == "fsync":
            patched.setattr(os, "fsync", fail)
        elif where == "manifest":
            patched.setattr(store, "write_atomically", fail)
        elif where == "rename":
            patched.setattr(Path, "rename", fail)
        with pytest.raises(CheckpointError, match="No space left on device") as caught:
            save_step(tmp_path, 20, write, 3)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    assert newest_step(tmp_path) == tmp_path / "step-00000010"
    assert save(tmp_path, 20) == newest_step(tmp_path)


def test_a_full_disk_while_replacing_a_step_keeps_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 10)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save(tmp_path, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    assert verify_step(tmp_path / "step-00000010") == []


def test_an_error_of_the_writer_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        raise KeyError("a programmer's mistake")

    with pytest.raises(KeyError):
        save_step(tmp_path, 1, broken, 1)
    assert list(tmp_path.iterdir()) == []


# Saves steps for ever, telling each when it is safe; every second one is saved twice. With a
# number as second argument it kills itself at that many-th touch of the file system.
CHILD = """
import os, signal, sys
from pathlib import Path
from bertkit.checkpoint.store import newest_step, save_step, step_number
root, touches = Path(sys.argv[1]), int(sys.argv[2])
newest = newest_step(root)
step = step_number(newest) if newest else 0
seen = 0
def watch(event, args):
    global seen
    if event in TOUCH:
        seen += 1
        if seen == touches:
            os.kill(os.getpid(), signal.SIGKILL)
TOUCH = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.scandir"}
def write(folder):
    (folder / "deep").mkdir()
    (folder / "a").write_bytes(b"a" * 50000 + str(step).encode())
    (folder / "deep" / "b").write_bytes(str(step).encode())
if touches:
    sys.addaudithook(watch)
print("saved", step, flush=True)
while True:
    step += 1
    for _ in range(1 + step % 2):
        save_step(root, step, write, 2)
        print("saved", step, flush=True)
    if touches and step > 6:
        print("done", flush=True)
        break
"""


def run_child(root: Path, touches: int, seconds: float | None) -> tuple[list[str], int]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), str(touches)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    lines = []
    if seconds is not None:
        lines.append(child.stdout.readline())
        time.sleep(seconds)
        child.kill()
    lines += child.stdout.read().splitlines()
    child.stdout.close()
    return [line.strip() for line in lines if line.strip()], child.wait()


def check_after_kill(root: Path, lines: list[str]) -> int:
    acknowledged = int(lines[-1].split()[1])
    newest = newest_step(root)
    if newest is None:
        assert acknowledged == 0
        return 0
    assert step_number(newest) >= acknowledged
    assert (newest / "deep" / "b").read_text() == str(step_number(newest))
    return step_number(newest)


def kill_at_random_times(root: Path, times: int) -> int:
    """The newest step after that many kills, none of which lost one that was acknowledged."""
    chance = random.Random(1)
    last = 0
    for _ in range(times):
        lines, _code = run_child(root, 0, chance.uniform(0.0, 0.15))
        now = check_after_kill(root, lines)
        assert now >= last
        last = now
    return last


def test_killed_at_random_times_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    assert kill_at_random_times(tmp_path, 20) > 0


@pytest.mark.slow
def test_killed_two_hundred_times_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    assert kill_at_random_times(tmp_path, 200) > 0


def kill_at_every_touch(tmp_path: Path, stride: int) -> int:
    touches = 1
    while True:
        root = tmp_path / str(touches)
        lines, code = run_child(root, touches, None)
        if lines[-1] == "done":
            return touches
        assert code == -9
        check_after_kill(root, lines)
        # The next process goes on from there as if nothing had been.
        again, _code = run_child(root, 10**9, None)
        assert again[-1] == "done"
        assert not [path for path in root.iterdir() if path.suffix]
        shutil.rmtree(root)
        touches += stride


def test_killed_at_touches_of_the_file_system_nothing_is_lost(tmp_path: Path) -> None:
    assert kill_at_every_touch(tmp_path, 37) > 200


@pytest.mark.slow
def test_killed_at_every_touch_of_the_file_system_nothing_is_lost(tmp_path: Path) -> None:
    assert kill_at_every_touch(tmp_path, 1) > 200
