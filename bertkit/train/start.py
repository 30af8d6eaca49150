"""The model that a run trains: new, from a checkpoint, or going on from another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.files import CONFIG_NAME
from bertkit.checkpoint.hub import resolve_model
from bertkit.checkpoint.layout import read_weights
from bertkit.checkpoint.names import DECODER_BIAS
from bertkit.errors import UsageError
from bertkit.model.heads import BertForMaskedLM, BertForPreTraining
from bertkit.settings import Recipe
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train.step import Model


def config_of(recipe: Recipe, vocab_size: int, **settings: Any) -> BertConfig:
    """The network that the recipe describes, for a vocabulary of that size."""
    own = msgspec.to_builtins(recipe.model)
    size = own.pop("size")
    own = {k: v for k, v in own.items() if v is not None}
    return BertConfig.of_size(size, vocab_size=vocab_size, **own, **settings)


def build_model(recipe: Recipe, tokenizer: BertTokenizer, init: str | None, say: Any) -> Model:
    """The model of the recipe, new or from `init`, with the recipe's dropout.

    Whatever `init` is stored as, training needs fp32 weights. Heads that it lacks begin untrained;
    that is said.

    Raises:
        UsageError: the words of `init` are not the data's, or it is too short for the data.
    """
    kind = _kind(recipe)
    if init is None:
        model = kind(config_of(recipe, len(tokenizer), pad_token_id=tokenizer.pad_token_id))
    else:
        model = kind.from_pretrained(init, dtype=torch.float32)
        if model.load_report.is_clean:  # else it has been logged
            say(str(model.load_report))
        _check_words(init, model.config, tokenizer)
        longest = max(recipe.data.max_length, recipe.data.final_max_length)
        if longest > model.config.max_position_embeddings:
            raise UsageError(
                f"{init} reads {model.config.max_position_embeddings} tokens at most; let it read "
                f"more with `bertkit grow {init} --positions {longest} --out DIR`"
            )
        if recipe.data.objective != "mlm" and model.config.type_vocab_size < 2:
            raise UsageError(f"{init} knows one segment, pairs have two; say --objective mlm")
    if recipe.data.objective == "mlm+sop":
        model.config.pair_objective = "sop"  # type: ignore[attr-defined]
    else:
        vars(model.config).pop("pair_objective", None)
    return _for_training(model, recipe)


def rebuild_model(recipe: Recipe, checkpoint: Path) -> Model:
    """A model of the shape of a checkpoint of this run, for `restore_state` to fill."""
    model = _kind(recipe)(BertConfig.from_json_file(checkpoint / CONFIG_NAME))
    if DECODER_BIAS in read_weights(checkpoint).stored:
        model.untie_bias()
    return _for_training(model, recipe)


def _kind(recipe: Recipe) -> type[BertForMaskedLM] | type[BertForPreTraining]:
    return BertForMaskedLM if recipe.data.objective == "mlm" else BertForPreTraining


def _for_training(model: Model, recipe: Recipe) -> Model:
    set_dropout(model, recipe.train.dropout)
    model.bert.encoder.gradient_checkpointing = recipe.train.gradient_checkpointing
    return model


def _check_words(init: str, config: BertConfig, tokenizer: BertTokenizer) -> None:
    """Refuse data whose ids mean other words than the model's.

    Rows that pad the embeddings may stand beyond the words; nothing else may differ.

    Raises:
        UsageError: the vocabularies, or what is done to text before, differ.
    """
    again = f"prepare it with --tokenizer {init}"
    folder = resolve_model(init)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        if config.vocab_size != len(tokenizer):
            raise UsageError(
                f"{init} has {config.vocab_size} words, the data was prepared with "
                f"{len(tokenizer)}, and {init} holds no tokenizer to say which is which"
            )
        return
    own = BertTokenizer.from_pretrained(folder)
    ours, theirs = own.get_vocab(), tokenizer.get_vocab()
    if ours != theirs:
        if len(ours) != len(theirs):
            raise UsageError(
                f"{init} has {len(ours)} words, the data was prepared with {len(theirs)}; {again}"
            )
        token = min(t for t in ours if theirs.get(t) != ours[t])
        raise UsageError(
            f"{init} calls {token!r} {ours[token]}, the data {theirs.get(token)}; {again}"
        )
    for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        if getattr(own, name) != getattr(tokenizer, name):
            raise UsageError(
                f"{init} has {name}={getattr(own, name)}, the data was prepared with "
                f"{getattr(tokenizer, name)}; {again}"
            )
    if config.vocab_size < len(tokenizer):
        raise UsageError(
            f"{init} has embeddings for {config.vocab_size} words and a tokenizer of "
            f"{len(tokenizer)}; see resize_token_embeddings"
        )


def set_dropout(model: torch.nn.Module, probability: float) -> None:
    """Set all dropout of this training; config.json keeps what fine-tuning should use."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
