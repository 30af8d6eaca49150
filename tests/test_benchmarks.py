"""The benchmarks run: toy sizes, real peers, ours beside them where it takes a moment."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertkit.data.shardwriter import ShardWriter

pytest.importorskip("transformers", reason="the peer of the benchmarks is not installed")
pytest.importorskip("psutil", reason="the benchmarks measure memory with psutil")

from benchmarks import bench_prepare, bench_quality, bench_step, ours, peers, recipe_peer, report
from benchmarks.examples import Kind, Vocabulary, make_examples, random_documents, real_tokens

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{chr(97 + i)}" for i in range(26))]
TOY = Vocabulary(size=64, pad=0, cls=2, sep=3, mask=4)


def toy_tokenizer(folder: Path) -> Path:
    vocab = folder / "vocab.txt"
    vocab.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return peers.tokenizer_folder(vocab, folder / "tokenizer")


def test_interleaved_rounds_alternate(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return len(calls)

    values = report.interleave({"a": partial(side, "a"), "b": partial(side, "b")}, 2)
    assert calls == ["a", "b", "a", "b"]
    assert values == {"a": [1, 3], "b": [2, 4]}
    assert report.ratios(values["b"], values["a"]).maximum == 2
    capsys.readouterr()


def test_published_page_and_json_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    body = report.table(["side", "rate"], [["ours", "2"]])
    path = report.publish("toy", "Toy", [body], {"rate": 2}, report.describe_machine())
    assert "| ours | 2 |" in path.read_text(encoding="utf-8")
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert line["rate"] == 2
    assert line["machine"]["threads"] == torch.get_num_threads()


def test_matrix_peak_is_a_rate() -> None:
    assert report.matrix_peak(torch.float32, seconds=0.05) > 1e8


@pytest.mark.parametrize("kind", ["full", "pairs", "long"])
def test_both_sides_see_the_same_tokens_and_masks(kind: Kind) -> None:
    examples = make_examples(random_documents(TOY, 6), kind, TOY, length=48, count=20)
    padded = peers.pad_batch(examples, TOY.pad, "cpu")
    ragged = ours.ragged_batch(examples)
    assert ragged.real_tokens == real_tokens(examples) == len(ragged.input_ids)
    assert int(ragged.lengths.sum()) == ragged.real_tokens <= 20 * 48
    assert max(len(example.ids) for example in examples) <= 48
    assert (kind == "full") == ("attention_mask" not in padded)
    asked = padded["labels"][padded["labels"] >= 0]
    assert torch.equal(asked.sort().values, ragged.mlm_labels.sort().values)
    assert 0.05 < len(asked) / ragged.real_tokens < 0.25
    assert int((ragged.nsp_labels == 1).sum()) == int(padded["next_sentence_label"].sum())


def test_flops_of_bert_base() -> None:
    # 545 MFLOP a token at 128 tokens with 15% masked: the figure that others publish.
    example = make_examples(random_documents(TOY, 4), "full", TOY, length=128, count=1)[0]
    labels = np.full(128, -100)
    labels[:19] = 7
    masked = type(example)(example.ids, example.types, labels, 0)
    assert bench_step.flops_a_token("base", 30522, [masked]) == pytest.approx(545e6, rel=0.01)


def test_step_of_both_sides_gives_a_rate() -> None:
    options = bench_step.Options(
        size="tiny", length=32, rows=4, batches=[4], rounds=2, compile=False
    )
    documents = random_documents(TOY, 6)
    outcome = bench_step.measure(options, TOY, documents, "pairs")
    assert set(outcome.rates) == {"transformers, eager", "bertkit, eager"}
    assert all(rate > 0 for rates in outcome.rates.values() for rate in rates)
    row = bench_step.outcome_rows(outcome, options, peak=1e12)[0]
    assert row[2] == "transformers, eager"


def test_sides_compute_the_same_loss() -> None:
    # Same weights, same examples: the two sides of the step benchmark do the same task.
    model = ours.our_model("tiny", TOY.size, dropout=0.0, length=64)
    peer = peers.peer_model("pretraining", peers.peer_config("tiny", TOY.size, 0.0), "cpu")
    peer.load_state_dict(model.state_dict(), strict=False)
    examples = make_examples(random_documents(TOY, 6), "pairs", TOY, length=64, count=8)
    theirs = peer(**peers.pad_batch(examples, TOY.pad, "cpu")).loss
    machine = bench_step.machine_of(bench_step.Options())
    for many in (1, 2):
        backward = ours.our_backward(model, replace(machine, replicas=many), compile_it=False)
        loss = backward([ours.ready(examples[i::many], "cpu") for i in range(many)])
        torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-5)


def test_quality_peer_trains_saves_and_is_scored(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer(tmp_path)
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("dev", 4)):
        with ShardWriter(tmp_path / "data" / split, vocab_size=len(WORDS)) as writer:
            for _ in range(count):
                writer.add([rng.integers(5, len(WORDS), size=40) for _ in range(4)])
    options = bench_quality.Options(
        data=tmp_path / "data",
        tokenizer=tokenizer,
        work=tmp_path / "work",
        minutes=0.5 / 60,
        size="tiny",
        length=32,
        marks=2,
        precision="fp32",
    )
    options.work.mkdir()
    loaded = peers.load_tokenizer(tokenizer)
    held_out = bench_quality.make_held_out(options, loaded)
    again = bench_quality.make_held_out(options, loaded)
    np.testing.assert_array_equal(held_out.ids, again.ids)
    asked = held_out.labels != -100
    assert (held_out.ids[asked] != held_out.labels[asked]).any()
    assert 3.0 < held_out.unigram()[0] < 3.6  # uniform over 26 words is ln 26 = 3.26
    saved = bench_quality.run_peer(options, loaded)
    marks = bench_quality.scored(options, "peer", held_out)
    assert [mark.folder for mark in marks] == [mark.folder for mark in saved]
    assert all(0 < mark.loss < 10 for mark in marks)
    assert bench_quality.reached(marks, marks[-1].loss) is not None
    assert "time" in bench_quality.verdict(marks, marks)


def test_learning_rate_follows_the_clock() -> None:
    settings = recipe_peer.RecipeSettings(learning_rate=1.0, warmup=0.1)
    rates = [recipe_peer.learning_rate(settings, used) for used in (0.05, 0.1, 0.55, 1.0)]
    assert rates == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_our_command_takes_the_settings_given(tmp_path: Path) -> None:
    options = bench_quality.Options(data=tmp_path, tokenizer=tmp_path, set=["train.minutes=2"])
    command = bench_quality.our_command(options, tmp_path / "run")
    assert "train.minutes=2" in command
    assert command.count("--set") == len({part for part in command if "=" in part})


def test_preparation_peer_counts_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[Any]
) -> None:
    for name in ("TOKENIZERS_PARALLELISM", "HF_HOME", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")  # restored afterwards
    datasets = pytest.importorskip("datasets", reason="the preparation peer is not installed")
    datasets.disable_progress_bars()
    tokenizer = toy_tokenizer(tmp_path)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("wa wb wc wd\n\nwe wf\n" * 50, encoding="utf-8")
    out = tmp_path / "out"
    peers.tokenise(corpus, tokenizer=tokenizer, out=out, length=8, settings=peers.MapSettings(1, 1))
    told = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert told["tokens"] == 50 * 10 // 8 * 8  # 4 + 2 words, each line with [CLS] and [SEP]
    assert bench_prepare.disk_bytes(list(out.glob("rows*.arrow"))) > 0


def test_process_watch_reports_time_and_memory() -> None:
    code = "import time; x = bytearray(50_000_000); time.sleep(0.5); print('done')"
    text, run = bench_prepare.watch([sys.executable, "-c", code])
    assert text == "done\n"
    assert run.seconds > 0.4
    assert run.peak_bytes > 50_000_000
