"""Causal tracing: all of a layer is the clean run, nothing is the corrupt one, cells are hooks'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertkit.errors import DataError, UsageError
from bertkit.explain import onward as onward_module
from bertkit.explain.hooks import Site, state_hash, still
from bertkit.explain.opening import Opened
from bertkit.explain.patching import (
    KINDS,
    Compared,
    Tracing,
    Trial,
    compared,
    corrupt_runs,
    patched,
    trial_of,
)
from bertkit.explain.readouts import readout_of
from bertkit.explain.traced import ROLES, share
from bertkit.explain.tracing import TracePair, patch, patch_over, read_trace_pairs
from bertkit.tasks.records import Place
from tests.explain.models import labelled, opened, theirs
from tests.tasks import tiny

CLEAN, CORRUPT = "the cat [MASK] on the mat", "the dog [MASK] in the mat"
TOKEN = 3


def started(bert: Opened, clean: str = CLEAN, corrupt: str = CORRUPT) -> tuple[Trial, Any]:
    asked = compared(bert, clean, corrupt)
    assert isinstance(asked, Compared)
    (run,) = corrupt_runs(bert, asked, Tracing())
    return trial_of(bert, readout_of(bert), asked.question, tuple(KINDS), run), run


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_all_of_a_layer_is_the_clean_run_and_nothing_the_corrupt_one_bit_for_bit(
    kind: str, double: bool
) -> None:
    words = kind == "BertForMaskedLM"
    bert = opened(double=double) if words else labelled(kind)
    with still(bert.model):
        trial, run = started(bert)
        place = (torch.tensor([TOKEN]),) if words else ()
        clean, corrupt = (
            bert.model.ragged(bert.read(text).batch(), *place) for text in (CLEAN, CORRUPT)
        )
        assert not torch.equal(clean, corrupt)
        for layer in range(3):
            everything = torch.ones(1, 8, dtype=torch.bool)
            found = patched(trial, run, Site("hidden", layer), everything)
            assert torch.equal(trial.readout.logits(found), clean)
            found = patched(trial, run, Site("hidden", layer), ~everything)
            assert torch.equal(trial.readout.logits(found), corrupt)
            if layer:
                for site in (Site("context", layer), Site("widened", layer)):
                    found = patched(trial, run, site, ~everything)
                    assert torch.equal(trial.readout.logits(found), corrupt)


def hooked(text: str, module: Any, position: int, value: torch.Tensor) -> torch.Tensor:
    """[V] logits of transformers at TOKEN, what a module gives replaced at one position."""

    def put(module: Any, inputs: Any, output: Any) -> Any:
        whole = (output[0] if isinstance(output, tuple) else output).clone()
        whole[0, position] = value
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    handle = module.register_forward_hook(put)
    try:
        logits: torch.Tensor = theirs()(torch.tensor([opened().read(text).ids])).logits[0, TOKEN]
        return logits
    finally:
        handle.remove()


def modules(site: str) -> dict[int, Any]:
    bert = theirs().bert
    if site == "hidden":
        return {0: bert.embeddings} | dict(enumerate(bert.encoder.layer, 1))
    part = "attention" if site == "attention" else None
    return {
        i: (layer.attention.output.dense if part else layer.output.dense)
        for i, layer in enumerate(bert.encoder.layer, 1)
    }


@pytest.mark.parametrize("site", ["hidden", "attention", "feed-forward"])
def test_every_square_is_one_run_of_transformers_with_a_hook(site: Any) -> None:
    setting = Tracing(sites=(site,))
    found = patch(opened(), CLEAN, CORRUPT, target="sat", against="ran", tracing=setting)
    (one,) = found.sites
    sat, ran = tiny.VOCAB.index("sat"), tiny.VOCAB.index("ran")
    with torch.no_grad():
        for n, (layer, module) in enumerate(modules(site).items()):
            assert one.layers[n] == layer
            seen: list[torch.Tensor] = []
            handle = module.register_forward_hook(
                lambda _, __, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
            )
            logits = theirs()(torch.tensor([opened().read(CLEAN).ids])).logits[0, TOKEN]
            handle.remove()
            clean = seen[0] if seen[0].dim() == 3 else seen[0][None]
            assert found.clean_difference == pytest.approx(float(logits[sat] - logits[ran]))
            for position in range(8):
                after = hooked(CORRUPT, module, position, clean[0, position])
                difference = float(after[sat] - after[ran])
                assert one.difference[n, position] == pytest.approx(difference, rel=1e-9)
                chance = float(after.softmax(-1)[sat])
                assert one.probability[n, position] == pytest.approx(chance, rel=1e-9)
    way = found.clean_difference - found.corrupt_difference
    expected = (one.difference - found.corrupt_difference) / way
    np.testing.assert_allclose(one.restored, expected, rtol=1e-9, atol=1e-12)
    assert one.deviation is None


def test_what_must_be_zero_or_one() -> None:
    found = patch(opened(), CLEAN, CORRUPT)
    hidden = found.sites[0].restored
    assert hidden[-1, TOKEN] == pytest.approx(1, abs=1e-12)
    assert hidden[-1, [0, 1, 2, 4, 5, 6, 7]] == pytest.approx(0, abs=1e-12)
    assert hidden[0, [0, 1, 3, 5, 6, 7]] == pytest.approx(0, abs=1e-12)  # there both are the same
    assert found.columns == [
        *("[CLS]", "the", "cat → dog", "[MASK]", "on → in", "the", "mat", "[SEP]"),
    ]
    assert np.isnan(share(np.array([1.0]), np.array([2.0]), np.array([2.0]))).all()


def test_many_copies_in_a_pass_are_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Tracing(sites=("hidden", "attention", "feed-forward"))
    together = patch(opened(), CLEAN, CORRUPT, tracing=setting)
    monkeypatch.setattr(onward_module, "PASS_COPIES", 1)
    single = patch(opened(), CLEAN, CORRUPT, tracing=setting)
    for one, other in zip(together.sites, single.sites, strict=True):
        np.testing.assert_allclose(one.difference, other.difference, rtol=1e-10)
        np.testing.assert_allclose(one.probability, other.probability, rtol=1e-10)


def test_all_tokens_of_a_word_go_together() -> None:
    # "zoo" is three tokens: z ##o ##o.
    clean, corrupt = "the zoo in paris [MASK]", "the mat ran cat in paris [MASK]"
    found = patch(opened(), clean, corrupt, tracing=Tracing(by="word"))
    assert found.columns[2] == "zoo → matrancat"
    assert len(found.columns) == 7
    trial, run = started(opened(), found.clean[0], found.corrupt[0])
    with still(opened().model):
        masks = torch.zeros(1, len(opened().read(clean).ids), dtype=torch.bool)
        word = opened().read(clean).words[1]
        masks[0, word.first : word.last] = True
        both = trial.figures(patched(trial, run, Site("hidden", 0), masks))[0]
    assert found.sites[0].difference[0, 2] == pytest.approx(float(both[0]))
    assert found.sites[0].restored[0, 2] == pytest.approx(1)


def test_noise_is_seeded_and_hits_one_word() -> None:
    setting = Tracing(noise="cat", draws=3, strength=2.0, seed=7)
    found = patch(opened(), CLEAN, target="sat", tracing=setting)
    assert found.draws == 3
    assert found.corrupt == ()
    assert found.columns[2] == "cat + noise"
    assert found.sites[0].deviation is not None
    assert (found.sites[0].deviation[0, [0, 1, 3]] > 0).all()
    assert found.sites[0].deviation[0, 2] == pytest.approx(0, abs=1e-12)
    assert found.sites[0].restored[0, 2] == pytest.approx(1)
    assert patch(opened(), CLEAN, target="sat", tracing=setting).to_json() == found.to_json()
    words = theirs().bert.embeddings.word_embeddings.weight.detach()
    ids = opened().read(CLEAN).ids
    differences = []
    for draw in range(3):
        embeds = words[list(ids)].clone()
        noise = np.random.default_rng([7, draw]).standard_normal((1, 32))
        embeds[2:3] += torch.from_numpy(noise) * float(words.std()) * 2.0
        with torch.no_grad():
            logits = theirs()(inputs_embeds=embeds[None]).logits[0, TOKEN]
        differences.append(
            float(logits[tiny.VOCAB.index("sat")] - logits[tiny.VOCAB.index(found.against)])
        )
    assert found.corrupt_difference == pytest.approx(np.mean(differences), rel=1e-9)


def test_targets_words_and_pairs() -> None:
    found = patch(opened(), "the cat sat", "the dog sat", word="sat")
    assert (found.target, found.label, found.token) == ("sat", "[sat]", 3)
    assert found.columns[3] == "[sat]"
    chinese = patch(opened(), "我爱北京[MASK]", "我爱上海[MASK]", target="的")
    assert chinese.columns[3:5] == ["北 → 上", "京 → 海"]
    texts = labelled("BertForSequenceClassification")
    pair = patch(texts, ("the cat", "a dog"), ("the cat", "a mat"), target="y", against="x")
    assert (pair.label, pair.target, pair.against) == ("[CLS]", "y", "x")
    assert pair.clean == ("the cat", "a dog")
    words = labelled("BertForTokenClassification")
    tag = patch(words, "the cat sat", "the dog sat", word="sat")
    assert tag.token == 3
    with pytest.raises(UsageError, match="name the word"):
        patch(words, "the cat sat", "the dog sat")


ROWS = [
    ("the cat [MASK] on the mat", "the dog [MASK] on the mat", "sat"),
    ("a dog [MASK] in paris", "a dog [MASK] in london", "ran"),
]


def pairs_of(rows: Any) -> list[TracePair]:
    return [
        TracePair(clean, corrupt, target, Place("f.csv", line))
        for line, (clean, corrupt, target) in enumerate(rows, 2)
    ]


def test_over_pairs_roles_are_patched_together() -> None:
    found = patch_over(opened(), pairs_of(ROWS), tracing=Tracing(sites=("hidden", "attention")))
    assert (found.pairs, found.skipped) == (2, 0)
    # Behind the changed word of the first stands the mask, behind that of the second [SEP].
    assert found.role_pairs.tolist() == [2, 0, 2, 2, 2, 2]
    assert np.isnan(found.sites[0].restored[:, 1]).all()
    hidden = found.sites[0].restored
    by_role = dict(zip(ROLES, hidden.T, strict=True))
    assert by_role["changed words"][0] == pytest.approx(1, abs=1e-12)
    assert by_role["asked position"][-1] == pytest.approx(1, abs=1e-12)
    for role in ROLES[2:]:
        assert by_role[role][0] == pytest.approx(0, abs=1e-12)
    gained, way = np.zeros(3), 0.0
    for clean, corrupt, target in ROWS:
        one = patch(opened(), clean, corrupt, target=target)
        column = one.columns.index("[CLS]")
        gained += one.sites[0].difference[:, column] - one.corrupt_difference
        way += one.clean_difference - one.corrupt_difference
    np.testing.assert_allclose(by_role["[CLS]"], gained / way, rtol=1e-9, atol=1e-10)
    assert found.sites[1].layers == [1, 2]


def test_bad_pairs_are_told_or_counted() -> None:
    rows = [
        *ROWS,
        ("the cat [MASK]", "the cat dog [MASK]", "sat"),
        ("the cat", "the dog", "sat"),
        ("the cat [MASK]", "the [MASK] cat", "sat"),
        ("the cat [MASK]", "the dog [MASK]", "zoo"),
        ("the cat [MASK]", "The cat [MASK]", None),
    ]
    for bad in rows[2:]:
        with pytest.raises(DataError, match=r"f\.csv:2: "):
            patch_over(opened(), pairs_of([bad]))
    found = patch_over(opened(), pairs_of(rows), skip_bad=True)
    assert (found.pairs, found.skipped) == (2, 5)
    assert found.why_skipped[0].startswith("f.csv:4: the clean text has 5 tokens")
    with pytest.raises(DataError, match="no pair"):
        patch_over(opened(), pairs_of(rows[2:]), skip_bad=True)
    with pytest.raises(UsageError, match="noise is for one text"):
        patch_over(opened(), pairs_of(ROWS), tracing=Tracing(noise="cat"))


def test_pairs_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    lines = ["clean,corrupt,target", *(",".join(row) for row in ROWS)]
    path.write_text("\n".join(lines), encoding="utf-8")
    found = list(read_trace_pairs(path))
    assert [pair[:3] for pair in found] == ROWS
    assert found[1].place.line == 3
    assert [pair.target for pair in read_trace_pairs(path, target=None)] == [None, None]
    with pytest.raises(DataError, match="no column 'worse'"):
        list(read_trace_pairs(path, "clean", "worse"))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="not both"):
        patch(opened(), CLEAN)
    with pytest.raises(UsageError, match="not both"):
        patch(opened(), CLEAN, CORRUPT, tracing=Tracing(noise="cat"))
    with pytest.raises(UsageError, match="sites are"):
        patch(opened(), CLEAN, CORRUPT, tracing=Tracing(sites=("head",)))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="strength"):
        patch(opened(), CLEAN, tracing=Tracing(noise="cat", strength=0))
    with pytest.raises(UsageError, match="with itself"):
        patch(opened(), CLEAN, CORRUPT, target="sat", against="sat")
    with pytest.raises(UsageError, match="no label"):
        patch(labelled("BertForSequenceClassification"), "a cat", "a dog", against="w")


def test_patching_leaves_the_model_alone() -> None:
    model = tiny.ours("BertForMaskedLM").train()
    bert = Opened(model, tiny.tokenizer(), "")
    before, batch = state_hash(model), bert.read(CLEAN).batch()
    with still(model):
        own = model.ragged(batch)
    patch(bert, CLEAN, CORRUPT, tracing=Tracing(sites=("hidden", "attention", "feed-forward")))
    patch(bert, CLEAN, tracing=Tracing(noise="cat", draws=2))
    patch_over(bert, pairs_of(ROWS))
    assert model.training
    assert state_hash(model) == before
    with still(model):
        assert torch.equal(model.ragged(batch), own)
