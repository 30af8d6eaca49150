"""The peer of the fine-tuning benchmarks: transformers' BERT and its Trainer at their best.

As its own examples do it: texts tokenized beforehand by the fast tokenizer, batches grouped by
length and padded to their longest row, fused AdamW, no weight decay on biases and LayerNorm. Labels
of words stand on their first tokens; with a CRF, pytorch-crf takes the emissions of these alone.
Answers come from strided windows and the n best pairs of start and end over all of them.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import peers, report
from benchmarks.finetune_encode import IGNORED, Encoded, Example
from benchmarks.finetune_tasks import TaskSpec
from bertkit.tasks.records import QuestionRow, TagRow
from bertkit.tasks.schemes import to_spans

# Of the field over tags, on both sides: 100 times BERT's own 5e-5.
CRF_RATE = 5e-3
WARMUP, WEIGHT_DECAY, EPSILON, CLIP = 0.1, 0.01, 1e-6, 1.0
N_BEST, ANSWER_TOKENS = 20, 30


class CrfTagger(nn.Module):
    """A token classifier of transformers with pytorch-crf on its emissions at labelled tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.crf = importlib.import_module("torchcrf").CRF(model.config.num_labels, True)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The mean over sentences of the negative log-likelihood."""
        emissions, kept, tags = self.emissions(input_ids, token_type_ids, labels, attention_mask)
        return {"loss": -self.crf(emissions, tags, kept, reduction="mean")}

    def emissions(
        self, input_ids: Tensor, token_type_ids: Tensor, labels: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [B, W, C], mask [B, W] and tags [B, W] of words, padding behind."""
        logits = self.model(input_ids, mask, token_type_ids).logits.float()
        read = labels != IGNORED
        counts = read.sum(1)
        kept = torch.arange(int(counts.max()), device=read.device) < counts[:, None]
        scores = logits.new_zeros(*kept.shape, logits.shape[-1])
        scores[kept] = logits[read]
        tags = torch.zeros(kept.shape, dtype=torch.int64, device=read.device)
        tags[kept] = labels[read]
        return scores, kept, tags


def open_model(spec: TaskSpec, folder: str, labels: Sequence[str], seed: int) -> Any:
    """The model with a head for the task, drawn with this seed."""
    library = peers.transformers()
    library.set_seed(seed)
    heads: dict[str, tuple[str, dict[str, Any]]] = {
        "classify": ("SequenceClassification", {"num_labels": len(labels)}),
        "regress": ("SequenceClassification", {"num_labels": 1, "problem_type": "regression"}),
        "tag": ("TokenClassification", {"num_labels": len(labels)}),
        "qa": ("QuestionAnswering", {}),
    }
    head, settings = heads[spec.task]
    model = getattr(library, f"BertFor{head}").from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", **settings
    )
    return CrfTagger(model) if spec.crf else model


@dataclass(frozen=True, slots=True)
class Padding:
    """The collator: padded to the longest row; without a mask where nothing is padded."""

    pad: int
    multiple: int = 1

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Tensors [B, S], and [B] of labels that are one a row."""
        longest = max(len(example["input_ids"]) for example in examples)
        shape = (len(examples), -(-longest // self.multiple) * self.multiple)
        batch: dict[str, Tensor] = {}
        for name, first in examples[0].items():
            if not isinstance(first, list):
                batch[name] = torch.tensor([example[name] for example in examples])
                continue
            filler = {"input_ids": self.pad, "labels": IGNORED}.get(name, 0)
            table = np.full(shape, filler, np.int64)
            for row, example in enumerate(examples):
                table[row, : len(example[name])] = example[name]
            batch[name] = torch.from_numpy(table)
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        if int(lengths.min()) < shape[1]:
            batch["attention_mask"] = (torch.arange(shape[1]) < lengths[:, None]).long()
        return batch


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """How the Trainer is driven."""

    batch_size: int
    learning_rate: float
    epochs: float
    seed: int = 0
    device: str = "cpu"
    bf16: bool = False
    compile: bool = False
    workers: int = 0


def train(model: Any, inputs: Sequence[Example], pad: int, settings: PeerSettings) -> Clock:
    """Run the Trainer; the time of its epochs."""
    library = peers.transformers()
    cuda = settings.device.startswith("cuda")
    clock = _clock(settings.device)
    optimizer = _crf_optimizer(model, settings) if isinstance(model, CrfTagger) else None
    with tempfile.TemporaryDirectory() as folder:
        arguments = library.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            num_train_epochs=settings.epochs,
            warmup_steps=WARMUP,
            lr_scheduler_type="linear",
            weight_decay=WEIGHT_DECAY,
            adam_epsilon=EPSILON,
            max_grad_norm=CLIP,
            optim="adamw_torch_fused",
            train_sampling_strategy="group_by_length",
            seed=settings.seed,
            bf16=settings.bf16,
            torch_compile=settings.compile,
            use_cpu=not cuda,
            dataloader_pin_memory=cuda,
            dataloader_num_workers=settings.workers,
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = library.Trainer(
            model=model,
            args=arguments,
            train_dataset=list(inputs),
            data_collator=Padding(pad, 8 if cuda else 1),
            optimizers=(optimizer, None),
            callbacks=[clock],
        )
        trainer.remove_callback(library.PrinterCallback)
        trainer.train()
    return clock  # type: ignore[no-any-return]


class Clock:
    """The seconds that each epoch took."""

    epochs: list[float]


def _clock(device: str) -> Any:
    class EpochClock(peers.transformers().TrainerCallback, Clock):  # type: ignore[misc]
        """Reads the time when the queue of the device is empty."""

        def __init__(self) -> None:
            self.epochs: list[float] = []
            self.begun = 0.0

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            report.synchronize(device)
            self.begun = time.perf_counter()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            report.synchronize(device)
            self.epochs.append(time.perf_counter() - self.begun)

    return EpochClock()


def _crf_optimizer(model: CrfTagger, settings: PeerSettings) -> torch.optim.Optimizer:
    """The Trainer's own optimizer, with the field over tags at its own learning rate."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        spared = name.endswith("bias") or "LayerNorm" in name
        groups.setdefault((name.startswith("crf."), spared), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": CRF_RATE if of_crf else settings.learning_rate,
                "weight_decay": 0.0 if spared else WEIGHT_DECAY,
            }
            for (of_crf, spared), parameters in groups.items()
        ],
        lr=settings.learning_rate,
        eps=EPSILON,
        fused=True,
    )


