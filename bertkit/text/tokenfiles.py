"""The files of a tokenizer: read without trust, and written so that all versions can read them.

Read are a vocab.txt alone, what transformers 3 and 4 wrote (tokenizer.json or vocab.txt,
tokenizer_config.json, special_tokens_map.json, added_tokens.json) and what version 5 writes.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from bertkit.checkpoint.files import json_kind, refuse_stand_in
from bertkit.errors import CheckpointError
from bertkit.text.wordpiece import (
    MAX_ID,
    MAX_WORD,
    SPECIAL_NAMES,
    TokenizerParts,
    checked_vocab,
    well_formed,
)

# A model_max_length above this means "not set" (transformers writes 1e30).
UNSET_LENGTH = 10**9
# JSON takes up to thirty times its size in memory; more brackets than this are no tokenizer's.
_MAX_FILE_BYTES = 2**26
_MAX_BRACKETS = 2**22
_EXTRA = ("extra_special_tokens", "additional_special_tokens")


def read_parts(path: Path, overrides: Mapping[str, Any]) -> tuple[TokenizerParts, Path]:
    """Read a folder (tokenizer.json, else vocab.txt, with tokenizer_config.json) or one such file.

    Args:
        path: a folder, a vocab.txt or a tokenizer.json.
        overrides: flags that the caller sets himself, such as do_lower_case; they win.

    Returns:
        The parts, and the file that the vocabulary is from.

    Raises:
        CheckpointError: a file is missing, broken, hostile, or not a BERT tokenizer.
    """
    source = _vocabulary_file(path)
    if source.suffix == ".json":
        parts = _parts_of_json(read_json(source), source)
    else:
        parts = TokenizerParts(checked_vocab(read_vocab(source), str(source)))
    said = "the arguments of from_pretrained"
    if not path.is_dir():
        _apply_special(parts, overrides, said)
        _apply_flags(parts, overrides, said)
        return parts, source
    config_path, map_path = path / "tokenizer_config.json", path / "special_tokens_map.json"
    config, special_map = read_json(config_path), read_json(map_path)
    _add_from_config(parts, config, config_path)
    if not config.get("added_tokens_decoder") and source.suffix != ".json":
        _add_from_legacy(parts, path / "added_tokens.json", {**special_map, **config})
    for names, where in ((special_map, map_path), (config, config_path), (overrides, said)):
        _apply_special(parts, names, str(where))
    _apply_flags(parts, config, str(config_path))
    parts.model_max_length = _max_length(config, path / "config.json")
    _apply_flags(parts, overrides, said)
    return parts, source


def _vocabulary_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in ("tokenizer.json", "vocab.txt"):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path}: there is no tokenizer here (no tokenizer.json, no vocab.txt)")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} where there is no such file.

    Raises:
        CheckpointError: it cannot be read, is too large or too deep, or not a JSON object.
    """
    if not path.is_file():
        return {}
    raw = _read(path)
    if raw.count(b"[") + raw.count(b"{") > _MAX_BRACKETS:
        raise CheckpointError(f"{path}: more brackets than any tokenizer file; it is not read")
    try:
        data = json.loads(raw)
    except RecursionError as error:
        raise CheckpointError(f"{path}: not JSON (nested too deeply)") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, not {json_kind(data)}")
    return data


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(raw) > _MAX_FILE_BYTES:
        raise CheckpointError(f"{path}: larger than any tokenizer file; it is not read")
    refuse_stand_in(path, raw[:512])
    return raw


def read_vocab(path: Path) -> dict[str, int]:
    """A vocab.txt: one token a line, its id the line's number from 0.

    A token that occurs twice keeps its last id, as in transformers.

    Raises:
        CheckpointError: it cannot be read, is too large, or not UTF-8.
    """
    raw = _read(path)
    lines = raw.count(b"\n") + raw.count(b"\r")
    if lines > 2 * MAX_ID:
        raise CheckpointError(f"{path}: {lines} lines; no BERT has so many tokens")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise CheckpointError(f"{path}:{line}: not UTF-8 text ({error})") from error
    tokens = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not tokens[-1]:
        tokens.pop()
    return {token: i for i, token in enumerate(tokens)}


