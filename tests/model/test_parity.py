"""Every model against transformers, on folders that transformers wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import bertkit
from bertkit.errors import DataError
from tests.model.peers import (
    BY_TOKEN,
    HEADS,
    KINDS,
    SIDES,
    as_designed,
    assert_close,
    both,
    folder_of,
    gradients,
    rows,
    targets,
)

LOGITS = ("logits", "prediction_logits", "seq_relationship_logits", "start_logits", "end_logits",
          "last_hidden_state", "pooler_output")  # fmt: skip
MAPS = {"output_attentions": True, "output_hidden_states": True}


def assert_outputs_equal(ours: Any, theirs: Any, mask: Tensor) -> None:
    """All that two outputs hold: equal at real tokens, zero (or lowest) at padding."""
    real = mask.flatten(0, -2).bool()
    # Encoders of transformers 5 add an empty tuple for a decoder's attention.
    assert ours.keys() == [name for name in theirs.keys() if name != "cross_attentions"]
    for name in LOGITS:
        if name not in theirs:
            continue
        a, b = ours[name], theirs[name]
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if a.shape[:2] != real.shape or mask.dim() > 2:
            assert_close(a, b)
            continue
        assert_close(a[real], b[real])
        lowest = torch.finfo(a.dtype).min if name in ("start_logits", "end_logits") else 0.0
        assert bool((a[~real] == lowest).all())
    for a, b in zip(ours.get("hidden_states", ()), theirs.get("hidden_states", ()), strict=True):
        assert_close(a[real], b[real])
        assert not a[~real].any()
    pairs = real[:, None, :, None] & real[:, None, None, :]
    for a, b in zip(ours.get("attentions", ()), theirs.get("attentions", ()), strict=True):
        assert_close(a, b * pairs)
    if theirs.get("loss") is not None:
        assert_close(ours.loss, theirs.loss)


def assert_calls_equal(kind: str, inputs: dict[str, Tensor], **settings: Any) -> None:
    """Outputs, loss, hidden states, maps and gradients, with labels; and outputs without."""
    theirs, ours = both(kind, **settings)
    mask = inputs["attention_mask"]
    as_designed(theirs, mask)
    labels = targets(kind, inputs)
    a, b = ours(**inputs, **labels, **MAPS), theirs(**inputs, **labels, **MAPS)
    assert_outputs_equal(a, b, mask)
    plain = ours(**inputs, **labels)
    for name in plain.keys():
        assert_close(plain[name], a[name])
    if not labels:
        slope = torch.linspace(-1, 1, a.last_hidden_state.numel()).view_as(a.last_hidden_state)
        slope = slope * mask[..., None]
        wanted = gradients(theirs, (b.last_hidden_state * slope).sum() + b.pooler_output.sum())
        mine = gradients(ours, (a.last_hidden_state * slope).sum() + a.pooler_output.sum())
    else:
        wanted = gradients(theirs, b.loss)
        mine = gradients(ours, plain.loss)
    assert mine.keys() == wanted.keys()
    for name, grad in mine.items():
        assert_close(grad, wanted[name])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_everything_equals_transformers_whatever_the_padding(kind: str, side: str) -> None:
    assert_calls_equal(kind, rows(side, kind=kind))


@pytest.mark.parametrize("lengths", [(1, 1), (3, 1), (33, 7)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_everything_equals_transformers_at_any_length(kind: str, lengths: tuple[int, ...]) -> None:
    assert_calls_equal(kind, rows("right", lengths, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_everything_equals_transformers_at_512(kind: str) -> None:
    lengths = (512, 77) if kind == "BertForMultipleChoice" else (512,)
    assert_calls_equal(kind, rows("right", lengths, kind), num_hidden_layers=1)


@pytest.mark.parametrize("kind", HEADS)
def test_without_padding_nothing_has_to_be_redefined(kind: str) -> None:
    theirs, ours = both(kind)
    inputs = rows("none", kind=kind)
    labels = targets(kind, inputs)
    assert_outputs_equal(
        ours(**inputs, **labels), theirs(**inputs, **labels), inputs["attention_mask"]
    )
    del inputs["attention_mask"]
    assert_close(ours(**inputs, **labels).loss, theirs(**inputs, **labels).loss)


def test_pooling_under_left_padding_is_where_we_differ() -> None:
    """The design's own meaning, seen: transformers pools a padding token there."""
    theirs, ours = both("BertForSequenceClassification")
    left, right = rows("left"), rows("right")
    shifts = [17 - length for length in (17, 12, 1, 5)]
    for name in ("input_ids", "token_type_ids"):
        left[name] = torch.stack([x.roll(n) for x, n in zip(right[name], shifts, strict=True)])
    positions = torch.stack([torch.arange(17).roll(n) for n in shifts])
    wanted = theirs(**right).logits
    assert_close(ours(**right).logits, wanted)
    assert_close(ours(**left, position_ids=positions).logits, wanted)
    assert not torch.allclose(theirs(**left, position_ids=positions).logits, wanted, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_segments_and_vectors_equal_transformers(kind: str) -> None:
    theirs, ours = both(kind)
    inputs = rows("right", kind=kind)
    mask = inputs["attention_mask"]
    generator = torch.Generator().manual_seed(3)
    inputs["position_ids"] = torch.randint(0, 512, mask.shape, generator=generator)
    as_designed(theirs, mask)
    assert_outputs_equal(ours(**inputs), theirs(**inputs), mask)
    del inputs["position_ids"], inputs["token_type_ids"]
    assert_outputs_equal(ours(**inputs), theirs(**inputs), mask)
    ids = inputs.pop("input_ids")
    vectors = ours.get_input_embeddings()(ids) * 1.1
    shared = vectors.detach().requires_grad_()
    assert_outputs_equal(
        ours(**inputs, inputs_embeds=shared), theirs(**inputs, inputs_embeds=shared), mask
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_mask_does_not_matter(kind: str) -> None:
    theirs, ours = both(kind)
    inputs = rows("holes", kind=kind)
    mask = inputs.pop("attention_mask")
    as_designed(theirs, mask)
    wanted = ours(**inputs, attention_mask=mask)[0]
    for same in (mask.bool(), mask.float(), mask.to(torch.uint8), mask.to(torch.int32)):
        assert torch.equal(ours(**inputs, attention_mask=same)[0], wanted)
    for same in (mask.bool(), mask.float()):
        assert_outputs_equal(
            ours(**inputs, attention_mask=same), theirs(**inputs, attention_mask=same), mask
        )


@pytest.mark.parametrize("kind", KINDS)
def test_tuples_stand_in_the_order_of_transformers(kind: str) -> None:
    theirs, ours = both(kind)
    inputs = rows("none", kind=kind)
    for asked in (targets(kind, inputs), targets(kind, inputs) | MAPS, {}):
        a = ours(**inputs, **asked, return_dict=False)
        b = [
            x for x in theirs(**inputs, **asked, return_dict=False) if not isinstance(x, tuple) or x
        ]
        assert isinstance(a, tuple)
        assert len(a) == len(b)
        for mine, other in zip(a, b, strict=True):
            pair = (mine, other) if isinstance(mine, tuple) else ((mine,), (other,))
            for x, y in zip(*pair, strict=True):
                assert_close(x, y)
    named = ours(**inputs)
    assert torch.equal(named[0], named[named.keys()[0]])
    assert torch.equal(named[0], getattr(named, named.keys()[0]))
    positional = ours(inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"])
    assert torch.equal(positional[0], named[0])
    ours.config.return_dict, ours.config.output_hidden_states = False, True
    assert len(ours(**inputs)) == len(theirs(**inputs, output_hidden_states=True))
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        ours(**inputs, nonsense=1)


@pytest.mark.parametrize("empty", [[1], [0, 3], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_wholly_padded_are_zeros_never_nan(kind: str, empty: list[int]) -> None:
    _, ours = both(kind)
    whole = rows("right")
    whole["attention_mask"][empty] = 0
    width = 17
    choices = kind == "BertForMultipleChoice"
    inputs = {n: x.view(-1, 2, width) if choices else x for n, x in whole.items()}
    labels = {} if kind == "BertModel" else targets(kind, rows("right", kind=kind))
    if choices:  # a choice that is there
        labels = {"labels": torch.tensor([int(empty == [0, 3]), 0])}
    out = ours(**inputs, **labels, **MAPS)
    for states in (*out.hidden_states, *out.attentions):
        assert not states[empty].any()
        assert torch.isfinite(states).all()
    for name in LOGITS:
        if name not in out:
            continue
        logits = out[name].flatten(0, 1) if choices else out[name]
        lowest = torch.finfo(torch.float32).min if name in ("start_logits", "end_logits") else 0.0
        assert bool((logits[empty] == lowest).all()), name
        assert torch.isfinite(logits).all()
    loss = out.loss if labels else out.last_hidden_state.sum() + out.pooler_output.sum()
    assert torch.isfinite(loss)
    for grad in gradients(ours, loss).values():
        assert torch.isfinite(grad).all()
    full = [row for row in range(4) if row not in empty]
    if not full:
        assert float(loss.detach()) == 0.0
    elif not choices:  # as if the empty rows were not there
        alone = ours(
            **{name: x[full] for name, x in inputs.items()},
            **{name: x[full] for name, x in labels.items()},
        )
        for name in alone.keys():
            assert_close(out[name] if name == "loss" else out[name][full], alone[name])


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_at_padding_changes_nothing(kind: str) -> None:
    _, ours = both(kind)
    inputs = rows("right", kind=kind)
    labels = targets(kind, inputs)
    before = ours(**inputs, **labels)
    pad = inputs["attention_mask"] == 0
    inputs["input_ids"][pad] = 99999999  # not even an id
    inputs["token_type_ids"][pad] = 77
    if kind in BY_TOKEN and "labels" in labels:
        labels["labels"][pad] = 12345  # not even a label
    after = ours(**inputs, **labels)
    for name in before.keys():
        assert torch.equal(before[name], after[name])


def error(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().mean().detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_as_near_to_fp32_as_that_of_transformers(
    kind: str, dtype: torch.dtype
) -> None:
    theirs, ours = both(kind)
    inputs = rows("none", kind=kind)
    labels = targets(kind, inputs)
    exact = ours(**inputs, **labels)
    a, b = ours.to(dtype)(**inputs, **labels), theirs.to(dtype)(**inputs, **labels)
    for name in exact.keys():
        if name != "loss":
            assert a[name].dtype == dtype
        scale = float(exact[name].detach().abs().mean())
        rounding = torch.finfo(dtype).eps * scale
        assert error(a[name], exact[name]) <= 1.5 * error(b[name], exact[name]) + rounding, name
    if labels:
        for name, grad in gradients(ours, a.loss).items():
            assert grad.dtype == dtype
            assert torch.isfinite(grad).all(), name


def masked(side: str, kind: str) -> dict[str, Tensor]:
    inputs = rows(side, kind=kind)
    inputs["input_ids"] = inputs["input_ids"] * inputs["attention_mask"]
    return inputs


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_what_we_save_with_the_same_numbers(kind: str, tmp_path: Path) -> None:
    _, ours = both(kind)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(1.1)
    ours.save_pretrained(tmp_path)
    theirs, info = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    inputs = masked("right", kind)
    as_designed(theirs.eval(), inputs["attention_mask"])
    assert_outputs_equal(ours(**inputs), theirs(**inputs), inputs["attention_mask"])


@pytest.mark.parametrize("kind", KINDS)
def test_import_then_export_is_an_identity(kind: str, tmp_path: Path) -> None:
    source = folder_of(kind)
    getattr(bertkit, kind).from_pretrained(source).save_pretrained(tmp_path)
    before, after = (load_file(f / "model.safetensors") for f in (source, tmp_path))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name
    theirs, own = (transformers.AutoConfig.from_pretrained(f).to_dict() for f in (source, tmp_path))
    assert theirs.pop("_name_or_path") != own.pop("_name_or_path")
    assert theirs == own
    named = json.loads((tmp_path / "config.json").read_text())
    assert named["architectures"] == [kind]
    again = bertkit.BertConfig.from_pretrained(tmp_path)
    assert again == bertkit.BertConfig.from_pretrained(source)


def test_shapes_that_disagree_are_an_error_in_words() -> None:
    _, ours = both("BertModel")
    ids = torch.ones(2, 5, dtype=torch.long)
    for name in ("token_type_ids", "position_ids", "attention_mask"):
        with pytest.raises(DataError, match=rf"{name} is \[2, 6\]; the input is \[2, 5\]"):
            ours(ids, **{name: torch.ones(2, 6, dtype=torch.long)})
    with pytest.raises(DataError, match=r"the input is \[5\]; give input_ids \[B, S\]"):
        ours(ids[0])
    with pytest.raises(DataError, match=r"give inputs_embeds \[B, S, D\]"):
        ours(inputs_embeds=torch.ones(2, 48))
