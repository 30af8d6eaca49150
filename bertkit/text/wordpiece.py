"""What a BERT tokenizer is made of: checked, and built into the Rust engine.

A tokenizer.json is never handed to the Rust library as it came: a hostile one can make it panic.
Its vocabulary, flags and added tokens are checked and the engine is built from them.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from bertkit.errors import CheckpointError

SPECIAL_NAMES = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DEFAULT_SPECIAL = {name: f"[{name[:-6].upper()}]" for name in SPECIAL_NAMES}
# No BERT comes near these; what lies beyond is broken or hostile. (The largest vocabulary known has
# half a million tokens. Searching a word takes the cube of its characters.)
MAX_ID = 2**21
MAX_WORD = 1000
MAX_ADDED_CHARACTERS = 2**20


@dataclass
class TokenizerParts:
    """All that two equal tokenizers have in common; the Rust engine is built from it."""

    vocab: dict[str, int]
    special: dict[str, str] = field(default_factory=lambda: dict(DEFAULT_SPECIAL))
    do_lower_case: bool = True
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True
    clean_text: bool = True
    max_input_chars_per_word: int = 100
    continuing_subword_prefix: str = "##"
    added: list[tuple[int, AddedToken]] = field(default_factory=list)
    extra: list[AddedToken] = field(default_factory=list)  # special too; without an id of their own
    model_max_length: int = 512
    padding_side: str = "right"
    truncation_side: str = "right"
    clean_up_tokenization_spaces: bool = False


def build_engine(parts: TokenizerParts, where: str) -> Tokenizer:
    """Build the Rust tokenizer: BERT's normaliser, pre-tokeniser, WordPiece and template.

    Raises:
        CheckpointError: a special token is not in the vocabulary, or an added token's id is wrong.
    """
    special = parts.special
    if special["unk_token"] not in parts.vocab:
        raise CheckpointError(f"{where}: {_missing(special['unk_token'])}")
    model = WordPiece(
        parts.vocab,
        unk_token=special["unk_token"],
        continuing_subword_prefix=parts.continuing_subword_prefix,
        max_input_chars_per_word=parts.max_input_chars_per_word,
    )
    engine = Tokenizer(model)
    engine.normalizer = build_normalizer(parts)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix=parts.continuing_subword_prefix)
    _add_tokens(engine, parts, where)
    cls_token, sep_token = special["cls_token"], special["sep_token"]
    ids = [(t, engine.token_to_id(t)) for t in dict.fromkeys((cls_token, sep_token))]
    try:
        if cls_token.startswith("$") or sep_token.startswith("$"):
            raise ValueError
        engine.post_processor = processors.TemplateProcessing(
            single=[f"{cls_token}:0", "$A:0", f"{sep_token}:0"],
            pair=[f"{cls_token}:0", "$A:0", f"{sep_token}:0", "$B:1", f"{sep_token}:1"],
            special_tokens=ids,
        )
    except ValueError as error:  # "$" and ":" mean something in a template
        names = f"{reprlib.repr(cls_token)} and {reprlib.repr(sep_token)}"
        raise CheckpointError(f"{where}: {names} cannot be cls_token and sep_token") from error
    return engine


def build_normalizer(parts: TokenizerParts) -> normalizers.Normalizer:
    """BERT's own text normaliser with the flags of `parts`."""
    return normalizers.BertNormalizer(
        clean_text=parts.clean_text,
        handle_chinese_chars=parts.tokenize_chinese_chars,
        strip_accents=parts.strip_accents,
        lowercase=parts.do_lower_case,
    )


def _missing(token: str) -> str:
    return f"the vocabulary has no {reprlib.repr(token)}; is this a BERT vocabulary?"


def _add_tokens(engine: Tokenizer, parts: TokenizerParts, where: str) -> None:
    added = sorted(parts.added, key=lambda pair: pair[0])
    if sum(len(token.content) for _, token in added) > MAX_ADDED_CHARACTERS:
        raise CheckpointError(f"{where}: more added tokens than any tokenizer has")
    engine.add_tokens([token for _, token in added])
    for index, token in added:
        if (place := engine.token_to_id(token.content)) != index:
            raise CheckpointError(
                f"{where}: the added token {reprlib.repr(token.content)} is said to have id "
                f"{index}, but its place is {place}"
            )
    known = {token.content for _, token in added}
    for name, content in parts.special.items():
        if engine.token_to_id(content) is None:
            if name == "mask_token":
                continue  # tokenizers of finished classifiers may lack it; using it is refused
            raise CheckpointError(f"{where}: {_missing(content)}")
        if content not in known:
            engine.add_tokens([AddedToken(content, special=True, normalized=False)])
    engine.add_tokens([token for token in parts.extra if token.content not in known])
    ids = list(engine.get_vocab(with_added_tokens=True).values())
    if len(set(ids)) != len(ids):
        raise CheckpointError(f"{where}: an added token has the id of another token")


def checked_vocab(vocab: object, where: str) -> dict[str, int]:
    """The vocabulary, if it maps well-formed strings to distinct ids of a sane size."""
    if not isinstance(vocab, dict) or not vocab:
        raise CheckpointError(f"{where}: the vocabulary is not a mapping from tokens to ids")
    if len(vocab) > MAX_ID:
        raise CheckpointError(f"{where}: {len(vocab)} tokens; no BERT has so many")
    ids = list(vocab.values())
    if not all(type(i) is int and 0 <= i < MAX_ID for i in ids):
        raise CheckpointError(f"{where}: the vocabulary has ids that are not small integers")
    if len(set(ids)) != len(ids):
        raise CheckpointError(f"{where}: two tokens of the vocabulary share one id")
    if not all(isinstance(token, str) for token in vocab) or not well_formed("".join(vocab)):
        raise CheckpointError(f"{where}: the vocabulary has a token that is not Unicode text")
    return vocab


def well_formed(text: str) -> bool:
    """Whether the text has no lone surrogate, so that UTF-8 can hold it."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
