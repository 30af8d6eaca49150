"""What introductions to BERT begin with: encode, take apart, guess words, ask for the next."""

from __future__ import annotations

import pytest
import torch

from tests.scripts.moved import assert_moves, folder

SENTENCES = {"en": "The cat sat on the mat.", "zh": "今天天气很好，猫坐在垫子上。"}
both_languages = pytest.mark.parametrize("language", ["en", "zh"])


@both_languages
def test_encode_a_sentence_and_read_the_last_state(language: str) -> None:
    script = """
import torch
from transformers import BertTokenizer, BertModel

tokenizer = BertTokenizer.from_pretrained(folder)
model = BertModel.from_pretrained(folder)
inputs = tokenizer(text, return_tensors="pt")
print(tokenizer.tokenize(text), inputs.input_ids, inputs["attention_mask"])
with torch.no_grad():
    outputs = model(**inputs)
print(outputs.last_hidden_state, outputs.pooler_output)
print(outputs.last_hidden_state.shape, model.training, model.config.hidden_size)
print(outputs[0], outputs["pooler_output"], len(outputs), list(outputs.keys()))
state, pooled = model(inputs["input_ids"], return_dict=False)
print(state, pooled)
print(tokenizer.decode(inputs["input_ids"][0]))
print(tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True))
print(tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]))
"""
    assert_moves(script, folder=folder(language=language), text=SENTENCES[language])


@both_languages
def test_the_three_embeddings_taken_apart_and_added_up_again(language: str) -> None:
    script = """
import torch
from transformers import BertTokenizer, BertModel

tokenizer = BertTokenizer.from_pretrained(folder)
model = BertModel.from_pretrained(folder)
model.eval()
inputs = tokenizer(text, text, return_tensors="pt")
table = model.embeddings
positions = torch.arange(inputs["input_ids"].size(1)).unsqueeze(0)
words = table.word_embeddings(inputs["input_ids"])
places = table.position_embeddings(positions)
segments = table.token_type_embeddings(inputs["token_type_ids"])
print(words, places, segments)
total = table.dropout(table.LayerNorm(words + places + segments))
output = table(input_ids=inputs["input_ids"], token_type_ids=inputs["token_type_ids"])
print(total, output)
states = model(**inputs, output_hidden_states=True).hidden_states
print(torch.allclose(states[0], total, atol=1e-6), len(states))
print(table.word_embeddings.weight.shape, table.word_embeddings.padding_idx)
print(model.get_input_embeddings() is table.word_embeddings, table.LayerNorm.eps)
"""
    printed = assert_moves(script, folder=folder(language=language), text=SENTENCES[language])
    torch.testing.assert_close(*printed[1])
    assert printed[2] == (True, 3)
    assert printed[-1][0] is True


def test_the_configuration_is_printed() -> None:
    script = """
import json
from transformers import AutoConfig, BertConfig, BertModel

config = BertConfig.from_pretrained(folder, num_labels=3)
told = json.loads(str(config).removeprefix("BertConfig "))
told.pop("transformers_version", None)
print(str(config).startswith("BertConfig {"))
print(sorted(told), dict(sorted(told.items())))
model = BertModel.from_pretrained(folder)
c = model.config
print(c.hidden_size, c.num_hidden_layers, c.vocab_size, c.model_type, c.num_labels, c.id2label)
print(c.to_dict()["hidden_act"], BertConfig.from_dict(c.to_dict()).hidden_size)
own = BertConfig(hidden_size=64, num_attention_heads=2, num_labels=4, label2id=None)
print(own.num_labels, own.id2label, own.label2id, own.hidden_dropout_prob)
new = BertModel(BertConfig(vocab_size=99, hidden_size=64, num_attention_heads=2,
                           num_hidden_layers=1, intermediate_size=128))
print(new.num_parameters(), new.training, sum(p.numel() for p in new.parameters()))
config.save_pretrained(out)
print(AutoConfig.from_pretrained(out).num_labels)
"""
    assert_moves(script, folder=folder())


