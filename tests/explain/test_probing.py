"""Probes find a planted label at its layer, nothing in noise, and what scikit-learn finds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from bertkit.errors import DataError, UsageError
from bertkit.explain.hooks import state_hash, still, trace
from bertkit.explain.labelled_states import LabelledFile, labelled_states, probe_task
from bertkit.explain.opening import Opened
from bertkit.explain.probe_training import ProbeSettings, train_probes
from bertkit.explain.probing import control_labels, macro_f1, probe
from bertkit.tasks.records import Place, Span, TagRow, TextRow
from tests.explain.models import opened
from tests.tasks import tiny

WORDS = [*tiny.WORDS, "unbelievable", "zoo"]
QUICK = ProbeSettings(steps=150, learning_rate=0.03)


def sentences(count: int, seed: int = 0) -> list[list[str]]:
    random = np.random.default_rng(seed)
    return [list(random.choice(WORDS, random.integers(3, 9))) for _ in range(count)]


def tag_row(number: int, words: list[str], labels: list[str]) -> TagRow:
    """A text of words with a label each."""
    spans, start = [], 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    entities = tuple(Span(*span, label) for span, label in zip(spans, labels, strict=True))
    place = Place("rows", number + 1)
    return TagRow(str(number), " ".join(words), entities, tuple(spans), place)


def text_row(number: int, text: str, label: str | None) -> TextRow:
    return TextRow(str(number), text, None, label, Place("rows", number + 1))


def state_of(bert: Opened, words: list[str], layer: int) -> torch.Tensor:
    """[words, D] the layer's states at first tokens, through the tokenizer's own words."""
    sentence = bert.read(" ".join(words))
    with still(bert.model):
        hidden = trace(bert.encoder, sentence.batch()).hidden[layer]
    return hidden[[word.first for word in sentence.words]]


def deep() -> Opened:
    """Four layers, each of which changes its states much."""
    model = copy.deepcopy(tiny.ours("BertForMaskedLM", num_hidden_layers=4))
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            for part in (layer.intermediate.dense, layer.output.dense):
                part.weight.mul_(4)
    return Opened(model.double(), tiny.tokenizer(), "deep")


def test_a_planted_label_is_found_at_its_layer() -> None:
    bert, random = deep(), torch.Generator().manual_seed(1)
    direction = torch.randn(32, generator=random).double()
    texts = sentences(320)
    values = [state_of(bert, words, 3) @ direction for words in texts]
    middle = torch.cat(values).median()
    rows = [
        tag_row(i, words, ["N" if x > middle else "V" for x in value])
        for i, (words, value) in enumerate(zip(texts, values, strict=True))
    ]
    settings = ProbeSettings(steps=600, learning_rate=0.05, l2=0.01)
    found = probe(bert, rows[:250], rows[250:], settings=settings)
    assert found.accuracy.argmax() == 3
    assert found.accuracy[3] > 0.97
    assert found.accuracy[0] < 0.85
    assert found.macro_f1[3] > 0.97
    assert found.selectivity == pytest.approx(found.accuracy - found.control)


def test_random_labels_are_at_chance_on_rows_held_out() -> None:
    random = np.random.default_rng(3)
    rows = [
        tag_row(i, words, list(random.choice(["A", "B"], len(words))))
        for i, words in enumerate(sentences(240, 5))
    ]
    found = probe(opened(), rows[:120], rows[120:], settings=QUICK)
    assert np.abs(found.accuracy - 0.5).max() < 4 * 0.5 / found.dev_rows**0.5
    # Labels of word types are what the embeddings know best: the control task is learned.
    assert found.control[0] > 0.95
    assert found.selectivity[0] < -0.3


def data(classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, P, D] states of three layers and [2, n] labels that they half know."""
    random = torch.Generator().manual_seed(0)
    states = torch.randn(300, 3, 12, generator=random).double() * torch.arange(1, 13) + 5
    noise = 20 * torch.randn(300, 2, classes, generator=random).double()
    planes = torch.randn(2, 12, classes, generator=random).double()
    return states, (torch.einsum("nd,kdc->nkc", states[:, 1], planes) + noise).argmax(-1).T


