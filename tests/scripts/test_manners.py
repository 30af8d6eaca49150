"""Aliases and manners that scripts rely on, one small script each."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import bertkit
from bertkit.errors import UsageError
from tests.scripts.moved import assert_moves, folder, run

TEXTS = {
    "en": ["The cat sat on the mat.", "A dog barks at night, and it walked.", "film"],
    "zh": ["今天天气很好。", "猫坐在垫子上，他喜欢看书。", "电影"],
}
both_languages = pytest.mark.parametrize("language", ["en", "zh"])


@both_languages
def test_the_tokenizer_by_all_its_names(language: str) -> None:
    script = """
from transformers import AutoTokenizer, BertTokenizer, BertTokenizerFast

for kind in (AutoTokenizer, BertTokenizer, BertTokenizerFast):
    tokenizer = kind.from_pretrained(pretrained_model_name_or_path=folder)
    print(tokenizer.is_fast, tokenizer(texts)["input_ids"], len(tokenizer), tokenizer.vocab_size)
tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
print(tokenizer.tokenize(texts[1]), tokenizer.encode(texts[0]),
      tokenizer.encode(texts[0], add_special_tokens=False))
ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(texts[1]))
print(ids, tokenizer.convert_ids_to_tokens(ids), tokenizer.decode(ids))
one = tokenizer(texts[0])["input_ids"]
print(tokenizer.get_special_tokens_mask(one, already_has_special_tokens=True))
special = ("pad", "unk", "cls", "sep", "mask")
print([getattr(tokenizer, f"{name}_token") for name in special])
print([getattr(tokenizer, f"{name}_token_id") for name in special])
print(sorted(tokenizer.all_special_ids), sorted(tokenizer.all_special_tokens))
print(tokenizer.model_max_length, tokenizer.padding_side, tokenizer.model_input_names)
print(tokenizer.get_vocab()["[MASK]"], tokenizer.vocab["[CLS]"], "[SEP]" in tokenizer.get_vocab())
batch = tokenizer(texts, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
print(batch.input_ids, tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True))
print(tokenizer.batch_decode(batch["input_ids"].tolist()))
print([batch.word_ids(i) for i in range(len(texts))], [batch.tokens(i) for i in range(len(texts))])
print(batch.token_to_chars(0, 1), batch.char_to_token(0, 1), batch.word_to_tokens(0, 1))
moved = batch.to("cpu")
print(moved is batch, {k: v.shape for k, v in moved.items()}, list(batch), "input_ids" in batch)
print(tokenizer(list(zip(texts, texts[::-1])), return_length=True).data)
tokenizer.save_pretrained(out)
print(BertTokenizer.from_pretrained(out)(texts)["input_ids"])
"""
    assert_moves(script, folder=folder(language=language), texts=TEXTS[language])


@both_languages
def test_padding_as_collate_functions_do_it(language: str) -> None:
    script = """
from functools import partial
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
rows = [tokenizer(text, return_special_tokens_mask=True) for text in texts]
collate = partial(tokenizer.pad, padding=True, return_tensors="pt")
for batch in DataLoader(rows, batch_size=2, collate_fn=collate):
    print({k: batch[k] for k in sorted(batch)})
print(tokenizer.pad({"input_ids": [[5, 6], [7]]}, padding="max_length", max_length=4).data)
print(tokenizer.pad({"input_ids": [5, 6]}, padding="max_length", max_length=4).data)
tokenizer.padding_side = "left"
print(tokenizer(texts, padding=True, pad_to_multiple_of=8)["attention_mask"])
"""
    assert_moves(script, folder=folder(language=language), texts=TEXTS[language])


def test_outputs_by_name_key_index_and_as_tuples() -> None:
    script = """
import torch
from transformers import BertTokenizer, BertForMaskedLM, BertForPreTraining

