"""What shards are made from: the text, the tokenizer, the options; and how large they will be."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from bertkit.errors import DataError
from bertkit.text.corpus import CorpusOptions, CorpusReport, Document, read_documents_of
from bertkit.text.tokenizer import BertTokenizer
from bertkit.text.vocab import ScriptCoverage, coverage_report
from bertkit.train.parts import ChunkEncoder, EncodeSettings

FORMAT = 1
# Characters that are read ahead of each of three files.
SAMPLE = 100_000


@dataclass(frozen=True)
class PrepareOptions:
    """How text becomes shards.

    Attributes:
        corpus: how the files are read.
        words: "jieba" to store where Chinese words start, for whole-word masking.
        user_dict: a dictionary for jieba.
        held_out: the share of the documents that goes to the dev split; 0 for none.
        dedup: leave out exact copies of documents.
        workers: processes that tokenize; changes no byte.
        overwrite: replace shards that were made from something else.
    """

    corpus: CorpusOptions = default(default_factory=CorpusOptions)
    words: Literal["none", "jieba"] = "none"
    user_dict: str | None = None
    held_out: float = 0.01
    dedup: bool = False
    workers: int = 1
    overwrite: bool = False


class InputFile(Struct, frozen=True):
    """One file of text as it was read."""

    name: str
    bytes: int
    sha256: str


class Plan(Struct, frozen=True):
    """What shards are made from. Two plans are equal if all but the files' names is."""

    format: int
    inputs: list[InputFile]
    tokenizer: str
    vocab_size: int
    options: dict[str, Any]


def keep_input(files: list[str], work: Path) -> list[tuple[str, Path]]:
    """(name, path) of each file; standard input is first copied, to be hashed and read again."""
    kept = []
    for name in files:
        path = Path(name)
        if name == "-":
            work.mkdir(parents=True, exist_ok=True)
            path = work / "stdin.txt"
            with open(path, "wb") as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy, 1 << 20)
        kept.append((name, path))
    return kept


def make_plan(
    files: Sequence[tuple[str, Path]], tokenizer: BertTokenizer, options: PrepareOptions
) -> Plan:
    """Hash the text, the tokenizer and the options that change bytes."""
    chosen: dict[str, Any] = msgspec.to_builtins(options.corpus)
    chosen |= {"words": options.words, "held_out": options.held_out, "dedup": options.dedup}
    if options.user_dict is not None:
        chosen["user_dict"] = _hash_file(Path(options.user_dict))
    inputs = [InputFile(name, path.stat().st_size, _hash_file(path)) for name, path in files]
    return Plan(FORMAT, inputs, _hash_tokenizer(tokenizer), len(tokenizer), chosen)


def _hash_file(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path) from error


def _hash_tokenizer(tokenizer: BertTokenizer) -> str:
    """Of all that decides which ids a text gets."""
    facts = (
        sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]),
        sorted(tokenizer.get_added_vocab()),
        [tokenizer.do_lower_case, tokenizer.strip_accents, tokenizer.tokenize_chinese_chars],
    )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def encode_settings(
    plan: Plan, tokenizer_dir: str | Path, options: PrepareOptions
) -> EncodeSettings:
    """What the workers need to know."""
    return EncodeSettings(
        str(tokenizer_dir),
        plan.tokenizer,
        options.words,
        options.user_dict,
        plan.options.get("user_dict"),
    )


def differences(old: Plan, new: Plan) -> str:
    """In words, which of the three differ; "" if none does."""
    found = []
    if old.format != new.format:
        found.append(f"another format ({old.format}, not {new.format})")
    if [(f.bytes, f.sha256) for f in old.inputs] != [(f.bytes, f.sha256) for f in new.inputs]:
        before = {f.sha256 for f in old.inputs}
        changed = [f.name for f in new.inputs if f.sha256 not in before]
        found.append(f"other text ({changed[0] if changed else 'fewer or reordered files'})")
    if old.tokenizer != new.tokenizer:
        found.append("another tokenizer")
    names = sorted({*old.options, *new.options})
    pairs = [(n, old.options.get(n), new.options.get(n)) for n in names]
    changes = [f"{n} was {a!r}, now {b!r}" for n, a, b in pairs if a != b]
    if changes:
        found.append(f"other options ({'; '.join(changes)})")
    return ", ".join(found)


class Corpus:
    """All documents of the files in order, with one report."""

    def __init__(self, files: Sequence[tuple[str, Path]], options: CorpusOptions) -> None:
        self.files, self.options, self.report = files, options, CorpusReport()

    def __iter__(self) -> Iterator[Document]:
        for name, path in self.files:
            yield from read_documents_of(str(path), self.options, self.report, name)
        self.report.check()


class Estimate(Struct, frozen=True):
    """From a sample: bytes of text in all files, bytes of shards, and how the tokenizer fares."""

    text: int
    disk: int
    scripts: list[ScriptCoverage]


def estimate(
    files: Sequence[tuple[str, Path]], options: CorpusOptions, encoder: ChunkEncoder
) -> Estimate:
    """Guess from the first documents of a few files how much text there is and what it becomes."""
    text = written = 0
    ratios, paragraphs = [], list[str]()
    for index in sorted({0, len(files) // 2, len(files) - 1}):
        name, path = files[index]
        documents = read_documents_of(str(path), options, CorpusReport(), name)
        sample = list(_first(documents))
        if not sample:
            continue
        paragraphs += (p for d in sample for p in d.paragraphs)
        joined = "\n".join(p for d in sample for p in d.paragraphs).encode()
        part = encoder.encode([d.paragraphs for d in sample])
        text += len(joined)
        written += part.tokens.nbytes + 2 * len(part.lengths) + 2 * len(part.counts)
        written += 0 if part.words is None else len(part.words) // 8
        ratios.append(_text_per_byte(path, options.field, joined))
    raw = sum(path.stat().st_size for _, path in files)
    whole = raw * sum(ratios) / max(1, len(ratios))
    scripts = coverage_report(encoder.tokenizer, paragraphs)
    return Estimate(int(whole), int(whole * written / max(1, text)), scripts)


def _first(documents: Iterator[Document]) -> Iterator[Document]:
    """The first documents of a file, until they are SAMPLE characters or more."""
    held = 0
    for document in documents:
        yield document
        held += sum(map(len, document.paragraphs))
        if held >= SAMPLE:
            return


def _text_per_byte(path: Path, column: str, sample: bytes) -> float:
    """Bytes of text for a byte of the file; a compressed one as zlib does on the sample."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        meta = pq.read_metadata(path)
        size = sum(
            meta.row_group(g).column(c).total_uncompressed_size
            for g in range(meta.num_row_groups)
            for c in range(meta.num_columns)
            if meta.row_group(g).column(c).path_in_schema.split(".")[0] == column
        )
        return float(size / max(1, path.stat().st_size))
    if path.suffix in (".gz", ".bz2", ".xz", ".zst"):
        return len(sample) / len(zlib.compress(sample))
    return 1.0
