"""A name leads to a folder: a model, a run's model, a run's newest whole step, a hub snapshot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.hub import resolve_model
from bertkit.checkpoint.store import save_step
from bertkit.errors import CheckpointError


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
    with pytest.raises(CheckpointError, match=r"holds the folders mini-wiki, base$") as caught:
        resolve_model(tmp_path / "mini-wikl")
    assert str(caught.value).startswith(f"{tmp_path / 'mini-wikl'}: no such folder")
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_model(tmp_path / "no" / "where")
    write(tmp_path / "base")
    with pytest.raises(CheckpointError, match="a file, not a model folder"):
        resolve_model(tmp_path / "base" / "config.json")
    with pytest.raises(CheckpointError, match="is empty"):
        resolve_model("")


def test_a_hub_id_is_downloaded_without_the_weights_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def fake(repo: str, **options: Any) -> str:
        calls.append({"repo": repo, **options})
        write(tmp_path)
        if "pytorch_model*.bin" in options["allow_patterns"]:
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    found = resolve_model("someone/bert-x", revision="v1", token="t", offline=True)
    assert found == tmp_path
    assert calls[0]["repo"] == "someone/bert-x"
    assert (calls[0]["revision"], calls[0]["token"]) == ("v1", "t")
    assert calls[0]["local_files_only"] is True
    assert "pytorch_model*.bin" not in calls[0]["allow_patterns"]
    assert "pytorch_model*.bin" in calls[1]["allow_patterns"]
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
    assert "no such folder here" in str(caught.value)
    assert "LocalEntryNotFoundError" in str(caught.value)
