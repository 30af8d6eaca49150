"""Batches: where sequences start, and which positions the heads read."""

from __future__ import annotations

import torch

from bertkit.batch import Batch, PretrainBatch


def batch() -> PretrainBatch:
    """Lengths 4, 3 and 2 of padding; masked: the second, the fifth (a first one), the last real."""
    lengths = torch.tensor([4, 3, 2])
    return PretrainBatch(
        input_ids=torch.arange(9),
        token_type_ids=torch.zeros(9, dtype=torch.long),
        position_ids=torch.cat([torch.arange(n) for n in lengths.tolist()]),
        lengths=lengths,
        mlm_positions=torch.tensor([1, 4, 6]),
        mlm_labels=torch.tensor([20, 21, 22]),
        nsp_labels=torch.tensor([0, 1, -100]),
        real_tokens=7,
    )


def test_starts() -> None:
    assert batch().starts.tolist() == [0, 4, 7]


def test_readers_of_masked_positions_and_first_tokens() -> None:
    readers = batch().readers(first=True)
    assert readers.rows.tolist() == [0, 1, 4, 6, 7]
    assert readers.lengths.tolist() == [2, 2, 1]
    assert readers.rows[readers.mlm].tolist() == [1, 4, 6]
    assert readers.first is not None
    assert readers.rows[readers.first].tolist() == [0, 4, 7]


def test_readers_of_masked_positions_alone() -> None:
    readers = batch().readers(first=False)
    assert readers.rows.tolist() == [1, 4, 6]
    assert readers.lengths.tolist() == [1, 2, 0]
    assert readers.mlm.tolist() == [0, 1, 2]
    assert readers.first is None


def test_moving_keeps_the_lengths_on_the_cpu_and_the_kind() -> None:
    moved = batch().to("meta")
    assert isinstance(moved, PretrainBatch)
    assert moved.lengths.device.type == "cpu"
    assert moved.real_tokens == 7
    for name in ("input_ids", "token_type_ids", "position_ids", "mlm_positions", "nsp_labels"):
        assert getattr(moved, name).device.type == "meta"
    assert isinstance(Batch(*(torch.arange(2),) * 3, torch.tensor([2])).to("cpu"), Batch)
    readers = batch().readers(first=True).to("meta")
    assert readers.rows.device.type == readers.mlm.device.type == "meta"
    assert readers.first is not None
    assert readers.first.device.type == "meta"
    assert readers.lengths.device.type == "cpu"
