"""Decoding: a tokenizer's way back, from ids to tokens and to text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bertkit.errors import DataError
from bertkit.text.inputs import as_list
from bertkit.text.tokens import TokenTable
from bertkit.text.wordpiece import well_formed

# Transformers' own last touch to decoded English.
CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class Decoding(TokenTable):
    """`TokenTable`, and what tokens and ids are in each other's words."""

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or a list of ids; [UNK]'s id for what is not in the vocabulary."""
        if isinstance(tokens, str):
            index = self._engine.token_to_id(tokens) if well_formed(tokens) else None
            return self.unk_token_id if index is None else index
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or a list of tokens."""
        ids = as_list(ids)
        if isinstance(ids, int):
            return self._engine.id_to_token(self._checked_ids([ids])[0])
        skip = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._engine.id_to_token(i) for i in self._checked_ids(ids) if i not in skip]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Tokens joined to text: "##" pieces to their words, words by blanks."""
        text: str = self._engine.decoder.decode(tokens)
        return text

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Ids back to text: a string, or for a list of lists a list of strings.

        Raises:
            DataError: a number is not an id, such as the -100 of a label.
        """
        ids = as_list(token_ids)
        if isinstance(ids, Mapping):
            ids = ids["input_ids"]
        if isinstance(ids, int):
            ids = [ids]
        if ids and isinstance(ids[0], (list, tuple)):
            return [
                self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids
            ]
        text: str = self._engine.decode(
            self._checked_ids(ids), skip_special_tokens=skip_special_tokens
        )
        clean = clean_up_tokenization_spaces
        if self.clean_up_tokenization_spaces if clean is None else clean:
            for old, new in CLEAN_UP:
                text = text.replace(old, new)
        return text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """A list of lists of ids to a list of strings."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    def _checked_ids(self, ids: Iterable[Any]) -> list[int]:
        numbers = [int(i) for i in ids]
        for number in numbers:
            if not 0 <= number < 2**32:
                raise DataError(f"{number} is not the id of a token (ids start at 0)")
        return numbers
