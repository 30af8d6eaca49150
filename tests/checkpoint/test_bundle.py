"""Google's checkpoints: as TensorFlow wrote them, as transformers 4 read them; damage is seen."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bertkit.checkpoint.bundle import read_bundle
from bertkit.checkpoint.crc32c import crc32c, unmasked
from bertkit.checkpoint.layout import read_tensors, read_weights
from bertkit.checkpoint.names import from_google, is_optimiser, present_name, to_google
from bertkit.errors import CheckpointError
from bertkit.model.heads import BertForPreTraining
from bertkit.tasks.load import load

FIXTURES = Path(__file__).parent / "fixtures"
GOOGLE = FIXTURES / "google"
DATA = "bert_model.ckpt.data-00000-of-00001"
INDEX = "bert_model.ckpt.index"


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_every_tensor_is_as_transformers_4_reads_it() -> None:
    expected = json.loads((FIXTURES / "expected.json").read_text())
    assert {name: digest(tensor) for name, tensor in read_tensors(GOOGLE).items()} == expected
    assert len(expected) == 46


def test_the_optimisers_slots_are_dropped_quietly_and_a_model_comes_out(tmp_path: Path) -> None:
    names = read_bundle(GOOGLE / INDEX, lambda name: False)
    assert {name for name, tensor in names.items() if tensor is not None} == set()
    assert {"global_step", "cls/seq_relationship/output_bias/adam_m"} <= names.keys()
    assert read_weights(GOOGLE).unknown == ()
    model = BertForPreTraining.from_pretrained(GOOGLE)
    report = model.load_report
    assert report is not None
    assert report.missing == report.unexpected == report.resized == report.untrained == ()
    model.save_pretrained(tmp_path)
    again = BertForPreTraining.from_pretrained(tmp_path)
    ids = torch.tensor([[2, 5, 6, 4, 3]])
    with torch.no_grad():
        for one, two in zip(model(ids).to_tuple(), again(ids).to_tuple(), strict=True):
            torch.testing.assert_close(one, two)
    assert load(GOOGLE, "cpu").fill("the cat [MASK] on the mat.")[0]


def test_a_folder_may_call_its_checkpoint_otherwise_but_hold_one_only(tmp_path: Path) -> None:
    for name in (DATA, INDEX):
        shutil.copy(GOOGLE / name, tmp_path / name.replace("bert_model.ckpt", "model.ckpt-1000"))
    assert len(read_tensors(tmp_path)) == 46
    shutil.copy(GOOGLE / INDEX, tmp_path / "model.ckpt-2000.index")
    with pytest.raises(CheckpointError, match=r"several checkpoints \(model\.ckpt-1000\.index, mo"):
        read_tensors(tmp_path)


def test_the_table_of_names_is_read_in_both_directions() -> None:
    model = BertForPreTraining.from_pretrained(GOOGLE)
    names = {n for n in model.state_dict() if not n.startswith("cls.predictions.decoder")}
    there = {name: to_google(name) for name in names}
    assert all(there.values())
    assert {from_google(g[0]) for g in there.values() if g} == {
        (name, g[1]) for name, g in there.items() if g
    }
    stored = read_bundle(GOOGLE / INDEX, lambda name: False)
    assert {g[0] for g in there.values() if g} == {n for n in stored if not is_optimiser(n)}
    assert from_google("cls/squad/output_weights") == ("qa_outputs.weight", False)
    assert from_google("output_bias") == ("classifier.bias", False)
    for strange in ("bert/pooler/dense/gamma", "bert/encoder/layer_01/output/dense/bias", "x", ""):
        assert from_google(strange) is None
        assert not is_optimiser(strange)
    assert to_google("bert.encoder.layer.0.output.dense.gamma") is None


def test_names_of_old_pytorch_files() -> None:
    assert (
        present_name("module.bert.embeddings.LayerNorm.gamma") == "bert.embeddings.LayerNorm.weight"
    )
    assert present_name("_orig_mod.cls.predictions.bias") == "cls.predictions.bias"
    assert present_name("bert.embeddings.position_ids") is None
    assert present_name("embeddings.token_type_ids") is None


def plain_crc(data: bytes) -> int:
    """Bit by bit, as the definition has it."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def test_the_checksum_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, B.4
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert unmasked(masked(0xE3069283)) == 0xE3069283


@given(st.binary(max_size=300))
def test_the_checksum_is_the_plain_one(data: bytes) -> None:
    assert crc32c(data) == plain_crc(data)


