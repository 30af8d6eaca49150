"""Our side of the fine-tuning benchmarks: the library's `finetune`, as a user calls it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import finetune_peer
from benchmarks.finetune_tasks import Cut, TaskSpec
from bertkit.settings import FinetuneRecipe
from bertkit.train.finetune import finetune
from bertkit.train.log import read_log


@dataclass(frozen=True, slots=True)
class OurRun:
    """What a run gave: figures of the scored rows, seconds until then, the lines of its log."""

    figures: dict[str, Any]
    seconds: float
    log: list[dict[str, Any]]


def recipe_of(spec: TaskSpec, seed: int, precision: str) -> FinetuneRecipe:
    """The settings of ours; those not named here are alike by default."""
    recipe = FinetuneRecipe()
    recipe.train.epochs, recipe.train.batch_size = spec.epochs, spec.batch_size
    recipe.train.learning_rate, recipe.train.seed = spec.learning_rate, seed
    recipe.train.crf_learning_rate = finetune_peer.CRF_RATE
    recipe.train.warmup_ratio = finetune_peer.WARMUP
    recipe.train.weight_decay = finetune_peer.WEIGHT_DECAY
    recipe.train.adam_epsilon = finetune_peer.EPSILON
    recipe.train.max_grad_norm = finetune_peer.CLIP
    recipe.train.precision = precision  # type: ignore[assignment]
    recipe.data.max_length, recipe.data.crf = spec.max_length, spec.crf
    recipe.data.doc_stride = spec.doc_stride
    recipe.data.n_best_size = finetune_peer.N_BEST
    recipe.data.max_answer_length = finetune_peer.ANSWER_TOKENS
    recipe.data.no_answer = spec.no_answer
    return recipe


def train(
    spec: TaskSpec, model: Path, files: Cut, out: Path, recipe: FinetuneRecipe, device: str,
    scored: bool = True,
) -> OurRun:  # fmt: skip
    """One run into a folder that is gone afterwards.

    Args:
        spec: the task.
        model: where it begins.
        files: cut for both sides.
        out: the run folder.
        recipe: the settings.
        device: cpu or cuda.
        scored: predict the dev file at the end. It is given as test: the last weights count.
    """
    test = files.dev if scored else None
    result = finetune(
        spec.task, model, files.train, None, test, out, recipe,
        overwrite=True, device=device, quiet=True,
    )  # fmt: skip
    log = read_log(out / "log.jsonl")
    shutil.rmtree(out)
    return OurRun(result.test, result.seconds, log)
