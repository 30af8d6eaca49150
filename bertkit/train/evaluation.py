"""Samples of filled masks, for people to look at while a model learns."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bertkit.batch import Batch, PretrainBatch
from bertkit.runtime import Runtime
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train.step import Model


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
