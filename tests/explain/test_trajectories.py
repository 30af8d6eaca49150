"""Along a real small run: the numbers of the single calls, one model at a time, damage passed."""

from __future__ import annotations

import gc
import logging
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertkit import runtime
from bertkit.checkpoint.store import list_steps
from bertkit.errors import CheckpointError, UsageError
from bertkit.explain import trajectories as trajectories_module
from bertkit.explain.ablation import ablate
from bertkit.explain.attribution import attribute
from bertkit.explain.comparing import compare_over
from bertkit.explain.curves import lines
from bertkit.explain.followed import FOLLOWED
from bertkit.explain.lenses import lens, lens_over
from bertkit.explain.maps import attention_over
from bertkit.explain.opening import open_model
from bertkit.explain.probe_training import ProbeSettings
from bertkit.explain.probing import probe
from bertkit.explain.scores import pairs, score, score_over
from bertkit.explain.trajectories import TrajectoryResult, points, trajectory, trajectory_over
from bertkit.explain.vectors import vector_over
from bertkit.explain.weakness import weak_over
from bertkit.infer.minimal_pairs import MinimalPair
from bertkit.tasks.records import Place, TextRow
from bertkit.train.pretrain import pretrain
from tests.explain.models import MASKED, labelled, opened
from tests.train.conftest import small_recipe, topic_words, write_data

TEXTS = [" ".join(topic_words(topic)[:6]) for topic in range(6)]
module: Any = trajectories_module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps with four checkpoints, made by the project's own pretraining."""
    folder = tmp_path_factory.mktemp("run")
    settings = {"train__steps": 40, "train__learning_rate": 5e-3, "log__evals": 0}
    settings |= {"checkpoint__every_steps": 10, "checkpoint__keep": 9}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "matrix_peak", lambda device, dtype: 1e11)
        data = write_data(folder / "data", 60)
        pretrain([data], folder / "run", small_recipe(**settings), device="cpu", quiet=True)
    return folder / "run"


def named(found: TrajectoryResult) -> dict[str, Any]:
    return {one.name: one for one in found.series}


def test_every_checkpoint_of_a_run_is_a_point(run: Path) -> None:
    assert [(p.name, p.step) for p in points(run)] == [(f"step {s}", s) for s in (10, 20, 30, 40)]
    [single] = points(str(run / "model"))
    assert (single.name, single.step) == (str(run / "model"), None)
    listed = points([list_steps(run / "checkpoints")[1], run / "model"])
    assert [p.step for p in listed] == [20, None]
    # The last checkpoint is the model that the run ends with.
    last = trajectory([points(run)[-1].model, run / "model"], "score", TEXTS[0], device="cpu")
    np.testing.assert_array_equal(last.series[0].values[:, 0], last.series[0].values[:, 1])


def test_the_numbers_are_those_of_single_calls(run: Path) -> None:
    singles = [open_model(folder, "cpu") for folder in list_steps(run / "checkpoints")]
    seen: list[tuple[int, int]] = []
    tell = lambda done, total: seen.append((done, total))  # noqa: E731
    found = named(trajectory_over(run, "lens", TEXTS, device="cpu", seed=5, report=tell))
    assert seen == [(i, 4) for i in range(5)]
    expected = [lens_over(one, TEXTS, seed=5) for one in singles]
    np.testing.assert_array_equal(found["accuracy"].values.T, [x.accuracy for x in expected])
    np.testing.assert_array_equal(found["loss"].values.T, [x.loss for x in expected])
    assert found["loss"].rows == ["embeddings", "layer 1", "layer 2"]
    assert found["loss"].values[-1, -1] < found["loss"].values[-1, 0]

    found = named(trajectory_over(run, "attention", TEXTS, device="cpu"))
    for i, one in enumerate(singles):
        entropy = attention_over(one, TEXTS).heads.entropy.mean(-1)
        np.testing.assert_array_equal(found["entropy, mean of the heads"].values[:, i], entropy)
    assert found["entropy, mean of the heads"].rows == ["layer 1", "layer 2"]

    found = named(trajectory_over(run, "vector", iter(TEXTS), device="cpu"))
    for i, one in enumerate(singles):
        np.testing.assert_array_equal(found["norm"].values[:, i], vector_over(one, TEXTS).norm)

    [only] = trajectory_over(run, "score", TEXTS, device="cpu").series
    assert only.values.tolist() == [[score_over(x, TEXTS).pseudo_perplexity for x in singles]]

    found = named(trajectory_over(run, "compare", TEXTS, device="cpu"))
    compared = [compare_over(one, TEXTS, singles[-1]) for one in singles]
    values = found["CKA to the last checkpoint"].values
    np.testing.assert_array_equal(values.T, [x.cka.diagonal() for x in compared])
    np.testing.assert_allclose(values[:, -1], 1, atol=1e-9)
    assert (values[:, 0] < 0.999).all()
    values = found["anisotropy"].values
    np.testing.assert_array_equal(values.T, [x.spreads[0].anisotropy for x in compared])


