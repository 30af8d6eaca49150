"""Small fine-tuned models that transformers wrote, random but with every bias trained."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers

import bertkit
from bertkit.text.tokenizer import BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = (
    "the a cat dog sat ran on in mat park london paris john mary lives likes who where is".split()
)
HAN = list("我爱北京天安门上海张三在住中国大学的是")
PIECES = [*"abcdefghijklmnopqrstuvwxyz0123456789", *".,!?'\"-:()", "。", "，", "？", "！"]
VOCAB = [
    *SPECIAL,
    *WORDS,
    *HAN,
    *PIECES,
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"),
]
_kept = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


@lru_cache
def tokenizer() -> BertTokenizer:
    return BertTokenizer(VOCAB)


@lru_cache(maxsize=64)
def _written(kind: str, settings: tuple[tuple[str, Any], ...]) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(VOCAB), "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 512}
    named = {name: dict(value) if isinstance(value, tuple) else value for name, value in settings}
    config = transformers.BertConfig(**sizes | named)
    model = getattr(transformers, kind)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    folder = Path(tempfile.mkdtemp(dir=_kept.name))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def folder(kind: str, **settings: Any) -> Path:
    """A model folder that transformers wrote; tables such as id2label are given as dicts."""
    frozen = {
        name: tuple(value.items()) if isinstance(value, dict) else value
        for name, value in settings.items()
    }
    return _written(kind, tuple(sorted(frozen.items())))


def ours(kind: str, **settings: Any) -> Any:
    """Our model from such a folder."""
    return getattr(bertkit, kind).from_pretrained(folder(kind, **settings))


def labels(*names: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


def pipeline(task: str, path: Path, **settings: Any) -> Any:
    """What transformers makes of such a folder."""
    make: Any = transformers.pipeline
    return make(task, str(path), device="cpu", **settings)
