"""Recipes: typed settings, read from TOML, overridden by dotted names, saved as resolved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
import tomli_w
from msgspec import Meta, Struct

from bertkit.errors import ConfigError, UsageError

Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[int, Meta(gt=0)]
Size = Literal["tiny", "mini", "small", "medium", "base", "large"]

# Layers, hidden size, heads: the sizes of Devlin et al. 2018 and Turc et al. 2019 (1908.08962).
SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}


# What types of TOML are called here.
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "array": "a list",
    "object": "settings by name",
}


class ModelSettings(Struct, kw_only=True, forbid_unknown_fields=True):
    """The network: BERT's own architecture at a named size, each dimension open to change."""

    # A model to go on from; its dimensions are then these.
    init: str | None = None
    size: Size = "mini"
    hidden_size: Positive | None = None
    num_hidden_layers: Positive | None = None
    num_attention_heads: Positive | None = None
    intermediate_size: Positive | None = None
    max_position_embeddings: Positive = 512


class DataSettings(Struct, kw_only=True, forbid_unknown_fields=True):
    """What an example is and how it is masked. All of it is a function of (seed, epoch, index)."""

    objective: Literal["mlm+nsp", "mlm", "mlm+sop"] = "mlm+nsp"
    # "long": segments of several sentences that fill max_length, as BERT's own; "sentence": one
    # sentence a segment.
    segments: Literal["long", "sentence"] = "long"
    max_length: Annotated[int, Meta(ge=8)] = 128
    short_probability: Share = 0.1
    # The paper's second phase: the last `final_share` of training at this length; 0 is off.
    final_max_length: Annotated[int, Meta(ge=0)] = 0
    final_share: Share = 0.1
    masking: Literal["token", "word", "span"] = "token"
    mlm_probability: Annotated[float, Meta(gt=0, le=1)] = 0.15
    mask_share: Share = 0.8
    random_share: Share = 0.1
    # How often an epoch passes over each DATA folder, in order; empty: once each.
    weights: list[Annotated[float, Meta(gt=0)]] = []


class TrainSettings(Struct, kw_only=True, forbid_unknown_fields=True):
    """One optimiser run. Exactly one of steps, tokens, epochs, minutes is the budget."""

    steps: Positive | None = None
    tokens: Positive | None = None
    epochs: Annotated[float, Meta(gt=0)] | None = None
    minutes: Annotated[float, Meta(gt=0)] | None = None
    # Tokens of one optimiser step over all ranks; None: by size and device (see train/optim.py).
    batch_tokens: Positive | None = None
    # Tokens that one device takes at a time; None: as many as fit.
    micro_tokens: Positive | None = None
    # Muon for the layers' matrices and AdamW for the rest, or AdamW for all (BERT's own). At equal
    # tokens Muon was ahead with tiny, the one size compared so far (docs/en/log.md).
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: Annotated[float, Meta(gt=0)] | None = None
    # Peak of Muon, whose updates have a fixed size; learning_rate stays AdamW's.
    muon_learning_rate: Annotated[float, Meta(gt=0)] = 0.02
    # A new model's output bias starts at the log frequencies of the training text's words, which
    # BERT itself has to learn first: 6.69 instead of 6.87 after 300,000 tokens of mini.
    unigram_bias: bool = True
    weight_decay: Annotated[float, Meta(ge=0)] = 0.01
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.98
    adam_epsilon: Annotated[float, Meta(gt=0)] = 1e-6
    warmup_ratio: Share = 0.06
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    # Only for "constant": the last share of the run falls linearly to zero.
    cooldown_ratio: Share = 0.2
    max_grad_norm: Annotated[float, Meta(ge=0)] = 1.0
    # Dropout while pretraining; the saved config.json keeps BERT's 0.1 for fine-tuning.
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    # On a CPU, copies of the model that share each step's examples and the threads; every one has
    # gradients of its own. None: two where that is faster (see train/replicas.py).
    replicas: Positive | None = None
    gradient_checkpointing: bool = False
    seed: Annotated[int, Meta(ge=0, le=2**62)] = 0
    # A step whose loss is NaN, or whose loss stands spike_sigma deviations above the recent mean.
    on_bad_step: Literal["skip", "stop"] = "skip"
    spike_sigma: Annotated[float, Meta(ge=0)] = 6.0


