"""The training rows as steps: which examples each epoch and each step holds."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertkit.errors import DataError
from bertkit.runtime import Runtime
from bertkit.settings import FinetuneRecipe
from bertkit.tasks.task import Task
from bertkit.train.augment import Mentions, hide_words, swap_rows
from bertkit.train.features import FeatureStore, Lengths, epoch_order, split_step, store_features
from bertkit.train.finetune_step import Micro
from bertkit.train.log import counted
from bertkit.train.objectives import IGNORED
from bertkit.train.rows import Census, Part

# Labels that stand for "no entity".
OUTSIDE = "O"


class TrainData:
    """What a run learns from, tokenized once; changed rows (data.augment) once an epoch.

    Args:
        task: what makes features of rows.
        part: the training rows.
        census: what was seen in them.
        recipe: oversampling, augmentation, batch size, seed.

    Attributes:
        store: the rows as they are.
    """

    def __init__(self, task: Task[Any], part: Part, census: Census, recipe: FinetuneRecipe) -> None:
        self.task, self.part, self.recipe = task, part, recipe
        self.store = store_features(task, part)
        self._row_classes = census.rarest() if recipe.data.oversample > 0 else None
        self._mentions: Mentions | None = None
        if recipe.data.augment in ("entities", "both"):
            self._mentions = Mentions(part)
        self._idle = len(census.classes) - len(np.unique(self.store.rows))
        if not len(self.store):
            why = ": the answers are not in their passages" if self._idle else ""
            raise DataError(f"no rows to learn from{why}", part.file.path)

    @property
    def fingerprint(self) -> int:
        """A checksum of all tokens and targets: a run goes on with the data that it began with."""
        targets = self.store.targets.contiguous().numpy()
        return zlib.crc32(targets.tobytes(), zlib.crc32(self.store.ids.tobytes()))

    @property
    def step_tokens(self) -> float:
        """Tokens of a micro-batch, in the mean."""
        train = self.recipe.train
        tokens = float(self.store.tokens.mean()) * min(train.batch_size, len(self.store))
        return min(tokens, train.micro_tokens or tokens)

    def epoch(self, epoch: int) -> Epoch:
        """One pass over the data: its order, and its rows as they are in it."""
        data, seed = self.recipe.data, self.recipe.train.seed
        store = self.store
        if self._mentions is not None:
            rows = swap_rows(self.part, self._mentions, data.swap_share, seed, epoch)
            store = store_features(self.task, rows)
        if data.augment in ("tokens", "both"):
            outside = self.task.config_changes()["label2id"].get(OUTSIDE, IGNORED)
            mask = self.task.tokenizer.mask_token_id
            store = hide_words(store, mask, data.hide_share, outside, seed, epoch)
        classes = None if self._row_classes is None else self._row_classes[store.rows]
        order = epoch_order(len(store), classes, data.oversample, seed, epoch)
        return Epoch(store, order, self.recipe.train.batch_size, self.recipe.train.micro_tokens)

    def lines(self) -> list[str]:
        """What the model will read, for people."""
        lines = Lengths.of(self.task, self.store).lines()
        if self._idle:
            idle = counted(self._idle, "rows")
            lines.append(f"nothing to learn from {idle}: the answer is not in the passage")
        model = self.task.config_changes()
        if "crf" in model:  # which tagging alone has
            how = "together, by a CRF" if model["crf"] else "word by word"
            tags, scheme = len(model["id2label"]), model["bertkit_task"]["scheme"]
            lines.append(f"what is learned: {tags} tags, scheme {scheme}, chosen {how}")
        return lines

    def class_counts(self, classes: int) -> Tensor:
        """[C] how many items have each class; with several labels a text [C + 1], rows last."""
        targets = self.store.targets
        if targets.is_floating_point():
            return torch.cat([targets.sum(0), torch.tensor([float(len(targets))])])
        kept = targets[targets != IGNORED].flatten()
        return torch.bincount(kept, minlength=classes)


class Epoch:
    """The steps of one pass over the data."""

    def __init__(
        self,
        store: FeatureStore,
        order: NDArray[np.int64],
        batch_size: int,
        micro_tokens: int | None,
    ) -> None:
        self.store, self.order = store, order
        self.batch_size, self.micro_tokens = batch_size, micro_tokens or 0

    @property
    def steps(self) -> int:
        """How many there are; the last may hold fewer examples."""
        return -(-len(self.order) // self.batch_size)

    def step(self, number: int, machine: Runtime) -> list[Micro]:
        """The micro-batches of a step that are this rank's."""
        chosen = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        micro_tokens = -(-self.micro_tokens // machine.replicas)
        parts = split_step(self.store, chosen, machine.world * machine.replicas, micro_tokens)
        if machine.world == 1:
            return [Micro(self.store.batch(part)) for part in parts if len(part)]
        return [
            Micro(self.store.batch(part if len(part) else chosen[:1]), len(part) > 0)
            for part in parts[machine.rank :: machine.world]
        ]