@pytest.mark.parametrize("size", [2**18 - 1, 2**18, 2**18 + 1, 2**19 + 5])
def test_long_checksums_are_those_of_their_parts(size: int) -> None:
    """The checksum of data with its own appended, as four bytes, is one constant."""
    data = random.Random(size).randbytes(size)
    assert crc32c(data + crc32c(data).to_bytes(4, "little")) == 0x48674BC7


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def number(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def block(entries: list[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    """A block in LevelDB's format, names shortened by what they share."""
    out, last = b"", b""
    for key, value in entries:
        shared = 0
        while shared < min(len(last), len(key)) and last[shared] == key[shared]:
            shared += 1
        out += (
            number(shared) + number(len(key) - shared) + number(len(value)) + key[shared:] + value
        )
        last = key
    out += bytes(4) + (1).to_bytes(4, "little") + bytes([kind])
    return out + masked(crc32c(out)).to_bytes(4, "little")


def write_bundle(folder: Path, tensors: dict[str, Tensor], **strange: int) -> Path:
    """A second writer, by the format's description: several blocks, two data files."""
    data = [b"", b""]
    entries = [(b"", b"\x08" + number(strange.get("shards", 2)))]
    for place, (name, tensor) in enumerate(sorted(tensors.items())):
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        shard = place % 2
        dims = b"".join(
            b"\x12" + number(len(d)) + d for d in (b"\x08" + number(n) for n in tensor.shape)
        )
        kind = {torch.float32: 1, torch.float64: 2, torch.int64: 9, torch.bfloat16: 14}[
            tensor.dtype
        ]
        value = b"\x08" + number(kind) + b"\x12" + number(len(dims)) + dims
        value += b"\x18" + number(shard) + b"\x20" + number(len(data[shard]))
        value += b"\x28" + number(strange.get("size", len(raw)))
        value += b"\x35" + masked(crc32c(raw)).to_bytes(4, "little")
        entries.append((name.encode(), value))
        data[shard] += raw
    blocks, handles = b"", []
    for start in range(0, len(entries), 3):
        part = block(entries[start : start + 3], strange.get("kind", 0))
        handles.append((entries[min(start + 2, len(entries) - 1)][0], len(blocks), len(part) - 5))
        blocks += part
    meta, pointers = block([]), block([(k, number(o) + number(s)) for k, o, s in handles])
    footer = number(len(blocks)) + number(len(meta) - 5)
    footer += number(len(blocks) + len(meta)) + number(len(pointers) - 5)
    footer = footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")
    for shard, raw in enumerate(data):
        (folder / f"x.ckpt.data-{shard:05d}-of-00002").write_bytes(raw)
    index = folder / "x.ckpt.index"
    index.write_bytes(blocks + meta + pointers + footer)
    return index


def some() -> dict[str, Tensor]:
    torch.manual_seed(0)
    kinds = (torch.float32, torch.float64, torch.bfloat16, torch.int64)
    shapes = [(3, 4), (), (0, 5), (7,), (2, 3, 2)]
    return {
        f"bert/layer_{i}/{'x' * i}": torch.rand(shape).mul(9).to(kinds[i % 4])
        for i, shape in enumerate(shapes * 3)
    }


def test_several_blocks_and_data_files_are_read(tmp_path: Path) -> None:
    tensors = some()
    read = read_bundle(write_bundle(tmp_path, tensors), lambda name: True)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        found = read[name]
        assert found is not None
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
        found.zero_()  # ours alone, not the file's
    again = read_bundle(tmp_path / "x.ckpt.index", lambda name: True)
    assert all(torch.equal(tensors[name], t) for name, t in again.items() if t is not None)


@pytest.mark.parametrize(
    ("strange", "told"),
    [
        ({"kind": 1}, "compressed"),
        ({"size": 3}, "its tensors overlap|is said to have 3 bytes"),
        ({"size": 2**40}, "its tensors overlap|said to have"),
        ({"shards": 1}, "in a data file that is not there"),
        ({"shards": 3}, "No such file"),
        ({"shards": 10**9}, "how many data files"),
    ],
)
def test_what_a_strange_writer_says_is_refused(
    strange: dict[str, int], told: str, tmp_path: Path
) -> None:
    index = write_bundle(tmp_path, some(), **strange)
    with pytest.raises(CheckpointError, match=told) as caught:
        read_bundle(index, lambda name: True)
    assert re.match(rf"{tmp_path}/x\.ckpt\.(index|data)", str(caught.value))


def test_every_flipped_bit_of_the_data_is_seen(tmp_path: Path) -> None:
    shutil.copytree(GOOGLE, tmp_path, dirs_exist_ok=True)
    raw = np.fromfile(tmp_path / DATA, np.uint8)
    slots = {n for n in read_bundle(tmp_path / INDEX, lambda name: False) if is_optimiser(n)}
    kept = sum(t.numel() * 4 for t in read_tensors(GOOGLE).values())
    assert slots
    chance = random.Random(0)
    told = []
    for at in chance.sample(range(len(raw)), 60):
        flipped = raw.copy()
        flipped[at] ^= 1 << chance.randrange(8)
        flipped.tofile(tmp_path / DATA)
        told.append(refusal(tmp_path))
    seen = [text for text in told if text]
    assert all(DATA in text and "checksum is wrong" in text for text in seen)
    assert len(seen) >= 60 * kept / len(raw) * 0.9  # the rest fell on the optimiser's slots


def refusal(folder: Path) -> str:
    try:
        read_tensors(folder)
    except CheckpointError as error:
        return str(error)
    return ""


def test_every_flipped_bit_of_the_index_is_seen(tmp_path: Path) -> None:
    shutil.copytree(GOOGLE, tmp_path, dirs_exist_ok=True)
    raw = (GOOGLE / INDEX).read_bytes()
    chance = random.Random(1)
    for at in chance.sample(range(len(raw) - 70), 60):
        changed = bytearray(raw)
        changed[at] ^= 1 << chance.randrange(8)
        (tmp_path / INDEX).write_bytes(changed)
        with pytest.raises(CheckpointError, match="damaged or no TensorFlow index"):
            read_tensors(tmp_path)