tokenizer = BertTokenizer.from_pretrained(folder)
model = BertForMaskedLM.from_pretrained(folder)
inputs = tokenizer(texts[0], return_tensors="pt")
outputs = model(**inputs, labels=inputs["input_ids"], output_hidden_states=True)
print(outputs.loss is outputs[0], outputs["logits"] is outputs.logits, list(outputs))
print(len(outputs), len(outputs.to_tuple()), list(outputs.keys()), "attentions" in outputs)
print([type(x).__name__ for x in outputs.values()], outputs.get("attentions"), outputs.attentions)
print({name: type(x).__name__ for name, x in outputs.items()}, sorted(dict(**outputs)))
loss, logits = outputs[:2]
print(loss, logits)
loss, logits = model(**inputs, labels=inputs["input_ids"], return_dict=False)
print(loss, logits)
outputs["loss"] = loss * 2
outputs.logits = logits + 1
print(outputs.loss, outputs[0], outputs["logits"])
both = BertForPreTraining.from_pretrained(folder)(**inputs)
print(both.prediction_logits, both.seq_relationship_logits, len(both), both.loss)
model.config.output_hidden_states = True
print(len(model(inputs["input_ids"]).hidden_states))
"""
    assert_moves(script, folder=folder(), texts=TEXTS["en"])


def test_the_parts_of_a_model_by_their_names() -> None:
    script = """
import torch
from transformers import AutoModelForMaskedLM, BertForMaskedLM, BertModel

model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
print(type(model).__name__, model.eval() is model, model.training, model.train().training)
print(model.base_model is model.bert, model.bert.base_model is model.bert)
print(model.base_model_prefix, model.main_input_name, model.config_class.__name__)
print(model.device, model.dtype, model.num_parameters())
print(model.get_memory_footprint(return_buffers=False))
print(model.num_parameters(exclude_embeddings=True), model.bert.num_parameters(True, True))
print(model.get_input_embeddings() is model.bert.embeddings.word_embeddings)
print(model.get_output_embeddings().weight is model.get_input_embeddings().weight)
print([(name, p.shape) for name, p in sorted(model.named_parameters())])
print([name for name, _ in model.bert.named_children()], len(model.bert.encoder.layer))
layer = model.bert.encoder.layer[0]
print(layer.attention.self.query.weight, layer.attention.output.dense.bias)
print(layer.intermediate.dense.weight.shape, layer.output.LayerNorm.weight)
print(layer.attention.self.num_attention_heads, layer.attention.self.attention_head_size)
print(model.cls.predictions.bias, model.cls.predictions.transform.dense.weight)
state = model.state_dict()
print(sorted(state))
torch.save(state, out + "/weights.pt")
fresh = BertForMaskedLM(model.config)
print(fresh.load_state_dict(torch.load(out + "/weights.pt", weights_only=True)))
ids = torch.tensor([[2, 9, 8, 3]])
print(fresh.eval()(ids).logits, model.eval()(ids).logits)
model.save_pretrained(out, safe_serialization=True, max_shard_size="1GB")
print(BertModel.from_pretrained(out, add_pooling_layer=False)(ids)[0])
_, told = BertModel.from_pretrained(out, output_loading_info=True)
print(sorted(told["missing_keys"]), len(told["unexpected_keys"]) > 0)
"""
    printed = assert_moves(script, folder=folder())
    torch.testing.assert_close(*printed[-3])


def test_tokens_added_and_the_embeddings_resized() -> None:
    script = """
import torch
from transformers import BertTokenizer, BertForMaskedLM

tokenizer = BertTokenizer.from_pretrained(folder)
model = BertForMaskedLM.from_pretrained(folder)
size = len(tokenizer)
print(tokenizer.tokenize("a covid vaccine [E1] cat [/E1]"))
print(tokenizer.add_tokens(["covid", "vaccine"]), tokenizer.add_tokens(["covid"]))
print(tokenizer.add_special_tokens({"additional_special_tokens": ["[E1]", "[/E1]"]}))
table = model.resize_token_embeddings(len(tokenizer))
print(len(tokenizer) - size, table.weight.shape, model.config.vocab_size)
print(tokenizer.tokenize("a covid vaccine [E1] cat [/E1]"))
old = table.weight[:size].detach()
print(old, model.get_output_embeddings().weight is table.weight)
with torch.no_grad():
    table.weight[size:] = old.mean(0)
