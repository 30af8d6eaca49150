"""BertPreTrainedModel: what every BERT model can do beside answering.

Its parts by the names that scripts use, how its parameters begin, and the switches of training. To
write a model of one's own, inherit from it, as one does from transformers' class of this name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bertkit.checkpoint.config import BertConfig
from bertkit.model import grow
from bertkit.model.initial import initialise
from bertkit.model.pretrained import PretrainedModel


class BertPreTrainedModel(PretrainedModel):
    """What all BERT models share: configuration, initialisation, loading and saving.

    A class of your own has its encoder under `bert` and calls `self.post_init()` at the end of its
    constructor.
    """

    config_class: ClassVar[type[BertConfig]] = BertConfig
    main_input_name: ClassVar[str] = "input_ids"

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config

    def init_weights(self, names: Iterable[str] | None = None) -> None:
        """Initialise parameters as the paper does, in place.

        Args:
            names: only these; None: those of linear layers, embeddings and LayerNorms, but not of
                models inside that were loaded from a checkpoint.
        """
        if names is None:
            loaded = [model for model in self._inside() if model.load_report is not None]
            names = self._names_beside(loaded)
        initialise(self, self.config.initializer_range, names)

    def post_init(self) -> None:
        """Tie, and initialise what is beside the models inside, which have done so themselves."""
        self.tie_weights()
        self.init_weights(self._names_beside(self._inside()))

    def _inside(self) -> list[PretrainedModel]:
        return [m for m in self.modules() if isinstance(m, PretrainedModel) and m is not self]

    def _names_beside(self, models: Iterable[nn.Module]) -> list[str]:
        """The names of parameters of plain layers that none of these models has."""
        theirs = {id(parameter) for model in models for parameter in model.parameters()}
        return [
            name
            for prefix, layer in self.named_modules()
            if isinstance(layer, nn.Linear | nn.Embedding | nn.LayerNorm)
            for name, parameter in layer.named_parameters(prefix, recurse=False)
            if id(parameter) not in theirs
        ]

    resize_token_embeddings = grow.resize_token_embeddings

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings, [V, D]."""
        words: nn.Embedding = self.base_model.embeddings.word_embeddings
        return words

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        """Put others in place of the word embeddings; a decoder tied to them follows."""
        self.base_model.embeddings.word_embeddings = embeddings
        self.config.vocab_size = embeddings.weight.shape[0]
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear | None:
        """The decoder to the vocabulary, where there is one."""
        return None

    def set_output_embeddings(self, decoder: nn.Linear) -> None:
        """Put another decoder in place; where it is tied, only its bias is taken over.

        Raises:
            TypeError: this model has no decoder.
        """
        raise TypeError(f"{type(self).__name__} has no decoder to the vocabulary")

    @property
    def base_model(self) -> Any:
        """The encoder: what is under `bert`, or the model itself."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._first_parameter().device

    @property
    def dtype(self) -> torch.dtype:
        """What the parameters are."""
        return self._first_parameter().dtype

    def _first_parameter(self) -> Tensor:
        return next(self.parameters())

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the model holds, shared ones counted once.

        Args:
            only_trainable: without those that are frozen.
            exclude_embeddings: without the tables of words, positions and segments.
        """
        tables = [m.weight for m in self.modules() if isinstance(m, nn.Embedding)]
        left_out = {id(table) for table in tables} if exclude_embeddings else set()
        counted = [p for p in self.parameters() if p.requires_grad or not only_trainable]
        return sum(p.numel() for p in counted if id(p) not in left_out)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the parameters, and of the buffers."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.nbytes for tensor in tensors)

    def activation_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Keep what goes into each layer, and compute the layer once more on the way back.

        Less memory, a third more time. What transformers takes here chooses between ways of torch;
        there is one way here.
        """
        self.base_model.encoder.gradient_checkpointing = True

    def activation_checkpointing_disable(self) -> None:
        """Keep all that the layers compute for the way back."""
        self.base_model.encoder.gradient_checkpointing = False

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether layers are computed once more on the way back."""
        on: bool = self.base_model.encoder.gradient_checkpointing
        return on

    # The names of before transformers 5.
    gradient_checkpointing_enable = activation_checkpointing_enable
    gradient_checkpointing_disable = activation_checkpointing_disable
    is_gradient_checkpointing = is_activation_checkpointing
