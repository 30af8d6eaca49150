"""What stands before the first step, and what is refused there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bertkit.data.shardwriter import ShardWriter
from bertkit.errors import CheckpointError, DataError, UsageError
from bertkit.model.heads import BertForMaskedLM, BertForPreTraining
from bertkit.runtime import Runtime
from bertkit.settings import Recipe, dump_recipe, load_recipe
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train.setup import (
    build_loader,
    check_word_starts,
    leaving_nothing_if_refused,
    only_one,
    open_data,
    open_run,
    resolve,
    wants_compile,
)
from bertkit.train.start import build_model
from tests.train.conftest import small_recipe

CPU = torch.device("cpu")
MACHINE = Runtime(CPU, torch.float32, 0, 1, 1)


def test_data_opens_with_its_tokenizer(data: Path) -> None:
    source = open_data([data, data])
    assert len(source.train) == len(source.dev) == 2
    assert len(source.tokenizer) == 65


def test_data_that_is_none_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one DATA"):
        open_data([])
    with pytest.raises(DataError, match="bertkit prepare"):
        open_data([tmp_path])


def test_data_of_another_vocabulary_is_refused(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(data, other)
    vocab = other / "tokenizer" / "vocab.txt"
    words = vocab.read_text().split()
    vocab.write_text("\n".join([*words[:5], *reversed(words[5:])]))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / "tokenizer" / name).unlink()
    BertTokenizer(vocab_file=str(vocab)).save_pretrained(other / "tokenizer")
    with pytest.raises(UsageError, match="another vocabulary"):
        open_data([data, other])


def test_whole_words_of_chinese_need_to_be_known(tmp_path: Path) -> None:
    """Without them single characters would be masked."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"我们爱北京天安门", "a", "##b"]
    for name, ids, with_words in (
        ("zh", range(5, 13), False),
        ("zh-words", range(5, 13), True),
        ("en", [13, 14] * 50 + [5], False),
    ):
        folder = tmp_path / name
        (folder / "tokenizer").mkdir(parents=True)
        BertTokenizer(words).save_pretrained(folder / "tokenizer")
        (folder / "manifest.json").write_text("{}")
        with ShardWriter(folder / "train", len(words), with_words) as writer:
            sentence = np.array(ids, dtype=np.uint16)
            starts = [np.ones(len(sentence), dtype=np.bool_)] if with_words else None
            for _ in range(100):
                writer.add([sentence], starts)
    whole = small_recipe(data__masking="word")
    said = "zh does not know where Chinese words .*word; prepare it with --words jieba"
    with pytest.raises(UsageError, match=said):
        check_word_starts(whole, open_data([tmp_path / "en", tmp_path / "zh"]))
    check_word_starts(whole, open_data([tmp_path / "en", tmp_path / "zh-words"]))
    check_word_starts(small_recipe(), open_data([tmp_path / "zh"]))
    check_word_starts(small_recipe(data__masking="span"), open_data([tmp_path / "zh"]))


