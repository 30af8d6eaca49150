"""Word frequencies of the training text: what a model that reads no context knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bertkit.batch import PretrainBatch
from bertkit.data.order import permutation
from bertkit.data.shards import TokenStore
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train.step import Model

# Tokens that the frequencies are counted over: enough for three digits of the loss.
_COUNTED = 20_000_000


@dataclass(frozen=True, slots=True)
class Baseline:
    """What needs no reading, on the held-out masks.

    Attributes:
        loss: of the unigram model, in nats.
        accuracy: of its best guess.
        nsp_accuracy: of the same answer for every pair; NaN without pairs.
    """

    loss: float
    accuracy: float
    nsp_accuracy: float


def word_shares(stores: Sequence[TokenStore], tokenizer: BertTokenizer) -> NDArray[np.float64]:
    """[V] the share of each word in the training text, every word counted once more than seen."""
    counts = np.ones(len(tokenizer), dtype=np.float64)
    for store in stores:
        seen = 0
        for document in permutation(store.documents, 0):
            tokens = store.document_tokens(int(document))
            counts += np.bincount(tokens, minlength=len(counts))
            seen += len(tokens)
            if seen >= _COUNTED:
                break
    counts[tokenizer.all_special_ids] = 1
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def unigram_baseline(shares: NDArray[np.float64], dev: Sequence[PretrainBatch]) -> Baseline:
    """What needs no reading: masked words guessed by their frequency, one answer for all pairs.

    A model whose loss stays at this one has not begun to read its context.

    Args:
        shares: [V] of word_shares.
        dev: batches with fixed masks.
    """
    labels = np.concatenate([b.mlm_labels.numpy() for b in dev] or [np.zeros(0, np.int64)])
    pairs = np.concatenate([b.nsp_labels.numpy() for b in dev] or [np.zeros(0, np.int64)])
    pairs = pairs[pairs >= 0]
    constant = np.bincount(pairs).max() / len(pairs) if len(pairs) else np.nan
    if not len(labels):
        return Baseline(float("nan"), float("nan"), float(constant))
    loss = -np.log(shares[labels]).mean()
    return Baseline(float(loss), float((labels == shares.argmax()).mean()), float(constant))


def has_new_bias(model: Model) -> bool:
    """Whether the output bias is new: of a new model, or of one loaded without that head."""
    report = model.load_report
    return report is None or "cls.predictions.bias" in report.missing


@torch.no_grad()
def start_at_unigram(model: Model, shares: NDArray[np.float64]) -> None:
    """Set a new model's output bias to the log frequencies, so that it need not learn them.

    Learning them is all that the first hundred thousand tokens are spent on otherwise: after
    300,000 tokens of mini the loss was 6.689 with this start and 6.875 from zero (docs/en/log.md).
    """
    bias = model.cls.predictions.bias
    logs = torch.from_numpy(np.log(shares))
    bias.fill_(float(logs.min()))  # rows beyond the words only pad the table
    bias[: len(logs)] = logs.to(bias)