@pytest.mark.parametrize("hidden", [0, 7])
def test_layers_trained_together_are_layers_trained_alone(hidden: int) -> None:
    states, gold = data()
    settings = ProbeSettings(hidden=hidden, steps=120, batch_size=64, seed=4)
    together = train_probes(states, gold, 3, settings).logits(states)
    for layer in range(3):
        for task in range(2):
            mine = states[:, layer : layer + 1]
            alone = train_probes(mine, gold[task : task + 1], 3, settings)
            assert alone.logits(mine)[0, :, 0].detach().numpy() == pytest.approx(
                together[task, :, layer].detach().numpy(), abs=1e-6
            )
    again = train_probes(states, gold, 3, settings)
    assert torch.equal(again.logits(states), together)


def test_linear_probes_agree_with_scikit_learn() -> None:
    states, gold = data()
    learn, check = slice(0, 200), slice(200, None)
    probes = train_probes(states[learn], gold[:, learn], 3, ProbeSettings())
    for layer in range(3):
        x = ((states[:, layer] - probes.mean[layer]) / probes.scale[layer]).numpy()
        assert x[learn].std(0) == pytest.approx(1)
        for task in range(2):
            theirs = LogisticRegression(max_iter=1000).fit(x[learn], gold[task, learn].numpy())
            mine = probes.answers(states[check])[task, :, layer].numpy()
            wanted = theirs.predict(x[check])
            assert (mine == wanted).mean() >= 0.97
            right = gold[task, check].numpy()
            assert abs((mine == right).mean() - (wanted == right).mean()) <= 0.02
            surely = probes.logits(states[check])[task, :, layer].softmax(-1).detach().numpy()
            assert surely == pytest.approx(theirs.predict_proba(x[check]), abs=0.05)


def test_a_hidden_layer_learns_what_a_plane_cannot() -> None:
    states = torch.randn(600, 1, 2, generator=torch.Generator().manual_seed(1)).double()
    gold = (states[:, 0, 0] * states[:, 0, 1] > 0).long()[None]
    right = [
        (train_probes(states, gold, 2, settings).answers(states)[0, :, 0] == gold[0])
        .double()
        .mean()
        for settings in (ProbeSettings(steps=300), ProbeSettings(steps=300, hidden=16))
    ]
    assert right[0] < 0.65
    assert right[1] > 0.95


def test_states_are_the_first_tokens_in_the_models_own_layers() -> None:
    texts = sentences(30)
    rows = [tag_row(i, words, ["AB"[len(w) % 2] for w in words]) for i, words in enumerate(texts)]
    task = probe_task(opened(), rows, "tag")
    found = labelled_states(opened(), task, rows, most=10**6)
    wanted: dict[tuple[str, int], list[torch.Tensor]] = {}
    for words in texts:
        for layer in range(3):
            for word, state in zip(words, state_of(opened(), words, layer), strict=True):
                wanted.setdefault((word, layer), []).append(state)
    assert found.total == len(found.gold) == sum(map(len, texts))
    for number, kind in enumerate(found.kinds):
        assert task.labels[int(found.gold[number])] == "AB"[len(kind) % 2]
        for layer in range(3):
            nearest = min(
                float((found.states[number, layer] - state).abs().max())
                for state in wanted[kind, layer]
            )
            assert nearest < 1e-10


def test_a_bound_keeps_a_choice_that_the_seed_makes() -> None:
    rows = [
        tag_row(i, words, ["A", *"B" * (len(words) - 1)]) for i, words in enumerate(sentences(40))
    ]
    task = probe_task(opened(), rows, "tag")
    one, again, other = (
        labelled_states(opened(), task, rows, most=25, seed=seed) for seed in (0, 0, 1)
    )
    assert one.states.shape == (25, 3, 32)
    assert one.total == sum(len(row.words or ()) for row in rows)
    assert torch.equal(one.states, again.states)
    assert not torch.equal(one.states, other.states)
    whole = labelled_states(opened(), task, rows, most=10**6)
    rows_of_whole = {tuple(state[0].tolist()) for state in whole.states}
    assert all(tuple(state[0].tolist()) in rows_of_whole for state in one.states)


def test_texts_are_read_at_cls_or_as_means() -> None:
    texts = ["the cat sat", "我爱北京", "", "a dog, a cat"] * 5
    rows = [text_row(i, text, "ab"[i % 2]) for i, text in enumerate(texts)]
    rows.append(text_row(99, "unlabelled", None))
    task = probe_task(opened(), rows[:4], "classify")
    first = labelled_states(opened(), task, rows, most=100)
    mean = labelled_states(opened(), task, rows, most=100, pooling="mean")
    assert first.total == 20
    assert sorted(set(first.kinds)) == ["", "a", "the", "我"]
    for i, kind in enumerate(first.kinds):
        text = next(t for t in texts if t[: len(kind)] == kind and bool(t) == bool(kind))
        ids = torch.tensor(opened().tokenizer(text)["input_ids"])
        with torch.no_grad():
            states = opened().encoder(ids[None], output_hidden_states=True).hidden_states
        for layer, state in enumerate(states):
            assert torch.allclose(first.states[i, layer], state[0, 0], atol=1e-10)
            inside = state[0, 1:-1] if len(ids) > 2 else state[0]
            assert torch.allclose(mean.states[i, layer], inside.mean(0), atol=1e-7)


