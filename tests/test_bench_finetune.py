"""The benchmarks of fine-tuning run: toy sizes, generated data, both sides end to end."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the peer of the benchmarks is not installed")
pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
pytest.importorskip("torchcrf", reason="the peer's CRF is not installed")
pytest.importorskip("psutil", reason="the benchmarks measure memory with psutil")

from benchmarks import (
    bench_finetune,
    finetune_encode,
    finetune_kept,
    finetune_memory,
    finetune_peer,
    finetune_speed,
    finetune_tasks,
    peers,
    report,
)
from benchmarks.finetune_tasks import SPECS, Job, Source, TaskSpec
from bertkit.tasks.formats import open_rows
from bertkit.tasks.records import Place, QuestionRow, Span, TagRow
from tests.train.small_tasks import (
    write_model,
    write_numbers,
    write_questions,
    write_tags,
    write_texts,
)

PLACE = Place("toy", 1)
WRITERS: dict[str, Any] = {
    "sst2": write_texts,
    "stsb": write_numbers,
    "wikiann_en+crf": write_tags,
    "squad_v2": write_questions,
}
FORMS: dict[str, Any] = {"stsb": "jsonl"}


def toy_spec(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> TaskSpec:
    """The task with generated files of its own, for a model that reads 64 tokens."""
    spec = replace(SPECS[name], form=FORMS.get(name, SPECS[name].form), max_length=48, epochs=1.0)
    folder = data / name
    folder.mkdir(parents=True)
    options = {"impossible": 0.4} if spec.no_answer else {}
    for part, (rows, seed) in {"train": (24, 0), "dev": (9, 1)}.items():
        WRITERS[name](folder / part, rows, seed, **options)
    spec = replace(spec, train=(Source(f"{name}/train"),), dev=Source(f"{name}/dev"))
    monkeypatch.setitem(finetune_tasks.SPECS, name, spec)
    return spec


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bench_finetune.Options:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return bench_finetune.Options(
        data=tmp_path / "data",
        english=write_model(tmp_path / "toy"),
        work=tmp_path / "work",
        limit=16,
        dev_limit=8,
        seeds=2,
        rounds=1,
        batches=[8],
    )


@pytest.mark.parametrize("name", WRITERS)
def test_both_sides_are_trained_scored_and_kept(
    name: str, options: bench_finetune.Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toy_spec(name, options.data, monkeypatch)
    bench_finetune.measure_quality(replace(options, tasks=[name], seeds=1))
    bench_finetune.measure_quality(replace(options, tasks=[name], seeds=1))  # replaces the first
    page = (report.RESULTS / "finetune_quality.md").read_text(encoding="utf-8")
    assert f"| {name} | toy | 1" in page
    assert str(tmp_path) not in page
    runs = json.loads((report.RESULTS / "finetune_quality.json").read_text(encoding="utf-8"))
    assert [run["side"] for run in runs["runs"]] == ["ours", "peer"]
    assert 10 < runs["runs"][0]["settings"]["train_records"] <= 16
    assert runs["runs"][0]["settings"] == runs["runs"][1]["settings"]
    for run in runs["runs"]:
        assert set(spec.metrics) <= set(run["figures"])
        assert run["seconds"] > 0
    # Ours and the peer's figures come from the same meters; ours has the majority's beside them.
    ours, theirs = (run["figures"].keys() for run in runs["runs"])
    assert ours - {"majority_accuracy"} == theirs
    assert runs["runs"][1]["error"] >= 0
    assert not list((options.work / "runs").iterdir())


def test_cut_files_are_the_same_each_time_and_share_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toy_spec("sst2", tmp_path / "data", monkeypatch)
    path = tmp_path / "data" / "sst2" / "train"
    lines = path.read_text(encoding="utf-8").splitlines()
    doubled = (tmp_path / "data" / "sst2" / "dev").read_text(encoding="utf-8").splitlines()[1:3]
    path.write_text("\n".join([*lines, *doubled]) + "\n", encoding="utf-8")
    found = finetune_tasks.cut(spec, tmp_path / "data", tmp_path / "one", 20, 5)
    again = finetune_tasks.cut(spec, tmp_path / "data", tmp_path / "two", 20, 5)
    assert (found.train_records, found.dev_records) == (20, 5)
    assert found.train.read_bytes() == again.train.read_bytes()
    everything = finetune_tasks.cut(spec, tmp_path / "data", tmp_path / "all", 1000, 1000)
    train, dev = (
        set(p.read_text(encoding="utf-8").splitlines()[1:])
        for p in (everything.train, everything.dev)
    )
    assert not train & dev
    assert set(doubled) <= dev
    assert len(train) == len(set(lines[1:]) - set(doubled))


def test_a_task_without_dev_sets_some_of_train_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(
        toy_spec("wikiann_en+crf", tmp_path / "data", monkeypatch), dev=None, dev_limit=6
    )
    found = finetune_tasks.cut(spec, tmp_path / "data", tmp_path / "out", 1000)
    assert found.dev_records == 6
    assert 0 < found.train_records <= 18
    assert len(list(open_rows(found.dev, "tag").rows())) == 6


def test_squad_articles_are_split() -> None:
    spec = SPECS["squad_v2"]
    _, second = spec.train
    assert spec.dev is not None
    assert spec.dev.path == second.path
    assert second.last == spec.dev.first


def tag_row(text: str, entities: list[Span], words: bool) -> TagRow:
    spans, start = [], 0
    for word in text.split():
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return TagRow("0", text, tuple(entities), tuple(spans) if words else None, PLACE)


@pytest.mark.parametrize("words", [True, False])
def test_tags_stand_on_first_tokens_and_come_back_as_entities(words: bool, tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.txt"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "w0", "w1", "lo", "##c", "##1"]
    vocab.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    tokenizer = peers.load_tokenizer(peers.tokenizer_folder(vocab, tmp_path / "tokenizer"))
    spec = replace(SPECS["wikiann_en"], max_length=32)
    row = tag_row("w0 loc1 loc w1", [Span(3, 11, "LOC")], words)
    labels = finetune_encode.learn_labels("tag", [row])
    assert labels == ["O", "B-LOC", "I-LOC"]
    found = finetune_encode.encode(spec, tokenizer, [row], labels)
    # [CLS] w0 lo ##c ##1 lo ##c w1 [SEP]
    assert found.inputs[0]["labels"] == [-100, 0, 1, -100, -100, 2, -100, 0, -100]
    entities = finetune_peer._entities(row, found.places[0], ["O", "B-LOC", "I-LOC", "O"])
    assert [(e["start"], e["end"], e["word"], e["strict"]) for e in entities] == [
        (3, 11, "loc1 loc", True)
    ]
    loose = finetune_peer._entities(row, found.places[0], ["O", "I-LOC", "O", "O"])
    assert [(e["start"], e["end"], e["strict"]) for e in loose] == [(3, 7, False)]


@pytest.mark.parametrize("no_answer", [False, True])
def test_answers_are_the_best_pairs_over_all_windows(no_answer: bool) -> None:
    context = "one two three four five"
    spans = [(0, 3), (4, 7), (8, 13), (14, 18), (19, 23)]
    row = QuestionRow("q", "?", context, (), no_answer, PLACE)
    # [CLS] and a question of one token stand before the passage.
    windows = [(torch.randn(6, 2), [None, None, *spans[a : a + 4]]) for a in (0, 1)]
    best: dict[str, float] = {}
    for logits, offsets in windows:
        for first, last in itertools.combinations_with_replacement(range(2, 6), 2):
            text = context[offsets[first][0] : offsets[last][1]]  # type: ignore[index]
            score = float(logits[first, 0].double() + logits[last, 1].double())
            best[text] = max(best.get(text, -1e9), score)
    wanted = max(best, key=lambda text: best[text])
    odds = min(float(logits[0].double().sum()) for logits, _ in windows) - best[wanted]
    given = finetune_peer.answer(row, windows, no_answer)
    assert given["null_odds"] == pytest.approx(odds)
    assert given["answer"] == ("" if no_answer and odds > 0 else wanted)
    assert given["n_best"][0]["answer"] == wanted


def test_the_peers_field_reads_labelled_tokens_only(tmp_path: Path) -> None:
    model = finetune_peer.open_model(
        SPECS["wikiann_en+crf"], str(write_model(tmp_path / "toy")), ["O", "B-X", "I-X"], 0
    ).eval()
    examples = [
        {"input_ids": ids, "token_type_ids": [0] * len(ids), "labels": labels}
        for ids, labels in (
            ([2, 7, 8, 9, 3], [-100, 0, -100, 1, -100]),
            ([2, 7, 3], [-100, 2, -100]),
        )
    ]
    batch = finetune_peer.Padding(0)(examples)
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    together = model(**batch)["loss"]
    apart = [model(**finetune_peer.Padding(0)([example]))["loss"] for example in examples]
    torch.testing.assert_close(together, sum(apart) / 2, rtol=1e-5, atol=1e-5)


def test_noise_is_students_interval_or_the_rows_own() -> None:
    spec = SPECS["sst2"]

    def runs(*values: float) -> list[dict[str, Any]]:
        return [{"figures": {"accuracy": value}} for value in values]

    ours, peer = runs(0.90, 0.91, 0.92), runs(0.90, 0.90, 0.93)
    # Deviations 0.01 and 0.01732: pooled 0.014142, times sqrt(2/3), times t of 4 degrees, 2.7764.
    assert finetune_kept.noise_of(spec, ours, peer, []) == pytest.approx(0.03206, rel=1e-3)
    one = finetune_kept.noise_of(spec, runs(0.9), runs(0.9), [0.01])
    assert one == pytest.approx(2 * 2**0.5 * 0.01)


def test_kept_runs_with_other_settings_are_forgotten(tmp_path: Path) -> None:
    kept = finetune_kept.Kept(tmp_path / "kept.json")
    first = {"model": "m", "task": "sst2", "side": "ours", "seed": 0, "settings": {"epochs": 3}}
    kept.add(first)
    kept.add(first | {"side": "peer"})
    kept.add(first | {"task": "mrpc"})
    kept.add(first | {"seed": 1, "settings": {"epochs": 2}})
    assert len(kept.of("m", "sst2", "ours")) == 1
    assert not kept.of("m", "sst2", "peer")
    assert finetune_kept.Kept(tmp_path / "kept.json").lines() == [("m", "sst2"), ("m", "mrpc")]


def test_speed_of_both_sides(
    options: bench_finetune.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toy_spec("sst2", options.data, monkeypatch)
    assert options.english is not None
    job = Job(spec, bench_finetune.cut_of(options, spec), "toy", options.english)
    settings = finetune_speed.SpeedSettings(work=options.work, rounds=1, batches=[8])
    found = finetune_speed.measure_task(job, settings)
    assert set(found.rates) == {"transformers", "bertkit"}
    assert all(rate > 0 for rates in found.rates.values() for rate in rates)
    assert found.batches == {"transformers": 8, "bertkit": 8}
    assert found.examples == 16
    assert finetune_speed.rows_of(found)[1][-1] == "-"


def test_evaluation_of_a_file_written_into_itself(
    options: bench_finetune.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toy_spec("squad_v2", options.data, monkeypatch)
    assert options.english is not None
    job = Job(spec, bench_finetune.cut_of(options, spec), "toy", options.english)
    path, records = finetune_memory.grown(spec, job.files.dev, 4, options.work / "grown")
    assert records == 32
    assert len({row.id for row in open_rows(path, "qa").rows()}) == 32
    run = finetune_memory.fine_tuned(job, options.work)
    figures = finetune_memory.stream(str(run), str(path))
    assert figures["total"] == 32
    verb = finetune_memory.command_of("evaluate", run, path, options.work / "out")
    assert verb[2:4] == ["bertkit", "evaluate"]