inputs = tokenizer("a covid vaccine", return_tensors="pt")
print(inputs.input_ids, model(**inputs).logits[..., :size], model(**inputs).logits.shape)
print(tokenizer.decode(inputs.input_ids[0], skip_special_tokens=True))
model.save_pretrained(out), tokenizer.save_pretrained(out)
print(BertForMaskedLM.from_pretrained(out)(**inputs).logits[..., :size])
print(BertTokenizer.from_pretrained(out).tokenize("a covid vaccine [E1]"))
"""
    assert_moves(script, folder=folder())


def test_other_number_formats() -> None:
    script = """
import torch
from transformers import BertModel

ids = torch.tensor([[2, 9, 8, 3]])
for change in (lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.double(),
               lambda m: m.to(torch.bfloat16), lambda m: m.to("cpu", torch.float64).float()):
    model = change(BertModel.from_pretrained(folder))
    state = model(ids).last_hidden_state
    print(model.dtype, state.dtype, state.shape, model.get_memory_footprint(return_buffers=False))
for kind in (torch.float16, "bfloat16", "auto"):
    model = BertModel.from_pretrained(folder, dtype=kind)
    print(model.dtype, model.embeddings.LayerNorm.weight.dtype)
with torch.autocast("cpu", dtype=torch.bfloat16):
    print(torch.isfinite(BertModel.from_pretrained(folder)(ids)[0]).all())
model = BertModel.from_pretrained(folder).double()
print(model(ids).last_hidden_state, model(ids)[1])
"""
    assert_moves(script, folder=folder())


HOOKED = """
import torch
from transformers import BertTokenizer, BertForMaskedLM

tokenizer = BertTokenizer.from_pretrained(folder)
model = BertForMaskedLM.from_pretrained(folder)
batch = tokenizer(texts, padding=True, return_tensors="pt")
seen = {}

def hook(module, inputs, output):
    seen[module] = output[0] if isinstance(output, tuple) else output

handles = [layer.register_forward_hook(hook) for layer in model.bert.encoder.layer]
handles.append(model.bert.embeddings.register_forward_hook(hook))
outputs = model(**batch, output_hidden_states=True)
for handle in handles:
    handle.remove()
states = [seen[model.bert.embeddings], *(seen[layer] for layer in model.bert.encoder.layer)]
real = batch["attention_mask"].bool()
"""


def test_hooks_see_the_real_tokens_laid_end_to_end() -> None:
    given = {"folder": folder(), "texts": TEXTS["en"]}
    # The one place where a script changes: [B, S, D] there, the real tokens of it, [T, D], here.
    theirs = run(HOOKED + "print(*(state[real] for state in states))", **given)[0]
    moved = HOOKED.replace("from transformers", "from bertkit")
    ours, real = run(moved + "print(states, real)", **given)[0]
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == (int(real.sum()), 32)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_hooks_on_a_linear_layer_of_a_single_sentence() -> None:
    script = """
import torch
from transformers import BertTokenizer, BertModel

tokenizer = BertTokenizer.from_pretrained(folder)
model = BertModel.from_pretrained(folder)
seen = []
query = model.encoder.layer[1].attention.self.query
query.register_forward_hook(lambda module, inputs, output: seen.append(output))
model.pooler.register_forward_hook(lambda module, inputs, output: seen.append(output))
inputs = tokenizer(texts[0], return_tensors="pt")
outputs = model(**inputs)
print(seen[0].flatten(0, -2), seen[1], outputs[1])
model.embeddings.word_embeddings.weight.requires_grad_(False)
vectors = model.get_input_embeddings()(inputs["input_ids"]).requires_grad_(True)
model(inputs_embeds=vectors, attention_mask=inputs["attention_mask"])[1].sum().backward()
print(vectors.grad, vectors.grad.norm(dim=-1))
"""
    assert_moves(script, folder=folder(), texts=TEXTS["en"])


def test_the_collators_of_transformers_take_our_tokenizer() -> None:
    script = """
