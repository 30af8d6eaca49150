"""Small files: written so that no half file is ever seen, read without trust."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from bertkit.errors import CheckpointError, ConfigError

CONFIG_NAME = "config.json"
# What Google's own folders call it; so do some of the first that people converted from them.
GOOGLE_CONFIG_NAME = "bert_config.json"
_MAX_JSON_BYTES = 20_000_000
_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = (b"<!doctype html", b"<html")


def config_file(folder: Path) -> Path:
    """The configuration of a model folder: config.json, else bert_config.json if that is there."""
    old = folder / GOOGLE_CONFIG_NAME
    return old if old.is_file() and not (folder / CONFIG_NAME).exists() else folder / CONFIG_NAME


def check_inside(path: Path) -> None:
    """Refuse a link that leads out of its own folder, what is no plain file, and a stand-in.

    A folder from elsewhere could otherwise have us read any file of this machine, or wait at a
    pipe for ever. The hub's cache is the one place whose links lead to another folder by design:
    from `snapshots/` to the `blobs/` beside it.

    Raises:
        CheckpointError: one line that names the file.
    """
    try:
        if path.is_symlink():
            folder, target = path.parent.resolve(), path.resolve(strict=True)
            allowed = [folder]
            for parent in folder.parents:
                if parent.name == "snapshots":
                    allowed.append(parent.parent / "blobs")
            if not any(target.is_relative_to(place) for place in allowed):
                raise CheckpointError(
                    f"{path}: a link that leads out of its folder, to {target}; copy the file there"
                )
        if path.exists():
            if not path.is_file():
                raise CheckpointError(f"{path}: not a plain file")
            with path.open("rb") as file:
                refuse_stand_in(path, file.read(512))
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links, before Python 3.13
        reason = getattr(error, "strerror", None) or "its links go in a circle"
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error


def refuse_stand_in(path: Path, start: bytes) -> None:
    """Refuse what was saved in the place of a file: a Git LFS pointer, a web page.

    Args:
        path: for the error.
        start: the first bytes that stand there.

    Raises:
        CheckpointError: what it is, and how to get the file itself.
    """
    if start.startswith(_LFS):
        raise CheckpointError(
            f"{path}: a Git LFS pointer of some lines, not the file itself; run `git lfs pull` "
            "where it was cloned, or download the file"
        )
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_HTML):
        raise CheckpointError(
            f"{path}: a web page (HTML), not the file itself; download it again by its own "
            "address (on the Hugging Face hub that with /resolve/, not /blob/)"
        )


def sync(path: Path) -> None:
    """Have the operating system put a file, or a folder's list of names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at every instant the old content or the new one stands there, whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def read_json(path: Path, limit: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file whose content nobody vouches for.

    Raises:
        ConfigError: one line: the file is missing, too large, not UTF-8, not JSON, nested too
            deeply, or not an object.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: not a plain file")
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(raw) > limit:
        raise ConfigError(f"{path}: over {limit // 1_000_000} MB; not a file of this kind")
    try:
        tree = json.loads(raw.decode("utf-8-sig"))
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {json_kind(tree)}, not a JSON object")
    return tree


def json_kind(value: object) -> str:
    """What a value read from JSON is, in JSON's own words."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "a number")
