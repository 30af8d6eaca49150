"""AutoConfig: BertConfig by the name under which scripts ask for it."""

from __future__ import annotations

import os
from typing import Any

from bertkit.checkpoint.config import BertConfig


class AutoConfig:
    """Opens BertConfig; a folder of another kind of model is refused by its `model_type`."""

    def __init__(self) -> None:
        raise TypeError("use AutoConfig.from_pretrained(folder) or AutoConfig.for_model('bert')")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **settings: Any
    ) -> BertConfig:
        """As BertConfig.from_pretrained; `trust_remote_code` means nothing here."""
        settings.pop("trust_remote_code", None)
        return BertConfig.from_pretrained(pretrained_model_name_or_path, **settings)

    @classmethod
    def for_model(cls, model_type: str, **settings: Any) -> BertConfig:
        """A new configuration.

        Args:
            model_type: "bert".
            settings: as of BertConfig.

        Raises:
            ConfigError: another kind of model is asked for.
        """
        return BertConfig(model_type=model_type, **settings)