def test_a_text_classifier_is_probed() -> None:
    texts = [" ".join(words) for words in sentences(160)]
    rows = [
        text_row(i, text, "in" if {"the", "in", "on"} & {*text.split()} else "none")
        for i, text in enumerate(texts)
    ]
    before = state_hash(opened().model)
    settings = ProbeSettings(pooling="mean", steps=300)
    found = probe(opened(), rows[:120], rows[120:], "classify", settings=settings)
    assert state_hash(opened().model) == before
    assert found.reads == "mean of the tokens"
    assert found.accuracy[0] > 0.9 > found.majority
    assert found.labels == ["in", "none"]
    assert (found.train_rows, found.dev_rows) == (120, 40)
    shown = probe(opened(), rows[:120], rows[120:], "classify", settings=QUICK)
    # The embedding of [CLS] is the same in every text.
    assert shown.accuracy[0] == shown.majority


def test_control_labels_belong_to_types_and_are_distributed_as_the_labels() -> None:
    shares = np.array([0.7, 0.1, 0.2])
    kinds = [f"w{i}" for i in range(3000)]
    found = control_labels(kinds, shares, 0)
    assert torch.equal(control_labels(kinds[::-1], shares, 0), found.flip(0))
    assert not torch.equal(control_labels(kinds, shares, 1), found)
    assert np.bincount(found.numpy()) / 3000 == pytest.approx(shares, abs=0.03)


def test_macro_f1_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    gold, said = random.integers(0, 4, 50), random.integers(1, 5, 50)
    wanted = f1_score(gold, said, average="macro")
    assert macro_f1(gold, said, 7) == pytest.approx(wanted)


CONLL = "the\tDET\ncat\tNOUN\n\nMary\tB-PER\n"


def test_files_of_entities_and_what_is_refused(tmp_path: Path) -> None:
    train, dev, bad = tmp_path / "train.txt", tmp_path / "dev.txt", tmp_path / "bad.txt"
    lines = [
        "the O",
        "John B-PER",
        "likes O",
        "New B-LOC",
        "York I-LOC",
        "",
        "我 O",
        "爱 B-LOC",
        "",
    ]
    train.write_text("\n".join(lines * 6), encoding="utf-8")
    dev.write_text("\n".join(lines), encoding="utf-8")
    bad.write_text("the O\nJohn B-ORG\n", encoding="utf-8")
    found = probe(opened(), train, dev, settings=QUICK)
    assert found.labels[0] == "O"
    assert (found.train_total, found.dev_total) == (42, 7)
    assert found.majority == pytest.approx(3 / 7)
    assert found.accuracy[-1] == 1  # the same rows
    cases: list[tuple[Any, ...]] = [
        (DataError, "ORG", train, bad, "tag"),
        (UsageError, "more than once", "-", dev, "tag"),
        (UsageError, "words .tag. or texts", train, dev, "qa"),
        (DataError, "no row is labelled", train, [TagRow("0", "a", None, None, Place("f", 1))]),
        (DataError, "only the label", [tag_row(0, ["a", "cat"], ["X", "X"])], dev),
    ]
    for kind, said, *arguments in cases:
        with pytest.raises(kind, match=said):
            probe(opened(), *arguments)
    with pytest.raises(UsageError, match="steps is 0"):
        ProbeSettings(steps=0)
    rows = [TextRow("0", "a", None, ("x", "y"), Place("f", 1))] * 2
    with pytest.raises(DataError, match="one label a text"):
        probe(opened(), rows, rows, "classify")


def test_bad_rows_may_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = ['{"text": "the cat", "label": "a"}', '{"text": 5', '{"text": "mary", "label": "b"}']
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        probe(opened(), path, path, "classify")
    file = LabelledFile(path, "classify", skip_bad_rows=True)
    found = probe(opened(), file, file, "classify", settings=QUICK)
    assert (found.train_rows, len(file.skipped)) == (2, 1)
