"""Outputs are read by name, by key, by index and as tuples, as in transformers."""

from __future__ import annotations

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from bertkit.model.outputs import EncoderOutput, LogitsOutput, PretrainingOutput

STATE, POOLED = torch.ones(1, 2, 3), torch.zeros(1, 3)


def test_fields_that_are_none_are_left_out_everywhere() -> None:
    output = LogitsOutput(logits=STATE, attentions=(STATE,))
    assert list(output) == output.keys() == ["logits", "attentions"]
    assert output[0] is STATE
    assert output["attentions"] == (STATE,)
    assert len(output) == 2
    assert "loss" not in output
    assert output.loss is None
    assert output.to_tuple() == output.values() == (STATE, (STATE,))
    assert output[:1] == (STATE,)
    assert [name for name, _ in output.items()] == ["logits", "attentions"]


def test_missing_names_and_indices_raise() -> None:
    output = LogitsOutput(logits=STATE)
    with pytest.raises(KeyError):
        output["loss"]
    with pytest.raises(IndexError):
        output[1]
    assert output.get("loss", 5) == 5
    assert output.get("logits") is STATE


def test_reads_as_transformers_outputs_read() -> None:
    ours = EncoderOutput(STATE, POOLED)
    theirs = BaseModelOutputWithPooling(last_hidden_state=STATE, pooler_output=POOLED)
    assert list(ours) == list(theirs)
    assert ours.keys() == list(theirs.keys())
    assert ours[1] is theirs[1]
    assert ours.to_tuple() == theirs.to_tuple()
    assert len(ours) == len(theirs)
    state, pooled = ours.to_tuple()
    assert (state, pooled) == (STATE, POOLED)


def test_the_field_names_are_those_that_scripts_use() -> None:
    output = PretrainingOutput(STATE, STATE, STATE, (STATE,), (STATE,))
    assert output.keys() == [
        "loss",
        "prediction_logits",
        "seq_relationship_logits",
        "hidden_states",
        "attentions",
    ]
