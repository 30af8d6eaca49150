"""A tiny model and small labelled files of generated words, on which fine-tuning takes seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from bertkit.checkpoint.config import BertConfig
from bertkit.model.heads import BertForPreTraining
from bertkit.settings import FinetuneRecipe, load_recipe
from bertkit.text.tokenizer import BertTokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LABELS = ("bad", "fine", "good")
TYPES = ("LOC", "ORG", "PER")
PLAIN = [f"w{number}" for number in range(20)]
TELLING = {label: [f"{label}{number}" for number in range(6)] for label in LABELS}
NAMES = {kind: [f"{kind.lower()}{number}" for number in range(6)] for kind in TYPES}


def write_model(folder: Path, seed: int = 0, hidden: int = 32, layers: int = 2) -> Path:
    """A model folder of random weights whose vocabulary is the words above."""
    words = [*SPECIALS, *PLAIN]
    words += [word for table in (TELLING, NAMES) for group in table.values() for word in group]
    folder.mkdir(parents=True)
    vocab = folder / "words.txt"
    vocab.write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(vocab_file=str(vocab))
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    BertForPreTraining(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_texts(path: Path, rows: int, seed: int = 0, skewed: bool = False) -> Path:
    """A TSV of texts whose label is told by one or two of their words."""
    rng = np.random.default_rng(seed)
    lines = ["label\ttext_a"]
    shares = [0.05, 0.15, 0.8] if skewed else None
    for _ in range(rows):
        label = LABELS[int(rng.choice(3, p=shares))]
        words = rng.choice(PLAIN, int(rng.integers(3, 14))).tolist()
        for _ in range(int(rng.integers(1, 3))):
            words.insert(int(rng.integers(len(words))), str(rng.choice(TELLING[label])))
        lines.append(f"{label}\t{' '.join(words)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_tags(path: Path, rows: int, seed: int = 0, longest: int = 14) -> Path:
    """A CoNLL file, BIO, whose entities are one to three names of a type."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(rows):
        for _ in range(int(rng.integers(2, longest))):
            if rng.random() < 0.25:
                kind = TYPES[int(rng.integers(3))]
                for place in range(int(rng.integers(1, 4))):
                    lines.append(f"{rng.choice(NAMES[kind])} {'I' if place else 'B'}-{kind}")
                lines.append(f"{rng.choice(PLAIN)} O")
            else:
                lines.append(f"{rng.choice(PLAIN)} O")
        lines.append("")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_numbers(path: Path, rows: int, seed: int = 0) -> Path:
    """JSON lines of pairs; the number is how many telling words of `good` the first has."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            words = rng.choice(PLAIN, 6).tolist()
            count = int(rng.integers(0, 4))
            for _ in range(count):
                words.insert(int(rng.integers(len(words))), str(rng.choice(TELLING["good"])))
            other = " ".join(rng.choice(PLAIN, 4).tolist())
            row = {"sentence1": " ".join(words), "sentence2": other, "score": float(count)}
            file.write(json.dumps(row) + "\n")
    return path


def write_questions(path: Path, rows: int, seed: int = 0, impossible: float = 0.0) -> Path:
    """SQuAD JSON: "which LOC" is answered by the one name of that type in the passage."""
    rng = np.random.default_rng(seed)
    paragraphs = []
    for number in range(rows):
        kind = str(rng.choice(LABELS))
        words = rng.choice(PLAIN, int(rng.integers(6, 20))).tolist()
        answer = str(rng.choice(TELLING[kind]))
        there = rng.random() >= impossible
        if there:
            words.insert(int(rng.integers(len(words))), answer)
        context = " ".join(words)
        answers = [{"text": answer, "answer_start": context.index(answer)}] if there else []
        question: dict[str, object] = {
            "id": f"q{number}",
            "question": TELLING[kind][0],
            "answers": answers,
        }
        if impossible:
            question["is_impossible"] = not there
        paragraphs.append({"context": context, "qas": [question]})
    version = "v2.0" if impossible else "1.1"
    tree = {"version": version, "data": [{"title": "t", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def write_choices(path: Path, rows: int, seed: int = 0) -> Path:
    """JSON lines of questions with two to four choices; the right one has a word of `good`."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            count = int(rng.integers(2, 5))
            right = int(rng.integers(count))
            choices = [
                f"{rng.choice(PLAIN)} {rng.choice(TELLING['good' if n == right else 'bad'])}"
                for n in range(count)
            ]
            context = " ".join(rng.choice(PLAIN, 5).tolist())
            row = {"context": context, "question": "", "choices": choices, "label": right}
            file.write(json.dumps(row) + "\n")
    return path


WRITERS = {
    "classify": (write_texts, "tsv"),
    "regress": (write_numbers, "jsonl"),
    "tag": (write_tags, "conll"),
    "qa": (write_questions, "json"),
    "choose": (write_choices, "jsonl"),
}


def write_files(task: str, folder: Path, train: int = 240, dev: int = 60) -> tuple[Path, Path]:
    """A training file and a dev file of a task."""
    write, ending = WRITERS[task]
    return (
        write(folder / f"train.{ending}", train, 0),
        write(folder / f"dev.{ending}", dev, 1),
    )


def quick(**settings: object) -> FinetuneRecipe:
    """A recipe for tiny models: a high rate, fp32, each step logged; `train__steps=5` sets one."""
    tree: dict[str, object] = {
        "train.learning_rate": 5e-3,
        "train.batch_size": 16,
        "train.precision": "fp32",
        "train.compile": "off",
        "log.every_steps": 1,
    }
    tree |= {name.replace("__", "."): value for name, value in settings.items()}
    return load_recipe(None, tree, FinetuneRecipe)
