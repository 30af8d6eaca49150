"""Next-sentence pairs from a user's own sentences, and a pair as the model reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bertkit.data.examples import choose_elsewhere, truncate_pairs
from bertkit.data.order import hash_u64
from bertkit.errors import UsageError


def sentence_pairs(
    sentences: Sequence[str] | Sequence[Sequence[str]], seed: int = 0
) -> list[tuple[str, str, bool]]:
    """Next-sentence examples from text: every sentence that has a next is A once.

    Half of the B's are the next sentence, half are random; a random B never reads like the next.

    Args:
        sentences: the sentences of one document (a random B is any other sentence of it), or a
            list of documents (a random B comes from another one).
        seed: other seeds choose otherwise.

    Returns:
        (sentence_a, sentence_b, is_next) in the order of the text. `is_next` is true where B
        follows A, which is class 0 of BERT's next-sentence head.

    Source: Devlin et al. 2018, section 3.1.
    """
    documents = [[s] if isinstance(s, str) else list(s) for s in sentences]
    if sentences and isinstance(sentences[0], str):
        documents = [[s for d in documents for s in d]]
    documents = [d for d in documents if d]
    flat = [s for d in documents for s in d]
    bounds = np.cumsum([0] + [len(d) for d in documents])
    own = np.repeat(np.arange(len(documents)), np.diff(bounds))
    first = np.setdiff1d(np.arange(len(flat)), bounds[1:] - 1)
    keys = hash_u64(seed, first)
    random = np.zeros(len(first), dtype=np.bool_)
    random[np.argsort(keys, kind="stable")[: len(first) // 2]] = True
    chosen = first + 1
    # The same words may stand elsewhere too: such a B is drawn again, and after 20 draws given up.
    open_ = np.nonzero(random)[0]
    for attempt in range(20):
        if len(open_) == 0:
            break
        a = first[open_]
        b, _ = choose_elsewhere(bounds, own[a], a, a + 2, hash_u64(keys[open_], attempt))
        good = np.array(
            [k >= 0 and flat[k] != flat[i + 1] for i, k in zip(a, b, strict=True)], bool
        )
        chosen[open_[good]] = b[good]
        open_ = open_[~good]
    random[open_] = False
    return [
        (flat[i], flat[k], not r) for i, k, r in zip(first, chosen, random.tolist(), strict=True)
    ]


def build_pair(
    ids_a: Sequence[int],
    ids_b: Sequence[int],
    max_length: int,
    cls_id: int,
    sep_id: int,
    seed: int | None = None,
) -> tuple[list[int], list[int], list[int]]:
    """[CLS] A [SEP] B [SEP], or [CLS] A [SEP] where B is empty.

    Args:
        ids_a: token ids of A without special tokens.
        ids_b: likewise of B; may be empty.
        max_length: a longer pair is cut, the longer segment first.
        cls_id: the id of [CLS].
        sep_id: the id of [SEP].
        seed: given, tokens go off the front or the back by a coin as in BERT's pretraining; else
            off the back.

    Returns:
        input ids, token type ids (0 up to the first [SEP], then 1), attention mask (all 1).

    Raises:
        UsageError: max_length has no room for any text.
    """
    room = max_length - 2 - (len(ids_b) > 0)
    if room < 1 + (len(ids_b) > 0):
        raise UsageError(f"max_length={max_length} has no room beside the special tokens")
    sizes = np.array([len(ids_a)]), np.array([len(ids_b)])
    cut = truncate_pairs(*sizes, room, hash_u64(seed or 0, np.zeros(1, dtype=np.int64)))
    a_front, a_size, b_front, b_size = (int(c[0]) for c in cut)
    if seed is None:
        a_front = b_front = 0
    a = [cls_id, *ids_a[a_front : a_front + a_size], sep_id]
    b = [*ids_b[b_front : b_front + b_size], sep_id] if len(ids_b) else []
    return a + b, [0] * len(a) + [1] * len(b), [1] * (len(a) + len(b))
