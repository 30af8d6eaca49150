"""Loops that people write to fine-tune: every step's loss is that of transformers."""

from __future__ import annotations

import pytest
import torch

from tests.scripts.moved import assert_moves, folder

TEXTS = {
    "en": ["the film was very good", "a dull film, not good", "great", "bad and dull!",
           "the cat sat on the mat", "it was not bad"],
    "zh": ["电影很好", "电影不好看，坏", "喜欢", "不喜欢他", "猫坐在垫子上", "今天天气很好"],
}  # fmt: skip
LABELS = [1, 0, 1, 0, 1, 1]
both_languages = pytest.mark.parametrize("language", ["en", "zh"])


@both_languages
def test_classification_with_adamw_for_three_epochs(language: str) -> None:
    script = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoTokenizer, AutoModelForSequenceClassification

id2label = {0: "NEGATIVE", 1: "POSITIVE"}
label2id = {"NEGATIVE": 0, "POSITIVE": 1}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(
    folder, num_labels=2, id2label=id2label, label2id=label2id)
device = torch.device("cpu")
model.to(device)
enc = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
data = TensorDataset(enc["input_ids"], enc["attention_mask"], torch.tensor(labels))
loader = DataLoader(data, batch_size=2, shuffle=True)
skip = ["bias", "LayerNorm.weight"]
groups = [
    {"params": [p for n, p in model.named_parameters() if not any(s in n for s in skip)],
     "weight_decay": 0.01},
    {"params": [p for n, p in model.named_parameters() if any(s in n for s in skip)],
     "weight_decay": 0.0},
]
print([len(group["params"]) for group in groups])
optimizer = torch.optim.AdamW(groups, lr=2e-5)
steps, warmup = 3 * len(loader), 2
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (
    step / warmup if step < warmup else max(0.0, (steps - step) / (steps - warmup))))
for epoch in range(3):
    model.train()
    total = 0.0
    for batch in loader:
        input_ids, attention_mask, target = (x.to(device) for x in batch)
        optimizer.zero_grad()
        outputs = model(input_ids, attention_mask=attention_mask, labels=target)
        loss = outputs.loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        print(loss.item(), norm, schedule.get_last_lr()[0])
    model.eval()
    correct = 0
    with torch.no_grad():
        for input_ids, attention_mask, target in loader:
            logits = model(input_ids, attention_mask).logits
            correct += (logits.argmax(dim=-1) == target).sum().item()
    print(epoch, total / len(loader), correct / len(data))
model.save_pretrained(out)
tokenizer.save_pretrained(out)
again = AutoModelForSequenceClassification.from_pretrained(out)
words = AutoTokenizer.from_pretrained(out)
with torch.no_grad():
    before = model(**words(texts[0], return_tensors="pt")).logits
    logits = again(**words(texts[0], return_tensors="pt")).logits
print(before, logits, again.training, again.config.id2label, again.config.label2id)
print(again.config.id2label[logits.argmax().item()], again.config.num_labels, again.num_labels)
"""
    path = folder("BertForSequenceClassification", language)
    printed = assert_moves(script, folder=path, texts=TEXTS[language], labels=LABELS)
    assert len(printed) == 1 + 9 + 3 + 2
    torch.testing.assert_close(printed[-2][0], printed[-2][1])


def test_a_data_set_of_rows_and_a_collate_function_that_pads() -> None:
    script = """
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import BertTokenizerFast, BertForSequenceClassification

class Reviews(Dataset):
    def __init__(self, encodings, labels):
        self.encodings, self.labels = encodings, labels

    def __getitem__(self, i):
        item = {key: value[i] for key, value in self.encodings.items()}
        item["labels"] = self.labels[i]
        return item

    def __len__(self):
        return len(self.labels)

tokenizer = BertTokenizerFast.from_pretrained(folder)
data = Reviews(tokenizer(texts, truncation=True), labels)

def collate(rows):
    labels = torch.tensor([row.pop("labels") for row in rows])
    batch = tokenizer.pad(rows, padding=True, pad_to_multiple_of=4, return_tensors="pt")
    batch["labels"] = labels
    return batch

