"""Words that a model's tokenizer breaks up, found in a corpus and added to its vocabulary.

BERT's normaliser puts blanks around every Han character, so that each is a word by itself before
WordPiece looks at it: an entry of two Han characters could never be matched. For Chinese text this
adds what can be: characters that are missing, and the words of other scripts between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any

from bertkit.errors import CheckpointError, DataError, UsageError
from bertkit.text.scripts import script_of
from bertkit.text.tokenizer import BertTokenizer
from bertkit.text.vocab import LONGEST_WORD, ScriptCoverage
from bertkit.text.wordcount import count_words

# Beside this share of Han characters among the words, the user is told what cannot be added.
MUCH_HAN = 0.01


@dataclass(frozen=True, slots=True)
class NewWord:
    """A word to be added.

    Attributes:
        token: the vocabulary entry; "##x" for a missing character inside words.
        count: how often the word (or a word with the missing character) was seen.
        pieces: what stood for it so far; ("[UNK]",) for a missing character.
        piece_ids: their ids.
    """

    token: str
    count: int
    pieces: tuple[str, ...]
    piece_ids: tuple[int, ...]

    @property
    def saved(self) -> int:
        """Tokens that the corpus needs fewer."""
        return self.count * (len(self.pieces) - 1)


@dataclass(frozen=True, slots=True)
class FoundWords:
    """What a corpus has for a vocabulary.

    Attributes:
        words: the new words and characters, by what they save.
        asked: how many were asked for.
        min_frequency: words seen fewer times were left out.
        characters, total_words, distinct_words, pruned_below: see VocabResult.
        han: words of the corpus that are Han characters.
        splits_han: the tokenizer makes every Han character a word.
    """

    words: list[NewWord]
    asked: int
    min_frequency: int
    characters: int
    total_words: int
    distinct_words: int
    pruned_below: int
    han: int
    splits_han: bool

    @property
    def notes(self) -> list[str]:
        """What a user should be told, one line each."""
        notes = []
        if len(self.words) < self.asked:
            notes.append(
                f"{len(self.words)} words, fewer than the {self.asked} asked: the corpus has no "
                f"more that are broken up and were seen {self.min_frequency} times or more"
            )
        if self.han > MUCH_HAN * self.total_words and self.splits_han:
            notes.append(
                "this tokenizer makes every Han character a word by itself, as BERT does: Chinese "
                "words of several characters cannot be added, only missing characters and words "
                "of other scripts"
            )
        if self.pruned_below:
            notes.append(
                f"words seen fewer than {self.pruned_below} times were dropped while counting, "
                "to bound memory"
            )
        return notes


@dataclass(frozen=True, slots=True)
class ExtendReport:
    """What `vocab --extend` did.

    Attributes:
        folder: the new model folder.
        vocab_size: words of the new model.
        found: the words, and what the corpus was.
        before, after: how held-out text fares with the old tokenizer and the new; "all" is last.
    """

    folder: Path
    vocab_size: int
    found: FoundWords
    before: list[ScriptCoverage]
    after: list[ScriptCoverage]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        found = {k: v for k, v in asdict(self.found).items() if k != "words"}
        words = [{**asdict(word), "saved": word.saved} for word in self.found.words]
        both = {
            name: [
                {**asdict(row), "unk_rate": row.unk_rate, "tokens_per_word": row.tokens_per_word}
                for row in rows
            ]
            for name, rows in (("before", self.before), ("after", self.after))
        }
        size = {"folder": str(self.folder), "vocab_size": self.vocab_size}
        return {**size, "added": words, **found, "notes": self.found.notes, **both}


def find_words(
    texts: Iterable[str],
    tokenizer: BertTokenizer,
    add: int,
    *,
    min_frequency: int = 5,
    max_words: int = 2_000_000,
    progress: Callable[[int], None] | None = None,
) -> FoundWords:
    """The words of a corpus whose addition to a vocabulary saves the most tokens.

    A word saves count x (pieces - 1) tokens; each is chosen with those before it in place, so that
    after "cytokine" the word "cytokines" counts for no more than it still saves. A character that
    the vocabulary lacks is worth a token for each word that it makes [UNK]. Numbers are left out.

    Args:
        texts: paragraphs or documents, read once, in bounded memory.
        tokenizer: the model's.
        add: how many words at most.
        min_frequency: leave out what is seen fewer times.
        max_words: the bound on distinct words in memory.
        progress: told the characters read so far.

    Raises:
        DataError: the texts have no words, or one holds a lone surrogate.
        UsageError: `add` or `min_frequency` is below 1.
    """
    if add < 1 or min_frequency < 1:
        raise UsageError(f"add is {add}, min_frequency {min_frequency}; say 1 or more")
    normalizer = tokenizer.backend.normalizer
    assert normalizer is not None
    counter = count_words(texts, normalizer, max_words, progress)
    words = counter.words()
    if not words:
        raise DataError("there are no words in the text: nothing to add")
    han = sum(n for word, n in words.items() if script_of(word[0]) == "Han")
    total, distinct = sum(words.values()), len(words)
    return FoundWords(
        words=_Chooser(tokenizer, words, min_frequency).choose(add),
        asked=add,
        min_frequency=min_frequency,
        characters=counter.characters,
        total_words=total,
        distinct_words=distinct,
        pruned_below=counter.pruned_below,
        han=han,
        splits_han=tokenizer.tokenize_chinese_chars,
    )


def cut(word: str, vocab: Mapping[str, Any], prefix: str = "##") -> list[str] | None:
    """WordPiece's greedy cut, longest piece first; None where a piece is missing.

    The same as the Rust model's; needed because that cannot gain a word without being rebuilt.
    """
    pieces = []
    start = 0
    while start < len(word):
        head = prefix if start else ""
        for end in range(len(word), start, -1):
            if (piece := head + word[start:end]) in vocab:
                break
        else:
            return None
        pieces.append(piece)
        start = end
    return pieces


class _Chooser:
    """Chooses words and characters one by one; the vocabulary grows with each."""

    def __init__(
        self, tokenizer: BertTokenizer, words: Mapping[str, int], min_frequency: int
    ) -> None:
        self.old = tokenizer.get_vocab()
        self.unk = tokenizer.unk_token
        self.prefix = tokenizer.backend.model.continuing_subword_prefix
        special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        self.words = {w: n for w, n in words.items() if len(w) <= LONGEST_WORD and w not in special}
        self.least = min_frequency
        self.vocab: dict[str, tuple[str, ...]] = {token: (token,) for token in self.old}
        self.missing = self._missing_characters()
        self.done: set[str] = set()

    def choose(self, add: int) -> list[NewWord]:
        """At most `add` words and characters: those that are worth most, in this order."""
        # Words are cut as if no character were missing: what is not chosen has no score of its own.
        self.vocab |= {piece: self._stand_in(piece) for piece in self.missing}
        heap = [(-score, token) for token in self._candidates() if (score := self._score(token))]
        heapify(heap)
        picked: list[NewWord] = []
        while len(picked) < add and heap:
            score, token = heappop(heap)
            now = self._score(token)
            if now < -score:  # an earlier choice stands for a part of it by now
                if now > 0:
                    heappush(heap, (-now, token))
                continue
            picked.append(self._chosen(token))
        return picked

    def _chosen(self, token: str) -> NewWord:
        """Put it in the vocabulary."""
        self.done.add(token)
        if token in self.missing:
            return self._new(token, self._seen(self.missing[token]), self.vocab[token])
        made_of = cut(token, self.vocab, self.prefix)
        assert made_of is not None
        old = tuple(part for piece in made_of for part in self.vocab[piece])
        self.vocab[token] = old
        return self._new(token, self.words[token], self._old_pieces(token, old))

    def _old_pieces(self, word: str, through_new: tuple[str, ...]) -> tuple[str, ...]:
        """The old tokenizer's own pieces; with a character missing, those of the rest."""
        own = cut(word, self.old, self.prefix)
        return through_new if own is None else tuple(own)

    def _new(self, token: str, count: int, pieces: tuple[str, ...]) -> NewWord:
        return NewWord(token, count, pieces, tuple(self.old[piece] for piece in pieces))

    def _missing_characters(self) -> dict[str, list[str]]:
        """Single characters that no piece stands for, and the words that they make [UNK]."""
        found: dict[str, list[str]] = defaultdict(list)
        for word in self.words:
            if cut(word, self.old, self.prefix) is not None:
                continue
            pieces = [word[0], *(self.prefix + char for char in word[1:])]
            for piece in {p for p in pieces if p not in self.old}:
                found[piece].append(word)
        return {piece: words for piece, words in found.items() if self._seen(words) >= self.least}

    def _seen(self, words: Iterable[str]) -> int:
        return sum(self.words[word] for word in words)

    def _stand_in(self, piece: str) -> tuple[str, ...]:
        """For "##x" the "x" of the vocabulary, or the other way round; else [UNK]."""
        inside = piece.startswith(self.prefix)
        other = piece.removeprefix(self.prefix) if inside else self.prefix + piece
        return (other if other in self.old else self.unk,)

    def _score(self, token: str) -> int:
        """The tokens that it saves: of a word all pieces but one, of a character each [UNK]."""
        if token in self.missing:
            left = self._seen(word for word in self.missing[token] if word not in self.done)
            return left if left >= self.least else 0
        pieces = cut(token, self.vocab, self.prefix)
        return 0 if pieces is None else self.words[token] * (len(pieces) - 1)

    def _candidates(self) -> Iterator[str]:
        yield from self.missing
        for word, count in self.words.items():
            number = all(script_of(char) == "Digits" for char in word)
            if count >= self.least and not number and word not in self.missing:
                yield word


