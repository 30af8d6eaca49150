"""Models for fine-tuning: classification, tagging, extractive answers, multiple choice.

As in Devlin et al. 2018 (arXiv 1810.04805, section 4 and figure 4): one linear layer over the
encoder, with dropout before it (not for answers, as in transformers).
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertkit.batch import Batch
from bertkit.checkpoint.config import BertConfig
from bertkit.errors import ConfigError, DataError
from bertkit.model.dropout import Dropout
from bertkit.model.heads import OneHead, OneLoss
from bertkit.model.losses import mean_cross_entropy
from bertkit.model.outputs import AnswerOutput, Asked, LogitsOutput, Wants
from bertkit.model.padding import IGNORED, Layout, Rows, checked_labels

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


class WithClassifier(OneLoss):
    """Dropout and a linear layer, under the names that checkpoints have."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        probability = config.classifier_dropout
        self.dropout = Dropout(config.hidden_dropout_prob if probability is None else probability)
        self.classifier = nn.Linear(config.hidden_size, self.outputs(config))
        self.post_init()

    @staticmethod
    def outputs(config: BertConfig) -> int:
        """C, how many numbers the classifier gives."""
        return config.num_labels

    @property
    def num_labels(self) -> int:
        """How many labels the model tells apart."""
        return self.config.num_labels

    def head(self, hidden: Tensor) -> Tensor:
        """[R, D] -> [R, C]."""
        return self.classifier(self.dropout(hidden))  # type: ignore[no-any-return]


