"""Training checkpoints as folders: atomic, hashed, and resumed from the newest that verifies.

    ROOT/step-00001000/     the files of one step; manifest.json (name, size, sha256) came last
    ROOT/step-00001500.tmp  a save under way, or the remains of one that was killed
    ROOT/step-00001000.old  the folder that a second save of the same step is about to replace

A folder without `.tmp` was complete when it got its name: its files, their hashes and the list of
names were on the disk before the rename. What goes wrong later (a flipped bit, a lost file) shows
when it is verified. What the files hold is the caller's business.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from bertkit.checkpoint.files import read_json, sync, write_atomically
from bertkit.errors import CheckpointError, ConfigError

MANIFEST_NAME = "manifest.json"
_NAME = re.compile(r"step-(\d{8,18})(\.old)?")
_UNFINISHED = re.compile(r"step-\d{8,18}\.tmp")


def step_name(step: int) -> str:
    """The folder name of a step: `step-00001000`."""
    return f"step-{step:08d}"


def step_number(folder: Path) -> int:
    """The step that a folder's name tells."""
    found = _NAME.fullmatch(folder.name)
    assert found, f"{folder} is not a step folder"
    return int(found[1])


def save_step(root: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Save one step, whole or not at all; then drop the oldest steps beyond `keep`.

    Args:
        root: the folder of the step folders; made where it is missing.
        step: the number of the step, which names its folder. Saved twice, the second replaces the
            first, and at every instant one of the two is there.
        write: fills the empty folder that it is given with files and folders.
        keep: how many steps to keep, this one included. Later steps than this one (they are there
            when a damaged checkpoint made the run fall back) are neither counted nor touched.

    Returns:
        The folder of the saved step. Everything in it is on the disk.

    Raises:
        CheckpointError: the disk is full or failed. The steps saved before are untouched.
    """
    assert keep >= 1, "a run without a checkpoint cannot be resumed"
    target = root / step_name(step)
    unfinished = target.with_name(target.name + ".tmp")
    try:
        root.mkdir(parents=True, exist_ok=True)
        _tidy(root)
        unfinished.mkdir()
        write(unfinished)
        _seal(unfinished, step)
        _put_in_place(unfinished, target)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise CheckpointError(
                f"{target}: the checkpoint could not be saved: {reason}; those before it are "
                "untouched"
            ) from error
        raise
    # The step is safe. Failing to remove an old one must not look like a failed save.
    with contextlib.suppress(OSError):
        _drop_old(root, step, keep)
    return target


def newest_step(root: Path, report: Callable[[str], None] | None = None) -> Path | None:
    """The newest step folder whose every file has the size and hash that its manifest tells.

    Args:
        root: the folder of the step folders.
        report: is told, a line each, about the newer ones that are damaged and were passed over.

    Returns:
        The folder, or None where no step verifies.
    """
    for folder in reversed(list_steps(root)):
        problems = verify_step(folder)
        if not problems:
            return folder
        if report:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            report(f"{folder}: damaged, passed over: {problems[0]}{more}")
    return None


def list_steps(root: Path) -> list[Path]:
    """All step folders under `root`, whole or damaged, oldest first."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (step_number(path), path.suffix != ".old"))


def verify_step(folder: Path) -> list[str]:
    """What is wrong with a step folder, a line each; empty where nothing is.

    Every file is read and hashed. Files that the manifest does not name are not looked at.
    """
    problems, files = _quick_problems(folder)
    for name, entry in files.items():
        try:
            if _sha256(folder / name) != entry["sha256"]:
                problems.append(f"{name}: its content is not what was saved (sha256 differs)")
        except OSError as error:
            problems.append(f"{name}: cannot be read: {error.strerror or error}")
    return problems


def _quick_problems(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Problems seen without reading the files, and the entries of those that may be read."""
    try:
        entries = _manifest_files(folder)
    except ConfigError as error:
        return [str(error)], {}
    problems, sound = [], {}
    for name, entry in entries.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            problems.append(f"{name}: missing")
        elif (size := path.stat().st_size) != entry["size"]:
            problems.append(f"{name}: {size:,} bytes, not the {entry['size']:,} saved")
        else:
            sound[name] = entry
    return problems, sound


def _manifest_files(folder: Path) -> dict[str, Any]:
    """The entries of a manifest by file name; ConfigError where it is not one of ours."""
    path = folder / MANIFEST_NAME
    tree = read_json(path)
    files = tree.get("files")
    if tree.get("format") != 1 or tree.get("step") != step_number(folder):
        raise ConfigError(f"{path}: not the manifest of this step")
    if not isinstance(files, dict) or not files:
        raise ConfigError(f"{path}: names no files")
    for name, entry in files.items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name:
            raise ConfigError(f"{path}: names a file outside the folder: {name!r}")
        if not isinstance(entry, dict) or entry.keys() != {"size", "sha256"}:
            raise ConfigError(f"{path}: the entry of {name!r} is not a size and a sha256")
    return files


def _seal(folder: Path, step: int) -> None:
    """Bring all files to the disk, and after them the manifest that vouches for them."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        assert not path.is_symlink(), f"{path}: a checkpoint holds no links"
        sync(path)
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            entries[name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    assert entries, "write() left the folder empty"
    assert MANIFEST_NAME not in entries, "write() took the name of the manifest"
    manifest = {"format": 1, "step": step, "files": entries}
    write_atomically(folder / MANIFEST_NAME, (json.dumps(manifest, indent=1) + "\n").encode())


def _put_in_place(unfinished: Path, target: Path) -> None:
    """Give a sealed folder its name; one of the same name stands aside until that is done."""
    aside = target.with_name(target.name + ".old")
    if replacing := target.exists():
        target.rename(aside)
    try:
        unfinished.rename(target)
    except BaseException:
        if replacing:
            aside.rename(target)
        raise
    sync(target.parent)
    if replacing:
        shutil.rmtree(aside, ignore_errors=True)


def _tidy(root: Path) -> None:
    """Remove what a killed save left behind, and finish a replacement that it had begun."""
    for path in list(root.iterdir()):
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path)
        elif _NAME.fullmatch(path.name) and path.suffix == ".old":
            if path.with_suffix("").exists():
                shutil.rmtree(path)
            else:
                path.rename(path.with_suffix(""))


def _drop_old(root: Path, newest: int, keep: int) -> None:
    """Remove all but the last `keep` steps up to `newest`; a torn one takes nobody's place."""
    kept = 0
    for folder in reversed(list_steps(root)):
        if step_number(folder) > newest:
            continue
        if kept < keep and not _quick_problems(folder)[0]:
            kept += 1
        else:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a step folder; killed halfway, what remains cannot be taken for a step."""
    doomed = folder.with_name(f"{step_name(step_number(folder))}.tmp")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
