"""Scripts written for transformers, run as they are and with their import changed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

ENGLISH = """the a an . , ? ! ' cat cats dog mat sat on in is was it and bark ##s ##ed ##ing ##ly
at night good bad very not film great dull he she opened door room empty where who what did sleep
london paris ann bob lives works for acme ltd moved to yesterday table under walk play
""".split()
CHINESE = (
    "今天气很好坏不的一是在我们他她它猫狗坐垫子上下看书学习模型语言北京海大住有人电影喜欢。，？！"
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TOLERANCE = 1e-5
_kept = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


@lru_cache(maxsize=32)
def folder(kind: str = "BertForPreTraining", language: str = "en", **settings: Any) -> str:
    """A model with its tokenizer, small and random, as transformers saves them."""
    words = [*CHINESE] if language == "zh" else ENGLISH
    pieces = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    path = Path(tempfile.mkdtemp(dir=_kept.name))
    vocab = list(dict.fromkeys([*SPECIAL, *words, *pieces]))
    (path / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    config = transformers.BertConfig(vocab_size=len(vocab), **SHAPE | settings)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config)
    with torch.no_grad():
        for parameter in model.parameters():  # far enough from 0 that the words differ
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path)
    tokenizer = transformers.BertTokenizer.from_pretrained(path, model_max_length=128)
    tokenizer.save_pretrained(path)
    return str(path)


def run(script: str, **given: Any) -> list[Any]:
    """All that a script prints; `given` are names it knows beforehand."""
    printed: list[Any] = []
    torch.manual_seed(0)
    names = {"__name__": "__main__", "print": lambda *x: printed.append(x), **given}
    exec(compile(script, "script", "exec"), names)
    return printed


def assert_moves(script: str, **given: Any) -> list[Any]:
    """Run the script for both libraries; what it prints must be the same, numbers within 1e-5.

    A name `out` in the script is an empty folder.

    Returns:
        What it printed here.
    """
    assert "from transformers import" in script
    found = []
    for library in ("transformers", "bertkit"):
        moved = script.replace("from transformers import", f"from {library} import")
        with tempfile.TemporaryDirectory() as out:
            found.append(run(moved, out=out, **given))
    theirs, ours = found
    assert theirs
    assert len(ours) == len(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert_same(a, b, f"print {i + 1}")
    return ours


def assert_same(a: Any, b: Any, where: str) -> None:
    """Equal in kind and value; floats within 1e-5."""
    if isinstance(b, Tensor):
        assert isinstance(a, Tensor), where
        assert a.dtype == b.dtype, where
        torch.testing.assert_close(
            a, b, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda text: f"{where}: {text}"
        )
    elif isinstance(b, float):
        assert a == pytest.approx(b, abs=TOLERANCE, rel=TOLERANCE), where
    elif isinstance(b, Mapping):
        assert isinstance(a, Mapping), where
        assert list(a) == list(b), where
        for key in b:
            assert_same(a[key], b[key], f"{where}, {key}")
    elif isinstance(b, (list, tuple)):
        assert isinstance(a, type(b)) or isinstance(a, (list, tuple)), where
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}, item {i}")
    else:
        assert a == b, where
