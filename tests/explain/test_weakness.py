"""Loss by position: groups against brute force, their means against the total and the lens."""

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch

from bertkit.errors import DataError, MissingHeadError, UsageError
from bertkit.explain.corpus import masked_batches
from bertkit.explain.hooks import state_hash
from bertkit.explain.lenses import lens_over
from bertkit.explain.opening import Opened
from bertkit.explain.position_kinds import LENGTH, POSITION, Bands
from bertkit.explain.weakness import Figures, WeakResult, weak_over
from bertkit.text.tokenizer import BertTokenizer
from tests.explain.models import TEXTS, labelled, opened, theirs
from tests.tasks import tiny

MIXED = [*TEXTS, "the 3 cats: unbelievable, park!", "我 love 天安门, 7", "café zoo", "a"]


Groups = dict[str, dict[str, list[tuple[float, float]]]]


def changed(seed: int = 0) -> Opened:
    """The same model after some training."""
    model = copy.deepcopy(opened().model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return Opened(model, tiny.tokenizer(), "after")


def by_hand(probability: float) -> Groups:
    """Each masked position through transformers, its group told from the text itself."""
    counts: Counter[str] = Counter()
    for text in MIXED:
        told = tiny.tokenizer()(text, return_offsets_mapping=True)
        counts.update(set_of_words(told, text))
    found: Groups = defaultdict(lambda: defaultdict(list))
    for masked in masked_batches(opened(), MIXED, seed=3, probability=probability):
        starts = masked.batch.starts.tolist()
        for at, label in zip(
            masked.batch.mlm_positions.tolist(), masked.batch.mlm_labels.tolist(), strict=True
        ):
            row = max(i for i, start in enumerate(starts) if start <= at)
            begin, size = starts[row], int(masked.batch.lengths[row])
            with torch.no_grad():
                logits = theirs()(masked.batch.input_ids[None, begin : begin + size]).logits[0]
            logs = logits[at - begin].log_softmax(-1)
            figures = (-float(logs[label]), float(logs.argmax() == label))
            text = MIXED[masked.numbers[row]]
            told = tiny.tokenizer()(text, return_offsets_mapping=True)
            words = told.word_ids()
            mine = [i for i, word in enumerate(words) if word == words[at - begin]]
            name = tiny.VOCAB[label]
            spelled = "".join(tiny.VOCAB[told["input_ids"][i]].removeprefix("##") for i in mine)
            n, many = at - begin, counts[spelled]
            found["freq"][next(f for m, f in FREQUENT if many >= m)].append(figures)
            found["part"][part_of(n, mine, name)].append(figures)
            found["position"][next(p for m, p in PLACES if n >= m)].append(figures)
            found["length"][next(p for m, p in LENGTHS if size - 2 >= m)].append(figures)
            found["script"][script_by_hand(name)].append(figures)
    return found


FREQUENT = [(20, "20–99"), (5, "5–19"), (2, "2–4"), (1, "1")]
PLACES = [(21, "21–50"), (11, "11–20"), (6, "6–10"), (2, "2–5"), (1, "1")]
LENGTHS = [(33, "33–64"), (17, "17–32"), (9, "9–16"), (1, "1–8")]


def set_of_words(told: Any, text: str) -> list[str]:
    words: dict[int, str] = {}
    for word, token in zip(told.word_ids(), told["input_ids"], strict=True):
        if word is not None:
            words[word] = words.get(word, "") + tiny.VOCAB[token].removeprefix("##")
    return list(words.values())


def part_of(at: int, tokens: list[int], name: str) -> str:
    if len(tokens) > 1:
        return "first piece" if at == tokens[0] else "continuation"
    return "Chinese character" if "\u4e00" <= name <= "\u9fff" else "whole word"


def script_by_hand(name: str) -> str:
    first = name.removeprefix("##")[0]
    if "\u4e00" <= first <= "\u9fff":
        return "Han"
    if first.isdigit():
        return "Digits"
    return "Latin" if first.isalpha() else "Punctuation"


def test_every_group_is_what_brute_force_finds() -> None:
    found = weak_over(opened(), MIXED, seed=3, probability=0.6)
    hand = by_hand(0.6)
    assert len(hand["part"]) == 4
    assert len(hand["script"]) == 4
    for part, groups in zip(found.breakdowns, hand.values(), strict=True):
        assert set(part.names) == set(groups), part.by
        for i, name in enumerate(part.names):
            losses, hits = map(np.array, zip(*groups[name], strict=True))
            assert part.count[i] == len(losses)
            assert part.figures.loss[i] == pytest.approx(losses.mean(), rel=1e-9)
            assert part.figures.accuracy[i] == pytest.approx(hits.mean())
            if len(losses) > 1:
                error = losses.std(ddof=1) / math.sqrt(len(losses))
                assert part.figures.loss_error[i] == pytest.approx(error, rel=1e-6)
                # All wrong or all right: an error of 0 would claim to be certain.
                error = hits.std(ddof=1) / math.sqrt(len(losses)) or math.nan
                assert part.figures.accuracy_error[i] == pytest.approx(error, abs=1e-7, nan_ok=True)
            else:
                assert math.isnan(part.figures.loss_error[i])


def weighted(result: WeakResult, side: str) -> list[float]:
    means = []
    for part in (result.overall, *result.breakdowns):
        figures: Figures = getattr(part, side)
        means.append(float(np.average(figures.loss, weights=part.count)))
        assert part.count.sum() == result.positions
    return means


def test_every_breakdown_adds_up_to_the_lens_last_layer() -> None:
    found = weak_over(opened(), MIXED, seed=5)
    lens = lens_over(opened(), MIXED, seed=5)
    assert (found.texts, found.positions) == (lens.texts, lens.positions)
    assert weighted(found, "figures") == pytest.approx([lens.loss[-1]] * 6, rel=1e-10)
    assert found.overall.figures.accuracy[0] == pytest.approx(lens.accuracy[-1])


def test_another_model_is_asked_at_the_same_positions() -> None:
    after = changed()
    found = weak_over(opened(), MIXED, other=after, seed=5)
    alone, single = weak_over(opened(), MIXED, seed=5), weak_over(after, MIXED, seed=5)
    assert found.other == "after"
    for part, one, two in zip(found.breakdowns, alone.breakdowns, single.breakdowns, strict=True):
        assert part.other is not None
        assert part.change is not None
        assert np.array_equal(part.count, two.count)
        assert part.figures.loss == pytest.approx(one.figures.loss, rel=1e-12)
        assert part.other.loss == pytest.approx(two.figures.loss, rel=1e-12)
        assert part.other.loss_error == pytest.approx(two.figures.loss_error, nan_ok=True)
        assert part.change.loss == pytest.approx(two.figures.loss - one.figures.loss)
    assert weighted(found, "change")[1:] == pytest.approx(weighted(found, "change")[:1] * 5)


def test_the_error_of_the_change_is_that_of_pairs() -> None:
    after = changed(1)
    found = weak_over(opened(), MIXED, other=after, seed=5)
    pairs = []
    for masked in masked_batches(opened(), MIXED, seed=5):
        losses = []
        for one in (opened(), after):
            with torch.no_grad():
                logits = one.model.ragged(masked.batch, masked.batch.mlm_positions)
            losses.append(
                torch.nn.functional.cross_entropy(logits, masked.batch.mlm_labels, reduction="none")
            )
        pairs.append(losses[1] - losses[0])
    change = torch.cat(pairs).numpy()
    told = found.overall.change
    assert told is not None
    assert told.loss[0] == pytest.approx(change.mean())
    assert told.loss_error[0] == pytest.approx(change.std(ddof=1) / math.sqrt(len(change)))
    same = weak_over(opened(), MIXED, other=opened(), seed=5).overall.change
    assert same is not None
    assert (same.loss[0], same.loss_error[0]) == (0, 0)


def test_a_model_that_reads_less_says_where_texts_are_cut() -> None:
    short = Opened(tiny.ours("BertForMaskedLM", max_position_embeddings=16), tiny.tokenizer(), "s")
    texts = ["the cat sat in the park " * 5, "a dog"]
    found = weak_over(opened(), texts, other=short, seed=1, probability=1.0)
    assert (found.cut, found.positions) == (1, 14 + 2)
    assert found.breakdowns[3].names == ["1–8", "9–16"]


def test_rare_words_are_forgotten_to_bound_memory() -> None:
    texts = ["the cat sat", "the dog ran", "the park", "the cat"]
    whole, bounded = (
        weak_over(opened(), texts, probability=1.0, max_words=most) for most in (100, 4)
    )
    assert (whole.rare_below, bounded.rare_below) == (0, 2)
    assert whole.breakdowns[0].count.tolist() == [4, 6]
    assert whole.breakdowns[0].names == ["1", "2–4"]
    assert bounded.overall.figures.loss == pytest.approx(whole.overall.figures.loss)
    # "cat" was dropped once on the way and is then seen for the first time again.
    assert bounded.breakdowns[0].count.tolist() == [6, 4]


def test_bands_have_names_and_edges() -> None:
    bands = Bands("x", (1, 2, 5, 1000))
    assert bands.names == ["1", "2–4", "5–999", "1,000+"]
    assert bands.of(np.array([0, 1, 2, 4, 5, 999, 1000, 10**6])).tolist() == [
        *(0, 0, 1, 1, 2, 2, 3, 3)
    ]
    assert POSITION.names[0] == "1"
    assert LENGTH.names[-1] == "257+"


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(MissingHeadError, match="masked-word head"):
        weak_over(labelled("BertForSequenceClassification"), MIXED)
    with pytest.raises(UsageError, match="read twice"):
        weak_over(opened(), iter(MIXED))
    with pytest.raises(DataError, match="blank"):
        weak_over(opened(), ["", " "])
    swapped = BertTokenizer([*tiny.VOCAB[:-2], *tiny.VOCAB[:-3:-1]])
    cased = BertTokenizer(tiny.VOCAB, do_lower_case=False)
    for tokenizer in (swapped, cased):
        with pytest.raises(UsageError, match="one tokenizer"):
            weak_over(opened(), MIXED, other=Opened(opened().model, tokenizer, "other"))


def test_asking_changes_nothing() -> None:
    before = state_hash(opened().model)
    weak_over(opened(), MIXED)
    assert state_hash(opened().model) == before
