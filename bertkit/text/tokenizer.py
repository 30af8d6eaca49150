"""BertTokenizer: the call shapes of transformers' fast BERT tokenizer over the Rust engine.

Tokens follow Devlin et al. 2018 (arXiv 1810.04805): BERT's text normaliser, words split at blanks
and punctuation, each word cut greedily into WordPieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Encoding

from bertkit.checkpoint.hub import NO_UPLOAD
from bertkit.errors import UsageError
from bertkit.text.encoding import BatchEncoding, Tensors
from bertkit.text.inputs import (
    Shape,
    as_batch,
    columns_of,
    input_error,
    with_overflow,
)
from bertkit.text.padding import Padding
from bertkit.text.rows import Frame, as_lists, rows_of
from bertkit.text.tokenfiles import read_vocab
from bertkit.text.wordcache import WordCache
from bertkit.text.wordpiece import SPECIAL_NAMES, TokenizerParts, checked_vocab

__all__ = ["BertTokenizer", "BertTokenizerFast"]

# From so many texts on, the word cache is the faster way.
QUICK_BATCH = 16
KEPT_WORDS = 200_000


class BertTokenizer(Padding):
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

    The options of a call:
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
        CheckpointError: the vocabulary cannot be read, lacks a special token, or is cased while
            do_lower_case is set.
    """

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

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
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

        `text` is a text, a list of texts or a list of pairs; with is_split_into_words a list of
        words or a list of such lists. `text_pair` is the second text, or one for each text. As in
        transformers, an empty second text beside one single first text is none. The ids of
        `text_target` become `labels`; given alone, it is encoded as `text` is. The options are
        listed for the class.

        Raises:
            DataError: a text holds a lone surrogate; or no tensor can be made of ragged rows.
            UsageError: the settings contradict each other, or a text cannot be cut as asked.
            TypeError: something is not text.
        """
        shape_of = partial(
            self._shape, padding, truncation, max_length, pad_to_multiple_of, stride=stride,
            side=padding_side, special=add_special_tokens, words=is_split_into_words,
        )  # fmt: skip
        wanted = {
            "token_type_ids": return_token_type_ids is not False,
            "attention_mask": return_attention_mask is not False,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        encode = partial(
            self._encoding, shape_of, wanted, return_overflowing_tokens, return_tensors
        )
        if text_target is None:
            return encode(text, text_pair)
        target = encode(text_target, text_pair_target)
        if text is None:
            return target
        encoded = encode(text, text_pair)
        encoded["labels"] = target["input_ids"]
        return encoded

    def _encoding(
        self,
        shape_of: partial[Shape],
        wanted: dict[str, bool],
        overflow: bool,
        tensors: Tensors | None,
        text: Any,
        text_pair: Any,
    ) -> BatchEncoding:
        """One call's answer; `shape_of` is told whether the texts are pairs."""
        words: bool = shape_of.keywords["words"]
        inputs, batched, pair = as_batch(text, text_pair, words)
        data, rows = self._answer(inputs, shape_of(pair=pair), wanted, pair=pair, overflow=overflow)
        if tensors is None:
            data = as_lists(data)
            if not batched and not overflow:
                data = {k: v[0] if isinstance(v[0], list) else v for k, v in data.items()}
        return BatchEncoding(data, rows, tensors)

    def _answer(
        self,
        inputs: Sequence[Any],
        shape: Shape,
        wanted: dict[str, bool],
        *,
        pair: bool,
        overflow: bool,
    ) -> tuple[dict[str, Any], list[Encoding] | Callable[[], list[Encoding]]]:
        """The columns of a batch by name, and the encodings or how to get them."""
        later = [*inputs]

        def full_rows() -> list[Encoding]:
            return self._encode(later, shape, offsets=True)

        if len(inputs) >= QUICK_BATCH and not overflow:
            quick = self._quick(inputs, shape, wanted, pair)
            if quick is not None:
                return quick, full_rows
        full = wanted["offset_mapping"] or overflow
        rows = self._encode(inputs, shape, offsets=full)
        if overflow:
            rows, owners = with_overflow(rows)
        data = columns_of(rows, wanted, padded=shape.padding is not None, pair=pair)
        if overflow:
            data["overflow_to_sample_mapping"] = owners
        return data, rows if full else full_rows

    def _quick(
        self, inputs: Sequence[Any], shape: Shape, wanted: dict[str, bool], pair: bool
    ) -> dict[str, Any] | None:
        """The columns of a batch by way of the word cache; None where only the engine will do."""
        simple = self._engine_is_ours and not shape.words
        if not simple or shape.truncation not in (None, "longest_first"):
            return None
        if pair and not all(isinstance(i, (list, tuple)) and len(i) == 2 for i in inputs):
            return None
        cut_left = self.truncation_side == "left"
        frame = Frame(*self._template, self.pad_token_id, self.pad_token_type_id, cut_left)
        with self._lock:
            cache = self._word_cache(wanted["offset_mapping"])
            if not cache.exact:
                return None
            sides = list(zip(*inputs, strict=True)) if pair else [inputs]
            texts = [cache.texts(side) for side in sides]
        return rows_of(texts[0], texts[1] if pair else None, shape, frame, wanted)

    def _word_cache(self, offsets: bool) -> WordCache:
        """Made when first needed, and anew when tokens were added."""
        size, known = len(self.added_tokens_decoder), self._caches.get(offsets)
        if known is None or known[0] != size:
            known = size, WordCache(self, KEPT_WORDS, offsets=offsets)
            self._caches[offsets] = known
        return known[1]

    def _encode(self, inputs: Sequence[Any], shape: Shape, offsets: bool) -> list[Encoding]:
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
                raise input_error(inputs, shape.words) from error
            except UnicodeError as error:
                raise input_error(inputs, shape.words) from error
            except Exception as error:
                if "Truncation" not in str(error):
                    raise
                raise UsageError(
                    f"truncation={shape.truncation!r} cannot bring these texts to "
                    f"{shape.max_length} tokens ({error}); say 'longest_first'"
                ) from error
        return encodings

    def _configure(self, shape: Shape) -> None:
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

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """The tokens of a text (without [CLS] and [SEP] unless asked)."""
        # With offsets, so that the encoding that knows its tokens is made at once.
        options |= {"return_offsets_mapping": True, "return_tensors": None}
        options |= {"return_token_type_ids": False, "return_attention_mask": False}
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The input_ids alone; the options are those of a call."""
        return self(text, text_pair, **options)["input_ids"]

    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """The same as a call, by an older name."""
        return self(text, text_pair, **options)

    def batch_encode_plus(self, texts: Any, **options: Any) -> BatchEncoding:
        """The same as a call with a list, by an older name."""
        return self(texts, **options)

    def push_to_hub(self, *_: Any, **__: Any) -> None:
        """Refused: nothing is uploaded from here.

        Raises:
            UsageError: always, with what to do instead.
        """
        raise UsageError(NO_UPLOAD)


BertTokenizerFast = BertTokenizer
