"""BertTokenizer: the call shapes of transformers' fast BERT tokenizer over the Rust engine.

Tokens follow Devlin et al. 2018 (arXiv 1810.04805): BERT's text normaliser, words split at blanks
and punctuation, each word cut greedily into WordPieces.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Tokenizer

from bertkit.errors import CheckpointError, DataError, UsageError
from bertkit.text.encoding import BatchEncoding, Tensors
from bertkit.text.wordpiece import (
    SPECIAL_NAMES,
    TokenizerParts,
    build_engine,
    checked_vocab,
    read_parts,
    read_vocab,
    well_formed,
)

TRUNCATIONS = ("longest_first", "only_first", "only_second")
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


@dataclass(frozen=True, slots=True)
class _Shape:
    """How the engine is to cut and pad: what `padding`, `truncation` and the like come down to."""

    padding: str | None  # "longest", "max_length"
    truncation: str | None  # one of TRUNCATIONS
    max_length: int
    stride: int
    pad_to_multiple_of: int | None
    padding_side: str
    add_special_tokens: bool
    words: bool  # the texts are lists of words


class BertTokenizer:
    """Text to WordPiece ids and back, with offsets into the user's own text.

    Args:
        vocab: a vocab.txt, or the tokens with their ids, or the tokens in the order of their ids.
        do_lower_case: lower-case the text, as uncased models need.
        vocab_file: the same as `vocab`, by its older name.
        tokenize_chinese_chars: make every Han character a word by itself.
        strip_accents: drop accents; None does what do_lower_case says.
        model_max_length: what `truncation=True` without a max_length cuts to.
        padding_side: "right" or "left".
        special_tokens: other names for pad_token, unk_token, cls_token, sep_token, mask_token.

    Raises:
        CheckpointError: the vocabulary cannot be read, lacks a special token, or is cased while
            do_lower_case is set.
    """

    model_input_names = ("input_ids", "token_type_ids", "attention_mask")
    is_fast = True

    def __init__(
        self,
        vocab: str | Path | Mapping[str, int] | Sequence[str] | None = None,
        do_lower_case: bool = True,
        *,
        vocab_file: str | Path | None = None,
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        model_max_length: int = 512,
        padding_side: str = "right",
        **special_tokens: str,
    ) -> None:
        source = vocab_file if vocab is None else vocab
        if source is None:
            raise UsageError("BertTokenizer needs a vocabulary: vocab_file=..., or from_pretrained")
        where = str(source) if isinstance(source, (str, Path)) else "vocabulary"
        if isinstance(source, (str, Path)):
            tokens: object = read_vocab(Path(source))
        elif isinstance(source, Mapping):
            tokens = dict(source)
        else:
            tokens = {token: i for i, token in enumerate(source)}
        parts = TokenizerParts(
            checked_vocab(tokens, where),
            do_lower_case=do_lower_case,
            strip_accents=strip_accents,
            tokenize_chinese_chars=tokenize_chinese_chars,
            model_max_length=model_max_length,
            padding_side=padding_side,
        )
        for name, token in special_tokens.items():
            if name not in SPECIAL_NAMES:
                raise TypeError(f"BertTokenizer has no argument {name!r}")
            parts.special[name] = str(token)
        self._build(parts, where)

    def _build(self, parts: TokenizerParts, where: str) -> None:
        self._parts = parts
        self._engine: Tokenizer = build_engine(parts, where)
        # The engine's padding and truncation are its state: one call at a time may set and use it.
        self._lock = threading.RLock()
        self._extra_special: list[str] = [
            token.content
            for _, token in sorted(parts.added, key=lambda pair: pair[0])
            if token.special and token.content not in parts.special.values()
        ]
        self.name_or_path = where
        self.do_lower_case = parts.do_lower_case
        self.strip_accents = parts.strip_accents
        self.tokenize_chinese_chars = parts.tokenize_chinese_chars
        self.model_max_length = parts.model_max_length
        self.padding_side = parts.padding_side
        self.truncation_side = parts.truncation_side
        self.clean_up_tokenization_spaces = parts.clean_up_tokenization_spaces
        self.pad_token_type_id = 0
        self._set_special_ids()
        check_case(self)

    def _set_special_ids(self) -> None:
        special = self._parts.special
        self.unk_token, self.sep_token = special["unk_token"], special["sep_token"]
        self.pad_token, self.cls_token = special["pad_token"], special["cls_token"]
        self.unk_token_id = self._id_of(self.unk_token)
        self.sep_token_id = self._id_of(self.sep_token)
        self.pad_token_id = self._id_of(self.pad_token)
        self.cls_token_id = self._id_of(self.cls_token)
        self._mask_id: int | None = self._engine.token_to_id(special["mask_token"])

    def _id_of(self, token: str) -> int:
        index = self._engine.token_to_id(token)
        assert index is not None
        return index

    # What it is made of.

    @property
    def mask_token(self) -> str:
        """The token that stands for a masked one.

        Raises:
            CheckpointError: the vocabulary has none.
        """
        if self._mask_id is None:
            raise CheckpointError(
                f"{self.name_or_path}: the vocabulary has no {self._parts.special['mask_token']}"
            )
        return self._parts.special["mask_token"]

    @property
    def mask_token_id(self) -> int:
        """The id of the mask token (an error if there is none)."""
        assert self.mask_token
        assert self._mask_id is not None
        return self._mask_id

    @property
    def backend(self) -> Tokenizer:
        """The Rust tokenizer. Its padding and truncation belong to the call in progress."""
        return self._engine

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The Rust tokenizer, by the name that transformers gives it."""
        return self._engine

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens by name, such as {"cls_token": "[CLS]"}."""
        special = dict(self._parts.special)
        if self._mask_id is None:
            del special["mask_token"]
        return special

    @property
    def all_special_tokens(self) -> list[str]:
        """The five named special tokens and those added since."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra_special]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return [self._id_of(token) for token in self.all_special_tokens]

    @property
    def vocab_size(self) -> int:
        """The number of tokens, without those added later."""
        size: int = self._engine.get_vocab_size(with_added_tokens=False)
        return size

    def __len__(self) -> int:
        size: int = self._engine.get_vocab_size(with_added_tokens=True)
        return size

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return (
            f"BertTokenizer({self.name_or_path!r}, {len(self)} tokens, "
            f"do_lower_case={self.do_lower_case}, model_max_length={self.model_max_length})"
        )

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their ids, the added ones too."""
        vocab: dict[str, int] = self._engine.get_vocab(with_added_tokens=True)
        return vocab

    @property
    def vocab(self) -> dict[str, int]:
        """All tokens with their ids, the added ones too."""
        return self.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """The special tokens and all other added ones, with their ids."""
        added = self._engine.get_added_tokens_decoder()
        return {token.content: i for i, token in sorted(added.items())}

    def continuation_mask(self) -> NDArray[np.bool_]:
        """[V] True where the token continues a word ("##ing"); V is the largest id plus one."""
        vocab = self.get_vocab()
        mask = np.zeros(max(vocab.values()) + 1, dtype=np.bool_)
        prefix = self._parts.continuing_subword_prefix
        mask[[i for token, i in vocab.items() if prefix and token.startswith(prefix)]] = True
        mask[self.all_special_ids] = False
        return mask

    def add_tokens(
        self,
        new_tokens: str | AddedToken | Sequence[str | AddedToken],
        special_tokens: bool = False,
    ) -> int:
        """Add tokens at the end of the vocabulary; the model must grow by as many rows.

        Returns:
            How many were new.
        """
        tokens = [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else list(new_tokens)
        for token in tokens:
            if not well_formed(str(token.content if isinstance(token, AddedToken) else token)):
                raise DataError(f"{token!r} is not Unicode text")
        with self._lock:
            if not special_tokens:
                count: int = self._engine.add_tokens(tokens)
                return count
            count = self._engine.add_special_tokens(tokens)
        names = [t.content if isinstance(t, AddedToken) else t for t in tokens]
        known = set(self.all_special_tokens)
        self._extra_special += [name for name in names if name not in known]
        return count

    def add_special_tokens(self, tokens: Mapping[str, str | Sequence[str]]) -> int:
        """Add or rename special tokens: {"mask_token": "<mask>", "extra_special_tokens": [...]}.

        Returns:
            How many were new.
        """
        count = 0
        for name, value in tokens.items():
            if name in SPECIAL_NAMES and isinstance(value, str):
                count += self.add_tokens([value], special_tokens=True)
                self._parts.special[name] = value
                self._extra_special = [t for t in self._extra_special if t != value]
            elif name in ("additional_special_tokens", "extra_special_tokens"):
                count += self.add_tokens(list(value), special_tokens=True)
            else:
                raise UsageError(f"there is no special token called {name!r}")
        self._set_special_ids()
        return count

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """2 for a single text ([CLS] and [SEP]), 3 for a pair."""
        return 3 if pair else 2

    # Text to ids.

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str | None = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Tensors | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Encode a text, a pair, or a list of either, as transformers' fast tokenizer does.

        Args:
            text: a text, a list of texts, a list of pairs; with is_split_into_words, a list of
                words or a list of such lists.
            text_pair: the second text, or one for each text. As in transformers, an empty second
                text beside one single first text is none.
            add_special_tokens: put [CLS] and [SEP] around the texts.
            padding: True or "longest", "max_length", False.
            truncation: True or "longest_first", "only_first", "only_second", False.
            max_length: tokens in a row, special ones counted; None is model_max_length.
            stride: tokens that neighbouring windows of one text share (with overflow).
            is_split_into_words: the texts are lists of words; word_ids count these.
            pad_to_multiple_of: pad to a multiple of this.
            padding_side: "right" or "left"; None is the tokenizer's own.
            return_tensors: "pt" torch, "np" numpy, None lists.
            return_token_type_ids: 0 for the first text, 1 for the second.
            return_attention_mask: 1 for tokens, 0 for padding.
            return_overflowing_tokens: cut a long text into several rows, and say in
                overflow_to_sample_mapping which text each row comes from.
            return_special_tokens_mask: 1 for special tokens.
            return_offsets_mapping: (start, end) of each token in the user's own text.
            return_length: the tokens of each row.
            verbose: taken for compatibility; nothing is printed either way.

        Raises:
            DataError: a text holds a lone surrogate; or no tensor can be made of ragged rows.
            UsageError: the settings contradict each other, or a text cannot be cut as asked.
            TypeError: something is not text.
        """
        inputs, batched, pair = _as_batch(text, text_pair, is_split_into_words)
        shape = self._shape(
            padding, truncation, max_length, pad_to_multiple_of, stride=stride, pair=pair,
            side=padding_side, special=add_special_tokens, words=is_split_into_words,
        )  # fmt: skip
        wanted = {
            "token_type_ids": return_token_type_ids is not False,
            "attention_mask": return_attention_mask is not False,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        full = return_offsets_mapping or return_overflowing_tokens
        rows = self._encode(inputs, shape, offsets=full)
        owners: list[int] = []
        if return_overflowing_tokens:
            groups = [[row, *row.overflowing] for row in rows]
            owners = [i for i, group in enumerate(groups) for _ in group]
            rows = [row for group in groups for row in group]
        data = _columns(rows, wanted, padded=shape.padding is not None, pair=pair)
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = owners
        if not batched and return_tensors is None and not return_overflowing_tokens:
            data = {k: v[0] if isinstance(v[0], list) else v for k, v in data.items()}
        if full:
            return BatchEncoding(data, rows, return_tensors)
        later = [*inputs]
        return BatchEncoding(data, lambda: self._encode(later, shape, True), return_tensors)

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
    ) -> _Shape:
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
        if cut is not None:
            _check_window(length, stride, self.num_special_tokens_to_add(pair) * special)
            if pad is not None and multiple and length % multiple:
                raise UsageError(
                    f"max_length {length} is not a multiple of pad_to_multiple_of {multiple}"
                )
        return _Shape(
            pad, cut, length, stride, multiple, side or self.padding_side, special, words
        )  # fmt: skip

    def _encode(self, inputs: Sequence[Any], shape: _Shape, offsets: bool) -> list[Encoding]:
        """The Rust encodings; without offsets in about half the time."""
        with self._lock:
            self._configure(shape)
            run = self._engine.encode_batch if offsets else self._engine.encode_batch_fast
            try:
                encodings: list[Encoding] = run(
                    inputs,
                    is_pretokenized=shape.words,
                    add_special_tokens=shape.add_special_tokens,
                )
            except TypeError as error:
                raise _input_error(inputs, shape.words) from error
            except UnicodeError as error:
                raise _input_error(inputs, shape.words) from error
            except Exception as error:
                if "Truncation" not in str(error):
                    raise
                raise UsageError(
                    f"truncation={shape.truncation!r} cannot bring these texts to "
                    f"{shape.max_length} tokens ({error}); say 'longest_first'"
                ) from error
        return encodings

    def _configure(self, shape: _Shape) -> None:
        if shape.truncation is None:
            self._engine.no_truncation()
        else:
            self._engine.enable_truncation(
                shape.max_length,
                stride=shape.stride,
                strategy=shape.truncation,
                direction=self.truncation_side,
            )
        if shape.padding is None:
            self._engine.no_padding()
        else:
            self._engine.enable_padding(
                direction=shape.padding_side,
                pad_id=self.pad_token_id,
                pad_type_id=self.pad_token_type_id,
                pad_token=self.pad_token,
                length=shape.max_length if shape.padding == "max_length" else None,
                pad_to_multiple_of=shape.pad_to_multiple_of,
            )

    def encode_sentences(self, texts: list[str]) -> list[list[int]]:
        """The ids of many texts without special tokens: the fast way, for making shards.

        Raises:
            DataError: a text holds a lone surrogate.
        """
        plain = _Shape(None, None, 0, 0, None, "right", False, False)
        return [row.ids for row in self._encode(texts, plain, offsets=False)]

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """The tokens of a text (without [CLS] and [SEP] unless asked)."""
        options = {"add_special_tokens": add_special_tokens, **options}
        return self(text, pair, **options).tokens()

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The input_ids alone; the options are those of a call."""
        return self(text, text_pair, **options)["input_ids"]

    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """The same as a call, by an older name."""
        return self(text, text_pair, **options)

    def batch_encode_plus(self, texts: Any, **options: Any) -> BatchEncoding:
        """The same as a call with a list, by an older name."""
        return self(texts, **options)

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

        Only input_ids, token_type_ids, attention_mask and special_tokens_mask are padded.
        """
        if isinstance(encoded_inputs, (list, tuple)):
            first = encoded_inputs[0] if encoded_inputs else {}
            encoded_inputs = {name: [row[name] for row in encoded_inputs] for name in first}
        columns = {k: _as_list(v) for k, v in encoded_inputs.items()}
        if "input_ids" not in columns:
            raise UsageError(f"pad needs input_ids; it got {list(columns)}")
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

    # Ids to text.

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or a list of ids; [UNK]'s id for what is not in the vocabulary."""
        if isinstance(tokens, str):
            index = self._engine.token_to_id(tokens) if well_formed(tokens) else None
            return self.unk_token_id if index is None else index
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or a list of tokens."""
        ids = _as_list(ids)
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
        ids = _as_list(token_ids)
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

    # Files.

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Self:
        """Open the tokenizer of a model folder, a RUN folder, a vocab.txt or a hub name.

        Padding and truncation stored in a tokenizer.json are ignored: say them in the call.

        Args:
            name_or_path: where it is.
            revision: branch, tag or commit of a hub name.
            token: access token for the hub.
            local_files_only: never ask the hub.
            overrides: do_lower_case, strip_accents, tokenize_chinese_chars, model_max_length,
                padding_side, truncation_side, special tokens; they win over the files.

        Raises:
            CheckpointError: the files are missing, broken, hostile, not BERT's; or the tokenizer
                lower-cases while its vocabulary is cased.
        """
        path = Path(name_or_path)
        if not path.is_file() and not any(
            (path / name).is_file() for name in ("tokenizer.json", "vocab.txt")
        ):
            from bertkit.checkpoint.hub import resolve_model

            path = resolve_model(
                name_or_path, revision=revision, token=token, offline=local_files_only
            )
        self = cls.__new__(cls)
        self._build(read_parts(path, overrides), str(name_or_path))
        return self

    def save_pretrained(self, folder: str | Path) -> tuple[str, ...]:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and vocab.txt.

        Both versions 4 and 5 of transformers read them.

        Returns:
            The paths of the four files.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._engine.no_truncation()
            self._engine.no_padding()
            engine = self._engine.to_str(pretty=True)
        texts = {
            "tokenizer.json": engine,
            "tokenizer_config.json": _dump(self._config()),
            "special_tokens_map.json": _dump(self.special_tokens_map),
            "vocab.txt": "".join(f"{token}\n" for token in self._vocab_lines()),
        }
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
        return tuple(str(folder / name) for name in texts)

    def save_vocabulary(self, folder: str | Path) -> tuple[str]:
        """Write vocab.txt alone."""
        path = Path(folder) / "vocab.txt"
        lines = "".join(f"{token}\n" for token in self._vocab_lines())
        path.write_text(lines, encoding="utf-8", newline="\n")
        return (str(path),)

    def _vocab_lines(self) -> list[str]:
        """The tokens in the order of their ids; a number that no token has gets a filler."""
        tokens = {i: t for t, i in self._engine.get_vocab(with_added_tokens=False).items()}
        return [tokens.get(i, f"[unused-gap-{i}]") for i in range(max(tokens) + 1)]

    def _config(self) -> dict[str, Any]:
        added = self._engine.get_added_tokens_decoder()
        flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        return {
            "added_tokens_decoder": {
                str(i): {name: getattr(token, name) for name in flags}
                for i, token in sorted(added.items())
            },
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "do_basic_tokenize": True,
            "do_lower_case": self.do_lower_case,
            "model_max_length": self.model_max_length,
            "never_split": None,
            "padding_side": self.padding_side,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.tokenize_chinese_chars,
            "tokenizer_class": "BertTokenizer",
            "truncation_side": self.truncation_side,
            **self.special_tokens_map,
        }

    # Copies and other processes: a lock cannot travel, all else can.

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()


BertTokenizerFast = BertTokenizer


def check_case(tokenizer: BertTokenizer) -> None:
    """Refuse a tokenizer that lower-cases its text while its vocabulary is cased.

    More than one word in a hundred with a capital letter makes a vocabulary cased: the uncased
    ones of Google have none, and a user's own few added words do no harm.

    Raises:
        CheckpointError: it lower-cases, and the vocabulary is cased.
    """
    if not tokenizer.do_lower_case:
        return
    special = set(tokenizer.get_added_vocab())
    words = [t for t in tokenizer.get_vocab() if t not in special and t[:1] + t[-1:] != "[]"]
    upper = [word for word in words if word != word.lower()]
    if 100 * len(upper) > len(words):
        example = min(upper, key=lambda word: (len(word), word))
        raise CheckpointError(
            f"{tokenizer.name_or_path}: it lower-cases its text (do_lower_case), but {len(upper)} "
            f"of its {len(words)} words have capitals, such as {example!r}; "
            "set do_lower_case to false"
        )


def _dump(data: object) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _as_batch(text: Any, pair: Any, words: bool) -> tuple[Sequence[Any], bool, bool]:
    """The inputs of the engine; whether a list was given; whether they are pairs."""
    if words:
        batched = bool(
            isinstance(text, (list, tuple)) and text and isinstance(text[0], (list, tuple))
        )
    else:
        batched = isinstance(text, (list, tuple))
    if not batched:
        return ([(text, pair)] if pair else [text]), False, bool(pair)
    if pair is None:
        # A list of pairs. (The engine takes a list of two texts for a pair as well.)
        firsts = [item[0] if item else None for item in text] if words else text
        return text, True, any(isinstance(first, (list, tuple)) for first in firsts)
    if isinstance(pair, str) or len(pair) != len(text):
        raise UsageError(
            f"there are {len(text)} texts, so text_pair must be a list of {len(text)} texts"
        )
    return list(zip(text, pair, strict=True)), True, bool(text)


def _check_window(length: int, stride: int, special: int) -> None:
    """The engine panics, or cuts nothing, where the window has no room."""
    if length < special or length < 1:
        raise UsageError(f"max_length {length} has no room for the {special} special tokens")
    if stride < 0 or (stride and stride >= length - special):
        raise UsageError(
            f"stride {stride} leaves no new token in a window of {length - special} tokens "
            f"(max_length {length} less {special} special tokens)"
        )


def _columns(
    rows: list[Encoding], wanted: dict[str, bool], *, padded: bool, pair: bool
) -> dict[str, list[Any]]:
    """Lists by name; constant ones are made here, which is faster than asking the engine."""
    ids = [row.ids for row in rows]
    data: dict[str, list[Any]] = {"input_ids": ids}
    if wanted["token_type_ids"]:
        data["token_type_ids"] = [r.type_ids for r in rows] if pair else [[0] * len(i) for i in ids]
    if wanted["attention_mask"]:
        data["attention_mask"] = (
            [row.attention_mask for row in rows] if padded else [[1] * len(i) for i in ids]
        )
    if wanted["special_tokens_mask"]:
        data["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
    if wanted["offset_mapping"]:
        data["offset_mapping"] = [row.offsets for row in rows]
    if wanted["length"]:
        data["length"] = [len(i) for i in ids]
    return data


def _as_list(value: Any) -> Any:
    """Tensors and arrays, also inside a list, as lists of ints."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)) and value and hasattr(value[0], "tolist"):
        return [v.tolist() for v in value]
    return value


def _input_error(inputs: Sequence[Any], words: bool) -> Exception:
    """Why the engine refused its inputs."""
    for number, item in enumerate(inputs):
        for text in _leaves(item):
            if not isinstance(text, str):
                return TypeError(f"text {number} is {type(text).__name__}, not a string")
            if not well_formed(text):
                return _surrogate_error(text, number)
    kind = "lists of words" if words else "texts"
    return TypeError(f"a tokenizer takes {kind} or pairs of {kind}")


def _surrogate_error(text: str, number: int) -> DataError:
    at = next(i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff")
    return DataError(
        f"text {number} holds a lone surrogate, U+{ord(text[at]):04X}, at character {at}: "
        "it is broken UTF-16; mend it with text.encode('utf-16', 'surrogatepass')"
        ".decode('utf-16', 'replace')"
    )


def _leaves(item: Any) -> Iterable[Any]:
    if isinstance(item, (list, tuple)):
        for part in item:
            yield from _leaves(part)
    else:
        yield item