model = BertForSequenceClassification.from_pretrained(folder)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
model.train()
for epoch in range(3):
    for batch in DataLoader(data, batch_size=3, collate_fn=collate):
        batch = {k: v.to("cpu") for k, v in batch.items()}
        loss, logits = model(**batch)[:2]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(loss.item(), logits, batch["input_ids"], sorted(batch))
"""
    path = folder("BertForSequenceClassification")
    assert len(assert_moves(script, folder=path, texts=TEXTS["en"], labels=LABELS)) == 6


def test_a_new_head_on_a_pretrained_encoder_that_stays_frozen() -> None:
    script = """
import torch
from transformers import BertTokenizer, BertForSequenceClassification

tokenizer = BertTokenizer.from_pretrained(folder)
model = BertForSequenceClassification.from_pretrained(folder, num_labels=3)
torch.manual_seed(1)
torch.nn.init.normal_(model.classifier.weight, std=0.02)
print(model.classifier.weight.shape, model.classifier.bias, model.config.num_labels)
for p in model.bert.parameters():
    p.requires_grad = False
before = [p.clone() for p in model.bert.parameters()]
trained = [p for p in model.parameters() if p.requires_grad]
print([p.shape for p in trained], model.num_parameters(only_trainable=True), model.num_parameters())
optimizer = torch.optim.AdamW(trained, lr=1e-2)
batch = tokenizer(texts, padding=True, return_tensors="pt")
model.train()
for _ in range(4):
    loss = model(**batch, labels=torch.tensor([2, 0, 1, 0, 1, 2])).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(loss.item())
print(all(torch.equal(a, b) for a, b in zip(before, model.bert.parameters())))
for name, p in model.named_parameters():
    p.requires_grad = name.startswith(("bert.encoder.layer.1", "bert.pooler", "classifier"))
print(sorted(name for name, p in model.named_parameters() if p.requires_grad))
print(model(**batch, labels=torch.tensor([2, 0, 1, 0, 1, 2])).loss.backward())
print(model.bert.encoder.layer[1].output.dense.weight.grad)
print(model.bert.embeddings.word_embeddings.weight.grad)
"""
    assert_moves(script, folder=folder(), texts=TEXTS["en"])


def test_many_labels_and_regression() -> None:
    script = """
import torch
from transformers import BertTokenizer, BertForSequenceClassification

tokenizer = BertTokenizer.from_pretrained(folder)
batch = tokenizer(texts, padding=True, return_tensors="pt")
many = torch.tensor([[1., 0., 1.]] * 3 + [[0., 1., 0.]] * 3)
score = torch.linspace(0, 5, 6)
for count, kind, target in [(3, "multi_label_classification", many), (1, None, score)]:
    model = BertForSequenceClassification.from_pretrained(
        folder, num_labels=count, problem_type=kind)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.classifier.weight, std=0.02)
    outputs = model(**batch, labels=target)
    print(outputs.loss, outputs.logits, torch.sigmoid(outputs.logits) > 0.5)
    print(model.config.problem_type)
"""
    assert_moves(script, folder=folder(), texts=TEXTS["en"])


@both_languages
def test_a_model_of_ones_own_around_the_encoder(language: str) -> None:
    script = """
import torch
from torch import nn
from transformers import BertModel, BertPreTrainedModel, BertTokenizer

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.bert = BertModel.from_pretrained(folder)
        self.drop = nn.Dropout(p=0.0)
        self.out = nn.Linear(self.bert.config.hidden_size, 2)

    def forward(self, input_ids, attention_mask):
        _, pooled = self.bert(input_ids=input_ids, attention_mask=attention_mask,
                              return_dict=False)
        return self.out(self.drop(pooled))

