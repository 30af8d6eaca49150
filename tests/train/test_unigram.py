"""The unigram model by counting, and a new model that starts as it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bertkit.batch import PretrainBatch
from bertkit.train.setup import Source
from bertkit.train.start import build_model
from bertkit.train.step import evaluate, wrap
from bertkit.train.unigram import has_new_bias, start_at_unigram, unigram_baseline, word_shares
from tests.train.conftest import MACHINE, small_recipe


def test_the_baseline_is_that_of_counting_words(source: Source, dev: list[PretrainBatch]) -> None:
    found = unigram_baseline(word_shares(source.train, source.tokenizer), dev)
    counts = Counter(dict.fromkeys(range(65), 1))
    for store in source.train:
        for document in range(len(store)):
            counts.update(store.document_tokens(document).tolist())
    for special in source.tokenizer.all_special_ids:
        counts[special] = 1
    total = sum(counts.values())
    labels = [label for batch in dev for label in batch.mlm_labels.tolist()]
    assert len(labels) > 50
    loss = np.mean([-np.log(counts[label] / total) for label in labels])
    assert found.loss == pytest.approx(float(loss), rel=1e-9)
    best = max(counts, key=lambda word: counts[word])
    assert found.accuracy == pytest.approx(labels.count(best) / len(labels))
    pairs = Counter(label for batch in dev for label in batch.nsp_labels.tolist() if label >= 0)
    assert found.nsp_accuracy == pytest.approx(max(pairs.values()) / pairs.total())


def test_without_held_out_masks_there_is_no_baseline() -> None:
    found = unigram_baseline(np.full(9, 1 / 9), [])
    assert np.isnan(found.loss)
    assert np.isnan(found.accuracy)
    assert np.isnan(found.nsp_accuracy)


def test_a_new_model_starts_at_the_baseline(source: Source, dev: list[PretrainBatch]) -> None:
    recipe = small_recipe()
    model = build_model(recipe, source.tokenizer, None, print)
    shares = word_shares(source.train, source.tokenizer)
    assert has_new_bias(model)
    start_at_unigram(model, shares)
    found = evaluate(wrap(model, MACHINE, False), dev, MACHINE)
    wanted = unigram_baseline(shares, dev)
    assert found.mlm_loss == pytest.approx(wanted.loss, abs=0.1)


def test_a_trained_bias_is_left_alone(source: Source, tmp_path: Path) -> None:
    recipe = small_recipe()
    model = build_model(recipe, source.tokenizer, None, print)
    model.save_pretrained(tmp_path)
    assert not has_new_bias(build_model(recipe, source.tokenizer, str(tmp_path), print))
