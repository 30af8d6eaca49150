"""What stands around texts: special tokens and padding."""

from __future__ import annotations

from typing import Any

from bertkit.errors import UsageError
from bertkit.text.decoding import Decoding
from bertkit.text.encoding import BatchEncoding, Tensors, kind_of
from bertkit.text.inputs import TRUNCATIONS, Shape, as_list, check_window
from bertkit.text.tokenfiles import UNSET_LENGTH


class Padding(Decoding):
    """`Decoding`, and what a tokenizer does to ids that it has: frame them, pad them."""

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """[CLS] A [SEP], or [CLS] A [SEP] B [SEP]."""
        cls, sep = [self.cls_token_id], [self.sep_token_id]
        second = [] if token_ids_1 is None else token_ids_1 + sep
        return cls + token_ids_0 + sep + second

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 for [CLS] A [SEP], 1 for B [SEP]."""
        second = 0 if token_ids_1 is None else len(token_ids_1) + 1
        return [0] * (len(token_ids_0) + 2) + [1] * second

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for special tokens, 0 for others, of ids with or (default) still without them."""
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise UsageError("ids that already have special tokens come as one list")
            special = set(self.all_special_ids)
            return [int(int(i) in special) for i in token_ids_0]
        second = [] if token_ids_1 is None else [0] * len(token_ids_1) + [1]
        return [1] + [0] * len(token_ids_0) + [1] + second

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Tensors | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad what is encoded already: a dict of lists (one row or many) or a list of dicts.

        Only input_ids, token_type_ids, attention_mask and special_tokens_mask are padded. Tensors
        come back as tensors, arrays as arrays.
        """
        if isinstance(encoded_inputs, (list, tuple)):
            first = encoded_inputs[0] if encoded_inputs else {}
            encoded_inputs = {name: [row[name] for row in encoded_inputs] for name in first}
        if "input_ids" not in encoded_inputs:
            raise UsageError(f"pad needs input_ids; it got {list(encoded_inputs)}")
        return_tensors = return_tensors or kind_of(encoded_inputs["input_ids"])
        columns = {k: as_list(v) for k, v in encoded_inputs.items()}
        single = bool(columns["input_ids"]) and not isinstance(columns["input_ids"][0], list)
        if single:
            columns = {name: [value] for name, value in columns.items()}
        lengths = [len(row) for row in columns["input_ids"]]
        shape = self._shape(padding, False, max_length, pad_to_multiple_of, side=padding_side)
        if return_attention_mask is not False:
            columns.setdefault("attention_mask", [[1] * n for n in lengths])
        width = shape.max_length if shape.padding == "max_length" else max(lengths, default=0)
        if shape.padding is not None:
            width += -width % (pad_to_multiple_of or 1)
            self._pad_columns(columns, [max(0, width - n) for n in lengths], shape.padding_side)
        if single:
            columns = {name: value[0] for name, value in columns.items()}
        return BatchEncoding(columns, None, return_tensors)

    def _pad_columns(self, columns: dict[str, Any], missing: list[int], side: str) -> None:
        fillers = {
            "input_ids": self.pad_token_id,
            "token_type_ids": self.pad_token_type_id,
            "attention_mask": 0,
            "special_tokens_mask": 1,
        }
        for name in fillers.keys() & columns.keys():
            pads = [[fillers[name]] * n for n in missing]
            rows = columns[name]
            columns[name] = [
                pad + row if side == "left" else row + pad
                for row, pad in zip(rows, pads, strict=True)
            ]

    def _shape(
        self,
        padding: bool | str | None,
        truncation: bool | str | None,
        max_length: int | None,
        multiple: int | None,
        *,
        stride: int = 0,
        pair: bool = False,
        side: str | None = None,
        special: bool = True,
        words: bool = False,
    ) -> Shape:
        if max_length is not None and padding in (False, None) and truncation is None:
            truncation = "longest_first"
        pad = {True: "longest", False: None, None: None, "do_not_pad": None}.get(padding, padding)
        cut = {True: "longest_first", False: None, "do_not_truncate": None}.get(
            truncation or False, truncation
        )
        if pad not in (None, "longest", "max_length"):
            raise UsageError(f"padding is {padding!r}; say True, False, 'longest' or 'max_length'")
        if cut not in (None, *TRUNCATIONS):
            raise UsageError(f"truncation is {truncation!r}; say True, False or {TRUNCATIONS}")
        if side not in (None, "left", "right"):
            raise UsageError(f"padding_side is {side!r}; say 'left' or 'right'")
        length = self.model_max_length if max_length is None else max_length
        if max_length is None and length >= UNSET_LENGTH:
            pad, cut = None if pad == "max_length" else pad, None
        if cut is not None:
            check_window(length, stride, self.num_special_tokens_to_add(pair) * special)
            if pad is not None and multiple and length % multiple:
                raise UsageError(
                    f"max_length {length} is not a multiple of pad_to_multiple_of {multiple}"
                )
        return Shape(
            pad, cut, length, stride, multiple, side or self.padding_side, special, words
        )  # fmt: skip
