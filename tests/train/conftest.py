"""A small prepared DATA folder of generated text, and recipes that run on it within seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bertkit import runtime
from bertkit.batch import PretrainBatch
from bertkit.data.shardwriter import ShardWriter
from bertkit.runtime import Runtime
from bertkit.settings import Recipe, load_recipe
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train.setup import Source, build_loader, open_data

MACHINE = Runtime(torch.device("cpu"), torch.float32, 0, 1, 1)

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOPICS, WORDS = 6, 10


def topic_words(topic: int) -> list[str]:
    return [f"{'abcdef'[topic]}{'ghijklmnop'[word]}" for word in range(WORDS)]


def write_data(folder: Path, documents: int, seed: int = 0) -> Path:
    """Each document speaks of one topic, whose ten words are its own: context tells the word."""
    tokenizer_folder = folder / "tokenizer"
    tokenizer_folder.mkdir(parents=True)
    words = [word for topic in range(TOPICS) for word in topic_words(topic)]
    vocab = folder / "words.txt"
    vocab.write_text("\n".join([*SPECIALS, *words]) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(vocab_file=str(vocab))
    tokenizer.save_pretrained(tokenizer_folder)
    rng = np.random.default_rng(seed)
    for split, count in (("train", documents), ("dev", max(8, documents // 10))):
        with ShardWriter(folder / split, len(tokenizer)) as writer:
            for _ in range(count):
                first = len(SPECIALS) + WORDS * int(rng.integers(TOPICS))
                sizes = rng.integers(4, 9, int(rng.integers(4, 9)))
                writer.add(
                    [(first + rng.integers(0, WORDS, n)).astype(np.uint16) for n in sizes.tolist()]
                )
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    return folder


def small_recipe(**settings: object) -> Recipe:
    """A two-layer model of 32 and steps of 256 tokens; `train__steps=5` sets train.steps."""
    tree: dict[str, object] = {
        "model.size": "tiny",
        "model.hidden_size": 32,
        "model.num_attention_heads": 2,
        "model.intermediate_size": 64,
        "model.max_position_embeddings": 64,
        "data.max_length": 32,
        "train.batch_tokens": 256,
        "train.compile": "off",
        "train.precision": "fp32",
        "log.every_steps": 1,
        "log.evals": 2,
        "log.eval_tokens": 1024,
    }
    tree |= {name.replace("__", "."): value for name, value in settings.items()}
    return load_recipe(None, tree, Recipe)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data", 240)


@pytest.fixture(scope="package", autouse=True)
def no_peak() -> Iterator[None]:
    """Measuring the machine's matrix peak takes seconds and tells these tests nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "matrix_peak", lambda device, dtype: 1e11)
        yield


@pytest.fixture
def source(data: Path) -> Source:
    return open_data([data])


@pytest.fixture
def dev(source: Source) -> list[PretrainBatch]:
    loader = build_loader(source.dev, small_recipe(), source.tokenizer, MACHINE, phase=0)
    return loader.dev_batches(1024)
