"""A task from training rows, or from a fine-tuned model's config.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from bertkit.checkpoint.config import BertConfig
from bertkit.errors import ConfigError, DataError, UsageError
from bertkit.model.crf_head import has_crf
from bertkit.model.task_heads import PROBLEM_TYPES
from bertkit.tasks.choose import Choose
from bertkit.tasks.classify import Classify, MultiLabel, Regress, learn_labels
from bertkit.tasks.options import TaskOptions
from bertkit.tasks.qa import Answer, learn_answers
from bertkit.tasks.schemes import PLAIN, detect_scheme
from bertkit.tasks.tag import Tag, learn_tags
from bertkit.tasks.task import Task

if TYPE_CHECKING:
    from bertkit.text.tokenizer import BertTokenizer

__all__ = ["TASKS", "TaskOptions", "new_task", "saved_task"]

TASKS = ("classify", "regress", "tag", "qa", "choose")
_BY_ARCHITECTURE = {
    "BertForSequenceClassification": "classify",
    "BertForTokenClassification": "tag",
    "BertCrfForTokenClassification": "tag",
    "BertForQuestionAnswering": "qa",
    "BertForMultipleChoice": "choose",
}
_QA_LENGTH = 384  # of BERT's run_squad


def new_task(
    name: str,
    tokenizer: BertTokenizer,
    rows: Iterable[Any],
    options: TaskOptions | None = None,
    positions: int = 512,
) -> Task[Any]:
    """A task whose labels are those of the training rows.

    Args:
        name: one of TASKS.
        tokenizer: of the model that will be trained.
        rows: the training rows; they are passed over once, if at all.
        options: what the task keeps; what the rows tell is filled in.
        positions: `max_position_embeddings` of the model.

    Raises:
        DataError: the rows have no labels, or labels of another kind.
        UsageError: there is no such task, or the model does not read `max_length` tokens.
    """
    options = options or TaskOptions()
    if options.max_length > positions:
        raise UsageError(f"max_length is {options.max_length}; the model reads {positions} tokens")
    options = _with_length(name, options, tokenizer, positions)
    if name == "classify":
        pairs: set[bool] = set()
        labels, several = learn_labels(_watch_pairs(rows, pairs))
        multi = options.multi_label or several
        options = replace(options, multi_label=multi, pairs=_all_alike(pairs))
        return (MultiLabel if multi else Classify)(tokenizer, labels, options)
    if name == "tag":
        tags, scheme = learn_tags(rows, options.scheme)
        return Tag(tokenizer, tags, replace(options, scheme=scheme))
    if name == "qa":
        return Answer(tokenizer, learn_answers(rows, options))
    if name == "regress":
        pairs = {row.pair is not None for row in rows}
        return Regress(tokenizer, replace(options, pairs=_all_alike(pairs)))
    if name == "choose":
        return Choose(tokenizer, options)
    raise UsageError(f"there is no task {name!r}; there are {', '.join(TASKS)}")


def _watch_pairs(rows: Iterable[Any], pairs: set[bool]) -> Iterator[Any]:
    """The rows; whether they are pairs goes to `pairs`."""
    for row in rows:
        pairs.add(row.pair is not None)
        yield row


def _all_alike(pairs: set[bool]) -> bool | None:
    return pairs.pop() if len(pairs) == 1 else None


def saved_task(config: BertConfig, tokenizer: BertTokenizer) -> Task[Any]:
    """The task that a fine-tuned model is for, ours or one that transformers trained.

    Args:
        config: the model's own.
        tokenizer: the model's own.

    Raises:
        ConfigError: the configuration does not say what the model is for, or makes no sense.
    """
    name, options = _kept(config)
    options = _with_length(name, options, tokenizer, config.max_position_embeddings)
    labels = list(config.id2label.values())
    if name in ("classify", "regress"):
        return _saved_classifier(config, labels, tokenizer, options)
    if name == "tag":
        scheme = options.scheme or _scheme_of(labels)
        return Tag(tokenizer, labels, replace(options, crf=_crf_is_there(config), scheme=scheme))
    if name == "qa":
        return Answer(tokenizer, options)
    if name == "choose":
        return Choose(tokenizer, options)
    raise ConfigError(f"bertkit_task is {name!r}; it may be {', '.join(TASKS)}")


def _saved_classifier(
    config: BertConfig, labels: list[str], tokenizer: BertTokenizer, options: TaskOptions
) -> Task[Any]:
    kind = config.problem_type
    if kind not in (None, *PROBLEM_TYPES):
        raise ConfigError(f"problem_type is {kind!r}; it may be {', '.join(PROBLEM_TYPES)}")
    _, multi, regression = PROBLEM_TYPES
    if kind == regression or (kind is None and len(labels) == 1):
        if len(labels) != 1:
            raise ConfigError(f"the model gives {len(labels)} numbers a text; one is wanted")
        return Regress(tokenizer, options)
    options = replace(options, multi_label=kind == multi)
    return (MultiLabel if kind == multi else Classify)(tokenizer, labels, options)


def _crf_is_there(config: BertConfig) -> bool:
    """A folder that transformers wrote anew keeps our settings, but not the CRF."""
    written = [name for name in config.architectures or () if _BY_ARCHITECTURE.get(name) == "tag"]
    return has_crf(config) if written else bool(getattr(config, "crf", False))


def _scheme_of(labels: list[str]) -> str:
    """How the tags of a model are to be read; tags of no one scheme are plain labels."""
    try:
        return detect_scheme(labels)
    except DataError:
        return PLAIN


def _kept(config: BertConfig) -> tuple[str, TaskOptions]:
    """The task's name and its options, as a configuration has them."""
    kept = getattr(config, "bertkit_task", None)
    if isinstance(kept, dict) and "name" in kept:
        given = {key: value for key, value in kept.items() if key != "name"}
        try:
            return str(kept["name"]), msgspec.convert(given, TaskOptions)
        except (msgspec.ValidationError, UsageError) as error:
            raise ConfigError(f"bertkit_task: {error}") from error
    for architecture in config.architectures or ():
        if architecture in _BY_ARCHITECTURE:
            return _BY_ARCHITECTURE[architecture], TaskOptions()
    raise ConfigError(
        f"architectures is {config.architectures}; it does not say what the model was fine-tuned "
        f"for: one of {', '.join(_BY_ARCHITECTURE)}"
    )


def _with_length(
    name: str, options: TaskOptions, tokenizer: BertTokenizer, positions: int
) -> TaskOptions:
    """With a `max_length` that the model reads."""
    most = min(tokenizer.model_max_length, positions)
    usual = min(_QA_LENGTH, most) if name == "qa" else most
    return replace(options, max_length=min(options.max_length or usual, positions))
