"""BatchEncoding: what a tokenizer answers; a dict of lists or tensors that knows its offsets."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from tokenizers import Encoding

from bertkit.errors import DataError, UsageError

if TYPE_CHECKING:
    import torch

Tensors = Literal["pt", "np"]


class CharSpan(NamedTuple):
    """Characters start to end (exclusive) of the user's own text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens start to end (exclusive) of an encoding."""

    start: int
    end: int


class BatchEncoding(UserDict[str, Any]):
    """The outputs of a tokenizer by name, by attribute, and by item of the batch.

    Args:
        data: lists (or tensors) by name: input_ids, token_type_ids, attention_mask ...
        encoding: the Rust encodings, one a row, or a function that makes them when first asked
            for (offsets cost half of the time of encoding, and most callers never look at them).
        tensor_type: "pt" or "np" turns the lists into tensors.
        prepend_batch_axis: give tensors a first axis of length 1.
        n_sequences: 1 for single texts, 2 for pairs; None takes what the encodings say.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encoding: Encoding | list[Encoding] | Callable[[], list[Encoding]] | None = None,
        tensor_type: Tensors | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        super().__init__(data)
        self._encodings = [encoding] if isinstance(encoding, Encoding) else encoding
        self._n_sequences = n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "data":  # not yet there while unpickling
            raise AttributeError(name)
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(f"this BatchEncoding has no {name!r}: {list(self)}") from None

    def __getitem__(self, item: str | int | slice) -> Any:
        """A column by name; one row's Rust encoding by number; the encodings of a slice.

        Without encodings a slice gives the rows of every column.
        """
        if isinstance(item, str):
            return self.data[item]
        if self._encodings is None and isinstance(item, slice):
            return {name: column[item] for name, column in self.data.items()}
        return self._rows()[item]

    def __getstate__(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "_encodings": self.encodings,
            "_n_sequences": self._n_sequences,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def encodings(self) -> list[Encoding] | None:
        """The Rust encodings, one a row; None if this did not come from text."""
        if callable(self._encodings):
            self._encodings = self._encodings()
        return self._encodings

    @property
    def is_fast(self) -> bool:
        """Whether offsets, words and characters can be asked for."""
        return self._encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """1 for single texts, 2 for pairs, None where it is not known."""
        if self._n_sequences is None and self.encodings:
            self._n_sequences = self.encodings[0].n_sequences
        return self._n_sequences

    def _rows(self) -> list[Encoding]:
        if self.encodings is None:
            raise UsageError("this BatchEncoding did not come from text: it has no offsets")
        return self.encodings

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of one row."""
        tokens: list[str] = self._rows()[batch_index].tokens
        return tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of one row, the number of its word; None for special tokens."""
        words: list[int | None] = self._rows()[batch_index].word_ids
        return words

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of one row: 0 in the first text, 1 in the second, None if special."""
        sequences: list[int | None] = self._rows()[batch_index].sequence_ids
        return sequences

    def _locate(self, first: int, second: int | None) -> tuple[Encoding, int]:
        """(batch index, index), or the index alone in a batch of one."""
        row, index = (0, first) if second is None else (first, second)
        return self._rows()[row], index

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token over a character of the text; None over blanks."""
        row, index = self._locate(batch_or_char_index, char_index)
        token: int | None = row.char_to_token(index, sequence_index)
        return token

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word over a character of the text; None over blanks."""
        row, index = self._locate(batch_or_char_index, char_index)
        word: int | None = row.char_to_word(index, sequence_index)
        return word

    def token_to_chars(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> CharSpan | None:
        """The characters of the text under a token; None for special tokens."""
        row, index = self._locate(batch_or_token_index, token_index)
        span = row.token_to_chars(index)
        return None if span is None else CharSpan(*span)

    def token_to_word(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """The word that a token is part of; None for special tokens."""
        row, index = self._locate(batch_or_token_index, token_index)
        word: int | None = row.token_to_word(index)
        return word

    def token_to_sequence(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """0 or 1, the text that a token is part of; None for special tokens."""
        row, index = self._locate(batch_or_token_index, token_index)
        sequence: int | None = row.token_to_sequence(index)
        return sequence

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens that make up a word; None if the word is not there."""
        row, index = self._locate(batch_or_word_index, word_index)
        span = row.word_to_tokens(index, sequence_index)
        return None if span is None else TokenSpan(*span)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of the text under a word; None if the word is not there."""
        row, index = self._locate(batch_or_word_index, word_index)
        span = row.word_to_chars(index, sequence_index)
        return None if span is None else CharSpan(*span)

    def convert_to_tensors(
        self, tensor_type: Tensors | None = None, prepend_batch_axis: bool = False
    ) -> Self:
        """Turn lists and arrays into tensors ("pt") or arrays ("np"), in place.

        Raises:
            DataError: the rows differ in length (pad or truncate them), or are not numbers.
            UsageError: no such kind of tensor.
        """
        if tensor_type is None:
            return self
        if tensor_type not in ("pt", "np"):
            raise UsageError(f"return_tensors is {tensor_type!r}; say 'pt' or 'np'")
        for name, value in self.data.items():
            column = [value] if prepend_batch_axis else value
            self.data[name] = as_tensor(name, column, tensor_type)
        return self

    def to(self, device: str | int | torch.device, *, non_blocking: bool = False) -> Self:
        """Move the tensors to a device, in place."""
        for name, value in self.data.items():
            if hasattr(value, "to"):
                self.data[name] = value.to(device=device, non_blocking=non_blocking)
        return self


def kind_of(value: Any) -> Tensors | None:
    """Whether a value, or the first of a list, is a tensor or an array; None for plain lists."""
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    if isinstance(first, np.ndarray):
        return "np"
    return "pt" if hasattr(first, "detach") else None


def as_tensor(name: str, value: Any, kind: Tensors) -> Any:
    """A (nested) list of numbers as an array or tensor; int64, or float32 in torch.

    Raises:
        DataError: the rows differ in length, or hold something else than numbers.
    """
    if hasattr(value, "detach"):
        return value if kind == "pt" else value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty(0, dtype=object)
    if array.size == 0 and array.dtype != object:
        array = array.astype(np.int64)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"the rows of {name} differ in length or are not numbers, so they make no tensor: "
            "say padding=True, and truncation=True with a max_length"
        )
    if kind == "np":
        return array
    import torch

    wide = array.dtype == np.float64 and not isinstance(value, np.ndarray)
    return torch.from_numpy(array.astype(np.float32) if wide else array)
