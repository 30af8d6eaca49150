"""What a fine-tuning run says of itself before its first step."""

from __future__ import annotations

from typing import Any

from bertkit.train.finetune_plan import BUDGETS, changed
from bertkit.train.finetune_run import TaskRun
from bertkit.train.log import counted


def announce(run: TaskRun, show: bool) -> None:
    """Log what is trained, on what machine, and how fast it learns; say so, where `show`."""
    train, epoch = run.recipe.train, run.data.epoch(0)
    budget = next(counted(v, n) for n in BUDGETS if (v := getattr(train, n)) is not None)
    usual, others = _usual_settings(run), changed(run.task.name, run.recipe)
    if run.state.step == 0:
        told: dict[str, Any] = {"task": run.task.name, "metric": run.metric, "budget": budget}
        told |= {"steps_per_epoch": epoch.steps, "examples": len(epoch.order), "changed": others}
        run.log.write("begin", 0, **told, **usual)
    if not show:
        return
    say = run.progress.say
    say(_network(run))
    shown = ", ".join(f"{name} {value}" for name, value in usual.items() if value is not None)
    say(f"{budget}, {counted(epoch.steps, 'steps')} an epoch; {shown}")
    if others:
        say(f"not the defaults: {', '.join(f'{name}={value}' for name, value in others.items())}")
    say(f"loss: {_loss_meant(run)}; mean of the last 50 steps")
    if run.recipe.data.oversample > 0 and train.class_weights == "balanced":
        run.progress.warn(
            "warning: oversampling and balanced class weights correct for rare classes twice; "
            "choose one"
        )
    if train.warmup_ratio > 0 and 1 in (train.steps, epoch.steps * (train.epochs or 0)):
        say(
            "the only step is the first of the warm-up, at rate 0: nothing will be learned; "
            "train.warmup_ratio=0 lets it learn"
        )


def _network(run: TaskRun) -> str:
    machine, model = run.machine, run.model
    return (
        f"{type(model).__name__}: {model.config.num_hidden_layers} layers of "
        f"{model.config.hidden_size}, {model.num_parameters():,} parameters, "
        f"{model.num_parameters(only_trainable=True):,} trained; "
        f"{machine.device}, {str(machine.dtype).removeprefix('torch.')}, "
        f"{counted(machine.world, 'ranks')} of {counted(machine.threads, 'threads')}"
        + (f", {machine.replicas} replicas" if machine.replicas > 1 else "")
    )


def _usual_settings(run: TaskRun) -> dict[str, Any]:
    """The settings that are always told."""
    train = run.recipe.train
    dropout = run.model.config.hidden_dropout_prob if train.dropout is None else train.dropout
    return {
        "learning_rate": train.learning_rate,
        "batch_size": train.batch_size,
        "warmup_ratio": train.warmup_ratio,
        "lr_scheduler_type": train.lr_scheduler_type,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "dropout": dropout,
        "crf_learning_rate": train.crf_learning_rate if run.recipe.data.crf else None,
    }


def _loss_meant(run: TaskRun) -> str:
    """What the loss that is shown is, and of what it is the mean."""
    train, name = run.recipe.train, run.task.name
    tags = "window" if run.recipe.data.crf else "word"
    item = {"tag": tags, "qa": "window"}.get(name, "row")
    kinds = {"ce": f"nats a {item}", "focal": f"focal loss a {item}", "dice": "1 - dice"}
    parts = ["squared error a row" if name == "regress" else kinds[train.loss]]
    if train.r_drop:
        parts.append(f"{train.r_drop:g} x R-Drop's distance")
    if train.teacher:
        parts.append(f"the distance to the teacher, {train.teacher_weight:.0%} of all")
    return " + ".join(parts)