def _parts_of_json(data: dict[str, Any], path: Path) -> TokenizerParts:
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "WordPiece") != "WordPiece":
        kind = reprlib.repr(model.get("type") if isinstance(model, dict) else model)
        raise CheckpointError(f"{path}: its model is {kind}, not BERT's WordPiece")
    parts = TokenizerParts(checked_vocab(model.get("vocab"), str(path)))
    limit = model.get("max_input_chars_per_word", 100)
    prefix = model.get("continuing_subword_prefix", "##")
    unk = model.get("unk_token", "[UNK]")
    if type(limit) is not int or not 0 < limit <= MAX_WORD:
        raise CheckpointError(f"{path}: max_input_chars_per_word is {reprlib.repr(limit)}")
    if not (isinstance(prefix, str) and isinstance(unk, str) and well_formed(prefix + unk)):
        raise CheckpointError(f"{path}: unk_token or continuing_subword_prefix is not text")
    parts.max_input_chars_per_word, parts.continuing_subword_prefix = limit, prefix
    parts.special["unk_token"] = unk
    _read_normalizer(parts, data.get("normalizer"), path)
    for name, known in (
        ("pre_tokenizer", ["BertPreTokenizer"]),
        ("post_processor", ["TemplateProcessing", "BertProcessing"]),
    ):
        found = _kind(data.get(name))
        if found is not None and found not in known:
            said = reprlib.repr(found)
            raise CheckpointError(f"{path}: its {name} is {said}; BERT's is {known[0]}")
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
    flags = _only(normalizer)
    if not isinstance(flags, dict) or flags.get("type") != "BertNormalizer":
        said = reprlib.repr(_kind(normalizer))
        raise CheckpointError(f"{path}: its normalizer is {said}; only BertNormalizer is read")
    names = {
        "clean_text": "clean_text",
        "handle_chinese_chars": "tokenize_chinese_chars",
        "strip_accents": "strip_accents",
        "lowercase": "do_lower_case",
    }
    for theirs, ours in names.items():
        if theirs in flags:
            setattr(parts, ours, _flag(flags[theirs], theirs, str(path)))


def _flag(value: object, name: str, where: str) -> bool | None:
    if value is None and name == "strip_accents":
        return None
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: {name} is {reprlib.repr(value)}, not true or false")
    return value


def _added_token(entry: object, path: Path, index: object = None) -> tuple[int, AddedToken]:
    """An added token as the files write it; its id stands inside, or is the key before it."""
    if not isinstance(entry, dict):
        raise CheckpointError(f"{path}: an added token is {reprlib.repr(entry)}")
    content, index = entry.get("content"), entry.get("id") if index is None else index
    flags = {k: entry.get(k, False) for k in ("single_word", "lstrip", "rstrip", "special")}
    flags["normalized"] = entry.get("normalized", not flags["special"])
    good = isinstance(content, str) and content and well_formed(content)
    if not good or type(index) is not int or not all(isinstance(f, bool) for f in flags.values()):
        raise CheckpointError(f"{path}: an added token is {reprlib.repr(entry)}")
    return index, AddedToken(content, **flags)


def _add_from_config(parts: TokenizerParts, config: Mapping[str, Any], path: Path) -> None:
    """The added tokens of a tokenizer_config.json, if tokenizer.json has not named them already."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise CheckpointError(f"{path}: added_tokens_decoder is {reprlib.repr(decoder)}")
    known = {token.content for _, token in parts.added}
    for key, entry in decoder.items():
        index = int(key) if key.isascii() and key.isdigit() and len(key) < 9 else key
        number, token = _added_token(entry, path, index)
        if token.content not in known:
            parts.added.append((number, token))


def _add_from_legacy(parts: TokenizerParts, path: Path, names: Mapping[str, Any]) -> None:
    """The tokens of an added_tokens.json, as transformers wrote beside vocab.txt until 2023."""
    special = {_content(names.get(name)) for name in SPECIAL_NAMES}
    for name in _EXTRA:
        values = names.get(name)
        special |= {_content(value) for value in values} if isinstance(values, list) else set()
    for content, index in read_json(path).items():
        flags = {"content": content, "special": content in special}
        parts.added.append(_added_token(flags, path, index))


def _content(token: object) -> object:
    """The text of a special token, which files hold as a string or as an object."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _apply_special(parts: TokenizerParts, names: Mapping[str, Any], where: str) -> None:
    """Take over the names of the special tokens, and more of them."""
    for name in SPECIAL_NAMES:
        token = names.get(name)
        if token is not None:
            parts.special[name] = _special(parts, token, name, where).content
    for name in _EXTRA:
        more = names.get(name) or []
        more = list(more.values()) if isinstance(more, dict) else more
        if not isinstance(more, (list, tuple)):
            raise CheckpointError(f"{where}: {name} is {reprlib.repr(more)}, not a list")
        known = {token.content for token in parts.extra}
        new = [_special(parts, token, name, where) for token in more]
        parts.extra += [token for token in new if token.content not in known]


