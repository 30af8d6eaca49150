"""Learning a WordPiece vocabulary from text, and saying how well it covers text.

The trainer of the Rust library is not used: it overshoots the size asked where the alphabet is
large (9,886 pieces for 8,192 asked on Chinese), and two runs of it differ.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from bertkit.errors import CheckpointError, DataError, UsageError
from bertkit.text.merges import choose_alphabet, count_characters, learn_merges
from bertkit.text.scripts import script_of
from bertkit.text.tokenizer import BertTokenizer
from bertkit.text.wordcount import count_words
from bertkit.text.wordpiece import TokenizerParts, build_normalizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# A word that becomes [UNK] is worth as much as this many words that become one piece longer.
UNK_WEIGHT = 10
# Beyond this a word is [UNK] to WordPiece, whatever its pieces.
LONGEST_WORD = 100
# Characters of the corpus that its coverage is measured on where nothing is held out.
STAND_IN = 50_000
Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class VocabOptions:
    """What kind of vocabulary to learn.

    Attributes:
        size: the hard limit on tokens, the five special ones counted.
        cased: keep capitals (and accents, unless strip_accents).
        strip_accents: drop accents; None does so when not cased, as BERT.
        tokenize_chinese_chars: make every Han character a word by itself.
        min_frequency: characters and pairs seen fewer times are left out.
        max_words: the bound on distinct words in memory.

    Raises:
        UsageError: the size leaves no room beside the special tokens, or a word is never too rare.
    """

    size: int = 30522
    cased: bool = False
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True
    min_frequency: int = 2
    max_words: int = 2_000_000

    def __post_init__(self) -> None:
        if self.size <= len(SPECIAL_TOKENS):
            raise UsageError(f"size {self.size} has no room beside the 5 special tokens")
        if self.min_frequency < 1:
            raise UsageError(f"min_frequency is {self.min_frequency}; say 1 or more")


@dataclass(frozen=True, slots=True)
class VocabResult:
    """A vocabulary and what it was learned from.

    Attributes:
        vocab: the tokens in the order of their ids, [PAD] [UNK] [CLS] [SEP] [MASK] first.
        size_asked: the limit; len(vocab) is smaller only when the corpus has no more.
        characters: characters read.
        words: words counted.
        distinct_words: different words kept.
        alphabet: single-character pieces in the vocabulary.
        pruned_below: words seen fewer times than this were dropped to bound memory; 0 is none.
    """

    vocab: list[str]
    size_asked: int
    characters: int
    words: int
    distinct_words: int
    alphabet: int
    pruned_below: int

    @property
    def notes(self) -> list[str]:
        """What a user should be told, one line each."""
        notes = []
        if len(self.vocab) < self.size_asked:
            notes.append(
                f"{len(self.vocab):,} tokens, fewer than the {self.size_asked:,} asked: "
                "the corpus has no more that were seen often enough (--min-frequency)"
            )
        if self.pruned_below:
            notes.append(
                f"words seen fewer than {self.pruned_below} times were dropped while counting, "
                "to bound memory"
            )
        return notes


@dataclass(frozen=True, slots=True)
class ScriptCoverage:
    """How a tokenizer fares with the words of one script.

    Attributes:
        script: Latin, Han, Kana, Cyrillic, Digits, Punctuation ...; "all" is the sum.
        characters: characters in its words.
        words: its words (a word belongs to the script of its first character).
        unk_words: words that become [UNK].
        tokens: tokens that its words become.
        unk_examples: the most frequent [UNK] words, up to five.
    """

    script: str
    characters: int
    words: int
    unk_words: int
    tokens: int
    unk_examples: tuple[str, ...] = ()

    @property
    def unk_rate(self) -> float:
        """The share of words that become [UNK]."""
        return self.unk_words / max(1, self.words)

    @property
    def tokens_per_word(self) -> float:
        """How many tokens a word becomes."""
        return self.tokens / max(1, self.words)


@dataclass(frozen=True, slots=True)
class VocabReport:
    """What `build_tokenizer` made: where, from what, and how well it covers text.

    `held_out` tells whether that text was kept from learning; if not, it is the corpus's own.
    """

    folder: Path
    result: VocabResult
    coverage: list[ScriptCoverage] = field(default_factory=list)
    held_out: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values (without the vocabulary itself)."""
        result = {k: v for k, v in asdict(self.result).items() if k != "vocab"}
        rows = [
            {**asdict(row), "unk_rate": row.unk_rate, "tokens_per_word": row.tokens_per_word}
            for row in self.coverage
        ]
        size = len(self.result.vocab)
        notes = self.result.notes
        folder = str(self.folder)
        about = {"folder": folder, "size": size, **result, "notes": notes}
        return {**about, "held_out": self.held_out, "coverage": rows}


