"""The whole BERT encoder in this one file (Devlin et al. 2018, arXiv 1810.04805).

Inside, sequences lie end to end ([T, D]) and no padding is ever computed; outside, the call shapes
of transformers' BertModel, which pack on the way in and pad on the way out. Module and parameter
names are those of Hugging Face's checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bertkit.batch import Batch, Readers
from bertkit.checkpoint.config import BertConfig
from bertkit.errors import DataError
from bertkit.model.attention import Spans, attend, attention_maps, mix
from bertkit.model.outputs import EncoderOutput
from bertkit.model.pretrained import PretrainedModel

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class BertPreTrainedModel(PretrainedModel):
    """What all BERT models share: configuration, initialisation, loading and saving."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def init_weights(self, names: Iterable[str] | None = None) -> None:
        """Initialise parameters as the paper does; `names` limits it to those (None: all).

        Matrices: normal with sd `initializer_range`, cut off at two deviations (the original's
        truncated_normal). LayerNorm: 1 and 0. Biases: 0. The [PAD] embedding: 0.
        """
        chosen = None if names is None else set(names)
        done: set[int] = set()  # the tied decoder is the word embeddings once more
        for prefix, module in self.named_modules():
            for name, parameter in module.named_parameters(prefix, recurse=False):
                if id(parameter) in done or (chosen is not None and name not in chosen):
                    continue
                done.add(id(parameter))
                if name.endswith("bias"):
                    parameter.zero_()
                elif isinstance(module, nn.LayerNorm):
                    parameter.fill_(1.0)
                else:
                    sd = self.config.initializer_range
                    nn.init.trunc_normal_(parameter, std=sd, a=-2 * sd, b=2 * sd)
                    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                        parameter[module.padding_idx].zero_()

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings, [V, D]."""
        return self._base().embeddings.word_embeddings

    def _base(self) -> BertModel:
        base = getattr(self, self.base_model_prefix, self)
        assert isinstance(base, BertModel)
        return base

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the parameters are."""
        return self.get_input_embeddings().weight.dtype

    def num_parameters(self, exclude_embeddings: bool = False) -> int:
        """How many numbers the model holds, shared ones counted once."""
        total = sum(p.numel() for p in self.parameters())
        if exclude_embeddings:
            total -= sum(p.numel() for p in self._base().embeddings.parameters())
        return total


class BertEmbeddings(nn.Module):
    """Word, position and segment embeddings, added, normalised, dropped out."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """[..., S] ids -> [..., S, D]; positions default to 0, 1, ... and segments to 0."""
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        shape = inputs_embeds.shape[:-1]
        if position_ids is None:
            position_ids = torch.arange(shape[-1], device=inputs_embeds.device)
        if token_type_ids is None:
            token_type_ids = torch.zeros(shape, dtype=torch.long, device=inputs_embeds.device)
        total = (
            inputs_embeds
            + self.token_type_embeddings(token_type_ids)
            + self.position_embeddings(position_ids)
        )
        return self.dropout(self.LayerNorm(total))  # type: ignore[no-any-return]


class BertSelfAttention(nn.Module):
    """Queries, keys and values, and what attention makes of them."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self, hidden: Tensor, asking: Tensor, q: Spans, k: Spans, want_maps: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """[T, D] and the [R, D] of it that ask -> [R, D], and [B, N, S, S] maps when wanted."""
        split = (self.heads, -1)
        query = self.query(asking).unflatten(-1, split)
        key = self.key(hidden).unflatten(-1, split)
        value = self.value(hidden).unflatten(-1, split)
        dropout = self.dropout.p if self.training else 0.0
        if want_maps:
            maps = attention_maps(query, key, k.lengths)
            return mix(maps, value, k.lengths, dropout).flatten(1), maps
        return attend(query, key, value, q, k, dropout).flatten(1), None


class BertResidual(nn.Module):
    """A linear layer back to the hidden size, added to its input, normalised (post-LN)."""

    def __init__(self, config: BertConfig, in_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """[T, in_size] and [T, D] -> [T, D]."""
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)  # type: ignore[no-any-return]


class BertAttention(nn.Module):
    """Self-attention with its output projection."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertResidual(config, config.hidden_size)


class BertIntermediate(nn.Module):
    """The widening half of the feed-forward."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, intermediate_size]."""
        return self.activation(self.dense(x))