def _special(parts: TokenizerParts, token: object, name: str, where: str) -> AddedToken:
    """One special token; an object's flags are kept if the token has none yet."""
    entry = token if isinstance(token, dict) else {"content": _text_of(token)}
    try:
        entry = {"normalized": False, **entry, "special": True}
        _, added = _added_token(entry, Path(where), 0)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {name} is {reprlib.repr(token)}") from error
    index = parts.vocab.get(added.content)
    if isinstance(token, dict) and index is not None:
        if all(known.content != added.content for _, known in parts.added):
            parts.added.append((index, added))
    return added


def _text_of(token: object) -> object:
    return token.content if isinstance(token, AddedToken) else token


def _apply_flags(parts: TokenizerParts, flags: Mapping[str, Any], where: str) -> None:
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
                said = reprlib.repr(flags[name])
                raise CheckpointError(f"{where}: {name} is {said}; say left or right")
            setattr(parts, name, flags[name])
    if isinstance(flags.get("model_max_length"), int):
        parts.model_max_length = flags["model_max_length"]


def _max_length(config: Mapping[str, Any], beside: Path) -> int:
    """What the tokenizer was saved with, else what the model beside it can take, else 512."""
    said = config.get("model_max_length")
    if type(said) is int and 0 < said < UNSET_LENGTH:
        return said
    model = read_json(beside).get("max_position_embeddings")
    return model if type(model) is int and 0 < model < UNSET_LENGTH else 512


def check_case(parts: TokenizerParts, where: str) -> None:
    """Refuse a tokenizer that lower-cases its text while its vocabulary is cased.

    More than one word in a hundred with a capital letter makes a vocabulary cased: the uncased
    ones of Google have none, and a user's own few added words do no harm.

    Raises:
        CheckpointError: it lower-cases, and the vocabulary is cased.
    """
    if not parts.do_lower_case:
        return
    special = {token.content for _, token in parts.added} | set(parts.special.values())
    words = [t for t in parts.vocab if t not in special and t[:1] + t[-1:] != "[]"]
    upper = [word for word in words if word != word.lower()]
    if 100 * len(upper) > len(words):
        example = min(upper, key=lambda word: (len(word), word))
        raise CheckpointError(
            f"{where}: it lower-cases its text (do_lower_case), but {len(upper)} of its "
            f"{len(words)} words have capitals, such as {reprlib.repr(example)}; "
            "set do_lower_case to false"
        )


def write_files(folder: Path, texts: Mapping[str, str]) -> tuple[str, ...]:
    """Write text files by name; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return tuple(str(folder / name) for name in texts)


def vocab_text(engine: Tokenizer) -> str:
    """A vocab.txt: the tokens in the order of their ids.

    A number that no token has gets a filler; so does a token with a line end inside, which only
    tokenizer.json can hold.
    """
    tokens = {i: t for t, i in engine.get_vocab(with_added_tokens=False).items()}
    lines = [tokens.get(i, "\n") for i in range(max(tokens) + 1)]
    fillers = [f"[unused-gap-{i}]" if {"\n", "\r"} & {*t} else t for i, t in enumerate(lines)]
    return "".join(f"{line}\n" for line in fillers)


def json_text(data: object) -> str:
    """An object as an indented JSON file."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