@pytest.mark.parametrize(
    ("language", "text"), [("en", "The cat [MASK] on the mat."), ("zh", "今天天[MASK]很好。")]
)
def test_the_top_five_words(language: str, text: str) -> None:
    script = """
import torch
from transformers import BertTokenizer, BertForMaskedLM

tokenizer = BertTokenizer.from_pretrained(folder)
model = BertForMaskedLM.from_pretrained(folder)
inputs = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
where = (inputs.input_ids == tokenizer.mask_token_id)[0].nonzero(as_tuple=True)[0]
top = logits[0, where].softmax(dim=-1).topk(5, dim=-1)
for probability, index in zip(top.values[0], top.indices[0]):
    print(tokenizer.decode([index]), tokenizer.convert_ids_to_tokens(index.item()), probability)
best = logits[0, where].argmax(dim=-1)
print(text.replace(tokenizer.mask_token, tokenizer.decode(best)))
labels = torch.where(inputs.input_ids == tokenizer.mask_token_id, best, -100)
print(model(**inputs, labels=labels).loss.item())
"""
    assert len(assert_moves(script, folder=folder(language=language), text=text)) == 7


@pytest.mark.parametrize(
    ("language", "pair"),
    [
        ("en", ("He opened the door.", "The room was empty.")),
        ("zh", ("他看书。", "今天天气很好。")),
    ],
)
def test_the_probability_that_b_follows_a(language: str, pair: tuple[str, str]) -> None:
    script = """
import torch
from transformers import BertTokenizer, BertForNextSentencePrediction

tokenizer = BertTokenizer.from_pretrained(folder)
model = BertForNextSentencePrediction.from_pretrained(folder)
encoding = tokenizer(*pair, return_tensors="pt")
print(encoding.token_type_ids)
with torch.no_grad():
    outputs = model(**encoding, labels=torch.LongTensor([1]))
print(outputs.loss, outputs.logits)
follows = torch.softmax(outputs.logits, dim=1)[0, 0].item()
print(follows)
"""
    assert_moves(script, folder=folder(language=language), pair=pair)


@both_languages
def test_attention_masks_and_maps(language: str) -> None:
    script = """
import torch
from transformers import AutoTokenizer, AutoModel

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder, output_attentions=True, attn_implementation="eager")
texts = [text, text[:5]]
batch = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
print(batch["attention_mask"], batch["attention_mask"].sum(dim=1))
outputs = model(**batch)
print(len(outputs.attentions), [a.shape for a in outputs.attentions])
print(outputs.attentions[-1][0], outputs.attentions[0][0].sum(dim=-1))
real = int(batch["attention_mask"][1].sum())
print(outputs.attentions[0][1, :, :real])              # nothing looks at padding
print(outputs.attentions[0][1, :, :real, real:].sum())
print(outputs[2][0][0, 0])
alone = model(**tokenizer(texts[1], return_tensors="pt"))
print(alone.last_hidden_state[0], outputs.last_hidden_state[1, :real])
tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
head = outputs.attentions[1][0, 2]
print([(tokens[i], tokens[int(head[i].argmax())]) for i in range(len(tokens))])
"""
    printed = assert_moves(script, folder=folder(language=language), text=SENTENCES[language])
    torch.testing.assert_close(*printed[6], atol=1e-5, rtol=1e-5)


@both_languages
def test_mean_pooling_and_the_likeness_of_sentences(language: str) -> None:
    script = """
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model.to(device)
batch = tokenizer([text, text[2:6], text[:3]], padding=True, return_tensors="pt").to(device)
with torch.no_grad():
    state = model(**batch).last_hidden_state
mask = batch["attention_mask"].unsqueeze(-1).expand(state.size()).float()
mean = (state * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
print(mean, state[:, 0], (state * mask))
print(F.normalize(mean, p=2, dim=1) @ F.normalize(mean, p=2, dim=1).T)
last_four = torch.stack(model(**batch, output_hidden_states=True).hidden_states[-2:]).mean(0)
print(last_four * mask)
"""
    assert_moves(script, folder=folder(language=language), text=SENTENCES[language])
