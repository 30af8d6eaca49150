"""What a model's own head makes of any layer's states: words, labels of texts, labels of words."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from bertkit.errors import MissingHeadError, UsageError
from bertkit.explain.asked import Question, has_words, masked_questions, one_token
from bertkit.explain.opening import Opened
from bertkit.explain.words import Segmenter
from bertkit.model.crf_head import BertCrfForTokenClassification
from bertkit.model.heads import OneHead
from bertkit.model.task_heads import BertForSequenceClassification, BertForTokenClassification

CRF_NOTE = (
    "The tagger has a CRF: what is explained are its emissions, what the encoder says of each word "
    "before the transitions between tags are added."
)
_log = logging.getLogger("bertkit")


class Readout(NamedTuple):
    """A head that can read single positions.

    Attributes:
        what: "words", "label of the text" or "label of the word".
        logits: [M, D] hidden states -> [M, C].
        names: C names; of words only those that the tokenizer knows.
    """

    what: str
    logits: Callable[[Tensor], Tensor]
    names: list[str]


def note_of(opened: Opened) -> str:
    """What a reader of the figures has to know of this model; "" for most."""
    return CRF_NOTE if isinstance(opened.model, BertCrfForTokenClassification) else ""


def readout_of(opened: Opened) -> Readout:
    """The head that the model has; of a CRF what stands before it, with a warning.

    Raises:
        MissingHeadError: it has none that chooses among names at one position.
    """
    if note := note_of(opened):
        _log.warning("%s: %s", opened.name, note)
    return _readout(opened)


def _readout(opened: Opened) -> Readout:
    model = opened.model
    if has_words(model):
        names = opened.tokenizer.convert_ids_to_tokens(list(range(len(opened.tokenizer))))
        return Readout("words", model.cls.predictions, list(names))
    chooses = isinstance(model, BertForSequenceClassification | BertForTokenClassification)
    several = chooses and model.config.problem_type in (None, "single_label_classification")
    if not several or model.config.num_labels < 2:
        raise MissingHeadError(
            f"{opened.name}: has no head that chooses one of several words or labels at one "
            "position, which this verb reads; masked-word, classify and tag models have"
        )
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if isinstance(model, BertForTokenClassification):
        return Readout("label of the word", model.head, names)
    return Readout("label of the text", _pooled(model), names)


def number_of(opened: Opened, readout: Readout, name: str) -> int:
    """The number of a word or a label; of a tagger a type of entity stands for its first tag.

    Raises:
        UsageError: the model has no such label, or the word is not one token.
    """
    if readout.what == "words":
        return one_token(opened, name)
    for label in (name, f"B-{name}", f"S-{name}"):
        if label in readout.names:
            return readout.names.index(label)
    labels = ", ".join(readout.names)
    raise UsageError(f"{opened.name}: {name!r} is no label of the model: {labels}")


def _pooled(model: OneHead) -> Callable[[Tensor], Tensor]:
    pooler: Any = model.bert.pooler
    return lambda hidden: model.head(pooler(hidden))


def questions_for(
    opened: Opened,
    text: str,
    pair: str | None = None,
    *,
    word: str | int | None = None,
    target: str | None = None,
    segmenter: Segmenter | None = None,
) -> list[Question]:
    """The positions that the model's head reads, with the target where one is known.

    Of a model with a masked-word head these are masks (see `masked_questions`); of one that labels
    words the first token of each word, or of `word`; of all others, [CLS].

    Raises:
        UsageError: the target is no label of the model.
        DataError: as `masked_questions`.
    """
    if has_words(opened.model):
        return masked_questions(opened, text, pair, word=word, target=target, segmenter=segmenter)
    sentence = opened.read(text, pair, segmenter)
    wanted = None if target is None else number_of(opened, _readout(opened), target)
    if word is not None:
        return [Question(sentence, sentence.find(word).first, wanted)]
    if isinstance(opened.model, BertForTokenClassification):
        return [Question(sentence, found.first, wanted) for found in sentence.words]
    return [Question(sentence, 0, wanted)]
