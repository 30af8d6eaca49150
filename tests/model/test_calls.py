"""Arguments that scripts pass and an encoder has no use for; masks of more than two dimensions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bertkit.errors import DataError, UsageError
from tests.model.peers import BY_TOKEN, KINDS, assert_close, both, rows, targets

NEUTRAL: dict[str, Any] = {
    "use_cache": False,
    "head_mask": None,
    "past_key_values": None,
    "encoder_hidden_states": None,
    "encoder_attention_mask": None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_says_nothing_is_taken_as_in_transformers(kind: str) -> None:
    theirs, ours = both(kind)
    inputs = rows("none", kind=kind)
    inputs |= targets(kind, inputs)
    for given in (NEUTRAL, {"use_cache": True}, {"use_cache": None}):
        a, b = ours(**inputs, **given), theirs(**inputs, **given)
        assert a.keys() == [name for name in b.keys() if name != "cross_attentions"]
        assert_close(a[0], b[0])
        assert_close(a[1], b[1])


@pytest.mark.parametrize(
    "name",
    ["head_mask", "encoder_hidden_states", "encoder_attention_mask", "past_key_values"],
)
@pytest.mark.parametrize("kind", ["BertModel", "BertForPreTraining", "BertForQuestionAnswering"])
def test_what_would_be_left_undone_is_refused_in_one_line(kind: str, name: str) -> None:
    _, ours = both(kind)
    with pytest.raises(UsageError, match=f"^{name} must be None: ") as caught:
        ours(**rows("none"), **{name: torch.ones(2, 4)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["BertModel", *BY_TOKEN])
@pytest.mark.parametrize("side", ["none", "right", "left", "holes"])
def test_a_mask_of_who_sees_whom_that_says_the_same_of_all_is_a_mask(kind: str, side: str) -> None:
    _, ours = both(kind)
    inputs = rows(side)
    plain = ours(**inputs)
    real = inputs.pop("attention_mask").bool()
    columns = real[:, None, :].expand(-1, real.shape[1], -1)
    pairs = columns & real[:, :, None]
    for mask in (columns, pairs, columns.long(), pairs.float(), columns[:, None], pairs[:, None]):
        out = ours(**inputs, attention_mask=mask)
        assert torch.equal(out[0], plain[0])


def test_a_square_mask_is_read_as_transformers_reads_its_own() -> None:
    theirs, ours = both("BertModel")
    inputs = rows("right")
    real = inputs.pop("attention_mask").bool()
    mask = real[:, None, None, :].expand(-1, 1, real.shape[1], -1)
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    a = ours(**inputs, attention_mask=mask).last_hidden_state
    b = theirs(**inputs, attention_mask=added).last_hidden_state
    assert_close(a[real], b[real])


def test_other_masks_are_refused_in_one_line() -> None:
    _, ours = both("BertModel")
    inputs = rows("none")
    inputs.pop("attention_mask")
    size, width = inputs["input_ids"].shape
    blocks = torch.zeros(size, width, width, dtype=torch.long)
    blocks[:, :3, :3] = blocks[:, 3:, 3:] = 1
    for mask, told in (
        (torch.ones(size, width, width).tril(), "see different tokens"),
        (blocks, "each text a row of its own"),
        (torch.zeros(size, 1, width, width), "floats to add to scores"),
        (torch.ones(size, width, 3), rf"attention_mask is \[{size}, {width}, 3\]; the input is"),
        (torch.ones(size, 4, width, width), "the input is"),
        (torch.ones(size, 1, 1, 1, width), "the input is"),
    ):
        with pytest.raises(DataError, match=told) as caught:
            ours(**inputs, attention_mask=mask)
        assert "\n" not in str(caught.value)
