"""What becomes of a model that goes on training on other text: held-out figures of old and new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

from msgspec.structs import replace
from torch import nn

from bertkit.batch import PretrainBatch
from bertkit.data.shards import TokenStore
from bertkit.data.shardwriter import ShardWriter
from bertkit.errors import DataError
from bertkit.runtime import Runtime
from bertkit.settings import Recipe
from bertkit.text.corpus import read_documents
from bertkit.text.sentences import split_sentences
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train.log import read_log
from bertkit.train.setup import build_loader
from bertkit.train.step import StepResult, evaluate

# Old text is read until it holds so many tokens for each one evaluated.
READ_AHEAD = 3
Figures = dict[str, dict[str, float]]


@dataclass
class Watch:
    """The figures of a run that goes on from a model.

    Attributes:
        old: evaluation batches of the old domain; may be empty.
        new: those of the run's own held-out text.
        new_parts: parameters that the model lacked and that began untrained.
        before: {"old" | "new": figures} before the first step.
        now: the same, when last evaluated.
    """

    old: list[PretrainBatch]
    new: list[PretrainBatch]
    new_parts: tuple[str, ...] = ()
    before: Figures = field(default_factory=dict)
    now: Figures = field(default_factory=dict)

    def look(
        self, module: nn.Module, machine: Runtime, new: StepResult | None = None
    ) -> dict[str, float]:
        """Evaluate (the new text only where `new` is not given); {"old_mlm_loss": ...}."""
        results = {
            "old": evaluate(module, self.old, machine) if self.old else None,
            "new": evaluate(module, self.new, machine) if self.new and new is None else new,
        }
        self.now = {
            text: {
                "mlm_loss": result.mlm_loss,
                "mlm_accuracy": result.mlm_accuracy,
                "masked": result.masked,
            }
            for text, result in results.items()
            if result is not None
        }
        return {f"{text}_{k}": v for text, found in self.now.items() for k, v in found.items()}

    def begin(self, module: nn.Module, machine: Runtime) -> dict[str, Any]:
        """Take the figures before the first step; what is to be logged of them."""
        figures = self.look(module, machine)
        self.before = self.now
        return {**figures, "digest": self.digest, "new_parts": list(self.new_parts)}

    def recall(self, log: Path) -> str | None:
        """Take the figures before the first step from the log of an earlier sitting.

        Returns:
            A remark where they are missing or were of other text; nothing is compared then.
        """
        lines = [line for line in read_log(log) if line["event"] == "before"]
        if not lines:
            return "note: the log has no figures from before the first step; none are compared"
        if lines[0].get("digest") != self.digest:
            return "note: the held-out text is not what it was before; nothing is compared"
        self.new_parts = tuple(lines[0]["new_parts"])
        self.before = {
            text: {k: lines[0][f"{text}_{k}"] for k in ("mlm_loss", "mlm_accuracy", "masked")}
            for text in ("old", "new")
            if f"{text}_mlm_loss" in lines[0]
        }
        return None

    @property
    def old_tokens(self) -> int:
        """How many tokens of old text each evaluation reads."""
        return sum(batch.real_tokens for batch in self.old)

    @property
    def digest(self) -> int:
        """Of the tokens and masks of both texts."""
        value = 0
        for batch in (*self.old, *self.new):
            for tensor in (batch.input_ids, batch.mlm_positions, batch.mlm_labels):
                value = crc32(tensor.numpy().tobytes(), value)
        return value

    def rows(self) -> list[dict[str, Any]]:
        """A row for each text: text, masked, and the figures before and after."""
        return [
            {
                "text": text,
                "masked": int(self.before[text]["masked"]),
                **{
                    f"{name}_{when}": figures[text][name]
                    for name in ("mlm_loss", "mlm_accuracy")
                    for when, figures in (("before", self.before), ("after", self.now))
                },
            }
            for text in ("old", "new")
            if text in self.before and text in self.now
        ]


def old_batches(recipe: Recipe, tokenizer: BertTokenizer, machine: Runtime) -> list[PretrainBatch]:
    """Evaluation batches of `log.old`: its first documents, with masks that never change.

    They are made as those of the run's own held-out text are.

    Raises:
        DataError: a file is missing, bad or empty.
    """
    if not recipe.log.old:
        return []
    with TemporaryDirectory() as folder:
        enough = READ_AHEAD * recipe.log.eval_tokens
        with ShardWriter(Path(folder), len(tokenizer)) as writer:
            for document in read_documents(recipe.log.old):
                sentences = (s for text in document.paragraphs for s in split_sentences(text))
                # Sentences of eight tokens are enough; a long document is not read through.
                writer.add(tokenizer.encode_sentences(list(islice(sentences, enough // 8))))
                if writer.tokens >= enough:
                    break
        store = TokenStore(folder)
        if not store.tokens:
            raise DataError("there is no text in it", recipe.log.old[0])
        alone = replace(recipe, data=replace(recipe.data, weights=[]))
        loader = build_loader([store], alone, tokenizer, machine, phase=0)
        return loader.dev_batches(recipe.log.eval_tokens)


def before_after_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `Watch.rows` for a terminal."""
    lines = [f"{'held out':<10}{'masked-word loss':>24}{'accuracy':>22}"]
    for row in rows:
        lines.append(f"{row['text'] + ' text':<10}{_loss(row):>24}{_accuracy(row):>22}")
    return "\n".join(lines)


def before_after_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `Watch.rows` for a model card."""
    lines = ["| held-out text | masked-word loss before -> after | accuracy before -> after |"]
    lines.append("|---|---|---|")
    lines += [f"| {row['text']} | {_loss(row)} | {_accuracy(row)} |" for row in rows]
    return "\n".join(lines)


def _loss(row: dict[str, Any]) -> str:
    return f"{row['mlm_loss_before']:.3f} -> {row['mlm_loss_after']:.3f}"


def _accuracy(row: dict[str, Any]) -> str:
    return f"{row['mlm_accuracy_before']:.3f} -> {row['mlm_accuracy_after']:.3f}"
