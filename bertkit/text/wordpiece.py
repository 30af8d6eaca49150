"""What a BERT tokenizer is made of: read from a folder, checked, and built into the Rust engine.

A tokenizer.json is never handed to the Rust library as it came: a hostile one can make it panic.
Its vocabulary, flags and added tokens are checked here and the engine is built from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from bertkit.errors import CheckpointError

SPECIAL_NAMES = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DEFAULT_SPECIAL = {name: f"[{name[:-6].upper()}]" for name in SPECIAL_NAMES}
# No BERT comes near these; a file beyond them is broken or hostile.
MAX_ID = 2**24
MAX_FILE_BYTES = 2**28
# A model_max_length above this means "not set" (transformers writes 1e30).
UNSET_LENGTH = 10**9


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
        raise CheckpointError(
            f"{where}: the vocabulary has no {special['unk_token']}; is this a BERT vocabulary?"
        )
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
    engine.post_processor = processors.TemplateProcessing(
        single=[f"{cls_token}:0", "$A:0", f"{sep_token}:0"],
        pair=[f"{cls_token}:0", "$A:0", f"{sep_token}:0", "$B:1", f"{sep_token}:1"],
        special_tokens=[(t, engine.token_to_id(t)) for t in dict.fromkeys((cls_token, sep_token))],
    )
    return engine


def build_normalizer(parts: TokenizerParts) -> normalizers.Normalizer:
    """BERT's own text normaliser with the flags of `parts`."""
    return normalizers.BertNormalizer(
        clean_text=parts.clean_text,
        handle_chinese_chars=parts.tokenize_chinese_chars,
        strip_accents=parts.strip_accents,
        lowercase=parts.do_lower_case,
    )


def _add_tokens(engine: Tokenizer, parts: TokenizerParts, where: str) -> None:
    for index, token in sorted(parts.added, key=lambda pair: pair[0]):
        engine.add_tokens([token])
        if engine.token_to_id(token.content) != index:
            raise CheckpointError(
                f"{where}: the added token {token.content!r} is said to have id {index}, "
                f"but its place is {engine.token_to_id(token.content)}"
            )
    for name, content in parts.special.items():
        if engine.token_to_id(content) is None:
            if name == "mask_token":
                continue  # tokenizers of finished classifiers may lack it; using it is refused
            raise CheckpointError(
                f"{where}: the vocabulary has no {content}; is this a BERT vocabulary?"
            )
        if content not in {token.content for _, token in parts.added}:
            engine.add_tokens([AddedToken(content, special=True, normalized=False)])


def read_parts(path: Path, overrides: Mapping[str, Any]) -> TokenizerParts:
    """Read a folder (tokenizer.json, else vocab.txt, with tokenizer_config.json) or one such file.

    Args:
        path: a folder, a vocab.txt or a tokenizer.json.
        overrides: flags that the caller sets himself, such as do_lower_case; they win.

    Raises:
        CheckpointError: a file is missing, broken, hostile, or not a BERT tokenizer.
    """
    folder = path if path.is_dir() else path.parent
    source = _vocabulary_file(path)
    config = read_json(folder / "tokenizer_config.json") if path.is_dir() else {}
    special_map = read_json(folder / "special_tokens_map.json") if path.is_dir() else {}
    if source.suffix == ".json":
        parts = _parts_of_json(read_json(source), source)
    else:
        parts = TokenizerParts(read_vocab(source))
    _apply_special(parts, {**special_map, **config, **overrides}, folder)
    _apply_flags(parts, config, folder)
    parts.model_max_length = _max_length(config, folder)
    _apply_flags(parts, overrides, folder)
    return parts


def _vocabulary_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in ("tokenizer.json", "vocab.txt"):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path}: there is no tokenizer here (no tokenizer.json, no vocab.txt)")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} where there is no such file."""
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path}: larger than any tokenizer file; it is not read")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, not a {type(data).__name__}")
    return data