def test_an_empty_held_out_share_counts_as_none(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(data, other)
    shutil.rmtree(other / "dev")
    assert open_data([other]).dev == []
    with ShardWriter(other / "dev", 65):
        pass
    assert open_data([other]).dev == []


def test_resolving_fills_in_what_is_open(tmp_path: Path) -> None:
    recipe = resolve(Recipe(), CPU, tmp_path, resume=False)
    assert recipe.train.epochs == 1.0
    assert recipe.train.learning_rate is not None
    assert recipe.train.batch_tokens is not None
    assert Recipe().train.epochs is None  # the given one is left alone


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train__steps": 5, "train__minutes": 1}, r"train\.steps and train\.minutes"),
        ({"data__max_length": 128}, "max_position_embeddings >= 128"),
        ({"data__final_max_length": 128}, "max_position_embeddings >= 128"),
        ({"train__batch_tokens": 16}, "holds no example of 32"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        resolve(small_recipe(**settings), CPU, tmp_path, resume=False)


def test_resuming_with_nothing_set_takes_the_runs_own_recipe(tmp_path: Path) -> None:
    own = small_recipe(train__steps=9)
    (tmp_path / "recipe.toml").write_text(dump_recipe(own))
    assert resolve(Recipe(), CPU, tmp_path, resume=True) == own
    assert resolve(Recipe(), CPU, tmp_path, resume=False) != own


def test_a_new_run_gets_its_recipe(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    recipe = small_recipe(train__steps=3)
    open_run(out, recipe, False, False, MACHINE)
    assert load_recipe(out / "recipe.toml", {}, Recipe) == recipe


def test_an_existing_run_is_neither_overwritten_nor_continued_unasked(tmp_path: Path) -> None:
    recipe = small_recipe(train__steps=3)
    open_run(tmp_path, recipe, False, False, MACHINE)
    (tmp_path / "log.jsonl").write_text("precious")
    with pytest.raises(UsageError, match=r"--resume .* --overwrite"):
        open_run(tmp_path, recipe, False, False, MACHINE)
    open_run(tmp_path, recipe, True, False, MACHINE)
    assert (tmp_path / "log.jsonl").read_text() == "precious"
    open_run(tmp_path, recipe, False, True, MACHINE)
    assert not (tmp_path / "log.jsonl").exists()


def start(out: Path, fault: BaseException | None = None, overwrite: bool = True) -> None:
    with leaving_nothing_if_refused(out, MACHINE):
        open_run(out, small_recipe(train__steps=4), False, overwrite, MACHINE)
        if fault is not None:
            raise fault


def test_a_refused_start_leaves_the_run_that_it_was_to_replace(tmp_path: Path) -> None:
    out = tmp_path / "run"
    start(out, overwrite=False)
    (out / "log.jsonl").write_text("precious")
    for fault in (UsageError("no such --init"), KeyboardInterrupt(), MemoryError()):
        with pytest.raises(type(fault)):
            start(out, fault)
        assert (out / "log.jsonl").read_text() == "precious"
        assert list(tmp_path.iterdir()) == [out]
    start(out)
    assert [path.name for path in out.iterdir()] == ["recipe.toml"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_killed_start_keeps_the_run_that_it_was_to_replace(tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", small_recipe(train__steps=3)
    start(out, overwrite=False)
    (out / "log.jsonl").write_text("precious")
    for _ in range(2):  # killed twice
        open_run(out, recipe, False, True, MACHINE)
        assert (tmp_path / "run.replaced" / "log.jsonl").read_text() == "precious"
    with pytest.raises(UsageError):
        start(out, UsageError("no such --init"))
    assert (out / "log.jsonl").read_text() == "precious"
    assert list(tmp_path.iterdir()) == [out]


def test_a_start_that_is_refused_takes_back_what_it_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        start(tmp_path / "deep" / "run", UsageError("no"), overwrite=False)
    assert not list(tmp_path.iterdir())


def test_a_run_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "run"):
        with pytest.raises(UsageError, match=r"file is a file; name a folder"):
            open_run(out, small_recipe(), False, False, MACHINE)
    with pytest.raises(UsageError, match="say one of them"):
        open_run(tmp_path / "run", small_recipe(), True, True, MACHINE)


def test_what_is_no_run_is_neither_removed_nor_continued(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years")
    for resume in (True, False):
        with pytest.raises(UsageError, match="not empty and holds no run"):
            open_run(tmp_path, small_recipe(train__steps=3), resume, not resume, MACHINE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    killed = tmp_path / "killed" / ".recipe.toml.123.tmp"  # while its recipe was written
    killed.parent.mkdir()
    killed.touch()
    open_run(killed.parent, small_recipe(train__steps=3), True, False, MACHINE)


def test_continuing_with_other_settings_names_them(tmp_path: Path) -> None:
    open_run(tmp_path, small_recipe(train__steps=3), False, False, MACHINE)
    changed = small_recipe(train__steps=4, data__mlm_probability=0.3, log__every_steps=5)
    with pytest.raises(UsageError) as caught:
        open_run(tmp_path, changed, True, False, MACHINE)
    assert "train.steps was 3, now 4" in str(caught.value)
    assert "data.mlm_probability was 0.15, now 0.3" in str(caught.value)
    assert "log." not in str(caught.value)
    assert "leave them out to continue as it began" in str(caught.value)
    free = small_recipe(train__steps=3, log__every_steps=5, checkpoint__keep=9)
    open_run(tmp_path, free, True, False, MACHINE)


def test_a_run_without_a_whole_checkpoint_is_not_begun_again(tmp_path: Path) -> None:
    recipe = small_recipe(train__steps=3)
    open_run(tmp_path, recipe, False, False, MACHINE)
    step = tmp_path / "checkpoints" / "step-00000002"
    step.mkdir(parents=True)
    other = step.with_name("step-00000004")
    other.mkdir()
    (other / "manifest.json").write_text('{"format": 1, "step": 4, "files": {}}')
    with pytest.raises(CheckpointError) as caught:
        open_run(tmp_path, recipe, True, False, MACHINE)
    said = str(caught.value)
    assert "no checkpoint is whole (step-00000002: manifest.json" in said
    assert "step-00000004: manifest.json: names no files" in said
    assert "another --out" in said
    shutil.rmtree(other)
    step.rename(step.with_name("step-00000002.tmp"))  # a first save that was killed
    open_run(tmp_path, recipe, True, False, MACHINE)


def test_the_model_follows_the_objective(data: Path) -> None:
    tokenizer = open_data([data]).tokenizer
    for objective, kind in (
        ("mlm+nsp", BertForPreTraining),
        ("mlm+sop", BertForPreTraining),
        ("mlm", BertForMaskedLM),
    ):
        recipe = small_recipe(data__objective=objective, train__dropout=0.2)
        model = build_model(recipe, tokenizer, None, print)
        assert type(model) is kind
        assert model.config.vocab_size == 65
        assert model.config.num_hidden_layers == 2
        assert model.config.pad_token_id == tokenizer.pad_token_id
        # What is saved keeps BERT's dropout for fine-tuning; what trains has the recipe's.
        assert model.config.hidden_dropout_prob == 0.1
        rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
        assert rates == {0.2}


def test_a_model_to_start_from(data: Path, tmp_path: Path) -> None:
    tokenizer = open_data([data]).tokenizer
    recipe = small_recipe()
    first = build_model(recipe, tokenizer, None, print)
    torch.nn.init.ones_(first.cls.predictions.bias)  # a bias of zeros is a head never trained
    first.save_pretrained(tmp_path)
    said: list[str] = []
    again = build_model(recipe, tokenizer, str(tmp_path), said.append)
    assert any("loaded" in line for line in said)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(UsageError, match="reads 64 tokens at most"):
        build_model(small_recipe(data__max_length=65), tokenizer, str(tmp_path), print)


def test_a_model_of_another_vocabulary_is_refused(data: Path, tmp_path: Path) -> None:
    tokenizer = open_data([data]).tokenizer
    recipe = small_recipe()
    model = build_model(recipe, tokenizer, None, print)
    config = type(model.config).from_dict({**model.config.to_dict(), "vocab_size": 70})
    BertForPreTraining(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="70 words, the data was prepared with 65"):
        build_model(recipe, tokenizer, str(tmp_path), print)


def test_parts_follow_ranks_and_micro_batches(data: Path) -> None:
    source = open_data([data])
    for world, micro, parts in ((1, None, 1), (1, 100, 3), (2, None, 2), (2, 100, 4), (4, 64, 4)):
        recipe = small_recipe(**({"train__micro_tokens": micro} if micro else {}))
        machine = Runtime(CPU, torch.float32, 0, world, 1)
        loader = build_loader(source.train, recipe, source.tokenizer, machine, phase=0)
        assert loader.parts == parts
    second = build_loader(
        source.train, small_recipe(data__final_max_length=64), source.tokenizer, MACHINE, phase=1
    )
    assert second.max_length == 64


def test_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    for able in (True, False):
        monkeypatch.setattr("bertkit.train.setup.has_compiler", lambda device, able=able: able)
        half = replace(MACHINE, dtype=torch.bfloat16)
        assert wants_compile(small_recipe(train__compile="auto"), half) is able
        assert not wants_compile(small_recipe(train__compile="auto"), MACHINE)  # fp32 on a CPU
        assert not wants_compile(small_recipe(train__compile="off"), MACHINE)
    with pytest.raises(UsageError, match="compiler"):
        wants_compile(small_recipe(train__compile="on"), MACHINE)


def test_a_run_that_still_trains_is_neither_joined_nor_replaced(tmp_path: Path) -> None:
    recipe = small_recipe(train__steps=3)
    open_run(tmp_path / "run", recipe, False, False, MACHINE)
    (tmp_path / "run" / "log.jsonl").touch()
    with only_one(tmp_path / "run", MACHINE):
        with pytest.raises(UsageError, match="another process is training here"):
            open_run(tmp_path / "run", recipe, False, True, MACHINE)
        with (
            pytest.raises(UsageError, match="another process is training here"),
            only_one(tmp_path / "run", MACHINE),
        ):
            pass
    assert (tmp_path / "run" / "recipe.toml").is_file()
    open_run(tmp_path / "run", recipe, False, True, MACHINE)


def test_a_run_that_was_refused_before_it_began_blocks_nothing(tmp_path: Path) -> None:
    open_run(tmp_path, small_recipe(train__steps=3), False, False, MACHINE)
    again = small_recipe(train__steps=4)
    open_run(tmp_path, again, False, False, MACHINE)
    assert (tmp_path / "recipe.toml").read_text() == dump_recipe(again)
