"""Small models for looking inside: random in every parameter, words of two languages."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import transformers

from bertkit.explain.opening import Opened
from tests.tasks import tiny

TEXT, CHINESE = "The unbelievable cat sat on the mat.", "我爱北京天安门。"
MASKED = "The cat [MASK] on the mat."
TEXTS = [
    TEXT,
    CHINESE,
    "a dog ran in the park",
    "mary likes paris, john lives in london",
    "who is the cat?",
    "张三住在上海",
] * 4


@lru_cache
def opened(kind: str = "BertForMaskedLM", double: bool = True, **settings: Any) -> Opened:
    """One model for all tests: none of them may change it."""
    model = tiny.ours(kind, **settings)
    return Opened(model.double() if double else model, tiny.tokenizer(), "tiny")


@lru_cache
def theirs(kind: str = "BertForMaskedLM") -> Any:
    """The same weights in transformers, in fp64."""
    make = getattr(transformers, kind)
    return make.from_pretrained(tiny.folder(kind), attn_implementation="eager").double().eval()


def labelled(kind: str) -> Opened:
    """A fine-tuned model with the labels x, y, z."""
    return Opened(tiny.ours(kind, **tiny.labels("x", "y", "z")), tiny.tokenizer(), kind)
