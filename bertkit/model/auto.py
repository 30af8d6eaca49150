"""AutoModel and its kin: the classes by the names under which scripts ask for them.

Here every model is a BERT, so each name leads to one class. A folder of another kind of model is
refused by its `model_type`.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch

from bertkit.checkpoint.config import BertConfig
from bertkit.model.base import BertPreTrainedModel
from bertkit.model.bert import BertModel
from bertkit.model.crf_head import BertCrfForTokenClassification, has_crf
from bertkit.model.heads import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
)
from bertkit.model.task_heads import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)


class AutoModel:
    """Opens BertModel, the encoder."""

    opens: ClassVar[type[BertPreTrainedModel]] = BertModel

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"use {name}.from_pretrained(folder) or {name}.from_config(config)")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **settings: Any
    ) -> Any:
        """As `from_pretrained` of the class that this name leads to."""
        return cls.opens.from_pretrained(pretrained_model_name_or_path, **settings)

    @classmethod
    def from_config(cls, config: BertConfig, *, dtype: torch.dtype | None = None) -> Any:
        """A new model, initialised as for training.

        Args:
            config: its shape.
            dtype: what its parameters are; None: float32.
        """
        return cls.opens(config).to(dtype)


class AutoModelForPreTraining(AutoModel):
    """Opens BertForPreTraining."""

    opens = BertForPreTraining


class AutoModelForMaskedLM(AutoModel):
    """Opens BertForMaskedLM."""

    opens = BertForMaskedLM


class AutoModelForNextSentencePrediction(AutoModel):
    """Opens BertForNextSentencePrediction."""

    opens = BertForNextSentencePrediction


class AutoModelForSequenceClassification(AutoModel):
    """Opens BertForSequenceClassification."""

    opens = BertForSequenceClassification


class AutoModelForTokenClassification(AutoModel):
    """Opens BertForTokenClassification, or BertCrfForTokenClassification where that was saved."""

    opens = BertForTokenClassification

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **settings: Any
    ) -> Any:
        """As `from_pretrained` of the class that the folder's configuration names."""
        config = settings.get("config")
        if config is None:
            hub = ("revision", "token", "local_files_only", "cache_dir")
            given = {name: settings[name] for name in hub if name in settings}
            given.setdefault("local_files_only", settings.get("offline", False))
            config = BertConfig.from_pretrained(pretrained_model_name_or_path, **given)
        opens = BertCrfForTokenClassification if has_crf(config) else cls.opens
        return opens.from_pretrained(pretrained_model_name_or_path, **settings)

    @classmethod
    def from_config(cls, config: BertConfig, *, dtype: torch.dtype | None = None) -> Any:
        """A new model, with a CRF where the configuration says `crf`."""
        return (BertCrfForTokenClassification if has_crf(config) else cls.opens)(config).to(dtype)


class AutoModelForQuestionAnswering(AutoModel):
    """Opens BertForQuestionAnswering."""

    opens = BertForQuestionAnswering


class AutoModelForMultipleChoice(AutoModel):
    """Opens BertForMultipleChoice."""

    opens = BertForMultipleChoice