def read_vocab(path: Path) -> dict[str, int]:
    """A vocab.txt: one token a line, its id the line's number from 0.

    A token that occurs twice keeps its last id, as in transformers.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path}: larger than any vocabulary; it is not read")
        with path.open(encoding="utf-8-sig") as lines:
            return {line.rstrip("\n"): i for i, line in enumerate(lines)}
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text ({error})") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def checked_vocab(vocab: object, where: str) -> dict[str, int]:
    """The vocabulary, if it maps well-formed strings to distinct ids of a sane size."""
    if not isinstance(vocab, dict) or not vocab:
        raise CheckpointError(f"{where}: the vocabulary is not a mapping from tokens to ids")
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


def _parts_of_json(data: dict[str, Any], path: Path) -> TokenizerParts:
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "WordPiece") != "WordPiece":
        kind = model.get("type") if isinstance(model, dict) else None
        raise CheckpointError(f"{path}: its model is {kind}, not BERT's WordPiece")
    parts = TokenizerParts(checked_vocab(model.get("vocab"), str(path)))
    limit = model.get("max_input_chars_per_word", 100)
    prefix = model.get("continuing_subword_prefix", "##")
    unk = model.get("unk_token", "[UNK]")
    if type(limit) is not int or not 0 < limit < MAX_ID:
        raise CheckpointError(f"{path}: max_input_chars_per_word is {limit!r}")
    if not (isinstance(prefix, str) and isinstance(unk, str) and well_formed(prefix + unk)):
        raise CheckpointError(f"{path}: unk_token or continuing_subword_prefix is not text")
    parts.max_input_chars_per_word, parts.continuing_subword_prefix = limit, prefix
    parts.special["unk_token"] = unk
    _read_normalizer(parts, data.get("normalizer"), path)
    for name, known in (
        ("pre_tokenizer", {"BertPreTokenizer"}),
        ("post_processor", {"TemplateProcessing", "BertProcessing"}),
    ):
        kind = _kind(data.get(name))
        if kind not in known | {None}:
            raise CheckpointError(f"{path}: its {name} is {kind}; BERT's is {sorted(known)[0]}")
    added = data.get("added_tokens") or []
    if not isinstance(added, list):
        raise CheckpointError(f"{path}: added_tokens is not a list")
    parts.added = [_added_token(entry, path) for entry in added]
    return parts


def _kind(part: object) -> object:
    """The type of a normalizer or pre-tokenizer; a Sequence of one is that one."""
    part = _only(part)
    return part.get("type") if isinstance(part, dict) else part


def _only(part: object) -> object:
    for name in ("normalizers", "pretokenizers", "processors"):
        members = part.get(name) if isinstance(part, dict) else None
        if isinstance(members, list) and len(members) == 1:
            return members[0]
    return part


def _read_normalizer(parts: TokenizerParts, normalizer: object, path: Path) -> None:
    if _kind(normalizer) != "BertNormalizer":
        raise CheckpointError(
            f"{path}: its normalizer is {_kind(normalizer)}; only BertNormalizer is read"
        )
    flags = _only(normalizer)
    assert isinstance(flags, dict)
    names = {
        "clean_text": "clean_text",
        "handle_chinese_chars": "tokenize_chinese_chars",
        "strip_accents": "strip_accents",
        "lowercase": "do_lower_case",
    }
    for theirs, ours in names.items():
        if theirs in flags:
            setattr(parts, ours, _flag(flags[theirs], theirs, path))


def _flag(value: object, name: str, where: Path) -> bool | None:
    if value is None and name == "strip_accents":
        return None
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: {name} is {value!r}, not true or false")
    return value


def _added_token(entry: object, path: Path) -> tuple[int, AddedToken]:
    if not isinstance(entry, dict):
        raise CheckpointError(f"{path}: an added token is {entry!r}")
    content, index = entry.get("content"), entry.get("id")
    flags = {k: entry.get(k, False) for k in ("single_word", "lstrip", "rstrip", "special")}
    flags["normalized"] = entry.get("normalized", not flags["special"])
    good = isinstance(content, str) and content and well_formed(content)
    if not good or type(index) is not int or not all(isinstance(f, bool) for f in flags.values()):
        raise CheckpointError(f"{path}: an added token is {entry!r}")
    return index, AddedToken(content, **flags)


def _apply_special(parts: TokenizerParts, names: Mapping[str, Any], where: Path) -> None:
    for name in SPECIAL_NAMES:
        token = names.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if content is None:
            continue
        if not isinstance(content, str) or not content or not well_formed(content):
            raise CheckpointError(f"{where}: {name} is {content!r}")
        parts.special[name] = content


def _apply_flags(parts: TokenizerParts, flags: Mapping[str, Any], where: Path) -> None:
    for name in (
        "do_lower_case",
        "strip_accents",
        "tokenize_chinese_chars",
        "clean_up_tokenization_spaces",
    ):
        # A null in a file written by an old tool means "not said".
        if name in flags and (flags[name] is not None or name == "strip_accents"):
            setattr(parts, name, _flag(flags[name], name, where))
    for name in ("padding_side", "truncation_side"):
        if flags.get(name) is not None:
            if flags[name] not in ("left", "right"):
                raise CheckpointError(f"{where}: {name} is {flags[name]!r}; say left or right")
            setattr(parts, name, flags[name])
    if isinstance(flags.get("model_max_length"), int):
        parts.model_max_length = flags["model_max_length"]


def _max_length(config: Mapping[str, Any], folder: Path) -> int:
    """What the tokenizer was saved with, else what the model beside it can take, else 512."""
    said = config.get("model_max_length")
    if isinstance(said, int) and 0 < said < UNSET_LENGTH:
        return said
    model = read_json(folder / "config.json").get("max_position_embeddings")
    return model if isinstance(model, int) and 0 < model < UNSET_LENGTH else 512
