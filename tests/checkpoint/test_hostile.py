"""No file that a model folder may hold does harm: thousands of broken ones, and those by design."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.layout import read_tensors, write_tensors
from bertkit.errors import BertkitError, CheckpointError
from bertkit.model.bert import BertModel
from bertkit.tasks.load import load
from tests.checkpoint.mutations import EXTRA_BYTES, GOOGLE, PLAN

ROOT = Path(__file__).parents[2]


def mutate(tmp_path: Path, seed: int, share: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.checkpoint.mutations", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(seed), str(share)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def count(found: dict[str, Any]) -> int:
    """How many folders were opened or refused, none of them in another way."""
    assert found["problems"] == []
    assert found["outside"] == []
    assert found["refused"] > found["opened"] > 0
    assert found["peak_kib"] < EXTRA_BYTES // 1024 // 2
    return int(found["opened"] + found["refused"])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's memory limits")
def test_two_thousand_broken_folders_open_or_are_refused_in_one_line(tmp_path: Path) -> None:
    assert count(mutate(tmp_path, seed=0, share=0.7)) >= 2000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_twelve_thousand_more(tmp_path: Path, seed: int) -> None:
    assert count(mutate(tmp_path, seed, share=1)) >= sum(number for *_, number in PLAN)


def copy(tmp_path: Path) -> Path:
    """A sound folder with safetensors."""
    folder = tmp_path / "model"
    config = BertConfig.from_json_file(GOOGLE / "bert_config.json")
    config.save_pretrained(folder)
    write_tensors(folder / "model.safetensors", read_tensors(GOOGLE))
    return folder


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "model.safetensors.index.json"]
)
def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(
    name: str, tmp_path: Path
) -> None:
    folder = copy(tmp_path)
    inside = folder / "blob"
    if name.endswith("index.json"):
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        index = {
            "weight_map": dict.fromkeys(read_names(folder / "part.safetensors"), "part.safetensors")
        }
        (folder / name).write_text(json.dumps(index))
    (folder / name).rename(inside)
    (folder / name).symlink_to("blob")
    assert BertModel.from_pretrained(folder).config.hidden_size == 8
    (folder / name).unlink()
    outside = tmp_path / "secret"
    inside.rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(BertkitError, match="a link that leads out of its folder") as caught:
        BertModel.from_pretrained(folder)
    assert str(folder / name) in str(caught.value)
    linked = tmp_path / "linked"
    (folder / name).unlink()
    shutil.copy(outside, folder / name)
    linked.symlink_to(folder)  # a whole folder may be a link
    assert BertModel.from_pretrained(linked).config.hidden_size == 8


def read_names(path: Path) -> list[str]:
    raw = path.read_bytes()
    table = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return [name for name in table if name != "__metadata__"]


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    (folder / "x.safetensors").symlink_to(tmp_path / "secret.safetensors")
    index = {"weight_map": {"a": "x.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"x\.safetensors: a link that leads out"):
        read_tensors(folder)
    google = tmp_path / "google"
    shutil.copytree(GOOGLE, google)
    data = google / "bert_model.ckpt.data-00000-of-00001"
    data.rename(tmp_path / "data")
    data.symlink_to(tmp_path / "data")
    with pytest.raises(CheckpointError, match=r"data-00000-of-00001: a link that leads out"):
        read_tensors(google)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 440449768\n"
PAGE = b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>\n"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "config.json", "vocab.txt", "tokenizer.json"]
)
def test_a_pointer_and_a_page_are_named_as_what_they_are(name: str, tmp_path: Path) -> None:
    folder = copy(tmp_path)
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    for file in ("tokenizer.json", "vocab.txt"):
        (folder / file).unlink(missing_ok=True)
    shutil.copy(GOOGLE / "vocab.txt", folder)
    for content, told in ((LFS, "a Git LFS pointer .*git lfs pull"), (PAGE, "a web page .*again")):
        (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: {told}") as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        folder = copy(tmp_path / name)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(BertkitError, match=f"{name}: not a plain file"):
            BertModel.from_pretrained(folder)
        (folder / name).unlink()
        (folder / name).symlink_to(name)
        with pytest.raises(BertkitError, match="cannot be read"):
            BertModel.from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", ["safetensors", "bin", "old bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_are_none_are_refused_by_name(
    value: float, form: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = copy(tmp_path)
    state = {name: tensor.to(dtype) for name, tensor in read_tensors(folder).items()}
    state["bert.encoder.layer.1.output.dense.bias"][-1] = value
    write_form(folder, state, form)
    with pytest.raises(CheckpointError, match=r"layer\.1\.output\.dense\.bias has NaN") as caught:
        BertModel.from_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def write_form(folder: Path, state: dict[str, torch.Tensor], form: str) -> None:
    (folder / "model.safetensors").unlink()
    if form == "safetensors":
        write_tensors(folder / "model.safetensors", state)
    else:
        path = folder / "pytorch_model.bin"
        torch.save(state, path, _use_new_zipfile_serialization=form == "bin")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_numbers_are_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = copy(tmp_path)
    state = {name: tensor.to(dtype) for name, tensor in read_tensors(folder).items()}
    largest = torch.finfo(dtype).max
    state["bert.pooler.dense.weight"].fill_(largest)  # their sum is infinite
    write_form(folder, state, "safetensors")
    model = BertModel.from_pretrained(folder)
    assert bool((model.pooler.dense.weight == largest).all())
