"""The peer of the quality benchmark: transformers' masked-LM recipe (run_mlm.py), by the clock.

What run_mlm.py and Trainer do: texts tokenised with [CLS] and [SEP], laid end to end, cut into rows
of 128; shuffled anew each epoch; dynamic masks by DataCollatorForLanguageModeling; BertForMaskedLM
with dropout 0.1; fused AdamW (Trainer's default: betas 0.9 and 0.999, no weight decay), gradients
clipped at 1; linear warm-up, then linear decay to zero. The schedule follows the time used, so that
the decay ends exactly when the time does. What is not its work is not on its clock: reading the
data, building the model, saving.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from benchmarks import peers, report


@dataclass(frozen=True, slots=True)
class RecipeSettings:
    """The recipe; the issue's figures were taken with these defaults.

    Attributes:
        size: of the network.
        seconds: wall-clock budget.
        mark_seconds: a model folder is saved after each such span, and at the end.
        batch: rows a step.
        learning_rate: the highest.
        warmup: share of the time in which it rises.
        dropout: transformers' default.
        dtype: bf16 for autocast, or fp32.
        compile: under torch.compile; its compile time counts, as ours does.
    """

    size: str = "mini"
    seconds: float = 900.0
    mark_seconds: float = 60.0
    batch: int = 8
    learning_rate: float = 1e-3
    warmup: float = 0.06
    dropout: float = 0.1
    dtype: torch.dtype = torch.float32
    compile: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A saved model folder: when, after how many tokens, and its scores once taken."""

    folder: str
    seconds: float
    tokens: int = 0
    train_loss: float = 0.0
    loss: float = float("nan")
    accuracy: float = float("nan")


class Clock:
    """Seconds since the start, without the spans in which it was paused."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def now(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self.start

    def forgive(self, seconds: float) -> None:
        """Take a span out again."""
        self.start += seconds


def learning_rate(settings: RecipeSettings, used: float) -> float:
    """Linear warm-up, then linear decay, over the share of the time that is used."""
    if used < settings.warmup:
        return settings.learning_rate * used / settings.warmup
    return settings.learning_rate * max(0.0, (1 - used) / (1 - settings.warmup))


class Recipe:
    """One run of the recipe on packed rows."""

    def __init__(self, settings: RecipeSettings, tokenizer: Any, out: Path) -> None:
        self.settings, self.tokenizer, self.out = settings, tokenizer, out
        config = peers.peer_config(settings.size, len(tokenizer), settings.dropout)
        self.model = peers.peer_model("masked_lm", config, "cpu")
        self.forward = peers.compiled(self.model, ragged=False) if settings.compile else self.model
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True
        )
        self.marks: list[Mark] = []

    def run(self, rows: npt.NDArray[np.int64]) -> list[Mark]:
        """Train until the time is up; returns what was saved."""
        collator = peers.transformers().DataCollatorForLanguageModeling(
            self.tokenizer, mlm_probability=0.15
        )
        torch.manual_seed(0)
        loader: DataLoader[Any] = DataLoader(
            [{"input_ids": torch.from_numpy(row)} for row in rows],  # type: ignore[arg-type]
            batch_size=self.settings.batch,
            shuffle=True,
            collate_fn=collator,
            drop_last=True,
        )
        clock, tokens, due = Clock(), 0, self.settings.mark_seconds
        loss = torch.zeros(())
        while True:
            for batch in loader:
                used = clock.now() / self.settings.seconds
                if used >= 1:
                    self.mark(clock, tokens, loss)
                    return self.marks
                loss = self.step(batch, used)
                tokens += batch["input_ids"].numel()
                if clock.now() >= due and clock.now() < self.settings.seconds:
                    self.mark(clock, tokens, loss)
                    due += self.settings.mark_seconds

    def step(self, batch: dict[str, torch.Tensor], used: float) -> torch.Tensor:
        """One optimizer step at the learning rate of this moment."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, used)
        self.optimizer.zero_grad(set_to_none=True)
        half = self.settings.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            # Packed rows have no padding: without a mask attention takes its faster path.
            loss = self.forward(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()  # type: ignore[no-any-return]

    def mark(self, clock: Clock, tokens: int, loss: torch.Tensor) -> None:
        """Save a model folder, off the clock."""
        seconds, start = clock.now(), time.perf_counter()
        folder = self.out / f"mark-{len(self.marks) + 1:03d}"
        self.model.save_pretrained(str(folder))  # type: ignore[operator]
        mark = Mark(str(folder), seconds, tokens, float(loss))
        self.marks.append(mark)
        write_marks(self.out / "marks.json", self.marks)
        report.say(f"peer: {seconds:.0f} s, {tokens:,} tokens, train loss {mark.train_loss:.3f}")
        clock.forgive(time.perf_counter() - start)


def write_marks(path: Path, marks: list[Mark]) -> None:
    """Keep a side's marks, so that the other can be run later."""
    path.write_text(json.dumps([asdict(mark) for mark in marks], indent=1), encoding="utf-8")


def read_marks(path: Path) -> list[Mark]:
    """Marks as written; none where the side has not run."""
    if not path.is_file():
        return []
    return [Mark(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