class CheckpointSettings(Struct, kw_only=True, forbid_unknown_fields=True):
    """When the whole state is saved; also at every stop and at the end."""

    every_steps: Annotated[int, Meta(ge=0)] = 0
    every_minutes: Annotated[float, Meta(ge=0)] = 10.0
    keep: Positive = 2


class LogSettings(Struct, kw_only=True, forbid_unknown_fields=True):
    """What is written to log.jsonl (always) and to TensorBoard (when asked)."""

    every_steps: Positive = 10
    # Evaluate on the held-out share, on fixed masks, this many times over the run, and at its end;
    # in short runs fewer times, so that none reads more than was trained on since the one before.
    evals: Annotated[int, Meta(ge=0)] = 10
    eval_tokens: Positive = 32768
    # Text of the domain that `model.init` comes from: what training makes of it is watched.
    old: list[str] = []
    tensorboard: bool = False


class Recipe(Struct, kw_only=True, forbid_unknown_fields=True):
    """All settings of a pretraining run; `Recipe()` is what a new user gets."""

    model: ModelSettings = msgspec.field(default_factory=ModelSettings)
    data: DataSettings = msgspec.field(default_factory=DataSettings)
    train: TrainSettings = msgspec.field(default_factory=TrainSettings)
    checkpoint: CheckpointSettings = msgspec.field(default_factory=CheckpointSettings)
    log: LogSettings = msgspec.field(default_factory=LogSettings)


Budget = Annotated[float, Meta(gt=0)]
Rate = Annotated[float, Meta(gt=0)]


class TaskModelSettings(Struct, kw_only=True, forbid_unknown_fields=True):
    """What fine-tuning begins with."""

    # The model: a folder, a run, a hub id. Its dimensions, words and dropout are taken over.
    init: str | None = None


class TaskDataSettings(Struct, kw_only=True, forbid_unknown_fields=True):
    """How rows of a labelled file become what the model reads."""

    # Columns by name or number, and what the file is; none: found out.
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    header: bool | None = None
    format: str | None = None
    joiner: str | None = None
    # Tokens of a text, a pair, a window, at most; 0: what the model takes (qa: BERT's 384).
    max_length: Annotated[int, Meta(ge=0)] = 0
    # Windows of a long text share this many tokens (tag, qa).
    doc_stride: Annotated[int, Meta(ge=0)] = 128
    max_query_length: Positive = 64
    # Tokens of an answer; 0: 50 for Chinese passages (a character is a token), else BERT's 30.
    max_answer_length: Annotated[int, Meta(ge=0)] = 0
    n_best_size: Positive = 20
    # A passage may not answer its question (SQuAD 2.0); also where the training rows say so.
    no_answer: bool = False
    squad_metric: Literal["", "squad", "squad2", "cmrc"] = ""
    # Tags decided together, by a conditional random field over the tokens' scores.
    crf: bool = False
    # The tags that the model learns, whatever the file's scheme; "": BIO, or plain labels.
    scheme: Literal["", "BIO", "BIOES", "BMES", "IO", "plain"] = ""
    # A text may have several labels, or none; also where the training rows have lists of labels.
    multi_label: bool = False
    # Without a dev file, this share of the training rows is held out and measured on.
    dev: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    # k-fold: k runs, each measured on the k-th of the training rows that it has not seen.
    folds: Annotated[int, Meta(ge=0)] = 0
    # Each class's rows are repeated until it has this share of the largest class's; 0: as they are.
    oversample: Share = 0.0
    # Rows of tags are changed anew in each epoch: entities swapped for others of their type, words
    # outside of them hidden behind [MASK].
    augment: Literal["none", "entities", "tokens", "both"] = "none"
    swap_share: Share = 0.3
    hide_share: Share = 0.1
    # Rows that cannot be used are left out and counted, instead of ending the run.
    skip_bad_rows: bool = False


