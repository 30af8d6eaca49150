"""What every verb works on: a model with its tokenizer, named or opened already."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from bertkit.checkpoint.hub import resolve_model
from bertkit.errors import MissingHeadError
from bertkit.model.bert import BertModel
from bertkit.runtime import pick_device
from bertkit.tasks.asking import check_tokenizer_fits, model_name
from bertkit.tasks.load import Pipeline, load
from bertkit.text.tokenizer import BertTokenizer

if TYPE_CHECKING:
    from bertkit.explain.words import Segmenter, Sentence


class Opened(NamedTuple):
    """A model, in whatever mode it was, and its tokenizer.

    Attributes:
        model: any BERT model of bertkit.
        tokenizer: the one it was trained with.
        name: where it came from.
    """

    model: Any
    tokenizer: BertTokenizer
    name: str

    @property
    def encoder(self) -> BertModel:
        """The BertModel inside."""
        encoder: BertModel = self.model.base_model
        return encoder

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at once."""
        length: int = self.model.config.max_position_embeddings
        return length

    def read(
        self, text: str, pair: str | None = None, segmenter: Segmenter | None = None
    ) -> Sentence:
        """Tokenize a text or a pair; see `read_sentence`."""
        from bertkit.explain.words import read_sentence

        return read_sentence(
            self.tokenizer, text, pair, max_length=self.max_length, segmenter=segmenter
        )


Model = str | os.PathLike[str] | Pipeline | Opened


def open_model(model: Model, device: str | None = None, *, revision: str | None = None) -> Opened:
    """Open a model folder, a run or a hub id; what is open already stays as it is.

    Unlike `load`, it takes an encoder without any head too.

    Args:
        model: a name, or what `bertkit.load` or this function gave.
        device: "cpu", "cuda", ...; None: the best there is.
        revision: branch, tag or commit of a hub model.

    Raises:
        CheckpointError: there is no such model, it is broken, or its tokenizer does not fit.
        ConfigError: config.json is broken or not a BERT's.
    """
    if isinstance(model, Opened):
        return model
    if isinstance(model, Pipeline):
        return Opened(model.model, model.tokenizer, model_name(model.model))
    try:
        return open_model(load(model, device, revision=revision))
    except MissingHeadError:
        folder = resolve_model(model, revision=revision)
        bare, tokenizer = BertModel.from_pretrained(folder), BertTokenizer.from_pretrained(folder)
        bare.name_or_path = os.fspath(model)
        check_tokenizer_fits(bare, tokenizer)
        return Opened(bare.to(pick_device(device)), tokenizer, os.fspath(model))
