"""From what a user calls a model (a folder, a run, a hub id) to a folder on this machine."""

from __future__ import annotations

import difflib
import os
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bertkit.checkpoint.files import CONFIG_NAME, config_file
from bertkit.checkpoint.store import newest_step
from bertkit.errors import CheckpointError

# What a BERT needs; a hub repository often holds the same weights for three frameworks more.
_WANTED = (
    "config.json",
    "bert_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)
# Asked for only where there is nothing newer: torch's files of old, then Google's own.
_OLDER = (
    ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"),
    ("*.ckpt*.index", "*.ckpt*.data-*-of-*"),
)
_WEIGHTS = ("*.safetensors", "*.bin", "*.index")
NO_UPLOAD = "bertkit uploads nothing; use save_pretrained(FOLDER), then `hf upload NAME FOLDER`"
_HUB_ID = re.compile(r"[\w][\w.-]{0,95}(/[\w][\w.-]{0,95})?", re.ASCII)


def resolve_model(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    offline: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """The local folder of a model: a folder, a RUN (its model, else its newest step), a hub id.

    Args:
        name_or_path: a path, or the id of a model on the Hugging Face hub.
        revision: branch, tag or commit of a hub model.
        token: for private hub models; None takes the one that `hf auth login` stored.
        offline: take a hub model only from the local cache. HF_HUB_OFFLINE=1 does the same.
        cache_dir: the cache of hub models; None: huggingface_hub's own.

    Raises:
        CheckpointError: there is no such folder, the run has no model yet, or the hub failed.
    """
    name = os.fspath(name_or_path)
    if not name:
        raise CheckpointError("the name of the model is empty")
    path = Path(name).expanduser()
    if path.is_dir():
        return _inside_run(path) or path
    if path.is_file():
        raise CheckpointError(f"{path}: a file, not a model folder; name its folder {path.parent}")
    if not _HUB_ID.fullmatch(name) or (path.parent.is_dir() and path.parent != Path()):
        raise CheckpointError(f"{name}: no such folder{_beside(path)}")
    # Read here as well: the hub's library looks at the variable only while it is imported.
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    hub = {"revision": revision, "token": token, "local_files_only": offline}
    return _download(name, hub | {"cache_dir": cache_dir}, _beside(path))


def _inside_run(folder: Path) -> Path | None:
    """The model inside a run folder; None where `folder` is not one."""
    if config_file(folder).is_file():
        return None
    model, steps = folder / "model", folder / "checkpoints"
    if (model / CONFIG_NAME).is_file():
        return model
    if steps.is_dir():
        if found := newest_step(steps, report=lambda line: print(line, file=sys.stderr)):
            return found
        raise CheckpointError(f"{folder}: the run has no whole checkpoint yet in {steps.name}/")
    return None


def _beside(path: Path) -> str:
    """For a path that does not exist: the nearest folder that does, and what is in it."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    try:
        names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir())
    except OSError:
        names = []
    names = [name for name in names if not name.startswith((".", "__"))]
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    shown = (close or names)[:5]
    more = ", ..." if len(close or names) > len(shown) else ""
    folders = f"the folders {', '.join(shown)}{more}"
    return f"; {parent.absolute()} holds {folders}" if shown else ""


def why_no_model(folder: Path) -> str:
    """For a folder without a configuration: what kind it is, and what a model would be."""
    names = {path.name for path in folder.iterdir()}
    models = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_NAME}"))
    weights = sorted(n for n in names for kind in _WEIGHTS if fnmatch(n, kind))
    if models:
        what = f"no model itself, but it holds the models {', '.join(models[:8])}: name one"
    elif {"manifest.json", "train"} <= names:
        what = "prepared data, no model; `bertkit pretrain` makes a model from it"
    elif "adapter_config.json" in names:
        what = "a LoRA adapter, no model: merge it into its model (merge_and_unload), and save that"
    elif weights:
        what = f"holds {weights[0]}, but no {CONFIG_NAME}: download that beside it"
    elif names & {"tokenizer.json", "vocab.txt"}:
        what = "a tokenizer, no model; `bertkit pretrain` makes a model, after `bertkit prepare`"
    elif "recipe.toml" in names:
        what = "a run that has saved no model yet"
    else:
        what = f"no model: it has neither {CONFIG_NAME} nor weights"
    return f"{folder}: {what}"


def _download(name: str, hub: dict[str, Any], beside: str) -> Path:
    """The folder of a hub model; `hub` is what huggingface_hub wants to be told."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(f"{name}: no such folder, and huggingface_hub is missing") from None

    def snapshot(*patterns: str) -> Path:
        return Path(snapshot_download(name, allow_patterns=list(patterns), **hub))

    try:
        folder = snapshot(*_WANTED)
        for older in _OLDER:
            if any(path for kind in _WEIGHTS for path in folder.glob(kind)):
                break
            folder = snapshot(*_WANTED, *older)
    except Exception as error:  # the hub raises the errors of whichever HTTP library it uses
        if hub["local_files_only"]:
            raise CheckpointError(
                f"{name}: neither a folder here nor in the local cache of the Hugging Face hub; "
                f"get it once without --offline (local_files_only, HF_HUB_OFFLINE){beside}"
            ) from error
        first = next(iter(str(error).strip().splitlines()), "")
        raise CheckpointError(
            f"{name}: no such folder here{beside}; and the Hugging Face hub answered "
            f"{type(error).__name__}: {first}"
        ) from error
    if not config_file(folder).is_file():
        where = f" in the local cache, {folder}" if hub["local_files_only"] else ""
        raise CheckpointError(f"{name}: this hub repository has no {CONFIG_NAME}{where}")
    return folder
