"""`load(path)`: one object that answers for whatever a model can do."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.files import config_file
from bertkit.checkpoint.hub import resolve_model
from bertkit.checkpoint.layout import read_weights
from bertkit.checkpoint.report import HEADS, LoadReport, heads_of
from bertkit.errors import CheckpointError, MissingHeadError
from bertkit.model.bert import BertModel
from bertkit.model.heads import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
)
from bertkit.model.pretrained import check_no_layer_is_left
from bertkit.runtime import pick_device
from bertkit.tasks.answers import TaskAnswers, given_texts
from bertkit.tasks.build import saved_task
from bertkit.tasks.mlm import FillMask
from bertkit.tasks.nsp import NextSentencePrediction
from bertkit.tasks.score import Method, Scorer
from bertkit.text.tokenizer import BertTokenizer

# By the heads that the weights hold: (masked words, next sentence).
_ASKED = ("masked words", "next sentence")
_CLASSES = {
    (True, True): BertForPreTraining,
    (True, False): BertForMaskedLM,
    (False, True): BertForNextSentencePrediction,
}


class Pipeline:
    """A model with its tokenizer, and the questions it can be asked.

    Attributes:
        model: in eval mode, on the chosen device.
        tokenizer: the model's own.
    """

    def __init__(self, model: Any, tokenizer: BertTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    @property
    def load_report(self) -> LoadReport | None:
        """What became of the checkpoint's tensors when the model was opened."""
        report: LoadReport | None = self.model.load_report
        return report

    @cached_property
    def _filler(self) -> FillMask:
        return FillMask(self.model, self.tokenizer)

    @cached_property
    def _follower(self) -> NextSentencePrediction:
        return NextSentencePrediction(self.model, self.tokenizer)

    @property
    def fill(self) -> Any:
        """`fill(texts, top_k=5, targets=None)`: see FillMask.fill."""
        return self._filler.fill

    @property
    def next(self) -> Any:
        """`next(a, b)`: see NextSentencePrediction.next."""
        return self._follower.next

    def score(self, texts: str | Sequence[str], method: Method = "within-word") -> Any:
        """How probable the model finds texts: pseudo-log-likelihoods in nats.

        Args:
            texts: a text, or a list.
            method: what is hidden with a token, as in tasks/score.py.

        Returns:
            `{"text", "score", "tokens", "words"}` with a `{"word", "start", "end", "score"}` for
            each word; for a list a list of these.

        Raises:
            UsageError: there is no such method.
            DataError: one of them is no text.
            MissingHeadError: the model has no masked-word head, or it was never trained.
        """
        scorer = Scorer(self.model, self.tokenizer, method)
        given = given_texts(texts, "texts", blank=True)
        found = [scored.to_dict() for scored in scorer.score(given)]
        return found[0] if isinstance(texts, str) else found

    @property
    def classify(self) -> Any:
        """`classify(texts, top_k=None)`: see TaskAnswers.classify."""
        return TaskAnswers(self.model, self.tokenizer, "classify", "regress").classify

    @property
    def tag(self) -> Any:
        """`tag(texts)`: see TaskAnswers.tag."""
        return TaskAnswers(self.model, self.tokenizer, "tag").tag

    @property
    def answer(self) -> Any:
        """`answer(question, context)`: see TaskAnswers.answer."""
        return TaskAnswers(self.model, self.tokenizer, "qa").answer

    @property
    def choose(self) -> Any:
        """`choose(context, choices, question="")`: see TaskAnswers.choose."""
        return TaskAnswers(self.model, self.tokenizer, "choose").choose


def load(
    name_or_path: str | os.PathLike[str],
    device: str | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Pipeline:
    """Open a model folder, a run folder or a hub id, to ask it questions.

    Args:
        name_or_path: where the model is.
        device: "cpu", "cuda", ...; None: the best there is.
        revision: branch, tag or commit of a hub model.
        token: for private hub models.
        offline: take a hub model only from the local cache.

    Raises:
        CheckpointError: there is no such model, it is broken, its tokenizer has more tokens than it
            has embeddings, or lower-cases although its vocabulary is cased.
        ConfigError: config.json is broken, not a BERT's, or does not say what a head is for.
        MissingHeadError: the weights are an encoder without any head that answers.
    """
    folder = resolve_model(name_or_path, revision=revision, token=token, offline=offline)
    config = BertConfig.from_json_file(config_file(folder))
    weights = read_weights(folder)
    heads = heads_of(weights.stored)
    tokenizer = BertTokenizer.from_pretrained(folder)
    model_class = class_for(heads)
    if model_class is BertModel and not {"classifier", "question answering"}.isdisjoint(heads):
        model_class = saved_task(config, tokenizer).model_class
    if model_class is BertModel:
        raise MissingHeadError(
            f"{name_or_path}: has neither a masked-word head ({HEADS['masked words']}) nor a "
            f"next-sentence head ({HEADS['next sentence']}) nor one of a task "
            f"({HEADS['classifier']}, {HEADS['question answering']}); there is nothing to ask it"
        )
    note = compare_sizes(len(tokenizer), config.vocab_size, os.fspath(name_or_path))
    model = model_class.from_weights(weights, config)
    check_no_layer_is_left(model)
    model.name_or_path = os.fspath(name_or_path)
    if note and model.load_report:
        model.load_report = replace(model.load_report, notes=(*model.load_report.notes, note))
    return Pipeline(model.to(pick_device(device)), tokenizer)


def compare_sizes(tokens: int, rows: int, name: str) -> str:
    """A clause for the report where a model has more embeddings than its tokenizer has tokens.

    Args:
        tokens: how many the tokenizer has, added ones too.
        rows: how many embeddings the model has.
        name: of the model, for an error.

    Raises:
        CheckpointError: the tokenizer is the larger one; its last tokens have no embedding.
    """
    if tokens > rows:
        raise CheckpointError(
            f"{name}: the tokenizer has {tokens} tokens but the model only {rows} embeddings; "
            "they do not belong together"
        )
    return f"{rows - tokens} of {rows} embeddings have no token" if tokens < rows else ""


def class_for(heads: Collection[str]) -> Any:
    """The class that holds the pretraining heads named (keys of HEADS); without any, BertModel."""
    return _CLASSES.get((_ASKED[0] in heads, _ASKED[1] in heads), BertModel)
