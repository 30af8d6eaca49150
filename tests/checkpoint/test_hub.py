"""A name leads to a folder: a model, a run's model, a run's newest whole step, a hub snapshot."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.hub import resolve_model
from bertkit.checkpoint.store import save_step
from bertkit.cli import main
from bertkit.errors import CheckpointError
from bertkit.model.bert import BertModel
from bertkit.model.heads import BertForPreTraining
from bertkit.tasks.load import load
from bertkit.text.tokenizer import BertTokenizer

GOOGLE = Path(__file__).parent / "fixtures" / "google"


def write(folder: Path) -> None:
    BertConfig().save_pretrained(folder)


def test_a_model_folder_is_itself(tmp_path: Path) -> None:
    write(tmp_path)
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_run_is_its_model_else_its_newest_whole_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = tmp_path / "checkpoints"
    steps.mkdir()
    with pytest.raises(CheckpointError, match="no whole checkpoint yet"):
        resolve_model(tmp_path)
    first, second = (save_step(steps, step, write, 2) for step in (1, 2))
    assert resolve_model(tmp_path) == second
    os.truncate(second / "config.json", 3)
    assert resolve_model(tmp_path) == first
    assert "step-00000002: damaged" in capsys.readouterr().err
    write(tmp_path / "model")
    assert resolve_model(tmp_path) == tmp_path / "model"
    assert resolve_model(first) == first


def test_a_path_that_is_not_there_tells_what_is_beside(tmp_path: Path) -> None:
    for name in ("mini-wiki", "base", ".hidden"):
        (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=r"holds the folders mini-wiki$") as caught:
        resolve_model(tmp_path / "mini-wikl")
    assert str(caught.value).startswith(f"{tmp_path / 'mini-wikl'}: no such folder")
    with pytest.raises(CheckpointError, match=r"no such folder.* holds the folders base, mini"):
        resolve_model(tmp_path / "no" / "where")
    write(tmp_path / "base")
    with pytest.raises(CheckpointError, match="a file, not a model folder"):
        resolve_model(tmp_path / "base" / "config.json")
    with pytest.raises(CheckpointError, match="is empty"):
        resolve_model("")


FOLDERS = {
    "a tokenizer, no model; `bertkit pretrain` makes": ["tokenizer.json", "vocab.txt"],
    "prepared data, no model": ["manifest.json", "train/000.bin", "tokenizer/vocab.txt"],
    "a LoRA adapter, no model": ["adapter_config.json", "adapter_model.safetensors"],
    "holds model.safetensors, but no config.json": ["model.safetensors", "vocab.txt"],
    "a run that has saved no model yet": ["recipe.toml", "log.jsonl"],
    "holds the models base, tiny: name one": ["tiny/config.json", "base/config.json", "vocab.txt"],
    "it has neither config.json nor weights": ["corpus.txt"],
}


@pytest.mark.parametrize("told", FOLDERS)
def test_a_folder_that_is_no_model_is_named_as_what_it_is(told: str, tmp_path: Path) -> None:
    for name in FOLDERS[told]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for opens in (load, BertModel.from_pretrained, BertConfig.from_pretrained):
        with pytest.raises(CheckpointError) as caught:
            opens(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path}: ")
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_hub_id_is_downloaded_without_the_weights_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def fake(repo: str, **options: Any) -> str:
        calls.append({"repo": repo, **options})
        write(tmp_path)
        if "pytorch_model.bin" in options["allow_patterns"]:
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    found = resolve_model(
        "someone/bert-x", revision="v1", token="t", offline=True, cache_dir="kept"
    )
    assert found == tmp_path
    assert calls[0]["repo"] == "someone/bert-x"
    assert (calls[0]["revision"], calls[0]["token"]) == ("v1", "t")
    assert calls[0]["local_files_only"] is True
    assert calls[0]["cache_dir"] == "kept"
    assert "pytorch_model.bin" not in calls[0]["allow_patterns"]
    assert "pytorch_model.bin" in calls[1]["allow_patterns"]
    assert len(calls) == 2
    assert not any("h5" in p or "msgpack" in p for c in calls for p in c["allow_patterns"])
    (tmp_path / "model.safetensors").touch()
    resolve_model("bert-base-uncased")
    assert len(calls) == 3


def test_a_hub_that_does_not_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert-base").mkdir()
    with pytest.raises(CheckpointError, match="bert-base") as caught:
        resolve_model("bert-bose", offline=True)
    assert "\n" not in str(caught.value)
    assert "neither a folder here nor in the local cache" in str(caught.value)
    assert "get it once without --offline" in str(caught.value)
    assert str(caught.value).endswith("holds the folders bert-base")


def test_googles_own_files_are_asked_for_where_there_is_nothing_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def fake(repo: str, **options: Any) -> str:
        calls.append(options["allow_patterns"])
        if "*.ckpt*.index" in calls[-1]:
            shutil.copytree(GOOGLE, tmp_path, dirs_exist_ok=True)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    assert BertConfig.from_pretrained("google/bert-x").hidden_size == 8
    assert len(calls) == 3
    assert "bert_config.json" in calls[0]
    (tmp_path / "bert_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"this hub repository has no config\.json"):
        resolve_model("google/bert-x")


def cache_of_the_hub(home: Path, source: Path) -> Path:
    """A cache as huggingface_hub lays it out: snapshots of links into blobs."""
    repository = home / "models--someone--bert-x"
    snapshot = repository / "snapshots" / ("0" * 40)
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for number, path in enumerate(sorted(source.iterdir())):
        blob = repository / "blobs" / f"{number:064x}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def test_offline_the_cache_of_the_hub_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    BertForPreTraining.from_pretrained(GOOGLE).save_pretrained(source)
    shutil.copy(GOOGLE / "vocab.txt", source)
    snapshot = cache_of_the_hub(tmp_path / "hub", source)
    monkeypatch.chdir(tmp_path)
    kept: dict[str, Any] = {"cache_dir": tmp_path / "hub", "local_files_only": True}
    assert BertConfig.from_pretrained("someone/bert-x", **kept).hidden_size == 8
    assert BertTokenizer.from_pretrained("someone/bert-x", **kept).mask_token_id == 4
    assert BertModel.from_pretrained("someone/bert-x", **kept).config.hidden_size == 8
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert resolve_model("someone/bert-x", offline=True) == snapshot
    model = BertModel.from_pretrained("someone/bert-x", local_files_only=True)
    assert model.config.hidden_size == 8
    assert load("someone/bert-x", "cpu", offline=True).fill("the [MASK]")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_model("someone/bert-x") == snapshot
    assert BertTokenizer.from_pretrained("someone/bert-x").mask_token_id == 4
    with pytest.raises(CheckpointError, match="someone/bert-y: neither a folder"):
        resolve_model("someone/bert-y")
    with pytest.raises(CheckpointError, match="someone/bert-x"):
        resolve_model("someone/bert-x", revision="v2")


@pytest.mark.parametrize("verb", [["doctor"], ["fill"], ["next"]])
def test_the_command_line_goes_offline(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def fake(repo: str, **options: Any) -> str:
        asked.append(options)
        raise OSError("not cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # to be put back, whatever the command sets
    monkeypatch.chdir(tmp_path)
    texts = {"doctor": [], "fill": ["the [MASK]"], "next": ["a", "b"]}[verb[0]]
    arguments = [*verb, "someone/bert-x", *texts, "--revision", "v1"]
    assert main(arguments) == 1
    assert main([*arguments, "--offline"]) == 1
    assert [(a["local_files_only"], a["revision"]) for a in asked] == [(False, "v1"), (True, "v1")]
