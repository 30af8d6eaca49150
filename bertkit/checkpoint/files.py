"""Small files: written so that no half file is ever seen, read without trust."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from bertkit.errors import ConfigError

CONFIG_NAME = "config.json"
_MAX_JSON_BYTES = 20_000_000


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
        raise ConfigError(f"{path}: holds a {type(tree).__name__}, not a JSON object")
    return tree
