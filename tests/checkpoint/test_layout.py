"""Tensors come back as written from every kind of file; nothing hostile does."""

from __future__ import annotations

import errno
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.layout import (
    read_tensor_file,
    read_tensors,
    write_model_folder,
    write_tensors,
)
from bertkit.errors import CheckpointError

WORDS = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)


def some_tensors() -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(0)
    shapes = {"a": (3, 5), "b": (), "c": (0, 4), "d": (64, 16), "e": (7,), "中": (2, 2, 2)}
    return {
        f"{name}.{kind}": (torch.rand(shape, generator=chance) * 9).to(kind)
        for name, shape in shapes.items()
        for kind in KINDS
    }


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        one[k].dtype == two[k].dtype and torch.equal(one[k], two[k]) for k in one
    )


def test_what_we_write_the_library_reads_and_the_other_way(tmp_path: Path) -> None:
    tensors = some_tensors()
    write_tensors(tmp_path / "ours", tensors, {"step": "3"})
    assert same(load_file(tmp_path / "ours"), tensors)
    assert same(read_tensor_file(tmp_path / "ours"), tensors)
    save_file(tensors, tmp_path / "theirs")
    assert same(read_tensor_file(tmp_path / "theirs"), tensors)
    assert {p.name for p in tmp_path.iterdir()} == {"ours", "theirs"}


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=9).filter("__metadata__".__ne__),
        st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(KINDS)),
        max_size=5,
    )
)
@settings(max_examples=40, deadline=None)
def test_any_names_and_shapes_come_back(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    tensors = {name: torch.ones(shape, dtype=kind) for name, (shape, kind) in shapes.items()}
    write_tensors(path, tensors)
    assert same(read_tensor_file(path), tensors)
    assert same(load_file(path), tensors)


def test_tensors_are_aligned_as_torch_aligns_and_do_not_write_to_the_file(tmp_path: Path) -> None:
    tensors = {"odd": torch.ones(3), "w": torch.ones(64, 64), "x": torch.ones(128)}
    write_tensors(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs")
    assert all(t.data_ptr() % 64 == 0 for t in read_tensor_file(tmp_path / "ours").values())
    for name in ("ours", "theirs"):
        read_tensor_file(tmp_path / name)["w"].zero_()
        assert same(read_tensor_file(tmp_path / name), tensors)


def memory_of(kind: str) -> int:
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(kind + ":"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_reading_maps_and_does_not_copy(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {"w": torch.ones(4096, 4096)})  # 64 MiB
    before = memory_of("Anonymous")
    read = read_tensors(tmp_path)
    assert float(read["w"].sum()) == 4096 * 4096
    assert memory_of("Anonymous") - before < 16 * 1024


def test_a_model_folder_ties_once_and_is_replaced_whole(tmp_path: Path) -> None:
    words = torch.rand(5, 4)
    bias = torch.rand(5)
    state = {
        WORDS: words,
        DECODER: words,
        "cls.predictions.bias": bias,
        "cls.predictions.decoder.bias": bias,
    }
    write_model_folder(tmp_path / "m", state, BertConfig(architectures=["X"]))
    assert read_tensors(tmp_path / "m").keys() == {WORDS, "cls.predictions.bias"}
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "float32"
    mapped = read_tensors(tmp_path / "m")
    write_model_folder(tmp_path / "m", {WORDS: words.half() + 1}, BertConfig())
    assert torch.equal(mapped[WORDS], words)  # the old file lives as long as its map
    assert torch.equal(read_tensors(tmp_path / "m")[WORDS], words.half() + 1)
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"config.json", "model.safetensors"}
    untied = {WORDS: words, DECODER: words + 1}
    write_model_folder(tmp_path / "m", untied, BertConfig(tie_word_embeddings=False))
    assert same(read_tensors(tmp_path / "m"), untied)


def test_names_of_old_files_become_todays(tmp_path: Path) -> None:
    one = torch.ones(2)
    old = {
        "module.bert.embeddings.LayerNorm.gamma": one,
        "bert.embeddings.LayerNorm.beta": one * 2,
        "bert.embeddings.position_ids": torch.arange(2),
        "cls.predictions.decoder.bias": one * 3,
    }
    torch.save(old, tmp_path / "pytorch_model.bin")
    read = read_tensors(tmp_path)
    assert {name: float(t[0]) for name, t in read.items()} == {
        "bert.embeddings.LayerNorm.weight": 1,
        "bert.embeddings.LayerNorm.bias": 2,
        "cls.predictions.bias": 3,
    }
    torch.save(old | {"bert.embeddings.LayerNorm.weight": one}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="twice"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_of_both_ages(tmp_path: Path, zipped: bool) -> None:
    tensors = {"a": torch.rand(3, 4), "b": torch.rand(2).half(), "t": torch.rand(3, 4).T}
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    read = read_tensors(tmp_path)
    assert same(read, tensors)
    assert read["t"].is_contiguous()


def shard(folder: Path, suffix: str = "safetensors") -> dict[str, Tensor]:
    parts = [{"a": torch.ones(2)}, {"b": torch.zeros(3)}]
    names = [f"model-{i}.{suffix}" for i in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        if suffix == "bin":
            torch.save(part, folder / name)
        else:
            write_tensors(folder / name, part)
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    stem = "pytorch_model.bin" if suffix == "bin" else "model.safetensors"
    (folder / f"{stem}.index.json").write_text(json.dumps(index))
    return parts[0] | parts[1]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_together(tmp_path: Path, suffix: str) -> None:
    tensors = shard(tmp_path, suffix)
    assert same(read_tensors(tmp_path), tensors)


OUTSIDE = ["../secret.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..\\x.bin"]


@pytest.mark.parametrize("name", [*OUTSIDE, "x\0.bin", "config.json", 3, None])
def test_a_shard_cannot_lie_outside_the_folder(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_tensors(tmp_path / "secret.safetensors", {"a": torch.ones(2)})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="not the name of a shard"):
        read_tensors(folder)


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ({"weight_map": {"a": "model-1.safetensors", "z": "model-1.safetensors"}}, "'z' is not in"),
        ({"weight_map": {"a": "model-9.safetensors"}}, "which is missing"),
        ({"weight_map": {}}, "no weight_map"),
        ([], "not a JSON object"),
    ],
)
def test_a_broken_index_is_one_line(tmp_path: Path, index: Any, told: str) -> None:
    shard(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=told) as caught:
        read_tensors(tmp_path)
    assert "\n" not in str(caught.value)


class Evil:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.witness),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_runs_no_code(tmp_path: Path, zipped: bool) -> None:
    witness = tmp_path / "witness"
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": Evil(witness)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="could run code"):
        read_tensors(tmp_path)
    path.write_bytes(pickle.dumps(Evil(witness)))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        read_tensors(tmp_path)
    assert not witness.exists()


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(CheckpointError, match="compressed"):
        read_tensors(tmp_path)


def test_a_tensor_cannot_claim_more_than_its_file(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1).expand(10**12)}, path)
    with pytest.raises(CheckpointError, match="larger than the file"):
        read_tensors(tmp_path)
    torch.save({"a": 3}, path)
    with pytest.raises(CheckpointError, match="not a tensor"):
        read_tensors(tmp_path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        read_tensors(tmp_path)


def header(table: dict[str, Any], body: bytes = b"") -> bytes:
    raw = json.dumps(table).encode()
    return len(raw).to_bytes(8, "little") + raw + body


HUGE = {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "short": b"\1\2\3",
    "huge header": (2**60).to_bytes(8, "little") + b"{}",
    "huge shape": header({"a": HUGE}),
    "negative": header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
    "overflow": header({"a": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 0]}}),
    "past the end": header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
    "wrong size": header(
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"12345678"
    ),
    "unknown dtype": header({"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "trailing": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345"),
    "deep": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "not JSON": (4).to_bytes(8, "little") + b"oops",
    "no UTF-8": (4).to_bytes(8, "little") + b"\xff\xff\xff\xff",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(HOSTILE[kind])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged") as caught:
        read_tensors(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"a": torch.ones(2)})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="No space left"):
            write_tensors(path, {"a": torch.zeros(2)})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert torch.equal(read_tensor_file(path)["a"], torch.ones(2))


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights: neither model\.safetensors"):
        read_tensors(tmp_path)