class BertForSequenceClassification(WithClassifier):
    """BERT that labels whole sequences or pairs: logits [B, C], zero for rows wholly padded.

    `config.problem_type` says what the labels are; where it is None the first call with labels
    settles it, as in transformers:

        regression                    float labels [B] or [B, C]; chosen when C is 1
        single_label_classification   int labels [B], -100 for none; chosen for int labels
        multi_label_classification    0 or 1 for each label, [B, C]; chosen for float labels
    """

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar: cross-entropy, binary cross-entropy or squared error; the mean over rows.

        Args:
            logits: [R, C].
            labels: as the class says, of the same R rows.

        Raises:
            ConfigError: `config.problem_type` is none of the three.
            DataError: the labels have another shape, or are out of range.
        """
        kind = self._problem_type(labels)
        single = kind == "single_label_classification"
        if labels.numel() != (len(logits) if single else logits.numel()):
            wanted = list(logits.shape[:1] if single else logits.shape)
            raise DataError(f"labels is {list(labels.shape)}; {kind} takes {wanted}")
        if single:
            return super().loss(logits, labels)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels = labels.to(logits.dtype).view_as(logits)
        measure = F.mse_loss if kind == "regression" else F.binary_cross_entropy_with_logits
        return measure(logits, labels, reduction="sum") / max(logits.numel(), 1)

    def _problem_type(self, labels: Tensor) -> str:
        if self.config.problem_type is None:
            whole = not labels.is_floating_point() and labels.dtype != torch.bool
            single, multi, regression = PROBLEM_TYPES
            self.config.problem_type = (
                regression if self.num_labels == 1 else single if whole else multi
            )
        if self.config.problem_type not in PROBLEM_TYPES:
            raise ConfigError(
                f"problem_type is {self.config.problem_type!r}; it may be "
                f"{', '.join(PROBLEM_TYPES)}"
            )
        return self.config.problem_type


class BertForTokenClassification(WithClassifier):
    """BERT that labels tokens: labels [B, S] (-100: none), logits [B, S, C], zero at padding."""

    pools = False


class BertForMultipleChoice(WithClassifier):
    """BERT that chooses: every input is [B, choices, S], labels [B] number the right choice.

    Logits are [B, choices]. A choice that is wholly padded has the logit 0 and takes no part in
    the loss, so that questions with fewer choices can stand beside others. `hidden_states` and
    `attentions` are of the B * choices rows, as in transformers.
    """

    @staticmethod
    def outputs(config: BertConfig) -> int:
        """One score for each choice."""
        return 1

    def ragged(self, batch: Batch, positions: Tensor | None = None) -> Tensor:
        """[B]: the score of each sequence, a question with one of its choices."""
        return super().ragged(batch, positions).squeeze(-1)

    def answer(
        self, rows: Rows, labels: Tensor | None, wants: Wants
    ) -> LogitsOutput | tuple[Any, ...]:
        """The padded call, its arguments sorted."""
        given = rows.given
        if given.dim() < 3:
            raise DataError(f"the input is {list(given.shape)}; it must be [B, choices, S]")
        encoded, scores = self.scored(rows.flat(), wants)
        choices = given.shape[:2]
        logits = encoded.layout.pad_rows(scores.squeeze(-1)).view(choices)
        loss = None if labels is None else self._choice_loss(logits, labels, encoded.layout)
        return wants.answer(LogitsOutput(loss, logits, encoded.hidden_states, encoded.attentions))

    def _choice_loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        """Cross-entropy over the choices that are there, of the questions that have any."""
        if labels.numel() != len(logits):
            raise DataError(f"labels is {list(labels.shape)}; there are {len(logits)} questions")
        there = torch.zeros(logits.numel(), dtype=torch.bool, device=logits.device)
        there = there.index_fill(0, layout.rows, True).view_as(logits)
        labels = checked_labels("labels", labels, logits.shape[1])
        labels = labels.masked_fill(~there.any(1), IGNORED)
        chosen = there.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
        if not bool((chosen | (labels == IGNORED)).all()):
            raise DataError("labels names a choice that is wholly padded")
        return mean_cross_entropy(_without(logits, there), labels)


class BertForQuestionAnswering(OneHead):
    """BERT that finds an answer in a text: where it starts and where it ends, [B, S] each.

    Logits at padding are the lowest number of their dtype, so that no argmax lands there and the
    softmax of the loss runs over real tokens only. (transformers' loss counts padding; without
    padding both are equal.)
    """

    pools = False

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        if config.num_labels != 2:
            raise ConfigError(
                f"num_labels is {config.num_labels}; an answer has 2, its start and its end: "
                "give num_labels=2"
            )
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def head(self, hidden: Tensor) -> Tensor:
        """[R, D] -> [R, 2], start and end."""
        return self.qa_outputs(hidden)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **asked: Unpack[Asked],
    ) -> AnswerOutput | tuple[Any, ...]:
        """As BertModel, with the columns [B] where the answers start and end.

        A column beyond the input, or of a padded token, counts nowhere (a window that does not
        hold the answer); one below 0 means 0, as in transformers.

        Returns:
            loss (with both positions; the mean of both cross-entropies), start_logits, end_logits.
        """
        wants = Wants.of(self.config, asked)
        rows = Rows(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded, scores = self.scored(rows, wants)
        layout = encoded.layout
        start, end = layout.pad(scores, torch.finfo(scores.dtype).min).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            real = layout.pad(scores.new_ones(len(scores), dtype=torch.bool), False)
            starts = _columns("start_positions", start_positions, real, layout)
            ends = _columns("end_positions", end_positions, real, layout)
            loss = (mean_cross_entropy(start, starts) + mean_cross_entropy(end, ends)) / 2
        output = AnswerOutput(loss, start.contiguous(), end.contiguous(),
                              encoded.hidden_states, encoded.attentions)  # fmt: skip
        return wants.answer(output)


def _columns(name: str, positions: Tensor, real: Tensor, layout: Layout) -> Tensor:
    """[B] columns of real tokens; -100 for what stands elsewhere."""
    if positions.numel() != len(real):
        raise DataError(f"{name} is {list(positions.shape)}; the input has {len(real)} rows")
    width = real.shape[1]
    columns = positions.flatten().long().clamp(0, width)
    there = F.pad(real, (0, 1)).gather(1, columns.unsqueeze(1)).squeeze(1)
    return columns.masked_fill(~there, IGNORED)


def _without(logits: Tensor, there: Tensor) -> Tensor:
    """The logits, with the lowest number where nothing is: no softmax sees it."""
    return logits.masked_fill(~there, torch.finfo(logits.dtype).min)
