from typing import Any, Literal

import numpy as np
import pytest
import tokenizers
import torch
from numpy.typing import NDArray

from bertkit.data.masking import MaskRules, choose_and_replace, mask_tokens
from bertkit.data.order import hash_u64
from bertkit.errors import UsageError

V = 1000
MASK = 4
SPECIAL = np.arange(V) < 5
Ints = NDArray[np.int64]


def rules(**changes: Any) -> MaskRules:
    return MaskRules(**{"mask_id": MASK, "special": SPECIAL, **changes})


def sequences(n: int, seed: int = 0, longest: int = 60) -> tuple[Ints, Ints, Ints]:
    """[CLS] A [SEP] B [SEP] with ordinary ids: ids, lengths, and keys as int64."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        a, b = (rng.integers(5, V, rng.integers(1, longest)) for _ in range(2))
        rows.append(np.concatenate([[2], a, [3], b, [3]]))
    return np.concatenate(rows), np.array([len(r) for r in rows]), np.arange(n)


def close(count: int, n: int, p: float) -> bool:
    """Within five standard deviations of a binomial."""
    return bool(abs(count - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 1e-9)


@pytest.mark.parametrize("p", [0.15, 0.4])
def test_shares_are_fifteen_eighty_ten_ten(p: float) -> None:
    ids, lengths, names = sequences(3000)
    masked, chosen = choose_and_replace(ids, lengths, hash_u64(9, names), rules(probability=p))
    ordinary = ~SPECIAL[ids]
    assert close(len(chosen), ordinary.sum(), p)
    assert ordinary[chosen].all()
    assert (np.diff(chosen) > 0).all()
    untouched = np.ones(len(ids), dtype=bool)
    untouched[chosen] = False
    assert (masked[untouched] == ids[untouched]).all()
    got = masked[chosen]
    assert close((got == MASK).sum(), len(chosen), 0.8)
    # A random token is the old one by chance once in 995.
    assert close((got == ids[chosen]).sum(), len(chosen), 0.1 + 0.1 / 995)
    swapped = got[(got != MASK) & (got != ids[chosen])]
    assert close(len(swapped), len(chosen), 0.1 * 994 / 995)
    assert not SPECIAL[swapped].any()
    assert len(np.unique(swapped)) > 0.8 * 995


def test_shares_are_settings() -> None:
    ids, lengths, names = sequences(500)
    keys = hash_u64(names)
    masked, chosen = choose_and_replace(ids, lengths, keys, rules(mask_share=1.0, random_share=0.0))
    assert (masked[chosen] == MASK).all()
    kept, chosen = choose_and_replace(ids, lengths, keys, rules(mask_share=0.0, random_share=0.0))
    assert len(chosen) > 100
    assert (kept == ids).all()
    with pytest.raises(UsageError, match="add up"):
        rules(mask_share=0.8, random_share=0.3)


@pytest.mark.parametrize("scheme", ["token", "word", "span"])
def test_masks_depend_on_the_example_alone(scheme: Literal["token", "word", "span"]) -> None:
    ids, lengths, names = sequences(60)
    keys = hash_u64(1, names)
    made = rules(scheme=scheme, continuation=np.arange(V) % 3 == 0)
    masked, chosen = choose_and_replace(ids, lengths, keys, made)
    again, _ = choose_and_replace(ids, lengths, keys, made)
    assert (masked == again).all()
    ends = np.cumsum(lengths)
    order = np.random.default_rng(0).permutation(60)
    cut = [ids[ends[k] - lengths[k] : ends[k]] for k in order]
    shuffled, _ = choose_and_replace(np.concatenate(cut), lengths[order], keys[order], made)
    wanted = [masked[ends[k] - lengths[k] : ends[k]] for k in order]
    assert (shuffled == np.concatenate(wanted)).all()
    other, _ = choose_and_replace(ids, lengths, hash_u64(2, names), made)
    assert (other != masked).mean() > 0.1
    assert len(chosen)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("scheme", ["word", "span"])
def test_words_are_chosen_whole(scheme: Literal["word", "span"], stored: bool) -> None:
    ids, lengths, names = sequences(1500)
    going_on = np.arange(V) % 3 == 0
    starts = ~going_on[ids]
    if stored:
        starts = np.random.default_rng(3).random(len(ids)) < 0.6
    made = rules(scheme=scheme, continuation=going_on)
    _, chosen = choose_and_replace(ids, lengths, hash_u64(names), made, starts if stored else None)
    picked = np.zeros(len(ids), dtype=bool)
    picked[chosen] = True
    ordinary = ~SPECIAL[ids]
    inside = ordinary & ~starts
    inside[1:] &= ordinary[:-1]
    at = np.nonzero(inside[1:])[0] + 1
    assert len(at) > 1000
    assert (picked[at] == picked[at - 1]).all()
    words = (ordinary & ~inside).sum()
    assert picked[ordinary & ~inside].sum() / words == pytest.approx(0.15, abs=0.012)


@pytest.mark.parametrize("p", [0.05, 0.15, 0.5, 1.0])
def test_spans_cover_the_share_asked_everywhere(p: float) -> None:
    n, length = 6000, 40
    ids = np.tile(np.concatenate([[2], np.full(length, 7), [3]]), n)
    lengths = np.full(n, length + 2)
    made = rules(scheme="span", probability=p)
    _, chosen = choose_and_replace(ids, lengths, hash_u64(np.arange(n)), made)
    picked = np.zeros(len(ids))
    picked[chosen] = 1
    by_position = picked.reshape(n, -1).mean(axis=0)[1:-1]
    assert by_position.mean() == pytest.approx(p, rel=0.02)
    # The first and last words of a segment are as likely as the others.
    assert np.abs(by_position - p).max() < 5 * np.sqrt(p * (1 - p) / n) + 1e-9


def test_spans_are_runs_with_one_fate() -> None:
    n, length = 4000, 100
    ids = np.tile(np.concatenate([[2], 5 + np.arange(length), [3]]), n)
    made = rules(scheme="span", probability=0.05)
    masked, chosen = choose_and_replace(ids, np.full(n, length + 2), hash_u64(np.arange(n)), made)
    runs = np.split(chosen, np.nonzero(np.diff(chosen) > 1)[0] + 1)
    sizes = np.array([len(r) for r in runs])
    # SpanBERT: mean 3.8 words; a few runs are two spans side by side.
    assert 3.6 < sizes.mean() < 4.6
    fates = [set(np.where(masked[r] == MASK, 0, np.where(masked[r] == ids[r], 1, 2))) for r in runs]
    assert np.mean([len(f) == 1 for f in fates]) > 0.9


def test_nothing_to_choose() -> None:
    ids = np.array([2, 3, 2, 3])
    for scheme in ("token", "word", "span"):
        made = rules(scheme=scheme)
        masked, chosen = choose_and_replace(ids, np.array([2, 2]), hash_u64(np.arange(2)), made)
        assert len(chosen) == 0
        assert (masked == ids).all()


class TinyTokenizer:
    """What `mask_tokens` and transformers' collator ask of a tokenizer."""

    mask_token_id, pad_token_id, mask_token = MASK, 0, "[MASK]"
    all_special_ids = (0, 1, 2, 3, 4)

    def __len__(self) -> int:
        return V


