"""TokenTable: the tokens of a BERT tokenizer, their ids, and the files they live in."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Tokenizer

from bertkit.checkpoint.hub import NO_UPLOAD
from bertkit.errors import CheckpointError, DataError, UsageError
from bertkit.text.inputs import input_error
from bertkit.text.tokenfiles import check_case, json_text, read_parts, vocab_text, write_files
from bertkit.text.wordpiece import SPECIAL_NAMES, TokenizerParts, build_engine, well_formed


class TokenTable:
    """What a tokenizer knows without looking at text: tokens to ids, ids to text, files.

    `BertTokenizer` adds the way from text to ids.
    """

    model_input_names: ClassVar = ["input_ids", "token_type_ids", "attention_mask"]
    is_fast = True

    def _build(self, parts: TokenizerParts, where: str, source: str | None = None) -> None:
        self._parts = parts
        self._engine: Tokenizer = build_engine(parts, source or where)
        check_case(parts, source or where)
        # False once the engine was handed out: whoever has it may change it.
        self._engine_is_ours = True
        self._caches: dict[bool, Any] = {}
        # The engine's padding and truncation are its state: one call at a time may set and use it.
        self._lock = threading.RLock()
        added = [token for _, token in sorted(parts.added, key=lambda pair: pair[0])]
        self._extra_special: list[str] = [
            token.content
            for token in [*added, *parts.extra]
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
        # What the engine puts around texts; renaming special tokens later does not change it.
        self._template = (self.cls_token_id, self.sep_token_id)

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
    def engine(self) -> Tokenizer:
        """The Rust tokenizer, to look at; to change it, take `backend_tokenizer`."""
        return self._engine

    @property
    def backend(self) -> Tokenizer:
        """The Rust tokenizer. Its padding and truncation belong to the call in progress."""
        return self.backend_tokenizer

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The Rust tokenizer, by the name that transformers gives it; every call goes there now."""
        self._engine_is_ours = False
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
        return {token.content: i for i, token in sorted(self.added_tokens_decoder.items())}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The special tokens and all other added ones, by their ids."""
        added: dict[int, AddedToken] = self._engine.get_added_tokens_decoder()
        return added

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """The same as `get_added_vocab`."""
        return self.get_added_vocab()

    @property
    def extra_special_tokens(self) -> list[str]:
        """The special tokens beside the five named ones."""
        return list(self._extra_special)

    additional_special_tokens = extra_special_tokens  # the name of transformers 4

    @property
    def max_len_single_sentence(self) -> int:
        """How many tokens of one text fit beside the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """How many tokens of a pair fit beside the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

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
            add = self._engine.add_special_tokens if special_tokens else self._engine.add_tokens
            count: int = add(tokens)
        ids = list(self.get_vocab().values())
        if len(set(ids)) != len(ids):  # the engine counts tokens, and does not look for a free id
            raise UsageError(
                f"{self.name_or_path}: no token can be added: ids are missing in its vocabulary "
                "(a vocab.txt that names a token twice?), and a new token would take a used one"
            )
        if not special_tokens:
            return count
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

    # Text to ids, without special tokens; all else is BertTokenizer's.

    def encode_sentences(self, texts: list[str]) -> list[list[int]]:
        """The ids of many texts without special tokens.

        Raises:
            DataError: a text holds a lone surrogate.
        """
        return [row.ids for row in self._plain_rows(texts, self._engine.encode_batch_fast)]

    def encode_sentences_offsets(
        self, texts: list[str]
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """The ids of many texts without special tokens, and the characters under each.

        Raises:
            DataError: a text holds a lone surrogate.
        """
        rows = self._plain_rows(texts, self._engine.encode_batch)
        return [(row.ids, row.offsets) for row in rows]

    def _plain_rows(self, texts: list[str], encode: Any) -> list[Encoding]:
        with self._lock:
            self._engine.no_truncation()
            self._engine.no_padding()
            try:
                rows: list[Encoding] = encode(texts, add_special_tokens=False)
            except (TypeError, UnicodeError) as error:
                raise input_error(texts, words=False) from error
        return rows

    # Files.

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        **overrides: Any,
    ) -> Self:
        """Open the tokenizer of a model folder, a RUN folder, a vocab.txt or a hub name.

        Padding and truncation stored in a tokenizer.json are ignored: say them in the call.

        Args:
            pretrained_model_name_or_path: where it is.
            revision: branch, tag or commit of a hub name.
            token: access token for the hub.
            local_files_only: never ask the hub.
            cache_dir: the cache of hub models; None: huggingface_hub's own.
            overrides: do_lower_case, strip_accents, tokenize_chinese_chars, model_max_length,
                padding_side, truncation_side, special tokens; they win over the files.

        Raises:
            CheckpointError: the files are missing, broken, hostile, not BERT's; or the tokenizer
                lower-cases while its vocabulary is cased.
        """
        source = pretrained_model_name_or_path
        path = Path(source)
        if not path.is_file() and not any(
            (path / name).is_file() for name in ("tokenizer.json", "vocab.txt")
        ):
            from bertkit.checkpoint.hub import resolve_model

            path = resolve_model(
                source,
                revision=revision,
                token=token,
                offline=local_files_only,
                cache_dir=cache_dir,
            )
        self = cls.__new__(cls)
        parts, file = read_parts(path, overrides)
        self._build(parts, str(source), str(file))
        return self

    def save_pretrained(
        self, save_directory: str | Path, push_to_hub: bool = False
    ) -> tuple[str, ...]:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and vocab.txt.

        Both versions 4 and 5 of transformers read them.

        Returns:
            The paths of the four files.

        Raises:
            UsageError: `push_to_hub` is asked for; nothing is uploaded from here.
        """
        if push_to_hub:
            raise UsageError(NO_UPLOAD)
        with self._lock:
            self._engine.no_truncation()
            self._engine.no_padding()
            engine = self._engine.to_str(pretty=True)
        more = {"additional_special_tokens": self._extra_special} if self._extra_special else {}
        texts = {
            "tokenizer.json": engine,
            "tokenizer_config.json": json_text(self._config()),
            "special_tokens_map.json": json_text({**self.special_tokens_map, **more}),
            "vocab.txt": vocab_text(self._engine),
        }
        return write_files(Path(save_directory), texts)

    def save_vocabulary(
        self, save_directory: str | Path, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write vocab.txt alone."""
        name = f"{filename_prefix}-vocab.txt" if filename_prefix else "vocab.txt"
        return write_files(Path(save_directory), {name: vocab_text(self._engine)})

    def _config(self) -> dict[str, Any]:
        flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        return {
            "added_tokens_decoder": {
                str(i): {name: getattr(token, name) for name in flags}
                for i, token in sorted(self.added_tokens_decoder.items())
            },
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "do_basic_tokenize": True,
            "do_lower_case": self.do_lower_case,
            "extra_special_tokens": self._extra_special,
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
        kept = self.__dict__.items()
        return {name: value for name, value in kept if name not in ("_lock", "_caches")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._caches = {}