def extend_tokenizer(tokenizer: BertTokenizer, tokens: Sequence[str]) -> BertTokenizer:
    """The tokenizer with more vocabulary entries; the ids of all others stay.

    New entries are WordPiece's own, not "added tokens": the normaliser and the pre-tokeniser treat
    them as any word, and they are matched only where a word begins ("##x": inside one).

    Args:
        tokenizer: any BERT tokenizer.
        tokens: the new entries; the first gets the lowest free id.

    Raises:
        UsageError: one of them is in the vocabulary already.
        CheckpointError: see BertTokenizer.
    """
    vocab = tokenizer.get_vocab()  # added tokens too: in the vocabulary they keep their ids
    start = max(vocab.values()) + 1
    if known := [token for token in tokens if token in vocab]:
        raise UsageError(f"{known[0]!r} is in the vocabulary already")
    grown = vocab | {token: start + i for i, token in enumerate(dict.fromkeys(tokens))}
    added = sorted(tokenizer.backend.get_added_tokens_decoder().items())
    parts = replace(
        tokenizer._parts,
        vocab=grown,
        added=added,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
    )
    made = BertTokenizer.__new__(BertTokenizer)
    made._build(parts, tokenizer.name_or_path)
    return made


def check_saved(tokenizer: BertTokenizer, folder: Path, texts: Sequence[str]) -> None:
    """Open a tokenizer that was saved and compare ids.

    Raises:
        CheckpointError: it gives other ids than before.
    """
    again = BertTokenizer.from_pretrained(folder)
    same = again.get_vocab() == tokenizer.get_vocab()
    if not same or (
        texts and again(list(texts))["input_ids"] != tokenizer(list(texts))["input_ids"]
    ):
        raise CheckpointError(f"{folder}: the tokenizer gives other ids when it is opened again")


def pairs_by_script(
    before: Sequence[ScriptCoverage], after: Sequence[ScriptCoverage]
) -> list[tuple[ScriptCoverage, ScriptCoverage]]:
    """The rows of two coverage reports of one text, side by side."""
    rows: dict[str, list[ScriptCoverage]] = defaultdict(list)
    for row in (*before, *after):
        rows[row.script].append(row)
    return [(a, b) for a, b in rows.values()]