def test_one_text_and_pairs(run: Path) -> None:
    words = topic_words(0)
    text = f"{words[0]} [MASK] {words[2]} {words[3]}"
    result = trajectory(run, "lens", text, target=words[1], device="cpu")
    found = named(result)
    assert result.text == text
    for i, folder in enumerate(list_steps(run / "checkpoints")):
        [at] = lens(open_model(folder, "cpu"), text, target=words[1]).positions
        series = found[f"probability of {words[1]} at [MASK]"]
        np.testing.assert_array_equal(series.values[:, i], at.target_probability)
        assert found[f"rank of {words[1]} at [MASK]"].values[0, i] == at.rank[0]  # type: ignore[index]
    whole = named(trajectory(run, "score", TEXTS[0], device="cpu"))
    last = score(open_model(run, "cpu"), TEXTS[0])
    assert whole["score"].values[0, -1] == last.score
    rows = [
        MinimalPair(TEXTS[i], f"{words[i]} {TEXTS[i + 1]}", kind, Place("f", i))
        for i, kind in enumerate("xyx")
    ]
    [accuracy] = trajectory_over(run, "pairs", rows, device="cpu").series
    assert accuracy.rows == ["all pairs", "x", "y"]
    told = pairs(open_model(run, "cpu"), rows)
    assert accuracy.values[:, -1].tolist() == [told.accuracy, *(k.accuracy for k in told.kinds)]


def test_verbs_with_figures_of_their_own(run: Path) -> None:
    last = open_model(run, "cpu")
    found = named(trajectory_over(run, "ablate", TEXTS[:2], device="cpu"))
    heads = found["growth of the loss without a head"]
    assert heads.rows == ["head 1.1", "head 1.2", "head 2.1", "head 2.2"]
    told = ablate(last, TEXTS[:2])
    np.testing.assert_array_equal(heads.values[:, -1], told.heads.growth.ravel())
    assert found["loss"].values[0, -1] == told.loss

    [series] = trajectory(run, "attribute", TEXTS[0], word=1, device="cpu").series
    [target] = attribute(last, TEXTS[0], word=1).targets
    np.testing.assert_array_equal(series.values[:, -1], [word.value for word in target.words])

    found = named(trajectory_over(run, "weak", TEXTS, device="cpu"))
    parts = weak_over(last, TEXTS)
    assert found["loss"].values[0, -1] == parts.overall.figures.loss[0]
    assert {f"loss by {part.by}" for part in parts.breakdowns} < found.keys()

    labelled = [
        TextRow(str(i), text, None, "ab"[i % 2], Place("f", i)) for i, text in enumerate(TEXTS)
    ]
    settings: dict[str, Any] = {
        "dev": labelled,
        "task": "classify",
        "settings": ProbeSettings(steps=3),
    }
    found = named(trajectory_over(run, "probe", labelled, device="cpu", **settings))
    expected = probe(last, labelled, **settings)
    np.testing.assert_array_equal(found["accuracy"].values[:, -1], expected.accuracy)
    with pytest.raises(UsageError, match="on one text"):
        trajectory_over(run, "attribute", TEXTS)


@pytest.mark.parametrize(("verb", "most"), [("attention", 1), ("compare", 2)])
def test_one_model_is_open_at_a_time(
    run: Path, verb: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_now: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def watched(model: Any, device: Any = None) -> Any:
        gc.collect()
        found = open_model(model, device)
        open_now.append(weakref.ref(found.model))
        alive.append(sum(one() is not None for one in open_now))
        return found

    monkeypatch.setattr(module, "open_model", watched)
    trajectory_over(run, verb, TEXTS, device="cpu")
    assert len(alive) == 4 + (verb == "compare")
    assert max(alive) == most


def test_models_in_a_list_may_differ(run: Path) -> None:
    deep = opened(num_hidden_layers=3)
    result = trajectory([opened(), deep], "attention", "the cat sat")
    series = result.series[0]
    assert result.steps == [None, None]
    assert series.rows == ["layer 1", "layer 2", "layer 3"]
    assert np.isnan(series.values[2, 0])
    assert np.isfinite(series.values[:, 1]).all()


def test_damaged_checkpoints_are_passed_over(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run / "checkpoints", copy / "checkpoints")
    steps = list_steps(copy / "checkpoints")
    (steps[1] / "model.safetensors").write_bytes(b"x")
    # A replacement that was cut short: the folder that stood aside is the whole one.
    shutil.copytree(steps[2], steps[2].with_name(f"{steps[2].name}.old"))
    (steps[2] / "config.json").unlink()
    with caplog.at_level(logging.WARNING, "bertkit"):
        assert [point.step for point in points(copy)] == [10, 30, 40]
    assert "passed over" in caplog.text
    for step in list_steps(copy / "checkpoints"):
        (step / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        points(copy)


def test_one_checkpoint_is_said_to_show_no_course(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bertkit"):
        found = trajectory(opened(), "lens", MASKED)
        assert "checkpoint.keep" in caplog.text
        caplog.clear()
        trajectory([opened(), opened()], "score", "the cat")
        assert caplog.text == ""
    assert "layer 2" in " ".join(found.as_text(200).split())
    with pytest.raises(UsageError, match=r"^BertForSequenceClassification: 'w' is no label"):
        trajectory(labelled("BertForSequenceClassification"), "lens", "the cat", target="w")


def test_refusals() -> None:
    with pytest.raises(UsageError, match=f"it follows {', '.join(FOLLOWED)}"):
        trajectory(opened(), "guess", "the cat")
    with pytest.raises(UsageError, match="reads files"):
        trajectory(opened(), "pairs", "the cat")
    with pytest.raises(UsageError, match="list of models is empty"):
        trajectory([], "score", "the cat")


def test_lines_are_drawn_at_their_places_and_broken_where_numbers_are_missing() -> None:
    values = np.array([[0.0, np.nan, 1.0, 0.5], [0.25, 0.25, 0.25, 0.25]])
    drawn = lines("x", values, ["a", "b"], [0.0, 10.0, 20.0, 100.0], ["s0", "s1", "s2", "s3"])
    assert 'class="c0" x1="20.00%" y1="0.0" x2="100.00%"' in drawn
    assert drawn.count('<line class="c0"') == 1
    assert drawn.count('<line class="c1"') == 3
    assert drawn.count("<circle") == 7
