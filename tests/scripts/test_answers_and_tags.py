"""Extracting answers, tagging words, choosing: what tutorials do before and after the model."""

from __future__ import annotations

import pytest

from tests.scripts.moved import assert_moves, folder

QUESTIONS = {
    "en": ("Where is the cat?",
           "The cat sat on the mat. A dog walked to London and slept under the table at night."),
    "zh": ("猫在哪里？", "今天天气很好。猫坐在垫子上，狗在北京大学学习语言，他们喜欢看电影。"),
}  # fmt: skip
both_languages = pytest.mark.parametrize("language", ["en", "zh"])


@both_languages
def test_an_answer_from_the_logits_with_offsets(language: str) -> None:
    script = """
import torch
from transformers import AutoTokenizer, AutoModelForQuestionAnswering

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForQuestionAnswering.from_pretrained(folder)
question, context = pair
inputs = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt")
offsets = inputs.pop("offset_mapping")[0].tolist()
sequence_ids = inputs.sequence_ids(0)
with torch.no_grad():
    outputs = model(**inputs)
start_logits, end_logits = outputs.start_logits[0], outputs.end_logits[0]
print(start_logits, end_logits, offsets, sequence_ids)
mask = torch.tensor([i != 1 for i in sequence_ids])
start_probabilities = start_logits.masked_fill(mask, -10000).softmax(-1)
end_probabilities = end_logits.masked_fill(mask, -10000).softmax(-1)
scores = torch.triu(start_probabilities[:, None] * end_probabilities[None, :])
best = scores.argmax().item()
start, end = best // scores.shape[1], best % scores.shape[1]
answer = context[offsets[start][0]:offsets[end][1]]
print(answer, offsets[start][0], offsets[end][1], scores[start, end])
span = inputs["input_ids"][0, start:end + 1]
print(tokenizer.decode(span), tokenizer.convert_tokens_to_string(
    tokenizer.convert_ids_to_tokens(span)))
print(model(**inputs, start_positions=torch.tensor([start]),
            end_positions=torch.tensor([end])).loss)
"""
    path = folder("BertForQuestionAnswering", language)
    printed = assert_moves(script, folder=path, pair=QUESTIONS[language])
    assert printed[1][0]


@both_languages
def test_long_contexts_in_windows_with_positions_from_characters(language: str) -> None:
    script = """
import torch
from transformers import BertTokenizerFast, BertForQuestionAnswering

tokenizer = BertTokenizerFast.from_pretrained(folder)
model = BertForQuestionAnswering.from_pretrained(folder)
question, context = pair
starts = [context.index(answer) for answer in answers]
inputs = tokenizer([question] * len(answers), [context] * len(answers), max_length=24, stride=6,
                   truncation="only_second", return_overflowing_tokens=True,
                   return_offsets_mapping=True, padding="max_length")
owners = inputs.pop("overflow_to_sample_mapping")
offset_mapping = inputs.pop("offset_mapping")
start_positions, end_positions = [], []
for i, offsets in enumerate(offset_mapping):
    first, last = starts[owners[i]], starts[owners[i]] + len(answers[owners[i]])
    sequence_ids = inputs.sequence_ids(i)
    context_start = sequence_ids.index(1)
    context_end = len(sequence_ids) - 1 - sequence_ids[::-1].index(1)
    if offsets[context_start][0] > first or offsets[context_end][1] < last:
        start_positions.append(0)
        end_positions.append(0)
    else:
        index = context_start
        while index <= context_end and offsets[index][0] <= first:
            index += 1
        start_positions.append(index - 1)
        index = context_end
        while index >= context_start and offsets[index][1] >= last:
            index -= 1
        end_positions.append(index + 1)
print(owners, start_positions, end_positions, offset_mapping)
print([tokenizer.decode(ids[a:b + 1]) for ids, a, b in zip(
    inputs["input_ids"], start_positions, end_positions)])
print(inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"])
print([inputs.char_to_token(0, c, sequence_index=1) for c in range(10)])
full = [i for i, row in enumerate(inputs["attention_mask"]) if all(row)]
batch = {k: torch.tensor([v[i] for i in full]) for k, v in inputs.items()}
loss = model(**batch, start_positions=torch.tensor([start_positions[i] for i in full]),
             end_positions=torch.tensor([end_positions[i] for i in full])).loss
loss.backward()
print(full, loss, model.qa_outputs.weight.grad)
"""
    answers = {"en": ["the mat", "under the table"], "zh": ["垫子", "语言"]}[language]
    path = folder("BertForQuestionAnswering", language)
    printed = assert_moves(script, folder=path, pair=QUESTIONS[language], answers=answers)
    assert len(printed[0][0]) > 2
    assert printed[-1][0]


