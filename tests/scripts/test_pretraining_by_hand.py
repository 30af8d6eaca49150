"""Masking, pairs of sentences and the sum of both losses, written out by hand."""

from __future__ import annotations

import pytest
import torch

import bertkit
from tests.scripts.moved import assert_moves, folder

TEXTS = {
    "en": ["The cat sat on the mat.", "A dog barks at night.", "It was very good, not bad!",
           "He opened the door.", "The room was empty."],
    "zh": ["今天天气很好。", "猫坐在垫子上。", "他喜欢看书。", "北京有大学。",
           "我们学习语言模型。"],
}  # fmt: skip
both_languages = pytest.mark.parametrize("language", ["en", "zh"])

MASKING = """
import random
import torch
from transformers import BertTokenizer, BertForMaskedLM, BertForPreTraining

tokenizer = BertTokenizer.from_pretrained(folder)

def mask_tokens(inputs, mlm_probability=0.15):
    labels = inputs.clone()
    probabilities = torch.full(labels.shape, mlm_probability)
    special = [tokenizer.get_special_tokens_mask(row, already_has_special_tokens=True)
               for row in labels.tolist()]
    probabilities.masked_fill_(torch.tensor(special, dtype=torch.bool), value=0.0)
    if tokenizer.pad_token is not None:
        probabilities.masked_fill_(labels.eq(tokenizer.pad_token_id), value=0.0)
    masked = torch.bernoulli(probabilities).bool()
    labels[~masked] = -100
    replaced = torch.bernoulli(torch.full(labels.shape, 0.8)).bool() & masked
    inputs[replaced] = tokenizer.convert_tokens_to_ids(tokenizer.mask_token)
    random_ones = torch.bernoulli(torch.full(labels.shape, 0.5)).bool() & masked & ~replaced
    words = torch.randint(len(tokenizer), labels.shape, dtype=torch.long)
    inputs[random_ones] = words[random_ones]
    return inputs, labels
"""


@both_languages
def test_dynamic_masking_written_by_hand(language: str) -> None:
    script = (
        MASKING
        + """
model = BertForMaskedLM.from_pretrained(folder)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
for epoch in range(3):
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    batch["input_ids"], labels = mask_tokens(batch["input_ids"], 0.4)
    loss = model(**batch, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(batch["input_ids"], labels, loss.item(), len(tokenizer), tokenizer.mask_token_id)
"""
    )
    printed = assert_moves(script, folder=folder(language=language), texts=TEXTS[language])
    assert all((labels != -100).any() for _, labels, *_ in printed)


PAIRS = (
    MASKING
    + """
random.seed(1)
pairs = []
for i in range(len(texts) - 1):
    if random.random() < 0.5:
        pairs.append((texts[i], texts[i + 1], 0))           # IsNext
    else:
        others = [j for j in range(len(texts)) if j not in (i, i + 1)]
        pairs.append((texts[i], texts[random.choice(others)], 1))
first, second, order = zip(*pairs)
batch = tokenizer(list(first), list(second), padding="max_length", truncation=True,
                  max_length=32, return_tensors="pt")
order = torch.tensor(order)
batch["input_ids"], labels = mask_tokens(batch["input_ids"], 0.3)
print(batch["input_ids"], batch["token_type_ids"], labels, order)
"""
)


@both_languages
def test_pairs_from_a_list_of_sentences_and_the_sum_of_both_losses(language: str) -> None:
    script = (
        PAIRS
        + """
model = BertForPreTraining.from_pretrained(folder)
model.train()
outputs = model(**batch, labels=labels, next_sentence_label=order)
outputs.loss.backward()
print(outputs.loss, outputs.seq_relationship_logits)
print(outputs.prediction_logits[batch["attention_mask"].bool()], outputs.prediction_logits.shape)
print(model.bert.embeddings.word_embeddings.weight.grad)
"""
    )
    assert_moves(script, folder=folder(language=language), texts=TEXTS[language])


LOSS_BY_HAND = """
class BertPretrainingLoss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.loss = torch.nn.CrossEntropyLoss(ignore_index=-100)

    def forward(self, mlm_logits, nsp_logits, mlm_labels, nsp_labels):
        mlm = self.loss(mlm_logits.view(-1, mlm_logits.size(-1)), mlm_labels.view(-1))
        nsp = self.loss(nsp_logits.view(-1, 2), nsp_labels.view(-1))
        return mlm + nsp, mlm, nsp
"""


def test_a_loss_object_that_returns_the_total_and_both_parts() -> None:
    script = (
        PAIRS
        + LOSS_BY_HAND
        + """
criterion = BertPretrainingLoss()
model = BertForPreTraining.from_pretrained(folder).train()
for _ in range(2):
    outputs = model(batch["input_ids"], attention_mask=batch["attention_mask"],
                    token_type_ids=batch["token_type_ids"])
    logits = outputs.prediction_logits, outputs.seq_relationship_logits
    total, mlm, nsp = criterion(*logits, labels, order)
    total.backward()
    print(total, mlm, nsp, model.cls.seq_relationship.weight.grad)
"""
    )
    given = {"folder": folder(), "texts": TEXTS["en"]}
    by_hand = assert_moves(script, **given)
    ours = script.replace(LOSS_BY_HAND, "from bertkit import BertPretrainingLoss\n")
    for a, b in zip(assert_moves(ours, **given), by_hand, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_the_pieces_offered_here_are_what_the_script_wrote_by_hand() -> None:
    tokenizer = bertkit.BertTokenizer.from_pretrained(folder())
    ids = tokenizer(TEXTS["en"] * 40, padding=True, return_tensors="pt")["input_ids"]
    generator = torch.Generator().manual_seed(3)
    masked, labels = bertkit.mask_tokens(ids, tokenizer, generator=generator)
    chosen = labels != -100
    special = [tokenizer.get_special_tokens_mask(row, None, True) for row in ids.tolist()]
    real = ~torch.tensor(special, dtype=torch.bool)
    assert not (chosen & ~real).any()
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])
    assert 0.11 < float(chosen.sum() / real.sum()) < 0.19
    assert 0.7 < float((masked[chosen] == tokenizer.mask_token_id).float().mean()) < 0.9
    for first, second, follows in bertkit.sentence_pairs(TEXTS["en"]):
        i, j = TEXTS["en"].index(first), TEXTS["en"].index(second)
        assert follows == (j == i + 1)