def train_vocab(
    texts: Iterable[str], options: VocabOptions | None = None, *, progress: Progress | None = None
) -> VocabResult:
    """Learn a WordPiece vocabulary from a stream of texts, in bounded memory.

    The answer depends on the texts and the options alone, not on the hash seed or on threads.

    Args:
        texts: documents or lines, read once.
        options: the size and the kind.
        progress: told ("characters", so far) while counting, then ("tokens", so far).

    Raises:
        DataError: the texts have no words, or one holds a lone surrogate.
    """
    options = options or VocabOptions()
    counter = count_words(
        texts,
        build_normalizer(_parts({}, options)),
        options.max_words,
        progress and (lambda n: progress("characters", n)),
    )
    words = counter.words()
    total, distinct = sum(words.values()), len(words)
    for token in [w for w in words if len(w) > LONGEST_WORD or w in SPECIAL_TOKENS]:
        del words[token]
    if not words:
        raise DataError("there are no words in the text: nothing to learn a vocabulary from")
    pieces = learn_pieces(
        words,
        options.size - len(SPECIAL_TOKENS),
        options.min_frequency,
        progress and (lambda n: progress("tokens", n)),
    )
    return VocabResult(
        vocab=[*SPECIAL_TOKENS, *pieces],
        size_asked=options.size,
        characters=counter.characters,
        words=total,
        distinct_words=distinct,
        alphabet=sum(len(piece.removeprefix("##")) == 1 for piece in pieces),
        pruned_below=counter.pruned_below,
    )


