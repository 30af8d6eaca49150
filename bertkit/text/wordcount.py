"""Counting the words of a corpus as BERT cuts them, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from tokenizers import normalizers, pre_tokenizers

from bertkit.errors import DataError
from bertkit.text.wordpiece import well_formed

BLANKS = str.maketrans("\t\n\r", "   ")
# Stretches between blanks that are longer than this are hardly ever seen again (Chinese sentences,
# web addresses): they are cut into words at once and not counted whole.
LONGEST_STRETCH = 24
BATCH = 1 << 18


class WordCounter:
    """Counts of normalised words; those seen least are dropped when there are too many.

    Each distinct stretch between blanks goes through BERT's normaliser once, not each time it
    occurs. This gives the same words, as the normaliser never looks across a blank.

    Args:
        normalizer: BERT's text normaliser.
        max_words: the largest number of distinct words kept in memory (about 130 bytes each).

    Attributes:
        characters: characters read so far.
        pruned_below: words seen fewer times than this have been dropped on the way; 0 is none.
    """

    def __init__(self, normalizer: normalizers.Normalizer, max_words: int = 2_000_000) -> None:
        self.normalizer, self.max_words = normalizer, max_words
        self.splitter = pre_tokenizers.BertPreTokenizer()
        self.characters = 0
        self.pruned_below = 0
        self._words: Counter[str] = Counter()
        self._stretches: Counter[str] = Counter()
        self._long: list[str] = []
        self._long_size = 0

    def add(self, text: str) -> None:
        """Count the words of a text.

        Raises:
            DataError: the text holds a lone surrogate.
        """
        if not well_formed(text):
            raise DataError("the text holds a lone surrogate (broken UTF-16)")
        self.characters += len(text)
        stretches = text.translate(BLANKS).split(" ")
        if max(map(len, stretches)) <= LONGEST_STRETCH:
            self._stretches.update(stretches)
        else:
            self._stretches.update([s for s in stretches if len(s) <= LONGEST_STRETCH])
            for stretch in stretches:
                if len(stretch) > LONGEST_STRETCH:
                    self._long.append(stretch)
                    self._long_size += len(stretch)
        if self._long_size > BATCH:
            self._count_long()
        if len(self._stretches) > self.max_words // 2:
            self._count_stretches()

    def words(self) -> Counter[str]:
        """The counts of all words added so far."""
        self._count_long()
        self._count_stretches()
        return self._words

    def _count_long(self) -> None:
        normal = self.normalizer.normalize_str(" ".join(self._long))
        self._long, self._long_size = [], 0
        self._add_pieces(Counter(normal.split()))

    def _count_stretches(self) -> None:
        pieces: Counter[str] = Counter()
        for stretch, count in self._stretches.items():
            for piece in self.normalizer.normalize_str(stretch).split():
                pieces[piece] += count
        self._stretches = Counter()
        self._add_pieces(pieces)

    def _add_pieces(self, pieces: Mapping[str, int]) -> None:
        """Cut at punctuation, as BERT's pre-tokeniser does; then count."""
        words = self._words
        for piece, count in pieces.items():
            if piece.isalpha():
                words[piece] += count
            else:
                for word, _ in self.splitter.pre_tokenize_str(piece):
                    words[word] += count
        self._prune()

    def _prune(self) -> None:
        while len(self._words) > self.max_words:
            self.pruned_below = max(self.pruned_below + 1, 2)
            kept = {w: c for w, c in self._words.items() if c >= self.pruned_below}
            self._words = Counter(kept)


def count_words(
    texts: Iterable[str],
    normalizer: normalizers.Normalizer,
    max_words: int = 2_000_000,
    progress: Callable[[int], None] | None = None,
) -> WordCounter:
    """Count the words of a stream of texts.

    Args:
        texts: the documents, read once.
        normalizer: BERT's text normaliser.
        max_words: the bound on distinct words in memory.
        progress: told the number of characters read so far, now and then.
    """
    counter = WordCounter(normalizer, max_words)
    told = 0
    for text in texts:
        counter.add(text)
        if progress is not None and counter.characters - told > 1_000_000:
            told = counter.characters
            progress(told)
    counter.words()
    if progress is not None:
        progress(counter.characters)
    return counter
