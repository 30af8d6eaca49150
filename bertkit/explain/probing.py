"""`probe`: which labels can be read off each layer's states, and is it more than memory?

A probe is a linear map (or one hidden layer) from the states of one layer, the encoder frozen, to
labels. It can also learn by heart which word has which label. So each probe has a twin for the
control task of Hewitt and Liang 2019 (arXiv 1909.03368): every word type gets one fixed random
label, drawn as the real labels are distributed. Selectivity is accuracy less the twin's accuracy.
The probes of all layers, and their twins, are trained together: one batched product each step.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertkit.data.order import uniform
from bertkit.explain.labelled_states import (
    Labelled,
    LabelledFile,
    ProbeTask,
    labelled_states,
    probe_task,
)
from bertkit.explain.opening import Model, open_model
from bertkit.explain.page import Section
from bertkit.explain.pictures import bars, grouped_bars, layer_names
from bertkit.explain.probe_training import ProbeSettings, train_probes
from bertkit.explain.result import Floats, Result
from bertkit.explain.tables import grid
from bertkit.explain.wording import named, say
from bertkit.tasks.records import Row

if TYPE_CHECKING:
    from rich.console import RenderableType

CAUTION = (
    "A probe tells that a label can be read off a layer's states, not that the model uses it; high "
    "accuracy with low selectivity means that the probe knows the words by heart."
)
CAUTION_ZH = (
    "探针说明标签可以从某层的状态中读出，并不说明模型用到了它；"
    "准确率高而选择性低，说明探针只是记住了词。"
)


@dataclass(frozen=True)
class ProbeResult(Result):
    """Figures on the held-out rows by layer; index 0 is what the embeddings give.

    Attributes:
        model: its name.
        task: "tag" or "classify".
        reads: what a probe sees: "first token of each word", "[CLS]" or "mean of the tokens".
        hidden: units of the probes' hidden layer; 0: linear.
        labels: their names.
        train_rows: words or texts that the probes learned from.
        train_total: how many labelled ones there were.
        dev_rows: those that they were checked on.
        dev_total: how many labelled ones there were.
        cut: texts, of those kept, that were longer than the model reads.
        majority: accuracy of always saying the label that is commonest in training.
        accuracy: [L + 1].
        macro_f1: [L + 1] the mean of the F1 of the labels that occur or were said.
        control: [L + 1] accuracy on the control task.
        selectivity: [L + 1] accuracy - control.
    """

    verb: ClassVar[str] = "probe"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    task: str
    reads: str
    hidden: int
    labels: list[str]
    train_rows: int
    train_total: int
    dev_rows: int
    dev_total: int
    cut: int
    majority: float
    accuracy: Floats
    macro_f1: Floats
    control: Floats
    selectivity: Floats

    def title(self) -> str:
        """What was asked."""
        kind = say("{n} hidden units", n=self.hidden) if self.hidden else say("linear")
        return say(
            "Probe ({kind}): {labels} labels of {what}, learned from {n} of {all_n}, checked on "
            "{m} of {all_m}",
            kind=kind,
            labels=len(self.labels),
            what=named("words" if self.task == "tag" else "texts"),
            n=f"{self.train_rows:,}",
            all_n=f"{self.train_total:,}",
            m=f"{self.dev_rows:,}",
            all_m=f"{self.dev_total:,}",
        )

    def table(self) -> RenderableType:
        """A row a layer."""
        majority = say("always the commonest label: {share}", share=f"{self.majority:.3f}")
        title = f"{self.title()}\n{majority}"
        rows = []
        for i, name in enumerate(layer_names(len(self.accuracy))):
            numbers = (self.accuracy[i], self.macro_f1[i], self.control[i])
            rows.append([name, *(f"{x:.3f}" for x in numbers), f"{self.selectivity[i]:+.3f}"])
        note = "control: accuracy at random labels of words; selectivity: accuracy less control"
        columns = ("layer", "accuracy", "macro F1", "control", "selectivity")
        return grid(title, columns, rows, note=note)

    def sections(self) -> list[Section]:
        """Accuracy, control and selectivity of each layer; macro F1."""
        names = layer_names(len(self.accuracy))
        series = [
            ("accuracy", say("accuracy"), self.accuracy),
            ("control", say("control"), self.control),
            ("selectivity", say("selectivity"), self.selectivity),
        ]
        note = say(
            "A probe reads: {reads}. Always saying the commonest label is right in {majority} of "
            "the cases. Control: each {kind} has one fixed random label.",
            reads=named(self.reads),
            majority=f"{self.majority:.3f}",
            kind=named("word" if self.task == "tag" else "first word of a text"),
        )
        return [
            Section(say("What can be read off each layer"), grouped_bars(series, names), note),
            Section(say("Macro F1"), bars("macro_f1", self.macro_f1, names)),
        ]


def probe(
    model: Model,
    train: str | os.PathLike[str] | Iterable[Row],
    dev: str | os.PathLike[str] | Iterable[Row],
    task: ProbeTask = "tag",
    *,
    settings: ProbeSettings | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> ProbeResult:
    """Train a probe on each layer of a frozen model, and one for the control task.

    Args:
        model: any; its own head, if any, is not used.
        train: a labelled file, a LabelledFile, or rows that can be passed over again.
        dev: rows held out.
        task: "tag": the first token of each word; "classify": [CLS] or the mean of the tokens.
        settings: None: the defaults.
        report: takes progress of the training, as steps done and in all.

    Raises:
        UsageError: a setting or a task that is none, or standard input.
        DataError: a file is bad, has no labels, several labels a text, or labels that the training
            rows have not.
    """
    opened, chosen = open_model(model), settings or ProbeSettings()
    files = [
        LabelledFile(rows, task) if isinstance(rows, str | os.PathLike) else rows
        for rows in (train, dev)
    ]
    known = probe_task(opened, files[0], task)
    learn, check = (
        labelled_states(opened, known, rows, most=most, pooling=chosen.pooling, seed=chosen.seed)
        for rows, most in zip(files, (chosen.most, max(chosen.most // 2, 1)), strict=True)
    )
    count = len(known.labels)
    shares = np.bincount(learn.gold.numpy(), minlength=count) / len(learn.gold)
    targets = [
        torch.stack([part.gold, control_labels(part.kinds, shares, chosen.seed)])
        for part in (learn, check)
    ]
    probes = train_probes(learn.states, targets[0], count, chosen, report, opened.encoder.device)
    said = probes.answers(check.states)
    accuracy, control = (said == targets[1][:, :, None]).double().mean(1).numpy()
    gold = check.gold.numpy()
    macro = np.array([macro_f1(gold, layer, count) for layer in said[0].T.numpy()])
    texts = "[CLS]" if chosen.pooling == "cls" else "mean of the tokens"
    return ProbeResult(
        model=opened.name,
        task=task,
        reads="first token of each word" if task == "tag" else texts,
        hidden=chosen.hidden,
        labels=list(known.labels),
        **_counts(learn, check),
        majority=float((gold == shares.argmax()).mean()),
        accuracy=accuracy,
        macro_f1=macro,
        control=control,
        selectivity=accuracy - control,
    )


def _counts(learn: Labelled, check: Labelled) -> dict[str, int]:
    return {
        "train_rows": len(learn.gold),
        "train_total": learn.total,
        "dev_rows": len(check.gold),
        "dev_total": check.total,
        "cut": learn.cut + check.cut,
    }


def control_labels(kinds: Sequence[str], shares: NDArray[np.float64], seed: int) -> Tensor:
    """[n] for each word type one fixed label, a function of (seed, type) alone.

    Args:
        kinds: n word types.
        shares: [C] how the labels are distributed.
        seed: of the control task.
    """
    drawn: dict[str, int] = {}
    bounds = shares.cumsum()
    for kind in kinds:
        if kind not in drawn:
            name = hashlib.sha256(kind.encode("utf-8", "surrogatepass")).digest()
            draw = float(uniform(seed, int.from_bytes(name[:8], "little"))) * bounds[-1]
            drawn[kind] = int(np.searchsorted(bounds, draw, side="right"))
    return torch.tensor([drawn[kind] for kind in kinds])


def macro_f1(gold: NDArray[np.int64], said: NDArray[np.int64], count: int) -> float:
    """The mean F1 of the labels that occur or were said, as scikit-learn's "macro"."""
    occurs, given = np.bincount(gold, minlength=count), np.bincount(said, minlength=count)
    right = np.bincount(gold[gold == said], minlength=count)
    there = occurs + given > 0
    return float((2 * right[there] / (occurs + given)[there]).mean())