class BertLayer(nn.Module):
    """One Transformer layer, post-LN: attention, then feed-forward."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertResidual(config, config.intermediate_size)

    def forward(
        self,
        hidden: Tensor,
        spans: Spans,
        rows: Tensor | None = None,
        row_spans: Spans | None = None,
        want_maps: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """[T, D] -> [T, D], or [R, D] for the `rows` ([R], ascending) that are read."""
        asking = hidden if rows is None else hidden.index_select(0, rows)
        context, maps = self.attention.self(hidden, asking, row_spans or spans, spans, want_maps)
        attended = self.attention.output(context, asking)
        return self.output(self.intermediate(attended), attended), maps


class BertEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False

    def forward(self, hidden: Tensor, spans: Spans, readers: Readers | None = None) -> Tensor:
        """[T, D] -> [T, D]; with `readers`, the last layer answers only for their R rows."""
        row_spans = None
        if readers is not None:
            row_spans = Spans.of(readers.lengths, hidden.device, spans.longest)
        last = len(self.layer) - 1
        for i, layer in enumerate(self.layer):
            some = (readers.rows, row_spans) if readers is not None and i == last else (None, None)
            if self.gradient_checkpointing and self.training:
                hidden, _ = checkpoint(layer, hidden, spans, *some, use_reentrant=False)
            else:
                hidden, _ = layer(hidden, spans, *some)
        return hidden


class BertPooler(nn.Module):
    """tanh of a linear layer over the first token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        """[B, D], the first token of each sequence -> [B, D]."""
        return torch.tanh(self.dense(first))


class Encoded(NamedTuple):
    """What the encoder says of a padded call, still packed, with the way back."""

    hidden: Tensor
    layout: Layout
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


@dataclass(frozen=True, slots=True)
class Layout:
    """How the real tokens of a [B, S] call lie end to end.

    Attributes:
        shape: (B, S).
        slots: [T] indices of the real tokens in the flattened [B * S].
        rows: [R] the rows that have a real token; the others are wholly padded.
        lengths: [R] on the CPU.
    """

    shape: tuple[int, int]
    slots: Tensor
    rows: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, shape: tuple[int, int], mask: Tensor | None, device: torch.device) -> Layout:
        """Read an attention mask: [B, S], nonzero for real tokens; None: all are real."""
        if mask is None:
            rows = torch.arange(shape[0], device=device)
            slots = torch.arange(shape[0] * shape[1], device=device)
            return cls(shape, slots, rows, torch.full((shape[0],), shape[1]))
        if tuple(mask.shape) != shape:
            raise DataError(f"attention_mask is {list(mask.shape)}; the input is {list(shape)}")
        real = mask.to(device) != 0
        lengths = real.sum(1)
        return cls(
            shape,
            real.flatten().nonzero().squeeze(1),
            lengths.nonzero().squeeze(1),
            lengths[lengths > 0].cpu(),
        )

    def pack(self, x: Tensor) -> Tensor:
        """[B, S, ...] -> [T, ...]."""
        return x.flatten(0, 1).index_select(0, self.slots)

    def pad(self, x: Tensor) -> Tensor:
        """[T, ...] -> [B, S, ...], zero where there is no token."""
        whole = x.new_zeros(self.shape[0] * self.shape[1], *x.shape[1:])
        return whole.index_copy(0, self.slots, x).view(*self.shape, *x.shape[1:])

    def pad_rows(self, x: Tensor) -> Tensor:
        """[R, ...] -> [B, ...], zero for rows wholly padded."""
        if len(self.rows) == self.shape[0]:
            return x
        return x.new_zeros(self.shape[0], *x.shape[1:]).index_copy(0, self.rows, x)

    def first(self, x: Tensor) -> Tensor:
        """[T, D] -> [R, D]: the first real token of each row."""
        return x.index_select(0, (self.lengths.cumsum(0) - self.lengths).to(x.device))

    def pad_maps(self, maps: Tensor) -> Tensor:
        """[R, N, s, s] -> [B, N, S, S]: weights between the columns of the user's own rows."""
        real = torch.arange(maps.shape[-1]) < self.lengths[:, None]
        columns = torch.zeros(real.shape, dtype=torch.long, device=maps.device)
        columns[real.to(maps.device)] = self.slots % self.shape[1]
        r, n, s, _ = maps.shape
        wide = maps.new_zeros(r, n, s, self.shape[1])
        wide = wide.scatter_add(3, columns[:, None, None, :].expand(r, n, s, s), maps)
        tall = maps.new_zeros(r, n, self.shape[1], self.shape[1])
        index = columns[:, None, :, None].expand(r, n, s, self.shape[1])
        return self.pad_rows(tall.scatter_add(2, index, wide))


