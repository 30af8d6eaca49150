"""The names that tensors go by in files of every age, and the one table between them.

Today's names are those of transformers' BERT, which are also the names of our modules. Google's own
checkpoints spell them with slashes, keep matrices the other way round, and hold the optimiser too.
"""

from __future__ import annotations

import re
from functools import cache

# Endings of older PyTorch files, and what they are today.
_RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# What a training wrapper left in front.
_WRAPPERS = ("module.", "_orig_mod.")
# Buffers that transformers saved until 2023: 0, 1, 2, ... and zeros.
_DROPPED = ("embeddings.position_ids", "embeddings.token_type_ids")

WORDS = "bert.embeddings.word_embeddings.weight"
BIAS = "cls.predictions.bias"
# What the output matrix computes with. Tied, it is the word embeddings, and files leave it out or
# hold it twice; untied, transformers 5 wants both, and reads the bias from here.
DECODER, DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"

# Google's names and ours, read in both directions. {n} is the number of a layer.
_LAYER = ("bert/encoder/layer_{n}/", "bert.encoder.layer.{n}.")
_GOOGLE = (
    ("bert/embeddings/{words}_embeddings", "bert.embeddings.{words}_embeddings.weight"),
    ("bert/embeddings/LayerNorm/{norm}", "bert.embeddings.LayerNorm.{norm}"),
    *(
        (_LAYER[0] + google, _LAYER[1] + ours)
        for google, ours in (
            ("attention/self/{qkv}/{dense}", "attention.self.{qkv}.{dense}"),
            ("attention/output/dense/{dense}", "attention.output.dense.{dense}"),
            ("attention/output/LayerNorm/{norm}", "attention.output.LayerNorm.{norm}"),
            ("intermediate/dense/{dense}", "intermediate.dense.{dense}"),
            ("output/dense/{dense}", "output.dense.{dense}"),
            ("output/LayerNorm/{norm}", "output.LayerNorm.{norm}"),
        )
    ),
    ("bert/pooler/dense/{dense}", "bert.pooler.dense.{dense}"),
    ("cls/predictions/transform/dense/{dense}", "cls.predictions.transform.dense.{dense}"),
    ("cls/predictions/transform/LayerNorm/{norm}", "cls.predictions.transform.LayerNorm.{norm}"),
    ("cls/predictions/output_bias", BIAS),
    ("cls/seq_relationship/output_{output}", "cls.seq_relationship.{output}"),
    ("cls/squad/output_{output}", "qa_outputs.{output}"),
    ("output_{output}", "classifier.{output}"),
)
# What may stand in braces: Google's word and today's.
_WORDS_AT = {
    "words": {"word": "word", "position": "position", "token_type": "token_type"},
    "qkv": {"query": "query", "key": "key", "value": "value"},
    "dense": {"kernel": "weight", "bias": "bias"},
    "norm": {"gamma": "weight", "beta": "bias"},
    "output": {"weights": "weight", "bias": "bias"},
}
_OPTIMISER = re.compile(
    r"(.*/)?(adam_[mv]|Adam(_1)?|lamb_[mv]|ExponentialMovingAverage|Momentum)"
    r"|(.*/)?(global_step|beta[12]_power|good_steps|loss_scale|current_loss_scale|_CHECKPOINT.*)"
)


def present_name(name: str) -> str | None:
    """What the tensor of a PyTorch file is called today; None for one that is no weight."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    for old, new in _RENAMED.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return None if name.endswith(_DROPPED) else name


def is_optimiser(google: str) -> bool:
    """Whether a tensor of Google's checkpoint belongs to the training, not to the model."""
    return _OPTIMISER.fullmatch(google) is not None


def from_google(google: str) -> tuple[str, bool] | None:
    """Today's name of a tensor in Google's checkpoint, and whether it must be transposed.

    Returns:
        None where the table has no such tensor.
    """
    found = _translate(google, 0)
    return None if found is None else (found, google.endswith("/kernel"))


def to_google(name: str) -> tuple[str, bool] | None:
    """The other way: Google's name, and whether the matrix is transposed; None: it has none."""
    found = _translate(name, 1)
    return None if found is None else (found, found.endswith("/kernel"))


def _translate(name: str, side: int) -> str | None:
    for pattern, template in _patterns(side):
        if match := pattern.fullmatch(name):
            filled = match.groupdict()
            for key, words in _WORDS_AT.items():
                if key in filled:
                    other = dict(_on_side(words, side))
                    filled[key] = other[filled[key]]
            return template.format(**filled)
    return None


@cache
def _patterns(side: int) -> list[tuple[re.Pattern[str], str]]:
    """What names of one side look like, each with the template of the other side."""
    found = []
    for pair in _GOOGLE:
        pattern = re.escape(pair[side]).replace(r"\{", "{").replace(r"\}", "}")
        pattern = pattern.replace("{n}", r"(?P<n>0|[1-9][0-9]{0,3})")
        for key, words in _WORDS_AT.items():
            choices = "|".join(word for word, _ in _on_side(words, side))
            pattern = pattern.replace(f"{{{key}}}", f"(?P<{key}>{choices})")
        found.append((re.compile(pattern), pair[1 - side]))
    return found


def _on_side(words: dict[str, str], side: int) -> list[tuple[str, str]]:
    return [(ours, google) if side else (google, ours) for google, ours in words.items()]