class TaskTrainSettings(Struct, kw_only=True, forbid_unknown_fields=True):
    """One fine-tuning. At most one of epochs, steps, minutes is the budget; none: 3 epochs."""

    epochs: Budget | None = None
    steps: Positive | None = None
    minutes: Budget | None = None
    # Examples of one optimiser step over all ranks: rows; windows for tags and answers.
    batch_size: Positive = 32
    # Tokens that one device takes at a time; None: all of its share of the step.
    micro_tokens: Positive | None = None
    # Peak of the encoder; None: by task, 2e-5 (classify, regress, choose) or 3e-5 (tag, qa), and
    # 20 times that for adapters.
    learning_rate: Rate | None = None
    # Peak of the new layer on top, and of the field over tags; None: learning_rate, 100 times it.
    head_learning_rate: Rate | None = None
    crf_learning_rate: Rate | None = None
    # Each layer learns at this share of the rate of the one above it; 1 is off.
    layer_decay: Annotated[float, Meta(gt=0, le=1)] = 1.0
    # The lowest layers, with the embeddings below them, or the embeddings alone, stay as they are.
    freeze_layers: Annotated[int, Meta(ge=0)] = 0
    freeze_embeddings: bool = False
    weight_decay: Annotated[float, Meta(ge=0)] = 0.01
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: Rate = 1e-6
    warmup_ratio: Share = 0.1
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    cooldown_ratio: Share = 0.0
    max_grad_norm: Annotated[float, Meta(ge=0)] = 1.0
    # None: as config.json says, 0.1 for BERT.
    dropout: Annotated[float, Meta(ge=0, lt=1)] | None = None
    # Rare classes count more: {"name": weight} (others 1), or rows / (classes * rows of the class).
    class_weights: Literal["none", "balanced"] | dict[str, Rate] = "none"
    loss: Literal["ce", "focal", "dice"] = "ce"
    focal_gamma: Annotated[float, Meta(ge=0)] = 2.0
    dice_alpha: Annotated[float, Meta(ge=0)] = 0.01
    # A second pass over each batch, its word embeddings moved where the loss grows fastest.
    adversarial: Literal["none", "fgm", "pgd"] = "none"
    adversarial_epsilon: Rate = 1.0
    pgd_alpha: Rate = 0.3
    pgd_steps: Positive = 3
    # Weight of the distance between two passes with different dropout; 0 is off.
    r_drop: Annotated[float, Meta(ge=0)] = 0.0
    # Low-rank updates of these matrices of every layer, all else but the head frozen; 0 is off.
    lora_rank: Annotated[int, Meta(ge=0)] = 0
    lora_alpha: Rate = 16.0
    lora_targets: tuple[
        Literal["query", "key", "value", "attention.output", "intermediate", "output"], ...
    ] = ("query", "value")
    # A fine-tuned model whose answers are learned beside the labels.
    teacher: str | None = None
    teacher_weight: Share = 0.5
    temperature: Rate = 2.0
    # Evaluations over the run; None: at the end of each epoch. One more is at the end of the run.
    evals: Positive | None = None
    # Stop after so many evaluations without a better figure; 0: never.
    patience: Annotated[int, Meta(ge=0)] = 0
    # The figure that the saved model is best by; None: the task's own.
    metric_for_best_model: str | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    # On a CPU, copies of the model that share each step's examples and the threads; every one has
    # gradients of its own. None: two where that is faster (see train/replicas.py).
    replicas: Positive | None = None
    gradient_checkpointing: bool = False
    seed: Annotated[int, Meta(ge=0, le=2**62)] = 0
    # So many runs, with seed, seed + 1, ...; their figures' mean and deviation are told.
    seeds: Positive = 1
    on_bad_step: Literal["skip", "stop"] = "skip"
    # 0: only NaN and infinity are bad. Losses of 32 examples leap too far to judge by their spread.
    spike_sigma: Annotated[float, Meta(ge=0)] = 0.0


class TaskLogSettings(Struct, kw_only=True, forbid_unknown_fields=True):
    """What is written to log.jsonl (always) and to TensorBoard (when asked)."""

    every_steps: Positive = 10
    tensorboard: bool = False


class FinetuneRecipe(Struct, kw_only=True, forbid_unknown_fields=True):
    """All settings of a fine-tuning run; `FinetuneRecipe()` is BERT's own."""

    model: TaskModelSettings = msgspec.field(default_factory=TaskModelSettings)
    data: TaskDataSettings = msgspec.field(default_factory=TaskDataSettings)
    train: TaskTrainSettings = msgspec.field(default_factory=TaskTrainSettings)
    checkpoint: CheckpointSettings = msgspec.field(default_factory=CheckpointSettings)
    log: TaskLogSettings = msgspec.field(default_factory=TaskLogSettings)