def learn_pieces(
    words: Mapping[str, int],
    room: int,
    min_frequency: int,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """At most `room` pieces: an alphabet, merges, and rare characters worth more than the last."""
    characters = count_characters(words)
    alphabet = choose_alphabet(characters, room, min_frequency)
    pieces, seen = learn_merges(words, alphabet, room, min_frequency, progress)
    often = {p: n for p, n in characters.items() if n >= min_frequency}
    spare = sorted(often.keys() - set(pieces), key=lambda p: (-characters[p], p))
    if len(pieces) < room and spare:
        # A small corpus: there is room for rarer characters, and for the words they are in.
        alphabet += spare[: room - len(pieces)]
        spare = spare[room - len(pieces) :]
        pieces, seen = learn_merges(words, alphabet, room, min_frequency, progress)
    for piece in spare:
        if len(pieces) >= room:
            if not seen or seen[-1] > UNK_WEIGHT * characters[piece]:
                break
            pieces.pop()
            seen.pop()
        pieces.insert(len(alphabet), piece)
    return pieces


def _parts(vocab: dict[str, int], options: VocabOptions) -> TokenizerParts:
    return TokenizerParts(
        vocab,
        do_lower_case=not options.cased,
        strip_accents=options.strip_accents,
        tokenize_chinese_chars=options.tokenize_chinese_chars,
    )


def save_vocab(
    vocab: list[str],
    folder: str | Path,
    options: VocabOptions | None = None,
    samples: Iterable[str] = (),
) -> BertTokenizer:
    """Write the tokenizer files of a vocabulary, open them again, and compare.

    Args:
        vocab: the tokens in the order of their ids.
        folder: where to; it is made.
        options: cased, strip_accents, tokenize_chinese_chars.
        samples: texts whose ids before and after must be the same.

    Returns:
        The tokenizer as reloaded from the folder.

    Raises:
        CheckpointError: what was reloaded differs from what was saved.
    """
    options = options or VocabOptions()
    tokenizer = BertTokenizer(
        vocab,
        do_lower_case=not options.cased,
        strip_accents=options.strip_accents,
        tokenize_chinese_chars=options.tokenize_chinese_chars,
    )
    tokenizer.save_pretrained(folder)
    texts = [*samples, " ".join(vocab[:2000]), "Ünïcode, 中文 and [MASK] stay the same."]
    again = BertTokenizer.from_pretrained(folder)
    plain = BertTokenizer.from_pretrained(
        Path(folder) / "vocab.txt",
        do_lower_case=not options.cased,
        strip_accents=options.strip_accents,
        tokenize_chinese_chars=options.tokenize_chinese_chars,
    )
    for other, name in ((again, "tokenizer.json"), (plain, "vocab.txt")):
        same = other.get_vocab() == tokenizer.get_vocab()
        if not same or other(texts)["input_ids"] != tokenizer(texts)["input_ids"]:
            raise CheckpointError(f"{folder}: reloaded from {name}, it gives other ids than before")
    return again


def coverage_report(
    tokenizer: BertTokenizer, texts: Iterable[str], max_words: int = 2_000_000
) -> list[ScriptCoverage]:
    """How a tokenizer fares with text, script by script, most words first; "all" is the last row.

    Args:
        tokenizer: any BERT tokenizer.
        texts: text that it was not learned from.
        max_words: the bound on distinct words in memory.
    """
    normalizer, model = tokenizer.backend.normalizer, tokenizer.backend.model
    assert normalizer is not None
    words = count_words(texts, normalizer, max_words).words()
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    unknown: dict[str, Counter[str]] = defaultdict(Counter)
    for word, count in words.items():
        pieces = model.tokenize(word)
        unk = len(pieces) == 1 and pieces[0].value == tokenizer.unk_token
        unk = unk and word != tokenizer.unk_token
        script = script_of(word[0])
        for name in (script, "all"):
            row = sums[name]
            for i, amount in enumerate((len(word), 1, int(unk), len(pieces))):
                row[i] += amount * count
        if unk:
            unknown[script][word] += count
    order = sorted(sums, key=lambda name: (name == "all", -sums[name][1], name))
    return [_coverage(name, sums[name], unknown[name]) for name in order]


def _coverage(script: str, sums: list[int], unknown: Counter[str]) -> ScriptCoverage:
    characters, words, unk_words, tokens = sums
    examples = sorted(unknown, key=lambda word: (-unknown[word], word))[:5]
    return ScriptCoverage(script, characters, words, unk_words, tokens, tuple(examples))


def build_tokenizer(
    texts: Iterable[str],
    heldout_texts: Iterable[str],
    out: str | Path,
    options: VocabOptions | None = None,
    *,
    progress: Progress | None = None,
) -> VocabReport:
    """Learn a vocabulary, save and verify the tokenizer, and measure it on held-out text.

    Args:
        texts: the text to learn from, read once, to its end, before heldout_texts is read. (So
            the caller may set documents aside for the held-out share while this runs.)
        heldout_texts: text not learned from; if there is none, the first of `texts` stand in.
        out: the folder to write.
        options: the size and the kind of vocabulary.
        progress: see `train_vocab`.

    Raises:
        DataError: the texts have no words.
        CheckpointError: the saved tokenizer does not reload as it was.
    """
    options = options or VocabOptions()
    learned_from, ahead, held = iter(texts), list[str](), 0
    while held < STAND_IN and (text := next(learned_from, None)) is not None:
        ahead.append(text)
        held += len(text)
    result = train_vocab(chain(ahead, learned_from), options, progress=progress)
    heldout = iter(heldout_texts)
    samples = list(islice(heldout, 100))
    tokenizer = save_vocab(result.vocab, out, options, samples or ahead[:100])
    measured = chain(samples, heldout) if samples else ahead
    coverage = coverage_report(tokenizer, measured, options.max_words)
    return VocabReport(Path(out), result, coverage, bool(samples))