import torch
from transformers import BertTokenizer
from transformers.data.data_collator import DataCollatorForLanguageModeling
from transformers.data.data_collator import DataCollatorForTokenClassification
from transformers.data.data_collator import DataCollatorWithPadding

tokenizer = BertTokenizer.from_pretrained(folder)
rows = [tokenizer(text) for text in texts]
print(dict(DataCollatorWithPadding(tokenizer)(rows)))
tagged = [{**row, "labels": [1] * len(row["input_ids"])} for row in rows]
print(dict(DataCollatorForTokenClassification(tokenizer)(tagged)))
torch.manual_seed(5)
print(dict(DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.4)(rows)))
"""
    assert_moves(script, folder=folder(), texts=TEXTS["en"])


@both_languages
def test_targets_become_labels(language: str) -> None:
    script = """
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
print(dict(tokenizer(texts[0], text_target=texts[1])))
print(dict(tokenizer(text_target=texts[1], return_offsets_mapping=True)))
print(dict(tokenizer(text_target=texts[0], text_pair_target=texts[1])))
print(dict(tokenizer(texts, text_target=texts[::-1], padding=True, return_tensors="pt")))
print(dict(tokenizer(texts, texts, text_target=texts, truncation=True, max_length=8)))
print(dict(tokenizer(texts * 10, None, texts[::-1] * 10, max_length=5, truncation=True)))
print(dict(tokenizer([t.split() for t in texts], text_target=[t.split() for t in texts],
                     is_split_into_words=True)))
"""
    assert_moves(script, folder=folder(language=language), texts=TEXTS[language])


def test_what_scripts_read_of_a_configuration() -> None:
    script = """
from transformers import AutoConfig, AutoModel, BertConfig

asked = ["is_decoder", "is_encoder_decoder", "add_cross_attention", "name_or_path", "bos_token_id",
         "eos_token_id", "pad_token_id", "sep_token_id", "torchscript", "chunk_size_feed_forward",
         "return_dict", "use_return_dict", "use_cache", "tie_word_embeddings", "problem_type",
         "num_labels", "output_attentions", "output_hidden_states", "model_type", "architectures"]
model = AutoModel.from_pretrained(folder)
for config in (BertConfig(), AutoConfig.from_pretrained(folder), model.config):
    print([getattr(config, name, "no such name") for name in asked])
config = BertConfig(chunk_size_feed_forward=2, name_or_path="somewhere", eos_token_id=3)
config.update({"hidden_size": 96, "bos_token_id": 2, "num_attention_heads": 4})
print(config.hidden_size, config.name_or_path, config.eos_token_id, config.bos_token_id)
print(config.torch_dtype, config.to_diff_dict()["hidden_size"])
config.to_json_file(out + "/mine.json")
print(BertConfig.from_json_file(out + "/mine.json").hidden_size, model.device)
"""
    assert_moves(script, folder=folder())


def test_what_is_not_understood_is_named() -> None:
    path = folder()
    model = bertkit.BertModel.from_pretrained(path)
    ids = torch.tensor([[2, 9, 3]])
    with pytest.raises(UsageError, match="head_mask must be None"):
        model(ids, head_mask=torch.ones(4))
    tokenizer = bertkit.BertTokenizer.from_pretrained(path)
    for thing in (model, model.config, tokenizer):
        with pytest.raises(UsageError, match="`hf upload NAME FOLDER`"):
            thing.save_pretrained(path, push_to_hub=True)
        with pytest.raises(UsageError, match="`hf upload NAME FOLDER`"):
            thing.push_to_hub("someone/model")
    with pytest.raises(UsageError, match="safe_serialization=False"):
        model.save_pretrained(path, safe_serialization=False)
    with pytest.raises(TypeError, match="'quantization_config'"):
        bertkit.BertModel.from_pretrained(path, quantization_config={})
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        bertkit.Trainer  # noqa: B018
    assert importlib.util.find_spec("bertkit.trainer") is None
