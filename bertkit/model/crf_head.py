"""BertCrfForTokenClassification: a token classifier whose tags are chosen together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bertkit.batch import Batch
from bertkit.checkpoint.config import BertConfig
from bertkit.errors import DataError
from bertkit.model.crf import Crf
from bertkit.model.heads import of_tokens
from bertkit.model.outputs import LogitsOutput, Wants
from bertkit.model.padding import IGNORED, Layout, Rows, checked_labels
from bertkit.model.task_heads import BertForTokenClassification

__all__ = ["BertCrfForTokenClassification", "has_crf"]


def has_crf(config: BertConfig) -> bool:
    """Whether a folder's configuration says that there is a CRF beside the classifier.

    The class that wrote the folder tells; a configuration that was not read says `crf`.
    """
    if config.architectures:
        return BertCrfForTokenClassification.__name__ in config.architectures
    return bool(getattr(config, "crf", False))


class BertCrfForTokenClassification(BertForTokenClassification):
    """BertForTokenClassification with a CRF: labels [B, S] (-100: none), logits [B, S, C].

    The logits are the emissions. A row's words are the tokens that have a label: the first token
    of each word. All others ([CLS], [SEP], later pieces, padding) take no part; the word after
    them follows the word before them. The constraints are those of the label names
    (`constraints.constraints_of`); transformers opens the folder as a token classifier and leaves
    `crf.*` out.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        config.crf = True  # type: ignore[attr-defined]
        self.crf = Crf.of_labels(list(config.id2label.values()))

    def answer(
        self, rows: Rows, labels: Tensor | None, wants: Wants
    ) -> LogitsOutput | tuple[Any, ...]:
        """The padded call, its arguments sorted."""
        encoded, scores = self.scored(rows, wants)
        layout = encoded.layout
        loss = None
        if labels is not None:
            tags = checked_labels("labels", of_tokens("labels", labels, layout), scores.shape[-1])
            loss = self._mean_loss(scores, tags, layout)
        logits = layout.pad(scores)
        return wants.answer(LogitsOutput(loss, logits, encoded.hidden_states, encoded.attentions))

    def _mean_loss(self, scores: Tensor, tags: Tensor, layout: Layout) -> Tensor:
        """The mean, over rows that have a word, of the negative log-likelihood; 0 without any."""
        words, counts = _words(tags != IGNORED, layout)
        found = self.crf.log_likelihood(scores[words], tags[words], counts)
        return -found.sum() / max(int((counts > 0).sum()), 1)

    @torch.no_grad()
    def decode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        words: Tensor | None = None,
    ) -> Tensor:
        """The most probable legal tags of each row.

        Args:
            input_ids: [B, S], and so on, as of the call.
            attention_mask: as BertModel's.
            token_type_ids: as BertModel's.
            position_ids: as BertModel's.
            inputs_embeds: as BertModel's.
            words: [B, S], nonzero at the first token of each word; labels will do, with -100 for
                none. None: every real token is a word, [CLS] and [SEP] too.

        Returns:
            [B, S] int64, -100 where there is no word.

        Raises:
            DataError: as BertModel; or `words` has another shape.
        """
        rows = Rows(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded, scores = self.scored(rows, Wants(maps=False, states=False, names=True))
        layout = encoded.layout
        chosen = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        if words is not None:
            given = of_tokens("words", words.to(scores.device), layout)
            is_labels = bool((given == IGNORED).any())
            chosen = given != IGNORED if is_labels else given != 0
        places, counts = _words(chosen, layout)
        tags = torch.full((len(scores),), IGNORED, device=scores.device)
        tags[places] = self.crf.decode(scores[places], counts)
        return layout.pad(tags, IGNORED)

    @torch.no_grad()
    def decode_ragged(self, batch: Batch, positions: Tensor, counts: Tensor) -> Tensor:
        """The most probable legal tags of sequences laid end to end.

        Args:
            batch: T tokens in B sequences, on the model's device.
            positions: [M] indices into T, ascending: the first token of each word.
            counts: [B] on the CPU, how many of them each sequence has.

        Returns:
            [M] int64.

        Raises:
            DataError: counts and positions disagree.
        """
        if len(counts) != len(batch.lengths):
            raise DataError(f"counts is {list(counts.shape)}; there are {len(batch.lengths)} rows")
        return self.crf.decode(self.ragged(batch, positions), counts)


def _words(chosen: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The indices in T of chosen tokens, and [R] on the CPU how many each row has."""
    sums = torch.nn.functional.pad(chosen.cumsum(0), (1, 0)).cpu()
    ends = layout.lengths.cumsum(0)
    return chosen.nonzero().squeeze(1), sums[ends] - sums[ends - layout.lengths]