class BertModel(BertPreTrainedModel):
    """The encoder with its pooler.

    `encode` is the ragged call that training and prediction use; calling the model takes and
    returns padded rows, as transformers' BertModel does.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.init_weights()

    def encode(self, batch: Batch, readers: Readers | None = None) -> Tensor:
        """Encode sequences laid end to end.

        Args:
            batch: T tokens in B sequences.
            readers: the rows that some head reads; None: all.

        Returns:
            [T, D], or [R, D] in the order of `readers.rows`.
        """
        hidden = self.embeddings(batch.input_ids, batch.token_type_ids, batch.position_ids)
        spans = Spans.of(batch.lengths, hidden.device)
        return self.encoder(hidden, spans, readers)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> EncoderOutput | tuple[Any, ...]:
        """Encode padded rows.

        Args:
            input_ids: [B, S] int.
            attention_mask: [B, S] int, bool or float; nonzero for real tokens. None: all are.
            token_type_ids: [B, S] int; None: all 0.
            position_ids: [B, S] or [1, S] int; None: the column.
            inputs_embeds: [B, S, D] in place of input_ids.
            output_attentions: return L maps of [B, N, S, S].
            output_hidden_states: return the L + 1 hidden states of [B, S, D].
            return_dict: False returns a tuple.

        Returns:
            last_hidden_state [B, S, D], zero at padding, and pooler_output [B, D].

        Raises:
            DataError: an id, a segment or a position is out of range, or shapes disagree.
        """
        config = self.config
        encoded = self.encode_rows(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            config.output_attentions if output_attentions is None else output_attentions,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )  # fmt: skip
        output = EncoderOutput(
            last_hidden_state=encoded.layout.pad(encoded.hidden),
            pooler_output=self.pool(encoded),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        use_dict = config.return_dict if return_dict is None else return_dict
        return output if use_dict else output.to_tuple()

    def pool(self, encoded: Encoded) -> Tensor | None:
        """[B, D], zero for rows wholly padded; None without a pooler."""
        if self.pooler is None:
            return None
        return encoded.layout.pad_rows(self.pooler(encoded.layout.first(encoded.hidden)))

    def encode_rows(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        want_maps: bool,
        want_states: bool,
    ) -> Encoded:
        """The padded call without the pooler and without padding of the last state."""
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise DataError("give either input_ids or inputs_embeds")
        shape = (given.shape[0], given.shape[1])
        layout = Layout.of(shape, attention_mask, given.device)
        hidden = self._embed(layout, input_ids, token_type_ids, position_ids, inputs_embeds)
        states, maps = [hidden], []
        spans = Spans.of(layout.lengths, hidden.device, max(layout.lengths.tolist(), default=1))
        for layer in self.encoder.layer if len(hidden) else ():
            if self.encoder.gradient_checkpointing and self.training:
                args = (hidden, spans, None, None, want_maps)
                hidden, weights = checkpoint(layer, *args, use_reentrant=False)
            else:
                hidden, weights = layer(hidden, spans, want_maps=want_maps)
            states.append(hidden)
            maps.append(weights)
        if not len(hidden):  # every row is padding: no layer had anything to say
            empty = hidden.new_zeros(0, self.config.num_attention_heads, 0, 0)
            states, maps = states * (len(self.encoder.layer) + 1), [empty] * len(self.encoder.layer)
        return Encoded(
            hidden,
            layout,
            tuple(layout.pad(s) for s in states) if want_states else None,
            tuple(layout.pad_maps(m) for m in maps) if want_maps else None,
        )

    def _embed(
        self,
        layout: Layout,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        shape, device = layout.shape, layout.slots.device
        if position_ids is None:
            position_ids = torch.arange(shape[1], device=device)
        if token_type_ids is None:
            token_type_ids = torch.zeros(shape, dtype=torch.long, device=device)
        config = self.config
        parts = []
        for name, ids, limit in (
            ("input_ids", input_ids, config.vocab_size),
            ("token_type_ids", token_type_ids, config.type_vocab_size),
            ("position_ids", position_ids, config.max_position_embeddings),
        ):
            packed = None if ids is None else layout.pack(ids.expand(shape))
            if packed is not None and len(packed):
                low, high = (int(x) for x in packed.aminmax())
                if low < 0 or high >= limit:
                    bad = low if low < 0 else high
                    raise DataError(f"{name} holds {bad}; this model has room for 0 to {limit - 1}")
            parts.append(packed)
        embeds = None if inputs_embeds is None else layout.pack(inputs_embeds)
        return self.embeddings(*parts, inputs_embeds=embeds)  # type: ignore[no-any-return]
