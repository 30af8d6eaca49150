"""Held-out figures beside what a model that knows only word frequencies would reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bertkit.batch import Batch, PretrainBatch
from bertkit.data.order import permutation
from bertkit.data.shards import TokenStore
from bertkit.runtime import Runtime
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train.step import Model

# Tokens that the frequencies are counted over: enough for three digits of the loss.
_COUNTED = 20_000_000


@dataclass(frozen=True, slots=True)
class Baseline:
    """The unigram model on the held-out masked positions: loss in nats, accuracy."""

    loss: float
    accuracy: float


def unigram_baseline(
    stores: Sequence[TokenStore], tokenizer: BertTokenizer, dev: Sequence[PretrainBatch]
) -> Baseline:
    """Loss and accuracy of guessing every masked word by its frequency in the training text.

    A model whose loss stays at this one has not begun to read its context.
    """
    counts = np.ones(len(tokenizer), dtype=np.float64)  # every word once more than seen
    for store in stores:
        seen = 0
        for document in permutation(store.documents, 0):
            tokens = store.document_tokens(int(document))
            counts += np.bincount(tokens, minlength=len(counts))
            seen += len(tokens)
            if seen >= _COUNTED:
                break
    counts[tokenizer.all_special_ids] = 1
    labels = np.concatenate([b.mlm_labels.numpy() for b in dev] or [np.zeros(0, np.int64)])
    if not len(labels):
        return Baseline(float("nan"), float("nan"))
    loss = -np.log(counts[labels] / counts.sum()).mean()
    return Baseline(float(loss), float((labels == counts.argmax()).mean()))


@torch.no_grad()
def sample_fills(
    model: Model,
    tokenizer: BertTokenizer,
    dev: Sequence[PretrainBatch],
    machine: Runtime,
    count: int = 3,
    width: int = 48,
) -> list[str]:
    """A few held-out stretches with the model's guess at each masked word: "[guess|right]".

    A right guess stands alone, as "[guess]".
    """
    if not dev:
        return []
    batch = dev[0]
    was_training = model.training
    model.eval()
    starts, lines = batch.starts.tolist(), []
    for number in range(min(count, len(starts))):
        start = starts[number]
        stop = start + int(batch.lengths[number])
        positions = batch.mlm_positions[
            (batch.mlm_positions >= start) & (batch.mlm_positions < stop)
        ]
        one = Batch(
            batch.input_ids[start:stop],
            batch.token_type_ids[start:stop],
            batch.position_ids[start:stop],
            batch.lengths[number : number + 1],
        )
        guesses = []
        if len(positions):
            with machine.autocast(), torch.compiler.set_stance("force_eager"):
                logits = model.mlm_logits_at(one.to(machine.device), positions - start)
            guesses = logits.argmax(-1).tolist()
        words = tokenizer.convert_ids_to_tokens(one.input_ids.tolist())
        right = dict(zip(batch.mlm_positions.tolist(), batch.mlm_labels.tolist(), strict=True))
        for position, guess in zip((positions - start).tolist(), guesses, strict=True):
            said, truth = tokenizer.convert_ids_to_tokens([guess, right[start + position]])
            words[position] = f"[{said}]" if said == truth else f"[{said}|{truth}]"
        lines.append(tokenizer.convert_tokens_to_string(words[1 : width + 1]))
    model.train(was_training)
    return lines
