"""Models with the heads of pretraining (words, next sentence, both), and what all heads share.

BertWithHeads       an encoder under `bert`
|-- OneHead         one head; `ragged` gives its logits for sequences laid end to end
|   `-- OneLoss     one head with one kind of label, and the padded call
`-- PretrainHeads   heads under `cls`, and the losses of pretraining
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from bertkit.batch import Batch, PretrainBatch, Readers
from bertkit.checkpoint.config import BertConfig
from bertkit.errors import DataError
from bertkit.model.base import BertPreTrainedModel
from bertkit.model.bert import ACTIVATIONS, BertModel, readers_at
from bertkit.model.losses import LossSums, linear_cross_entropy, mean_cross_entropy
from bertkit.model.outputs import Asked, LogitsOutput, PretrainingOutput, Wants
from bertkit.model.padding import Encoded, Layout, Rows, checked_labels


class BertPredictionHeadTransform(nn.Module):
    """Dense, activation, LayerNorm: between the encoder and the vocabulary."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.LayerNorm(self.activation(self.dense(hidden)))  # type: ignore[no-any-return]


class BertLMPredictionHead(nn.Module):
    """From hidden states to the vocabulary; the decoder's matrix is the word embeddings.

    Attributes:
        bias: the decoder's own; where `bias_apart`, a second one that nothing reads.
        bias_apart: the checkpoint has two biases, and both are kept.
    """

    bias_apart = False

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = self.decoder.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return self.decoder(self.transform(hidden))  # type: ignore[no-any-return]

    def loss(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """[M, D] and [M] -> summed cross-entropy and count of correct best guesses."""
        transformed = self.transform(hidden)
        return linear_cross_entropy(transformed, self.decoder.weight, self.decoder.bias, labels)


class BertOnlyMLMHead(nn.Module):
    """The masked-word head by itself."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return self.predictions(hidden)  # type: ignore[no-any-return]


class BertOnlyNSPHead(nn.Module):
    """The next-sentence head by itself."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        """[..., D] -> [..., 2]."""
        return self.seq_relationship(pooled)  # type: ignore[no-any-return]


class BertPreTrainingHeads(nn.Module):
    """Both heads of pretraining."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """[..., D] and [B, D] -> [..., V] and [B, 2]."""
        return self.predictions(hidden), self.seq_relationship(pooled)


class BertWithHeads(BertPreTrainedModel):
    """An encoder under `bert`; subclasses add their heads.

    Attributes:
        pools: some head reads the pooler, so that there is one.
    """

    pools = True
    bert: BertModel

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=self.pools)

    def pooled(self, encoded: Encoded) -> Tensor:
        """[R, D]: what the pooler makes of the rows that are not wholly padded."""
        assert self.bert.pooler is not None
        return self.bert.pooler(encoded.firsts)  # type: ignore[no-any-return]


class OneHead(BertWithHeads):
    """One head, over each token or, where the model pools, over each sequence."""

    def head(self, hidden: Tensor) -> Tensor:
        """Logits, [R, C] from [R, D]."""
        raise AssertionError("each model has a head of its own")

    def ragged(self, batch: Batch, positions: Tensor | None = None) -> Tensor:
        """Logits of sequences laid end to end, without any padding.

        Args:
            batch: T tokens in B sequences, on the model's device.
            positions: [M] indices into T, ascending: logits there only. Best on the CPU. Models
                that pool take none.

        Returns:
            [T, C] or [M, C]; from models that pool [B, C].
        """
        if self.pools:
            assert positions is None, "a model that pools reads the first tokens"
            return self.head(self.bert.pooled(batch))
        readers = None if positions is None else readers_at(batch, positions)
        return self.head(self.bert.encode(batch, readers))

    def scored(self, rows: Rows, wants: Wants) -> tuple[Encoded, Tensor]:
        """The padded call before padding: the encoder's answer and [T, C] or [R, C] logits."""
        encoded = self.bert.encode_rows(rows, wants, firsts_only=self.pools)
        return encoded, self.head(self.pooled(encoded) if self.pools else encoded.hidden)


class OneLoss(OneHead):
    """One head and labels of one kind, in the call shape of transformers."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar: the mean over what has a label; 0, never NaN, where nothing has.

        Args:
            logits: [R, C], as `ragged` gives them.
            labels: [R] int64, -100 for none.
        """
        return mean_cross_entropy(logits, checked_labels("labels", labels, logits.shape[-1]))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **asked: Unpack[Asked],
    ) -> LogitsOutput | tuple[Any, ...]:
        """As BertModel, with `labels` as the class says; they count at real tokens only.

        Returns:
            loss (with labels), logits, hidden_states and attentions (when asked for). Logits are
            zero at padding.

        Raises:
            DataError: as BertModel; or the labels are too few, too many or out of range.
        """
        rows = Rows(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        return self.answer(rows, labels, Wants.of(self.config, asked))

    def answer(
        self, rows: Rows, labels: Tensor | None, wants: Wants
    ) -> LogitsOutput | tuple[Any, ...]:
        """The padded call, its arguments sorted."""
        encoded, scores = self.scored(rows, wants)
        layout = encoded.layout
        logits = layout.pad_rows(scores) if self.pools else layout.pad(scores)
        loss = None
        if labels is not None:
            pack = of_rows if self.pools else of_tokens
            loss = self.loss(scores, pack("labels", labels, layout))
        return wants.answer(LogitsOutput(loss, logits, encoded.hidden_states, encoded.attentions))


def of_tokens(name: str, labels: Tensor, layout: Layout) -> Tensor:
    """[T] of the [B, S] labels: those of real tokens.

    Raises:
        DataError: the shape is another.
    """
    if tuple(labels.shape) != layout.shape:
        raise DataError(f"{name} is {list(labels.shape)}; the input is {list(layout.shape)}")
    return layout.pack(labels)


def of_rows(name: str, labels: Tensor, layout: Layout) -> Tensor:
    """[R, ...] of the [B, ...] labels: those of rows with a real token.

    Raises:
        DataError: there is not one for each row.
    """
    if labels.dim() == 0 or len(labels) != layout.shape[0]:
        raise DataError(f"{name} is {list(labels.shape)}; the input has {layout.shape[0]} rows")
    return layout.pack_rows(labels)


class PretrainHeads(BertWithHeads):
    """Heads of pretraining under `cls`."""

    cls: Any

    def tie_weights(self) -> None:
        """Let the decoder be the word embeddings, unless the configuration unties them."""
        predictions = getattr(self.cls, "predictions", None)
        if predictions is None:
            return
        if not predictions.bias_apart:
            predictions.decoder.bias = predictions.bias
        if self.config.tie_word_embeddings:
            predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def untie_bias(self) -> None:
        """Keep a second bias beside the decoder's, as some checkpoints of transformers have it."""
        if (predictions := getattr(self.cls, "predictions", None)) is not None:
            unread = torch.empty_like(predictions.bias)
            predictions.bias = nn.Parameter(unread, requires_grad=False)
            predictions.bias_apart = True

    def get_output_embeddings(self) -> nn.Linear | None:
        """The decoder to the vocabulary, where there is one."""
        predictions = getattr(self.cls, "predictions", None)
        return None if predictions is None else predictions.decoder

    def set_output_embeddings(self, decoder: nn.Linear) -> None:
        """Put another decoder in place; where it is tied, only its bias is taken over.

        Raises:
            TypeError: this model has no decoder, or the new one has no bias.
        """
        if self.get_output_embeddings() is None:
            super().set_output_embeddings(decoder)
        if decoder.bias is None:
            raise TypeError("BERT's decoder has a bias; give nn.Linear(hidden_size, vocab_size)")
        self.cls.predictions.decoder, self.cls.predictions.bias = decoder, decoder.bias
        self.cls.predictions.bias_apart = False
        self.tie_weights()

    def mlm_logits_at(self, batch: Batch, positions: Tensor) -> Tensor:
        """[M, V]: the vocabulary logits at `positions` ([M] indices into T, ascending) only."""
        hidden = self.bert.encode(batch, readers_at(batch, positions))
        return self.cls.predictions(hidden)  # type: ignore[no-any-return]

    def nsp_logits(self, batch: Batch) -> Tensor:
        """[B, 2]: class 0 is IsNext, class 1 random."""
        return self.cls.seq_relationship(self.bert.pooled(batch))  # type: ignore[no-any-return]

    def pretraining_sums(self, batch: PretrainBatch, readers: Readers) -> LossSums:
        """Summed losses, with logits at masked positions only; equal to the full computation.

        Args:
            batch: the micro-batch, on the model's device.
            readers: `batch.readers(first=model.pools)`, taken while the batch was on the CPU.
        """
        with self._sparse_words(len(batch.mlm_labels)):
            hidden = self.bert.encode(batch, readers)
        exact = torch.promote_types(hidden.dtype, torch.float32)
        zero = hidden.new_zeros((), dtype=exact)
        none = torch.zeros((), dtype=torch.int64, device=hidden.device)
        mlm, mlm_correct, nsp, nsp_correct = zero, none, zero, none
        if hasattr(self.cls, "predictions"):
            masked = hidden.index_select(0, readers.mlm)
            mlm, mlm_correct = self.cls.predictions.loss(masked, batch.mlm_labels)
        if readers.first is not None and self.bert.pooler is not None:
            pooled = self.bert.pooler(hidden.index_select(0, readers.first))
            logits = self.cls.seq_relationship(pooled).to(exact)
            nsp = nn.functional.cross_entropy(
                logits, batch.nsp_labels, reduction="sum", ignore_index=-100
            )
            nsp_correct = (logits.argmax(-1) == batch.nsp_labels).sum()
        return LossSums(mlm, nsp, mlm_correct, nsp_correct)

    @contextmanager
    def _sparse_words(self, masked: int) -> Iterator[None]:
        """Let the gradient of the words that were read join the one of all words from the head.

        Where both share one matrix, a [V, D] gradient of the input alone need not be filled with
        zeros and added: 10% of a step of mini (two Zen 3 cores). On GPUs torch adds sparse
        gradients in no fixed order.
        """
        words, decoder = self.bert.embeddings.word_embeddings, self.get_output_embeddings()
        tied = decoder is not None and decoder.weight is words.weight
        words.sparse = tied and masked > 0 and words.weight.device.type == "cpu"
        try:
            yield
        finally:
            words.sparse = False

    def pretraining_loss(self, batch: PretrainBatch) -> Tensor:
        """Scalar: the mean masked-word loss plus the mean pair loss of one batch."""
        readers = batch.readers(first=self.pools)
        device = self.device
        sums = self.pretraining_sums(batch.to(device), readers.to(device))
        pairs = int((batch.nsp_labels != -100).sum())
        return sums.mlm / max(len(batch.mlm_labels), 1) + sums.nsp / max(pairs, 1)


class BertForPreTraining(PretrainHeads):
    """BERT with both pretraining heads: masked words and next sentence."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = BertPreTrainingHeads(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        **asked: Unpack[Asked],
    ) -> PretrainingOutput | tuple[Any, ...]:
        """As BertModel, with `labels` [B, S] (-100: none) and `next_sentence_label` [B].

        Returns:
            loss (with both labels), prediction_logits [B, S, V], seq_relationship_logits [B, 2].
        """
        wants = Wants.of(self.config, asked)
        rows = Rows(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        encoded = self.bert.encode_rows(rows, wants)
        layout = encoded.layout
        words, pairs = self.cls(encoded.hidden, self.pooled(encoded))
        loss = None
        if labels is not None and next_sentence_label is not None:
            masked = of_tokens("labels", labels, layout)
            order = of_rows("next_sentence_label", next_sentence_label, layout)
            loss = mean_cross_entropy(words, checked_labels("labels", masked, words.shape[-1]))
            loss = loss + mean_cross_entropy(pairs, checked_labels("next_sentence_label", order, 2))
        logits = layout.pad(words), layout.pad_rows(pairs)
        return wants.answer(
            PretrainingOutput(loss, *logits, encoded.hidden_states, encoded.attentions)
        )


class BertForMaskedLM(PretrainHeads, OneLoss):
    """BERT with the masked-word head: labels [B, S] (-100: none), logits [B, S, V]."""

    pools = False

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = BertOnlyMLMHead(config)
        self.post_init()

    def head(self, hidden: Tensor) -> Tensor:
        """[R, D] -> [R, V]."""
        return self.cls(hidden)  # type: ignore[no-any-return]


class BertForNextSentencePrediction(PretrainHeads, OneLoss):
    """BERT with the next-sentence head: labels [B] (0 IsNext, 1 random), logits [B, 2]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = BertOnlyNSPHead(config)
        self.post_init()

    def head(self, hidden: Tensor) -> Tensor:
        """[R, D], pooled -> [R, 2]."""
        return self.cls(hidden)  # type: ignore[no-any-return]
