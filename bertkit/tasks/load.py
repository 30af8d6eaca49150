"""`load(path)`: one object that answers for whatever a model can do."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.files import CONFIG_NAME
from bertkit.checkpoint.hub import resolve_model
from bertkit.checkpoint.layout import read_tensors
from bertkit.errors import MissingHeadError
from bertkit.model.heads import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
)
from bertkit.runtime import pick_device
from bertkit.tasks.mlm import FillMask, NextSentencePrediction
from bertkit.text.tokenizer import BertTokenizer

# By the heads that the weights hold: (masked words, next sentence).
_CLASSES = {
    (True, True): BertForPreTraining,
    (True, False): BertForMaskedLM,
    (False, True): BertForNextSentencePrediction,
}


class Pipeline:
    """A model with its tokenizer, and the questions it can be asked.

    Attributes:
        model: in eval mode, on the chosen device.
        tokenizer: the model's own.
    """

    def __init__(self, model: Any, tokenizer: BertTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    @cached_property
    def _filler(self) -> FillMask:
        return FillMask(self.model, self.tokenizer)

    @cached_property
    def _follower(self) -> NextSentencePrediction:
        return NextSentencePrediction(self.model, self.tokenizer)

    @property
    def fill(self) -> Any:
        """`fill(texts, top_k=5, targets=None)`: see FillMask.fill."""
        return self._filler.fill

    @property
    def next(self) -> Any:
        """`next(a, b)`: see NextSentencePrediction.next."""
        return self._follower.next


def load(
    name_or_path: str | os.PathLike[str],
    device: str | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Pipeline:
    """Open a model folder, a run folder or a hub id, to ask it questions.

    Args:
        name_or_path: where the model is.
        device: "cpu", "cuda", ...; None: the best there is.
        revision: branch, tag or commit of a hub model.
        token: for private hub models.
        offline: take a hub model only from the local cache.

    Raises:
        CheckpointError: there is no such model, or it is broken.
        ConfigError: config.json is broken, or not a BERT's.
        MissingHeadError: the weights are an encoder without any head that answers.
    """
    folder = resolve_model(name_or_path, revision=revision, token=token, offline=offline)
    config = BertConfig.from_json_file(folder / CONFIG_NAME)
    names = read_tensors(folder).keys()
    heads = tuple(
        any(name.startswith(prefix) for name in names)
        for prefix in ("cls.predictions.", "cls.seq_relationship.")
    )
    if heads not in _CLASSES:
        raise MissingHeadError(
            f"{name_or_path}: has neither a masked-word head (cls.predictions) nor a next-sentence "
            "head (cls.seq_relationship); there is nothing to ask it"
        )
    model = _CLASSES[heads].from_pretrained(folder, config=config)
    model.name_or_path = os.fspath(name_or_path)
    return Pipeline(model.to(pick_device(device)), BertTokenizer.from_pretrained(folder))