class Inherited(BertPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = BertModel(config)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None):
        outputs = self.bert(input_ids, attention_mask=attention_mask,
                            token_type_ids=token_type_ids)
        mask = attention_mask.unsqueeze(-1).float()
        mean = (outputs[0] * mask).sum(1) / mask.sum(1)
        logits = self.classifier(torch.cat([mean, outputs[1]], dim=-1))
        loss = nn.CrossEntropyLoss()(logits.view(-1, self.num_labels), labels.view(-1))
        return loss, logits

tokenizer = BertTokenizer.from_pretrained(folder)
batch = tokenizer(texts, padding=True, return_tensors="pt")
target = torch.tensor(labels)
wrapped = Wrapped()
torch.manual_seed(1)
nn.init.normal_(wrapped.out.weight, std=0.1), nn.init.zeros_(wrapped.out.bias)
optimizer = torch.optim.AdamW(wrapped.parameters(), lr=2e-5)
for _ in range(3):
    loss = nn.functional.cross_entropy(wrapped(batch["input_ids"], batch["attention_mask"]), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item())
own = Inherited.from_pretrained(folder, num_labels=2)
print(own.classifier.weight.shape, own.classifier.bias, own.training)
torch.manual_seed(1)
nn.init.normal_(own.classifier.weight, std=0.1)
loss, logits = own(**batch, labels=target)
loss.backward()
print(loss, logits, own.bert.encoder.layer[0].attention.self.query.weight.grad)
own.save_pretrained(out)
again = Inherited.from_pretrained(out)
print(again(**batch, labels=target)[1], again.config.num_labels, again.base_model is again.bert)
torch.save(own.state_dict(), out + "/weights.pt")
fresh = Inherited(own.config)
print(fresh.load_state_dict(torch.load(out + "/weights.pt", weights_only=True)))
fresh.eval()
print(fresh(**batch, labels=target)[1])
"""
    assert_moves(script, folder=folder(language=language), texts=TEXTS[language], labels=LABELS)


@pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning")
@pytest.mark.parametrize("layers", [1, 2])
def test_gradient_checkpointing_and_accumulated_steps(layers: int) -> None:
    script = """
import torch
from transformers import BertTokenizer, BertForSequenceClassification

tokenizer = BertTokenizer.from_pretrained(folder)
model = BertForSequenceClassification.from_pretrained(folder)
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
print(model.is_gradient_checkpointing)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
for i in range(3):
    if i == 2:
        model.gradient_checkpointing_disable()
        print(model.is_gradient_checkpointing)
    for part in range(0, 6, 2):
        batch = tokenizer(texts[part:part + 2], padding=True, return_tensors="pt")
        loss = model(**batch, labels=torch.tensor(labels[part:part + 2])).loss / 3
        loss.backward()
        print(loss.item())
    print(model.classifier.weight.grad, model.bert.embeddings.LayerNorm.weight.grad)
    optimizer.step()
    optimizer.zero_grad()
"""
    path = folder("BertForSequenceClassification", num_hidden_layers=layers)
    assert_moves(script, folder=path, texts=TEXTS["en"], labels=LABELS)


@both_languages
def test_the_trainer_of_transformers(language: str) -> None:
    """It hands in `num_items_in_batch`, measures, and pads with the tokenizer."""
    script = """
import transformers
from transformers import AutoTokenizer, AutoModelForSequenceClassification

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder)
rows = [{**tokenizer(text), "labels": label} for text, label in zip(texts, labels)]
arguments = transformers.TrainingArguments(
    out, num_train_epochs=3, per_device_train_batch_size=2, gradient_accumulation_steps=2,
    learning_rate=1e-3, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
    disable_tqdm=True)
trainer = transformers.Trainer(
    model, arguments, train_dataset=rows, eval_dataset=rows,
    data_collator=transformers.DataCollatorWithPadding(tokenizer))
trainer.train()
for line in trainer.state.log_history[:-1]:
    print(line["loss"], line["grad_norm"], line["learning_rate"])
print(trainer.evaluate()["eval_loss"])
print(trainer.predict(rows).predictions.tolist())
"""
    kept = folder("BertForSequenceClassification", language)
    assert_moves(script, folder=kept, texts=TEXTS[language], labels=LABELS)
