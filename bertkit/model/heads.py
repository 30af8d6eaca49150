"""Models with heads: masked words, next sentence, and both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bertkit.batch import Batch, PretrainBatch, Readers
from bertkit.checkpoint.config import BertConfig
from bertkit.model.bert import ACTIVATIONS, BertModel, BertPreTrainedModel, Encoded
from bertkit.model.losses import LossSums, linear_cross_entropy, mean_cross_entropy
from bertkit.model.outputs import LogitsOutput, ModelOutput, PretrainingOutput


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
    """From hidden states to the vocabulary; the decoder's matrix is the word embeddings."""

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
        return linear_cross_entropy(transformed, self.decoder.weight, self.bias, labels)


class BertOnlyMLMHead(nn.Module):
    """The masked-word head by itself."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config)


class BertOnlyNSPHead(nn.Module):
    """The next-sentence head by itself."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.seq_relationship = nn.Linear(config.hidden_size, 2)


class BertPreTrainingHeads(nn.Module):
    """Both heads of pretraining."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)


class _BertWithHeads(BertPreTrainedModel):
    """An encoder under `bert` and pretraining heads under `cls`."""

    pools = True
    bert: BertModel
    cls: Any

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=self.pools)

    def tie_weights(self) -> None:
        """Let the decoder be the word embeddings, unless the configuration unties them."""
        predictions = getattr(self.cls, "predictions", None)
        if predictions is None:
            return
        predictions.decoder.bias = predictions.bias
        if self.config.tie_word_embeddings:
            predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def get_output_embeddings(self) -> nn.Linear | None:
        """The decoder to the vocabulary, where there is one."""
        predictions = getattr(self.cls, "predictions", None)
        return None if predictions is None else predictions.decoder

    def mlm_logits_at(self, batch: Batch, positions: Tensor) -> Tensor:
        """[M, V]: the vocabulary logits at `positions` ([M] indices into T, ascending) only."""
        readers = PretrainBatch(
            batch.input_ids, batch.token_type_ids, batch.position_ids, batch.lengths,
            positions.cpu(), positions, batch.lengths, len(batch.input_ids),
        ).readers(first=False)  # fmt: skip
        hidden = self.bert.encode(batch, readers.to(batch.input_ids.device))
        return self.cls.predictions(hidden)  # type: ignore[no-any-return]

    def nsp_logits(self, batch: Batch) -> Tensor:
        """[B, 2]: class 0 is IsNext, class 1 random."""
        nothing = batch.lengths.new_zeros(0)
        readers = PretrainBatch(
            batch.input_ids, batch.token_type_ids, batch.position_ids, batch.lengths,
            nothing, nothing, nothing, len(batch.input_ids),
        ).readers(first=True)  # fmt: skip
        hidden = self.bert.encode(batch, readers.to(batch.input_ids.device))
        assert self.bert.pooler is not None
        return self.cls.seq_relationship(self.bert.pooler(hidden))  # type: ignore[no-any-return]

    def pretraining_sums(self, batch: PretrainBatch, readers: Readers) -> LossSums:
        """Summed losses, with logits at masked positions only; equal to the full computation.

        Args:
            batch: the micro-batch, on the model's device.
            readers: `batch.readers(first=model.pools)`, taken while the batch was on the CPU.
        """
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

    def pretraining_loss(self, batch: PretrainBatch) -> Tensor:
        """Scalar: the mean masked-word loss plus the mean pair loss of one batch."""
        readers = batch.readers(first=self.pools)
        device = self.device
        sums = self.pretraining_sums(batch.to(device), readers.to(device))
        pairs = int((batch.nsp_labels != -100).sum())
        return sums.mlm / max(len(batch.mlm_labels), 1) + sums.nsp / max(pairs, 1)

    def _encode_rows(self, arguments: dict[str, Any]) -> tuple[Encoded, bool]:
        config = self.config
        names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
        want = {
            name: getattr(config, name) if arguments[name] is None else arguments[name]
            for name in ("output_attentions", "output_hidden_states", "return_dict")
        }
        encoded = self.bert.encode_rows(
            **{name: arguments[name] for name in names},
            want_maps=want["output_attentions"],
            want_states=want["output_hidden_states"],
        )
        return encoded, want["return_dict"]


def _as_asked(output: ModelOutput, use_dict: bool) -> Any:
    return output if use_dict else output.to_tuple()


class BertForPreTraining(_BertWithHeads):
    """BERT with both pretraining heads: masked words and next sentence."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = BertPreTrainingHeads(config)
        self.tie_weights()
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> PretrainingOutput | tuple[Any, ...]:
        """As BertModel, with `labels` [B, S] (-100: none) and `next_sentence_label` [B].

        Returns:
            loss (with both labels), prediction_logits [B, S, V], seq_relationship_logits [B, 2].
        """
        encoded, use_dict = self._encode_rows(locals())
        predictions = encoded.layout.pad(self.cls.predictions(encoded.hidden))
        pooled = self.bert.pool(encoded)
        relationship = self.cls.seq_relationship(pooled)
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = mean_cross_entropy(predictions, labels)
            loss = loss + mean_cross_entropy(relationship, next_sentence_label)
        output = PretrainingOutput(
            loss, predictions, relationship, encoded.hidden_states, encoded.attentions
        )
        return _as_asked(output, use_dict)  # type: ignore[no-any-return]


class BertForMaskedLM(_BertWithHeads):
    """BERT with the masked-word head."""

    pools = False

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = BertOnlyMLMHead(config)
        self.tie_weights()
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> LogitsOutput | tuple[Any, ...]:
        """As BertModel, with `labels` [B, S] (-100: none); logits [B, S, V]."""
        encoded, use_dict = self._encode_rows(locals())
        logits = encoded.layout.pad(self.cls.predictions(encoded.hidden))
        loss = None if labels is None else mean_cross_entropy(logits, labels)
        output = LogitsOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return _as_asked(output, use_dict)  # type: ignore[no-any-return]


class BertForNextSentencePrediction(_BertWithHeads):
    """BERT with the next-sentence head."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = BertOnlyNSPHead(config)
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> LogitsOutput | tuple[Any, ...]:
        """As BertModel, with `labels` [B] (0 IsNext, 1 random); logits [B, 2]."""
        encoded, use_dict = self._encode_rows(locals())
        logits = self.cls.seq_relationship(self.bert.pool(encoded))
        loss = None if labels is None else mean_cross_entropy(logits, labels)
        output = LogitsOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return _as_asked(output, use_dict)  # type: ignore[no-any-return]
