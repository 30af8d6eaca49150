"""AutoTokenizer: BertTokenizer by the name under which scripts ask for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertkit.text.tokenizer import BertTokenizer

# Arguments of transformers that choose between ways of its own; here there is one way.
_WITHOUT_MEANING = ("use_fast", "trust_remote_code", "tokenizer_type", "config")


class AutoTokenizer:
    """Opens BertTokenizer."""

    def __init__(self) -> None:
        raise TypeError("use AutoTokenizer.from_pretrained(folder)")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **settings: Any
    ) -> BertTokenizer:
        """As BertTokenizer.from_pretrained; `use_fast` and the like mean nothing here."""
        for name in _WITHOUT_MEANING:
            settings.pop(name, None)
        return BertTokenizer.from_pretrained(pretrained_model_name_or_path, **settings)