def batch(rows: int = 400, length: int = 128) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(5, V, (rows, length), generator=rng)
    ids[:, 0], ids[:, 60], ids[:, 100], ids[:, 101:] = 2, 3, 3, 0
    return ids


def test_mask_tokens_leaves_special_tokens_and_its_input_alone() -> None:
    ids = batch()
    before = ids.clone()
    new, labels = mask_tokens(ids, TinyTokenizer(), generator=torch.Generator().manual_seed(0))
    assert torch.equal(ids, before)
    chosen = labels != -100
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(new[~chosen], ids[~chosen])
    assert not chosen[ids < 5].any()
    assert ((new[chosen] >= 5) | (new[chosen] == MASK)).all()
    again = mask_tokens(ids, TinyTokenizer(), generator=torch.Generator().manual_seed(0))
    assert torch.equal(again[0], new)
    assert torch.equal(again[1], labels)
    other = mask_tokens(ids, TinyTokenizer(), generator=torch.Generator().manual_seed(1))
    assert not torch.equal(other[1], labels)


def test_mask_tokens_draws_anew_without_a_generator() -> None:
    torch.manual_seed(0)
    first, second = (mask_tokens(batch(), TinyTokenizer())[1] for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(mask_tokens(batch(), TinyTokenizer())[1], first)


def test_mask_tokens_takes_one_row_and_none() -> None:
    row = batch()[0]
    new, labels = mask_tokens(row.to(torch.int32), TinyTokenizer(), 1.0)
    assert new.shape == labels.shape == row.shape
    assert new.dtype == torch.int32
    assert torch.equal(labels != -100, row >= 5)
    empty, _ = mask_tokens(torch.zeros(0, 7, dtype=torch.long), TinyTokenizer())
    assert empty.shape == (0, 7)
    assert (mask_tokens(batch(), TinyTokenizer(), 0.0)[1] == -100).all()


def test_mask_tokens_checks_its_input() -> None:
    with pytest.raises(UsageError, match="vocabulary"):
        mask_tokens(torch.tensor([V]), TinyTokenizer())
    with pytest.raises(UsageError, match="mlm_probability"):
        mask_tokens(batch(), TinyTokenizer(), 1.5)
    with pytest.raises(UsageError, match="input_ids"):
        mask_tokens(torch.zeros(1, 1, 1, dtype=torch.long), TinyTokenizer())


def test_mask_tokens_has_the_statistics_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="the reference is not installed")
    vocab = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    vocab |= {f"w{i}": i for i in range(5, V)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    names = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    ids = batch(2000)
    torch.manual_seed(0)
    collator = transformers.DataCollatorForLanguageModeling(tokenizer)
    theirs = collator([{"input_ids": row} for row in ids])
    ours = mask_tokens(ids, tokenizer)
    shares = []
    for new, labels in ((theirs["input_ids"], theirs["labels"]), ours):
        chosen = labels != -100
        assert torch.equal(labels[chosen], ids[chosen])
        kept = (new == labels)[chosen].float().mean()
        masked = (new == MASK)[chosen].float().mean()
        shares.append(
            [chosen[ids >= 5].float().mean(), chosen[ids < 5].float().mean(), masked, kept]
        )
    # Two samples of 200,000 tokens and of 30,000 chosen ones; theirs may draw special tokens.
    assert torch.tensor(shares[0]) == pytest.approx(torch.tensor(shares[1]), abs=0.012)
