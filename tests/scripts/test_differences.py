"""What the manual says differs from transformers does, on either side; its examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import bertkit
from bertkit.errors import DataError, UsageError
from tests.scripts.moved import folder

DOCS = Path(__file__).parents[2] / "docs"
IDS = torch.tensor([[2, 9, 8, 3], [2, 9, 3, 0]])
MASK = (IDS != 0).long()


def opened(name: str, **settings: Any) -> tuple[Any, Any]:
    """The same folder there and here."""
    path = folder("BertForPreTraining" if name.startswith("Auto") or name == "BertModel" else name)
    theirs, ours = (getattr(library, name) for library in (transformers, bertkit))
    return theirs.from_pretrained(path, **settings), ours.from_pretrained(path, **settings)


def test_padding_is_zero_and_the_rest_is_equal() -> None:
    theirs, ours = (model(IDS, MASK).last_hidden_state for model in opened("BertModel"))
    torch.testing.assert_close(ours[MASK.bool()], theirs[MASK.bool()], atol=1e-5, rtol=1e-5)
    assert not ours[~MASK.bool()].any()
    assert theirs[~MASK.bool()].any()


def test_labels_at_padding() -> None:
    theirs, ours = opened("BertForTokenClassification")
    labels = torch.tensor([[-100, 1, 0, -100], [-100, 1, -100, 1]])
    a, b = (model(IDS, MASK, labels=labels).loss for model in (theirs, ours))
    assert (a - b).abs().item() > 1e-3
    labels[~MASK.bool()] = -100
    torch.testing.assert_close(ours(IDS, MASK, labels=labels).loss, b)
    torch.testing.assert_close(theirs(IDS, MASK, labels=labels).loss, b, atol=1e-5, rtol=1e-5)


def test_a_batch_without_labels() -> None:
    theirs, ours = opened("BertForMaskedLM")
    none = torch.full_like(IDS, -100)
    assert torch.isnan(theirs(IDS, labels=none).loss)
    assert ours(IDS, labels=none).loss == 0


def test_what_is_out_of_range_is_told_in_words() -> None:
    theirs, ours = opened("BertModel")
    beyond = torch.tensor([[2, 5000, 3]])
    with pytest.raises(IndexError):
        theirs(beyond)
    with pytest.raises(DataError, match="input_ids holds 5000; this model has room for 0 to"):
        ours(beyond)
    with pytest.raises(DataError, match="position_ids holds 128; this model has room for 0 to 127"):
        ours(torch.ones(1, 129, dtype=torch.long))


@pytest.mark.parametrize("name", ["head_mask", "encoder_hidden_states"])
def test_arguments_that_no_encoder_has_are_named(name: str) -> None:
    theirs, ours = opened("BertModel")
    given = torch.ones(2, 4, 32)
    torch.testing.assert_close(  # it is left undone, in silence
        theirs(IDS, **{name: given}).last_hidden_state, theirs(IDS).last_hidden_state
    )
    with pytest.raises(UsageError, match=f"{name} must be None"):
        ours(IDS, **{name: given})
    theirs(IDS, nonsense=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        ours(IDS, nonsense=1)


def test_masks_of_who_sees_whom() -> None:
    theirs, ours = opened("BertModel")
    causal = torch.ones(2, 4, 4, dtype=torch.long).tril()
    with pytest.raises(RuntimeError):
        theirs(IDS, causal)
    with pytest.raises(DataError, match="see different tokens"):
        ours(IDS, causal)
    everything = torch.ones(2, 4, 4, dtype=torch.long)
    torch.testing.assert_close(
        ours(IDS, everything).pooler_output,
        theirs(IDS, everything).pooler_output,
        atol=1e-5,
        rtol=1e-5,
    )


def test_the_limit_of_a_tokenizer_that_names_none(tmp_path: Path) -> None:
    for name in ("vocab.txt", "config.json"):
        text = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncat\n"
        if name == "config.json":
            text = Path(folder(), name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text, encoding="utf-8")
    theirs, ours = (
        library.BertTokenizer.from_pretrained(str(tmp_path)) for library in (transformers, bertkit)
    )
    assert (theirs.model_max_length > 10**9, ours.model_max_length) == (True, 128)
    assert len(ours("cat " * 200, truncation=True)["input_ids"]) == 128


def test_the_last_output_of_a_call_with_maps_is_the_maps() -> None:
    theirs, ours = opened("BertModel", attn_implementation="eager", use_safetensors=True)
    a, b = (model(IDS, output_attentions=True) for model in (theirs, ours))
    assert (a[-1], list(a)[-1]) == ((), "cross_attentions")
    assert b[-1] is b.attentions
    assert len(b[-1]) == 2


def test_the_number_format_in_the_configuration_is_a_name() -> None:
    theirs, ours = opened("BertModel", dtype=torch.float16)
    assert theirs.config.dtype == theirs.dtype == ours.dtype == torch.float16
    assert ours.config.dtype == "float16"


def test_what_only_version_4_had_of_a_tokenizer() -> None:
    theirs, ours = (
        library.BertTokenizer.from_pretrained(folder()) for library in (transformers, bertkit)
    )
    assert ours.encode_plus("a cat", "sat").data == theirs("a cat", "sat").data
    assert ours.batch_encode_plus(["a cat", "sat"]).data == theirs(["a cat", "sat"]).data
    ids = [ours.encode(text, add_special_tokens=False) for text in ("a cat", "sat")]
    assert ours.build_inputs_with_special_tokens(*ids) == theirs("a cat", "sat")["input_ids"]
    for tokenizer in (theirs, ours):
        assert not hasattr(tokenizer, "prepare_for_model")
    assert "\n" not in repr(ours)


def test_new_rows_are_the_mean_each_time() -> None:
    _, ours = opened("BertForMaskedLM")
    table = ours.get_input_embeddings().weight.detach().clone()
    rows = ours.resize_token_embeddings(len(table) + 3).weight.detach()[len(table) :]
    torch.testing.assert_close(rows, table.mean(0).expand_as(rows))


def test_the_schedule_of_the_manual_is_that_of_transformers() -> None:
    page = (DOCS / "en/moving.md").read_text(encoding="utf-8")
    block = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)[-1]
    names: dict[str, Any] = {}
    exec(block.replace('"run/model"', repr(folder())), names)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-5)
    wanted = transformers.get_linear_schedule_with_warmup(optimizer, 100, 1000)
    for _ in range(1001):
        assert names["schedule"].get_last_lr() == pytest.approx(wanted.get_last_lr())
        names["optimizer"].step(), optimizer.step()
        names["schedule"].step(), wanted.step()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_class_of_the_manual_runs_in_either_library(language: str) -> None:
    page = (DOCS / language / "moving.md").read_text(encoding="utf-8")
    block = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)[0]
    answers = []
    for library in ("bertkit", "transformers"):
        code = block.replace("from bertkit", f"from {library}")
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(code.replace('"run/model"', repr(folder(language=language))), names)
        model = names["model"]
        torch.nn.init.constant_(model.classifier.weight, 0.01)
        assert not model.training
        answers.append(model(IDS, MASK))
    assert answers[0].shape == (2, 3)
    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-5)


def test_the_names_of_the_manual_are_there_in_both_languages() -> None:
    pages = [(DOCS / language / "moving.md").read_text("utf-8") for language in ("en", "zh")]
    named = [set(re.findall(r"`((?:Auto|Bert)\w+)`", page)) for page in pages]
    assert named[0] == named[1]
    assert len(named[0]) >= 15
    for name in named[0]:
        assert hasattr(bertkit, name), name
        assert hasattr(transformers, name), name
