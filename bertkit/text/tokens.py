"""TokenTable: the tokens of a BERT tokenizer, their ids, and the files they live in."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from bertkit.errors import CheckpointError, DataError, UsageError
from bertkit.text.inputs import as_list
from bertkit.text.wordpiece import (
    SPECIAL_NAMES,
    TokenizerParts,
    build_engine,
    read_parts,
    well_formed,
)

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


class TokenTable:
    """What a tokenizer knows without looking at text: tokens to ids, ids to text, files.

    `BertTokenizer` adds the way from text to ids.
    """

    model_input_names = ("input_ids", "token_type_ids", "attention_mask")
    is_fast = True

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

    # Ids to text.

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


def check_case(tokenizer: TokenTable) -> None:
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
