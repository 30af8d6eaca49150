"""Growing a WordPiece vocabulary from word counts: the alphabet, then merges.

The pieces are learned as in byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909), with "##"
before a piece that continues a word: the most frequent pair of neighbours becomes one piece, again
and again. Google never published its own WordPiece trainer; this is what others use in its place.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

from bertkit.text.scripts import SMALL_ALPHABETS, script_of

PREFIX = "##"
# A pair of piece numbers as one int: quicker to hash than a tuple.
SHIFT = 24
LOW = (1 << SHIFT) - 1
# A script with this share of all characters is a language of the corpus, not a stray quotation.
MAJOR_SHARE = 0.005
# How much of each of the corpus's own scripts the alphabet covers, if the size has room for it.
COVERAGE = 0.9995
# However small the vocabulary, this many pieces may be single characters.
SMALLEST = 200


def count_characters(words: Mapping[str, int]) -> Counter[str]:
    """How often each single-character piece occurs: "a" at the start of a word, "##a" inside."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        counts[word[0]] += count
        for char in word[1:]:
            counts[PREFIX + char] += count
    return counts


def choose_alphabet(pieces: Mapping[str, int], room: int, min_frequency: int) -> list[str]:
    """The single-character pieces that a vocabulary of `room` pieces keeps, most frequent first.

    The letters of the text's own scripts come first. Large scripts are covered alike: a character's
    turn comes by how much of its own script the more frequent characters leave uncovered. So a
    text with one Chinese document in twenty keeps the common Chinese characters. Stray characters
    of other scripts are kept where they are seen about as often as the pieces they would displace;
    and merges always keep a share of the room, as large as their use.

    Args:
        pieces: how often each single-character piece occurs.
        room: the number of pieces that the vocabulary can hold.
        min_frequency: characters seen fewer times are left out.
    """
    chars: Counter[str] = Counter()
    for piece, count in pieces.items():
        chars[piece[-1]] += count
    scripts: dict[str, list[str]] = defaultdict(list)
    for char in sorted(chars, key=lambda c: (-chars[c], c)):
        scripts[script_of(char)].append(char)
    total = sum(chars.values())
    words = sum(count for piece, count in pieces.items() if len(piece) == 1)
    # Merges keep up to half of the room: all of it for English, little for Chinese, whose
    # characters are words by themselves.
    inside = sum(count for piece, count in pieces.items() if len(piece) > 1)
    share = 1 - 0.5 * min(1.0, 2 * inside / max(total, 1))
    limit = min(room, max(int(room * share), SMALLEST))
    turns: list[tuple[float, int, str]] = []
    for members in scripts.values():
        whole = sum(chars[char] for char in members)
        major = whole >= MAJOR_SHARE * total
        floor = min_frequency if major else max(min_frequency, words / (20 * room))
        wanted, covered = [], 0
        for char in members:
            if chars[char] < floor or (major and covered >= COVERAGE * whole):
                break
            wanted.append((covered / whole, -chars[char], char))
            covered += chars[char]
        if major and len(wanted) <= max(limit // 8, SMALLEST // 4):
            # An alphabet of letters: without one of them, all words with it would be [UNK].
            wanted = [(-1.0, count, char) for _, count, char in wanted]
        turns += wanted
    chosen: list[str] = []
    for _, _, char in sorted(turns):
        forms = forms_of(char, pieces)
        if len(chosen) + len(forms) <= limit:
            chosen += forms
    return sorted(chosen, key=lambda piece: (-pieces.get(piece, 0), piece))


def forms_of(char: str, pieces: Mapping[str, int]) -> list[str]:
    """The forms ("a", "##a") that a kept character takes.

    Those that were seen; and both for a letter of a small alphabet, which can stand anywhere.
    """
    both = script_of(char) in SMALL_ALPHABETS
    return [form for form in (char, PREFIX + char) if both or form in pieces]


def learn_merges(
    words: Mapping[str, int],
    alphabet: Iterable[str],
    size: int,
    min_frequency: int = 2,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[str], list[int]]:
    """The vocabulary: the alphabet, then a piece for each merge, at most `size` in all.

    Of pairs seen equally often, the one of the earlier pieces goes first, so the answer depends on
    nothing but the counts. A word with a character outside the alphabet is [UNK] whatever its
    pieces, so it has no say.

    Args:
        words: how often each word occurs.
        alphabet: single-character pieces, in the order of the vocabulary.
        size: the hard limit on pieces.
        min_frequency: pairs seen fewer times are not merged.
        progress: told the number of pieces, now and then.

    Returns:
        The pieces, and how often each merged pair (a piece after the alphabet) was seen.
    """
    vocab, seen = list(alphabet)[:size], []
    index = {piece: i for i, piece in enumerate(vocab)}
    spelled, counts = _spell(words, index)
    pairs, where = _count_pairs(spelled, counts)
    heap = [(-count, pair) for pair, count in pairs.items() if count >= min_frequency]
    heapq.heapify(heap)
    while len(vocab) < size and heap:
        count, pair = heapq.heappop(heap)
        if pairs[pair] != -count:  # it has become rarer since; or the entry is a double
            if min_frequency <= pairs[pair] < -count:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        left, right = pair >> SHIFT, pair & LOW
        joined = vocab[left] + vocab[right].removeprefix(PREFIX)
        if joined not in index:  # "abc" comes from "a" + "##bc" as well as from "ab" + "##c"
            index[joined] = len(vocab)
            vocab.append(joined)
            seen.append(-count)
            if progress is not None and len(vocab) % 256 == 0:
                progress(len(vocab))
        for other in _merge(spelled, counts, (left, right, index[joined]), pairs, where):
            if pairs[other] >= min_frequency:
                heapq.heappush(heap, (-pairs[other], other))
    return vocab, seen


def _spell(words: Mapping[str, int], index: Mapping[str, int]) -> tuple[list[list[int]], list[int]]:
    """The words of two characters or more as piece numbers, in an order of their own."""
    spelled, counts = [], []
    for word in sorted(words):
        if len(word) < 2:
            continue
        pieces = [index.get(word[0], -1), *[index.get(PREFIX + char, -1) for char in word[1:]]]
        if min(pieces) >= 0:
            spelled.append(pieces)
            counts.append(words[word])
    return spelled, counts


def _count_pairs(
    spelled: list[list[int]], counts: list[int]
) -> tuple[dict[int, int], dict[int, list[int]]]:
    """How often each pair of neighbours occurs, and in which words."""
    pairs: dict[int, int] = defaultdict(int)
    where: dict[int, list[int]] = defaultdict(list)
    for number, (pieces, count) in enumerate(zip(spelled, counts, strict=True)):
        for left, right in pairwise(pieces):
            pair = left << SHIFT | right
            pairs[pair] += count
            where[pair].append(number)
    return pairs, where


def _merge(
    spelled: list[list[int]],
    counts: list[int],
    merge: tuple[int, int, int],
    pairs: dict[int, int],
    where: dict[int, list[int]],
) -> set[int]:
    """Join left and right in every word that has them side by side, and mend the counts.

    `where` may name a word twice, or one that no longer has the pair: then nothing is found there.

    Returns:
        The pairs that have become more frequent: all have the joined piece in them.
    """
    left, right, joined = merge
    grown: set[int] = set()
    for number in where.pop(left << SHIFT | right):
        pieces, count = spelled[number], counts[number]
        at = 0
        while left in pieces[at:-1]:
            at = pieces.index(left, at)
            if pieces[at + 1] != right:
                at += 1
                continue
            pieces[at : at + 2] = [joined]
            if at > 0:
                before = pieces[at - 1]
                pairs[before << SHIFT | left] -= count
                new = before << SHIFT | joined
                pairs[new] += count
                where[new].append(number)
                grown.add(new)
            at += 1
            if at < len(pieces):
                after = pieces[at]
                pairs[right << SHIFT | after] -= count
                new = joined << SHIFT | after
                pairs[new] += count
                where[new].append(number)
                grown.add(new)
    pairs[left << SHIFT | right] = 0
    return grown
