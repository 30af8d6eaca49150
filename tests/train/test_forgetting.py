"""Runs that go on from a model: what they need of it, and what becomes of what it knew."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bertkit import BertForPreTraining, BertModel, BertTokenizer
from bertkit.errors import CheckpointError, DataError, UsageError
from bertkit.runtime import Runtime
from bertkit.settings import Recipe, load_recipe
from bertkit.text.extend import extend_tokenizer
from bertkit.train import card
from bertkit.train import pretrain as pretrain_module
from bertkit.train.forgetting import before_after_table, old_batches
from bertkit.train.log import read_log
from bertkit.train.pretrain import pretrain
from bertkit.train.setup import PretrainResult, build_loader, open_data, resolve
from bertkit.train.start import build_model
from bertkit.train.step import evaluate, wrap
from tests.train.conftest import TOPICS, small_recipe, topic_words, write_data
from tests.train.interrupting import Killed, at_step, end_of

CPU = torch.device("cpu")
MACHINE = Runtime(CPU, torch.float32, 0, 1, 1)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "draw_curves", lambda lines, path: None)


@pytest.fixture(scope="module")
def start(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the topics a little."""
    out = tmp_path_factory.mktemp("start") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "draw_curves", lambda lines, path: None)
        pretrain([data], out, small_recipe(train__steps=20), device="cpu", quiet=True)
    return out


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("new") / "data", 60, seed=9)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of two sentences; words of all topics follow one another in order."""
    path = tmp_path_factory.mktemp("old") / "old.txt"
    words = [topic_words(topic) for topic in range(TOPICS)]
    texts = [
        "\n".join(" ".join(words[(n + i) % TOPICS][i : i + 6]) for i in range(4)) for n in range(40)
    ]
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


def run(new: Path, out: Path, recipe: Recipe, start: Path | None, **more: bool) -> PretrainResult:
    init = None if start is None else str(start)
    return pretrain([new], out, recipe, init=init, device="cpu", quiet=True, **more)


def loss_of(model: Path | str, recipe: Recipe, new: Path, old: Path | None = None) -> float:
    """The held-out masked loss, computed here from the pieces."""
    source = open_data([new])
    if old is not None:
        recipe = small_recipe(model__init=str(model), log__old=[str(old)])
        batches = old_batches(recipe, source.tokenizer, MACHINE)
    else:
        batches = build_loader(source.dev, recipe, source.tokenizer, MACHINE, 0).dev_batches(1024)
    network = BertForPreTraining.from_pretrained(model)
    return evaluate(wrap(network, MACHINE, False), batches, MACHINE).mlm_loss


def test_old_and_new_text_before_and_after(
    start: Path, new: Path, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(
        train__steps=12, train__optimizer="adamw", train__learning_rate=3e-3, log__old=[str(old)]
    )
    result = pretrain([new], tmp_path, recipe, init=str(start), device="cpu")
    rows = {row["text"]: row for row in result.before_after}
    model = tmp_path / "model"
    assert list(rows) == ["old", "new"]
    assert rows["new"]["mlm_loss_before"] == pytest.approx(loss_of(start, recipe, new), rel=1e-5)
    assert rows["new"]["mlm_loss_after"] == pytest.approx(loss_of(model, recipe, new), rel=1e-5)
    before, after = loss_of(start, recipe, new, old), loss_of(model, recipe, new, old)
    assert rows["old"]["mlm_loss_before"] == pytest.approx(before, rel=1e-5)
    assert rows["old"]["mlm_loss_after"] == pytest.approx(after, rel=1e-5)
    assert rows["new"]["mlm_loss_after"] == result.figures["mlm_loss"]
    assert rows["new"]["mlm_loss_after"] != rows["new"]["mlm_loss_before"]
    assert rows["old"]["masked"] > 50
    assert result.new_parts == ()
    assert result.to_dict()["before_after"] == result.before_after
    # Said early, logged all along, and shown at the end.
    err = capsys.readouterr().err
    assert err.index("before training: old text") < err.index("held out at step")
    found = re.search(r"\(the same ([\d,]+) tokens of it in every evaluation\)", err)
    assert found
    tokens = int(found[1].replace(",", ""))
    # Old text counts as much as new: no evaluation reads more than was trained on before it.
    evaluated = sum(line["event"] == "eval" for line in read_log(tmp_path / "log.jsonl"))
    assert 500 < tokens <= 1024
    assert evaluated <= 1 + result.tokens // (1024 + tokens)
    log = read_log(tmp_path / "log.jsonl")
    assert log[1]["event"] == "before"
    assert log[1]["old_mlm_loss"] == rows["old"]["mlm_loss_before"]
    evals = [line for line in log if line["event"] == "eval"]
    assert evals[-1]["old_mlm_loss"] == rows["old"]["mlm_loss_after"]
    assert evals[0]["old_mlm_loss"] != evals[-1]["old_mlm_loss"]
    text = (model / "README.md").read_text(encoding="utf-8")
    assert f"| old | {before:.3f} -> {after:.3f} |" in text
    assert f"goes on from `{start}`" in text
    assert f"{before:.3f} -> {after:.3f}" in before_after_table(result.before_after)


@pytest.mark.parametrize("name_it_again", [True, False])
def test_a_run_that_was_killed_ends_in_the_same_bits(
    start: Path,
    new: Path,
    old: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name_it_again: bool,
) -> None:
    copy = tmp_path / "start"
    shutil.copytree(start / "model", copy)
    recipe = small_recipe(
        train__steps=8, checkpoint__every_steps=3, log__old=[str(old)], train__dropout=0.1
    )
    whole = run(new, tmp_path / "whole", recipe, copy)
    at_step(pretrain_module, monkeypatch, 5, lambda: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        run(new, tmp_path / "killed", recipe, copy)
    shutil.rmtree(copy)  # it has given all that it had
    again = recipe if name_it_again else Recipe()
    resumed = run(new, tmp_path / "killed", again, copy if name_it_again else None, resume=True)
    assert end_of(tmp_path / "killed") == end_of(tmp_path / "whole")
    assert resumed.before_after == whole.before_after
    assert load_recipe(tmp_path / "killed" / "recipe.toml", {}, Recipe).model.init == str(copy)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_with_two_output_biases_goes_on_and_keeps_both(
    tied: bool, start: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "two"
    shutil.copytree(start / "model", copy)
    model = BertForPreTraining.from_pretrained(copy)
    model.untie_bias()
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    if not tied:
        model.config.tie_word_embeddings = False
        decoder = model.cls.predictions.decoder
        decoder.weight = torch.nn.Parameter(decoder.weight + 0.01)
    model.save_pretrained(copy)
    recipe = small_recipe(train__steps=4, checkpoint__every_steps=2)
    whole = run(new, tmp_path / "whole", recipe, copy)
    at_step(pretrain_module, monkeypatch, 3, lambda: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        run(new, tmp_path / "killed", recipe, copy)
    run(new, tmp_path / "killed", Recipe(), None, resume=True)
    assert end_of(tmp_path / "killed") == end_of(tmp_path / "whole")
    after = BertForPreTraining.from_pretrained(whole.run)
    assert torch.equal(after.cls.predictions.bias, model.cls.predictions.bias)
    assert not torch.equal(after.cls.predictions.decoder.bias, model.cls.predictions.decoder.bias)


def test_killed_before_its_first_checkpoint_it_still_goes_on_from_the_model(
    start: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(train__steps=2)
    whole = run(new, tmp_path / "whole", recipe, start)
    at_step(pretrain_module, monkeypatch, 1, lambda: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        run(new, tmp_path / "killed", recipe, start)
    run(new, tmp_path / "killed", Recipe(), None, resume=True)
    assert end_of(tmp_path / "killed") == end_of(tmp_path / "whole")
    assert whole.before_after[0]["text"] == "new"


def test_other_old_text_is_not_compared(
    start: Path, new: Path, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "old.txt"
    shutil.copy(old, copy)
    recipe = small_recipe(train__steps=4, checkpoint__every_steps=2, log__old=[str(copy)])
    at_step(pretrain_module, monkeypatch, 3, lambda: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        run(new, tmp_path / "run", recipe, start)
    copy.write_text(old.read_text(encoding="utf-8")[400:], encoding="utf-8")
    assert run(new, tmp_path / "run", recipe, start, resume=True).before_after == []


def test_what_cannot_go_on_is_refused(start: Path, new: Path, old: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"log.old .* goes with model.init"):
        run(new, tmp_path / "a", small_recipe(log__old=[str(old)]), None)
    with pytest.raises(DataError, match=r"nothing\.txt"):
        run(new, tmp_path / "b", small_recipe(log__old=[str(tmp_path / "nothing.txt")]), start)
    with pytest.raises(UsageError, match=r"model.hidden_size is 48, but .* has 32"):
        run(new, tmp_path / "c", small_recipe(model__hidden_size=48), start)
    with pytest.raises(UsageError, match=r"64 in .*bertkit grow --positions"):
        run(new, tmp_path / "d", small_recipe(data__max_length=65), start)
    with pytest.raises(CheckpointError, match="no such folder"):
        run(new, tmp_path / "e", small_recipe(), tmp_path / "nowhere" / "model")
    recipe = small_recipe(train__steps=1)
    run(new, tmp_path / "f", recipe, start)
    with pytest.raises(UsageError, match="which is to go on; name another"):
        run(new, tmp_path / "f", recipe, tmp_path / "f" / "model", overwrite=True)
    with pytest.raises(UsageError, match=r"model\.init was"):
        run(new, tmp_path / "f", recipe, None, resume=True)
    assert (tmp_path / "f" / "model" / "model.safetensors").exists()


def test_data_with_other_words_is_refused(start: Path, new: Path, tmp_path: Path) -> None:
    source = open_data([new])
    recipe = small_recipe()
    own = tmp_path / "model"
    shutil.copytree(start / "model", own)

    def build(tokenizer: BertTokenizer) -> None:
        shutil.rmtree(own)
        shutil.copytree(start / "model", own)
        tokenizer.save_pretrained(own)
        if not (own / "tokenizer.json").exists():
            raise AssertionError
        build_model(recipe, source.tokenizer, str(own), print)

    build(source.tokenizer)
    words = list(source.tokenizer.get_vocab())
    swapped = sorted(words, key=source.tokenizer.get_vocab().__getitem__)
    swapped[7], swapped[8] = swapped[8], swapped[7]
    with pytest.raises(UsageError, match=r"calls 'a[gh ijk]' [78], the data [78]; prepare it with"):
        build(BertTokenizer(swapped))
    with pytest.raises(UsageError, match="66 words, the data was prepared with 65"):
        build(extend_tokenizer(source.tokenizer, ["zz"]))
    with pytest.raises(UsageError, match="do_lower_case=False"):
        build(BertTokenizer(source.tokenizer.get_vocab(), do_lower_case=False))


def test_rows_that_pad_the_embeddings_do_no_harm(start: Path, new: Path, tmp_path: Path) -> None:
    model = BertForPreTraining.from_pretrained(start)
    model.resize_token_embeddings(pad_to_multiple_of=64)
    model.save_pretrained(tmp_path)
    BertTokenizer.from_pretrained(start).save_pretrained(tmp_path)
    made = build_model(small_recipe(), open_data([new]).tokenizer, str(tmp_path), print)
    assert made.config.vocab_size == 128
    made.bert.save_pretrained(tmp_path)  # and the same without the masked-word head
    result = run(new, tmp_path / "run", small_recipe(train__steps=1), tmp_path)
    assert "cls.predictions.bias" in result.new_parts
    head = BertForPreTraining.from_pretrained(tmp_path / "run").cls.predictions
    assert len(head.bias) == 128
    assert float(head.bias[65:].detach().max()) <= float(head.bias.detach().min())


def test_heads_that_are_missing_begin_anew_and_are_named(
    start: Path, new: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    BertModel.from_pretrained(start, dtype="float16").save_pretrained(tmp_path / "encoder")
    BertTokenizer.from_pretrained(start).save_pretrained(tmp_path / "encoder")
    said: list[str] = []
    tokenizer = open_data([new]).tokenizer
    model = build_model(small_recipe(), tokenizer, str(tmp_path / "encoder"), said.append)
    assert not said  # what is logged is not said again
    assert "cls.predictions, cls.seq_relationship not in the checkpoint" in caplog.text
    assert model.dtype == torch.float32  # training in fp16 weights would lose small updates
    result = run(new, tmp_path / "run", small_recipe(train__steps=2), tmp_path / "encoder")
    assert "cls.predictions.bias" in result.new_parts
    assert "`cls.seq_relationship.weight`" in (tmp_path / "run/model/README.md").read_text()
    config = (tmp_path / "run" / "model" / "config.json").read_text()
    assert '"float32"' in config


def test_one_segment_makes_no_pairs(start: Path, new: Path, tmp_path: Path) -> None:
    model = BertForPreTraining.from_pretrained(start)
    table = model.bert.embeddings.token_type_embeddings
    table.weight = torch.nn.Parameter(table.weight[:1].detach().clone())
    model.config.type_vocab_size = 1
    model.save_pretrained(tmp_path)
    tokenizer = open_data([new]).tokenizer
    with pytest.raises(UsageError, match="say --objective mlm"):
        build_model(small_recipe(), tokenizer, str(tmp_path), print)
    build_model(small_recipe(data__objective="mlm"), tokenizer, str(tmp_path), print)


def test_what_a_model_was_asked_of_pairs_is_remembered_anew(start: Path, new: Path) -> None:
    tokenizer = open_data([new]).tokenizer
    recipe = small_recipe(data__objective="mlm+sop")
    assert build_model(recipe, tokenizer, str(start), print).config.to_dict()["pair_objective"]
    model = build_model(small_recipe(), tokenizer, str(start), print)
    assert "pair_objective" not in model.config.to_dict()


def test_the_learning_rate_is_lower_where_training_goes_on(start: Path, tmp_path: Path) -> None:
    fresh = resolve(small_recipe(), CPU, tmp_path, resume=False)
    recipe = small_recipe(model__init=str(start))
    recipe.model.hidden_size = None
    further = resolve(recipe, CPU, tmp_path, resume=False)
    assert further.train.learning_rate == pytest.approx(0.2 * (fresh.train.learning_rate or 0))
    assert further.model.hidden_size == 32  # as the model has it
    assert further.model.max_position_embeddings == 64
    own = small_recipe(model__init=str(start), train__learning_rate=0.5)
    assert resolve(own, CPU, tmp_path, resume=False).train.learning_rate == 0.5


def test_old_text_stays_within_bounds_and_does_not_depend_on_the_weights_of_data(
    start: Path, new: Path, old: Path
) -> None:
    tokenizer = open_data([new]).tokenizer
    settings = {"model__init": str(start), "log__old": [str(old)]}
    plain = old_batches(small_recipe(**settings), tokenizer, MACHINE)
    weighed = old_batches(
        small_recipe(**settings, data__weights=[1.0, 2.0]), tokenizer, replace(MACHINE, rank=1)
    )
    assert [b.input_ids.tolist() for b in plain] == [b.input_ids.tolist() for b in weighed]
    assert 0 < sum(b.real_tokens for b in plain) <= 1024
