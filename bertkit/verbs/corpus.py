"""`bertkit vocab` and `bertkit prepare`: from plain text to a vocabulary and to token shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zlib import crc32

from cyclopts import Parameter

from bertkit.errors import UsageError
from bertkit.verbs.options import Common, Report, Switch

if TYPE_CHECKING:
    from bertkit.text.corpus import CorpusOptions, CorpusReport
    from bertkit.text.vocab import ScriptCoverage, VocabReport
    from bertkit.train.prepare import PrepareEvent, PrepareReport

# One paragraph in so many is kept from the vocabulary, to measure its coverage on; at most so many
# characters of them are held in memory.
HELD_OUT_EVERY, HELD_OUT_CHARACTERS = 100, 2_000_000
# A domain's corpus is often small: more of it is kept where a vocabulary is only extended.
HELD_OUT_EVERY_EXTENDING = 20
SIZE, MIN_FREQUENCY = 30522, 2
# What `prepare` warns of: this share of [UNK]; Chinese without its words, from this share on.
MUCH_UNKNOWN, MUCH_HAN = 0.05, 0.3
ADD, MIN_FREQUENCY_EXTENDING = 1000, 5


def _no_flags(_: object, names: list[str]) -> None:
    """Of names that begin with a hyphen, - alone is a source; cyclopts lets all of them through."""
    for name in names:
        if name.startswith("-") and name != "-":
            raise UsageError(f"unknown option: {name}")


Corpus = Annotated[
    list[str],
    Parameter(
        allow_leading_hyphen=True,
        validator=_no_flags,
        help="Files (.txt .jsonl .csv .tsv .parquet; .gz .bz2 .xz .zst), folders, globs; - is "
        "standard input.",
    ),
]


@Parameter(name="*", group="Reading the corpus")
@dataclass(kw_only=True)
class ReadingOptions:
    """How the files of a corpus are read."""

    field: Annotated[str, Parameter(help="The field or column that holds the text.")] = "text"
    documents: Annotated[
        Literal["auto", "line", "file"],
        Parameter(help="Where documents end in plain text: at blank lines, lines, or files."),
    ] = "auto"
    skip_bad_rows: Annotated[
        bool, Switch, Parameter(help="Count bad rows and go on, instead of stopping at the first.")
    ] = False
    encoding: Annotated[str, Parameter(help="Encoding of text files.")] = "utf-8"
    max_line_chars: Annotated[int, Parameter(help="A longer line is a bad row.")] = 1_000_000

    def for_reader(self) -> CorpusOptions:
        """The same, as the corpus reader takes it."""
        from bertkit.text.corpus import CorpusOptions

        return CorpusOptions(**{f.name: getattr(self, f.name) for f in fields(self)})


@Parameter(name="*")
@dataclass(kw_only=True)
class VocabFlags:
    """What kind of vocabulary to learn, and where to put it."""

    out: Annotated[Path, Parameter(help="The folder for the tokenizer's files.")]
    size: Annotated[
        int | None,
        Parameter(help=f"Tokens at most, the five special ones counted; {SIZE} by default."),
    ] = None
    cased: Annotated[bool, Switch, Parameter(help="Keep capitals and accents.")] = False
    strip_accents: Annotated[
        bool | None,
        Parameter(
            help="Drop accents; by default exactly when not cased.", negative="--keep_accents"
        ),
    ] = None
    chinese_words: Annotated[
        bool,
        Switch,
        Parameter(help="Let a token hold several Chinese characters, unlike BERT's own."),
    ] = False
    min_frequency: Annotated[
        int | None,
        Parameter(
            help=f"Leave out what is seen fewer times; {MIN_FREQUENCY} by default, "
            f"{MIN_FREQUENCY_EXTENDING} with --extend."
        ),
    ] = None
    extend: Annotated[
        str | None,
        Parameter(help="Learn no new vocabulary: add to this model's the words it breaks up."),
    ] = None
    add: Annotated[
        int | None, Parameter(help=f"With --extend: words to add at most; {ADD} by default.")
    ] = None
    overwrite: Annotated[
        bool, Switch, Parameter(help="Replace the tokenizer or model that is there.")
    ] = False

    def shaping(self) -> list[str]:
        """The flags given that shape a new vocabulary."""
        given = {
            "--size": self.size is not None,
            "--cased": self.cased,
            "--strip_accents": self.strip_accents is not None,
            "--chinese_words": self.chinese_words,
        }
        return [flag for flag, is_given in given.items() if is_given]


def vocab(
    corpus: Corpus,
    /,
    *,
    options: VocabFlags,
    reading: ReadingOptions | None = None,
    common: Common | None = None,
) -> None:
    """Learn a WordPiece vocabulary from a corpus, and report how it covers held-out text.

    With --extend, add the corpus's frequent words to the vocabulary of a model, and to the model.
    """
    common, reading = common or Common(), reading or ReadingOptions()
    if options.extend is not None:
        return _extend(corpus, options.extend, options, reading, common)
    if options.add is not None:
        raise UsageError("--add goes with --extend MODEL; the size of a new vocabulary is --size")
    from bertkit.text.corpus import CorpusReport
    from bertkit.text.sources import apart_from, expand_sources
    from bertkit.text.vocab import VocabOptions, build_tokenizer

    chosen = VocabOptions(
        size=_or(options.size, SIZE),
        cased=options.cased,
        strip_accents=options.strip_accents,
        tokenize_chinese_chars=not options.chinese_words,
        min_frequency=_or(options.min_frequency, MIN_FREQUENCY),
    )
    read, held_out = CorpusReport(), list[str]()
    texts = _learned_from(expand_sources(corpus), reading.for_reader(), read, held_out)
    apart_from(corpus, options.out)
    if options.out.is_file():
        raise UsageError(f"--out {options.out} is a file; name a folder")
    if (options.out / "tokenizer.json").exists() and not options.overwrite:
        raise UsageError(f"{options.out} holds a tokenizer already; say --overwrite to replace it")
    with common.progress("counting", "characters") as count:
        with common.progress("learning", "tokens") as learn:

            def progress(unit: str, done: int) -> None:
                if unit == "tokens":
                    learn(done, chosen.size)
                else:
                    count(done, 0)

            report = build_tokenizer(texts, held_out, options.out, chosen, progress=progress)
    _say_what_was_read(common, read)
    common.show({**report.to_dict(), "skipped": dict(read.skipped)}, _coverage(report))


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _extend(
    corpus: list[str], model: str, options: VocabFlags, reading: ReadingOptions, common: Common
) -> None:
    from bertkit.text.corpus import CorpusReport
    from bertkit.text.sources import apart_from, expand_sources
    from bertkit.verbs.grow import check_extend, extend, extension

    read, held_out = CorpusReport(), list[str]()
    files, options_of_reader = expand_sources(corpus), reading.for_reader()
    check_extend(model, apart_from(corpus, options.out), options.overwrite, options.shaping())
    report = extend(
        model,
        _learned_from(files, options_of_reader, read, held_out, HELD_OUT_EVERY_EXTENDING),
        held_out,
        options.out,
        add=_or(options.add, ADD),
        min_frequency=_or(options.min_frequency, MIN_FREQUENCY_EXTENDING),
        common=common,
    )
    _say_what_was_read(common, read)
    common.show({**report.to_dict(), "skipped": dict(read.skipped)}, extension(report))


def _learned_from(
    corpus: list[str],
    options: CorpusOptions,
    report: CorpusReport,
    held_out: list[str],
    every: int = HELD_OUT_EVERY,
) -> Iterator[str]:
    """The paragraphs to learn from; the others go to `held_out`, equal ones to the same side."""
    from bertkit.text.corpus import read_documents

    room = HELD_OUT_CHARACTERS
    for document in read_documents(corpus, options, report):
        for text in document.paragraphs:
            if room > 0 and crc32(text.encode()) % every == 0:
                held_out.append(text)
                room -= len(text)
            else:
                yield text
    report.check()


def _coverage(report: VocabReport) -> str:
    """A line for the vocabulary, a line for each script of the held-out text."""
    result = report.result
    lines = [
        f"{report.folder}: {len(result.vocab):,} tokens, {result.alphabet:,} of them characters, "
        f"from {result.words:,} words",
        *result.notes,
        *([] if report.held_out else ["no paragraph was held out: this is text it learned from"]),
        f"{'held out' if report.held_out else 'corpus':<14}{'words':>12}{'[UNK]':>10}"
        f"{'tokens a word':>15}",
    ]
    lines += [
        f"{row.script:<14}{row.words:>12,}{row.unk_rate:>10.3%}{row.tokens_per_word:>15.2f}"
        + (f"   {' '.join(row.unk_examples)}" if row.unk_examples else "")
        for row in report.coverage
    ]
    return "\n".join(lines)


def _say_what_was_read(common: Common, read: CorpusReport | PrepareReport) -> None:
    common.say(f"read {read.documents:,} documents, {read.characters:,} characters")
    for reason, count in sorted(read.skipped.items()):
        common.say(f"skipped {count:,}: {reason}")
    for line in read.first_bad:
        common.say(f"  {line}")


@Parameter(name="*")
@dataclass(kw_only=True)
class PrepareFlags:
    """How text becomes shards, and where they go."""

    tokenizer: Annotated[Path, Parameter(help="A folder with a tokenizer, as vocab makes it.")]
    out: Annotated[Path, Parameter(help="The folder for the shards.")]
    workers: Annotated[int, Parameter(help="Processes; changes no byte of the result.")] = 1
    words: Annotated[
        Literal["none", "jieba"],
        Parameter(help="jieba: note where Chinese words start, for whole-word masking."),
    ] = "none"
    user_dict: Annotated[str | None, Parameter(help="A dictionary for jieba.")] = None
    held_out: Annotated[
        float, Parameter(help="Share of the documents kept from training, for evaluation.")
    ] = 0.01
    dedup: Annotated[bool, Switch, Parameter(help="Leave out exact copies of documents.")] = False
    overwrite: Annotated[
        bool, Switch, Parameter(help="Replace shards that were made from something else.")
    ] = False
    show: Annotated[int, Parameter(help="Print so many examples as training will see them.")] = 0
    masking: Annotated[
        Literal["token", "word", "span"] | None,
        Parameter(help="With --show: what is masked, as pretrain --masking; token by default."),
    ] = None


def prepare(
    corpus: Corpus,
    /,
    *,
    options: PrepareFlags,
    reading: ReadingOptions | None = None,
    common: Common | None = None,
) -> None:
    """Turn a corpus into token shards, once; interrupted and run again, it continues."""
    common, reading = common or Common(), reading or ReadingOptions()
    if options.show < 0:
        raise UsageError(f"--show {options.show}: say how many examples, 1 or more")
    if options.masking is not None and not options.show:
        raise UsageError(
            "--masking goes with --show N here; training is told by pretrain --masking"
        )
    from bertkit.train.prepare import PrepareOptions, prepare

    chosen = PrepareOptions(
        corpus=reading.for_reader(),
        words=options.words,
        user_dict=options.user_dict,
        held_out=options.held_out,
        dedup=options.dedup,
        workers=options.workers,
        overwrite=options.overwrite,
    )
    try:
        with common.progress("preparing", "bytes") as report:
            result = prepare(
                corpus, options.tokenizer, options.out, chosen, lambda e: _tell(common, report, e)
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to continue") from None
    _say_what_was_read(common, result)
    notes = _notes(result, options.words)
    data: dict[str, Any] = {"out": str(options.out), **_plain(result), "notes": notes}
    text = "\n".join([_shards(options.out, result), *notes])
    if options.show:
        from bertkit.verbs.samples import show_samples

        masking = options.masking or "token"
        samples = show_samples(options.out, options.show, common.seed or 0, masking)
        data["samples"] = samples.to_dict()
        text += "\n\n" + samples.text()
    common.show(data, text)


def _tell(common: Common, report: Report, event: PrepareEvent) -> None:
    if event.stage == "size":
        common.say(f"about {_size(event.done)} will be written; {_size(event.total)} are free")
        if event.scripts and event.scripts[-1].unk_rate > MUCH_UNKNOWN:
            common.say(_unknown(f"{event.scripts[-1].unk_rate:.1%} of a sample", event.scripts))
    elif event.stage == "encode":
        report(event.done, event.total)


def _size(count: int) -> str:
    """Bytes, for people."""
    for unit, worth in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= worth:
            return f"{count / worth:,.1f} {unit}"
    return f"{count} bytes"


def _unknown(share: str, scripts: list[ScriptCoverage]) -> str:
    """A warning that names the scripts that most of the [UNK] are of."""
    most = MUCH_UNKNOWN * sum(row.unk_words for row in scripts[:-1])
    named = [
        f"{row.unk_rate:.1%} of {row.script}: {' '.join(row.unk_examples)}"
        for row in sorted(scripts[:-1], key=lambda row: -row.unk_words)
        if row.unk_words > most
    ]
    return (
        f"warning: {share} is [UNK] ({'; '.join(named)}): this tokenizer does not know the "
        "script; learn one from this text (bertkit vocab), or name another --tokenizer"
    )


def _notes(report: PrepareReport, words: str) -> list[str]:
    """What will be felt in training, one line each."""
    notes = []
    unknown = report.unknown_tokens / max(1, report.train.tokens + report.dev.tokens)
    if unknown > MUCH_UNKNOWN:
        notes.append(_unknown(f"{unknown:.1%} of the tokens", report.scripts))
    counts = {row.script: row.words for row in report.scripts}
    if words == "none" and counts.get("Han", 0) > MUCH_HAN * counts.get("all", 0):
        notes.append(
            "note: much of the text is Chinese, and --words is none: whole-word masking will not "
            "know Chinese words; if you want it, prepare with --words jieba"
        )
    apart = "in plain text, blank lines, --documents line or --documents file set documents apart"
    if report.documents - report.cut == 1:
        notes.append(
            "note: all of the text is one document, so the random segments B of next-sentence "
            f"prediction come from it too; {apart} (or train with --objective mlm)"
        )
    elif report.dev.documents == 1:
        notes.append(
            "note: the held-out text is of one document, so the random segments B of evaluation "
            f"come from it too; more documents help; {apart}"
        )
    return notes


def _plain(report: PrepareReport) -> dict[str, Any]:
    import msgspec

    values: dict[str, Any] = msgspec.to_builtins(report)
    return values


def _shards(out: Path, report: PrepareReport) -> str:
    tokens = report.train.tokens + report.dev.tokens
    lines = [
        f"{'':<10}{'documents':>12}{'sentences':>12}{'tokens':>15}",
        *(
            f"{name:<10}{split.documents:>12,}{split.sentences:>12,}{split.tokens:>15,}"
            for name, split in (("train", report.train), ("held out", report.dev))
        ),
        f"[UNK] {report.unknown_tokens / max(1, tokens):.3%} of the tokens; "
        f"{report.duplicates:,} duplicate documents; "
        f"{report.single_sentence_documents:,} documents of one sentence",
        f"{out}: {_size(report.bytes_on_disk)}, {report.bytes_per_token:.2f} bytes a token",
    ]
    return "\n".join(lines)