@torch.inference_mode()
def predict(
    spec: TaskSpec, model: Any, encoded: Encoded, rows: Sequence[Any], labels: Sequence[str],
    pad: int, device: str = "cpu", batch: int = 32,
) -> list[Any]:  # fmt: skip
    """Predictions in the form that the meters count, in the order of the rows."""
    model.eval().to(device)
    collate = Padding(pad)
    order = sorted(range(len(encoded.inputs)), key=lambda i: len(encoded.inputs[i]["input_ids"]))
    scores: list[Any] = [None] * len(order)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        tensors = {k: v.to(device) for k, v in collate([encoded.inputs[i] for i in chosen]).items()}
        for i, score in zip(chosen, _scores(spec, model, tensors), strict=True):
            scores[i] = score
    if spec.task == "classify":
        return [[{"label": labels[int(s.argmax())], "score": float(s.max())}] for s in scores]
    if spec.task == "regress":
        return [{"score": float(score)} for score in scores]
    if spec.task == "tag":
        return [
            _entities(row, places, [labels[int(n)] for n in numbers])
            for row, places, numbers in zip(rows, encoded.places, scores, strict=True)
        ]
    windows: list[list[int]] = [[] for _ in rows]
    for window, number in enumerate(encoded.rows):
        windows[number].append(window)
    return [
        answer(row, [(scores[w], encoded.places[w]) for w in mine], spec.no_answer)
        for row, mine in zip(rows, windows, strict=True)
    ]


def _scores(spec: TaskSpec, model: Any, tensors: dict[str, Tensor]) -> list[Any]:
    """Of each sequence: logits [C], tags of its words, or logits [S, 2] of start and end."""
    read = tensors["labels"] != IGNORED if spec.task == "tag" else None
    if isinstance(model, CrfTagger):
        mask = tensors.get("attention_mask")
        ids, types, labels = (tensors[k] for k in ("input_ids", "token_type_ids", "labels"))
        emissions, kept, _ = model.emissions(ids, types, labels, mask)
        return list(model.crf.decode(emissions, kept))
    labels_of = ("labels", "start_positions", "end_positions")
    out = model(**{k: v for k, v in tensors.items() if k not in labels_of})
    if spec.task == "qa":
        return list(torch.stack([out.start_logits, out.end_logits], -1).float().cpu())
    logits = out.logits.float()
    if read is None:
        return list(logits.softmax(-1).cpu() if spec.task == "classify" else logits.cpu())
    return [row[mine].argmax(-1).tolist() for row, mine in zip(logits, read, strict=True)]


def _entities(row: TagRow, places: Sequence[Any], tags: Sequence[str]) -> list[Example]:
    """Entities as conlleval reads the tags; those that begin with I- are not strictly ones."""
    return [
        {
            "entity_group": kind,
            "score": 1.0,
            "word": row.text[places[first][1] : places[last - 1][2]],
            "start": places[first][1],
            "end": places[last - 1][2],
            "strict": tags[first].startswith("B-"),
        }
        for first, last, kind in to_spans(tags, "BIO")
    ]


def answer(
    row: QuestionRow, windows: Sequence[tuple[Tensor, Sequence[Any]]], no_answer: bool
) -> Example:
    """The best answer over all windows; "" where having none scores better and may be."""
    found: list[tuple[float, str]] = []
    nothing = float("inf")
    for logits, offsets in windows:
        starts, ends = logits[: len(offsets)].double().unbind(-1)
        nothing = min(nothing, float(starts[0] + ends[0]))
        firsts, lasts = (
            [t for t in side.topk(min(N_BEST, len(offsets))).indices.tolist() if offsets[t]]
            for side in (starts, ends)
        )
        for first, last in product(firsts, lasts):
            if first <= last < first + ANSWER_TOKENS:
                text = row.context[offsets[first][0] : offsets[last][1]]
                found.append((float(starts[first] + ends[last]), text))
    best = sorted(found, reverse=True)[:N_BEST]
    odds = nothing - (best[0][0] if best else 0.0)
    given = "" if not best or (no_answer and odds > 0) else best[0][1]
    n_best = [{"answer": text, "score": score} for score, text in best]
    return {"id": row.id, "answer": given, "score": 0.0, "null_odds": odds, "n_best": n_best}
