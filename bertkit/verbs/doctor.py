"""`bertkit doctor`: what this machine can do for bertkit, or what a model folder holds."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from bertkit import __version__
from bertkit.verbs.ask import Revision
from bertkit.verbs.options import Common

LIBRARIES = ("torch", "tokenizers", "safetensors", "numpy", "pyarrow", "jieba")
OPTIONAL = ("transformers", "tensorboard")


def doctor(
    model: Annotated[
        str | None,
        Parameter(help="Look at this model instead: a folder, a run folder, a name on the hub."),
    ] = None,
    /,
    *,
    revision: Revision = None,
    common: Common | None = None,
) -> None:
    """Show what this machine can do or, with a MODEL, what that model holds.

    Of the machine: versions, threads, precisions, the matrix peak, free disk. Of a model: its
    tensors, heads and vocabulary, and whether they fit together.
    """
    common = common or Common()
    table = ""
    if model is None:
        facts = {**versions(), **machine(), **devices(common.device)}
    else:
        facts, table = checkup(model, revision)
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {_shown(value)}" for name, value in facts.items()]
    common.show(facts, "\n".join([*lines, *(["", table] if table else [])]))


def checkup(model: str, revision: str | None = None) -> tuple[dict[str, Any], str]:
    """The facts of a model folder, and the table of its load report.

    The whole model is opened, so that whatever is wrong with its files is told as an error.

    Raises:
        BertkitError: it cannot be opened; one line that names the file.
    """
    from bertkit.checkpoint.config import BertConfig
    from bertkit.checkpoint.files import config_file
    from bertkit.checkpoint.hub import resolve_model
    from bertkit.checkpoint.layout import read_weights
    from bertkit.checkpoint.report import HEADS, heads_of
    from bertkit.tasks.load import class_for

    folder = resolve_model(model, revision=revision)
    config = BertConfig.from_json_file(config_file(folder))
    weights = read_weights(folder)
    heads = heads_of(weights.stored)
    opened = class_for(heads).from_weights(weights, config)
    report = opened.load_report
    facts = {
        "model": model,
        "weights": str(weights.path),
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "positions": config.max_position_embeddings,
        "parameters": sum(stored.tensor.numel() for stored in weights.stored.values()),
        "dtype": config.dtype,
        "tensors": len(weights.stored),
        "unexpected": [name for name in report.unexpected if not heads_of([name])],
        "heads": {
            head: "never trained" if HEADS[head] in report.untrained else "there" for head in heads
        },
        "embeddings": config.vocab_size,
        **_vocabulary(folder, config.vocab_size, model),
    }
    return facts, report.table()


def _vocabulary(folder: Path, rows: int, model: str) -> dict[str, Any]:
    """Of the tokenizer beside the weights: its size, whether that fits them, its casing."""
    from bertkit.tasks.load import compare_sizes
    from bertkit.text.tokenizer import BertTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return {"vocabulary": None, "casing": None}
    tokenizer = BertTokenizer.from_pretrained(folder)
    spare = compare_sizes(len(tokenizer), rows, model)
    return {
        "vocabulary": len(tokenizer),
        "vocabulary_fits": spare or "exactly",
        "casing": "lower-cases" if tokenizer.do_lower_case else "keeps capitals",
    }


def _shown(value: Any) -> str:
    """A fact in one line."""
    if isinstance(value, dict):
        value = [f"{name} ({what})" for name, what in value.items()]
    if isinstance(value, list):
        more = f", ... ({len(value)} in all)" if len(value) > 6 else ""
        return ", ".join(value[:6]) + more if value else "none"
    return f"{value:,}" if isinstance(value, int) else "none" if value is None else str(value)


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