S = TypeVar("S", bound=Struct)


def load_recipe(path: Path | None, overrides: dict[str, Any], kind: type[S]) -> S:
    """Read a TOML recipe, lay dotted overrides over it and check every name and value.

    Args:
        path: a TOML file; None starts from the defaults.
        overrides: {"train.steps": "1000", ...}; strings are read as the field's own type.
        kind: the settings class, such as Recipe.

    Raises:
        ConfigError: the file cannot be read, or a name or value in it is wrong.
        UsageError: an override names no setting, or its value does not fit.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = msgspec.toml.decode(path.read_bytes())
            msgspec.convert(tree, kind)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{path}: {_in_words(error, tree, kind)}") from error
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is no TOML: {error}") from error
    for name, value in overrides.items():
        set_dotted(tree, name, value, kind)
    try:
        return msgspec.convert(tree, kind, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(_in_words(error, tree, kind)) from error


def set_dotted(tree: dict[str, Any], name: str, value: Any, kind: type[Struct]) -> None:
    """Set tree["a"]["b"] for the name "a.b", refusing a name that `kind` does not have."""
    section, _, key = name.partition(".")
    keys = _types(kind, section)
    if key not in keys:
        raise UsageError(_no_setting(name, kind))
    if isinstance(value, str) and value.startswith(("[", "{")):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise UsageError(f"{name}={value}: not valid JSON: {error}") from error
    elif value == "none" and "none" not in _choices(keys[key]):
        value = None
    tree.setdefault(section, {})[key] = value


def _types(kind: type[Struct], section: str) -> dict[str, Any]:
    """The types of a section's settings; none where there is no such section."""
    of = next((f.type for f in msgspec.structs.fields(kind) if f.name == section), None)
    return {f.name: f.type for f in msgspec.structs.fields(of)} if of else {}


def _no_setting(name: str, kind: type[Struct]) -> str:
    from difflib import get_close_matches  # of no use in a run that begins

    section, dot, _ = name.partition(".")
    names = [f"{section}.{key}" for key in _types(kind, section)] if dot else []
    if near := get_close_matches(name, names, 3, 0.7):
        return f"no setting is called {name!r}; did you mean {', '.join(near)}?"
    names = names or [f"{f.name}.*" for f in msgspec.structs.fields(kind)]
    return f"no setting is called {name!r}; there are {', '.join(names)}"


def _in_words(error: msgspec.ValidationError, tree: dict[str, Any], kind: type[Struct]) -> str:
    """`train.steps=0: expected a whole number >= 1`, from "Expected `int` >= 1 - at `$...`"."""
    what, _, place = str(error).partition(" - at `$")
    name = place.strip(".`").partition("[")[0]
    section, _, key = name.partition(".")
    if unknown := re.fullmatch("Object contains unknown field `(.*)`", what):
        return _no_setting(".".join(filter(None, (name, unknown[1]))), kind)
    if what.startswith("Invalid enum"):
        words = [word for word in _choices(_types(kind, section)[key]) if isinstance(word, str)]
        what = f"expected one of {', '.join(filter(None, words))}"
    what = re.sub(" \\| null|, got .*|`", "", what).replace("Expected", "expected")
    what = re.sub(r"\w+", lambda found: _WORDS.get(found[0], found[0]), what).replace("|", "or")
    value = tree.get(section, {})
    value = value[key] if key and isinstance(value, dict) else value
    return f"{name}={value}: {what}"


def _choices(kind: Any) -> list[Any]:
    """The words that a setting of this type may be, where it is one of several."""
    return [word for part in (kind, *get_args(kind)) for word in get_args(part)]


def dump_recipe(recipe: Struct) -> str:
    """The recipe as TOML, every value spelled out; settings that are None are left out."""
    tree = msgspec.to_builtins(recipe)
    return tomli_w.dumps(
        {s: {k: v for k, v in section.items() if v is not None} for s, section in tree.items()}
    )