TAGGED = {
    "en": ([["Bob", "lives", "in", "London", "."], ["Ann", "works", "for", "Acme", "Ltd"]],
           [[1, 0, 0, 3, 0], [1, 0, 0, 5, 6]]),
    "zh": ([["我们", "在", "北京", "大学"], ["他", "喜欢", "上海"]], [[0, 0, 5, 6], [0, 0, 3]]),
}  # fmt: skip
NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]


@both_languages
def test_tagging_with_labels_laid_along_word_ids(language: str) -> None:
    script = """
import torch
from transformers import AutoTokenizer, AutoModelForTokenClassification

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForTokenClassification.from_pretrained(
    folder, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
print(model.config.num_labels, model.config.label2id, model.classifier.weight.shape)

def align(words, tags):
    tokenized = tokenizer(words, truncation=True, is_split_into_words=True)
    tokenized["labels"] = []
    for i, tag in enumerate(tags):
        previous, ids = None, []
        for word in tokenized.word_ids(batch_index=i):
            if word is None:
                ids.append(-100)
            elif word != previous:
                ids.append(tag[word])
            else:
                ids.append(-100)
            previous = word
        tokenized["labels"].append(ids)
    return tokenized

data = align(words, tags)
print(data["input_ids"], data["labels"], [data.tokens(i) for i in range(len(words))])
rows = [{k: data[k][i] for k in data} for i in range(len(words))]
print(rows)

def collate(rows):
    labels = [row["labels"] for row in rows]
    batch = tokenizer.pad([{k: v for k, v in row.items() if k != "labels"} for row in rows],
                          padding=True, return_tensors="pt")
    width = batch["input_ids"].shape[1]
    batch["labels"] = torch.tensor([ids + [-100] * (width - len(ids)) for ids in labels])
    return batch

optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
model.train()
for _ in range(3):
    batch = collate(rows)
    outputs = model(**batch)
    outputs.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(outputs.loss.item(), outputs.logits[batch["attention_mask"].bool()])
model.eval()
predictions = outputs.logits.argmax(dim=-1)
print([[model.config.id2label[p.item()] for p, l in zip(row, gold) if l != -100]
       for row, gold in zip(predictions, batch["labels"])])
"""
    path = folder("BertForTokenClassification", language, num_labels=len(NAMES))
    words, tags = TAGGED[language]
    assert_moves(script, folder=path, words=words, tags=tags, names=NAMES)


def test_choosing_between_endings() -> None:
    script = """
import torch
from transformers import AutoTokenizer, BertForMultipleChoice

tokenizer = AutoTokenizer.from_pretrained(folder)
model = BertForMultipleChoice.from_pretrained(folder)
prompts, endings = ["He opened the door.", "The cat sat."], [
    ["The room was empty.", "The film was dull."], ["It is on the mat.", "A dog!"]]
first = [prompt for prompt in prompts for _ in range(2)]
second = [ending for pair in endings for ending in pair]
tokenized = tokenizer(first, second, truncation=True, padding=True)
batch = {k: torch.tensor(v).view(2, 2, -1) for k, v in tokenized.items()}
outputs = model(**batch, labels=torch.tensor([0, 1]))
print(outputs.loss, outputs.logits, outputs.logits.argmax(dim=-1))
one = tokenizer([prompts[0]] * 2, endings[0], return_tensors="pt", padding=True)
one = {k: v.unsqueeze(0) for k, v in one.items()}
print(model(**one, labels=torch.tensor(0).unsqueeze(0)).loss)
"""
    assert_moves(script, folder=folder("BertForMultipleChoice"))
