"""Looking into a model and changing it for a while; it is left as it was found, bit for bit.

    still      the model in eval mode; afterwards every module's mode is as before
    trace      the hidden states of all layers, with attention maps when asked for
    capture    what passes named sites during the passes inside the `with`
    changing   what passes named sites is replaced
    restored   parameters may be changed inside the `with`; afterwards they are as before

Sites are numbered by layers from 1; "hidden" 0 is what the embeddings give. In a pass with readers
(`bert.encode(batch, readers)`) the last layer's sites have a row for each reader instead of one for
each token, but for "key" and "value".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bertkit.batch import Batch
from bertkit.model.bert import BertModel
from bertkit.model.buckets import Spans

Kind = Literal["hidden", "query", "key", "value", "context", "widened", "attention_sum", "sum"]


class Site(NamedTuple):
    """A place in the encoder where numbers can be read or replaced.

    hidden          [T, D]  what a layer gives on (behind its last LayerNorm); 0: the embeddings
    query key value [T, D]  of all heads side by side, head n at columns n H to (n + 1) H
    context         [T, D]  what the heads gathered, before the output projection W_O
    widened         [T, I]  the feed-forward's inner activations
    attention_sum   [T, D]  x + W_O context + b, before the LayerNorm: exact sums are here
    sum             [T, D]  the same of the feed-forward

    Attributes:
        kind: one of these.
        layer: from 1 to L; 0 for the embeddings.
    """

    kind: Kind
    layer: int


@contextmanager
def still(model: nn.Module, grad: bool = False) -> Iterator[None]:
    """Without dropout, and without gradients unless `grad`; each module's mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.set_grad_enabled(grad):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class Trace(NamedTuple):
    """One pass through the encoder, layer by layer.

    Attributes:
        hidden: L + 1 times [T, D]; the first is what the embeddings give.
        maps: L times [B, N, S, S] with S the longest sequence, zero at padding; empty where they
            were not wanted.
    """

    hidden: list[Tensor]
    maps: list[Tensor]


def trace(encoder: BertModel, batch: Batch, want_maps: bool = False) -> Trace:
    """Run sequences laid end to end and keep all layers' states.

    Args:
        encoder: the model's `base_model`; its mode is the caller's matter, see `still`.
        batch: T tokens in B sequences; moved to the encoder's device.
        want_maps: also the attention maps, L B N S S numbers.
    """
    batch = batch.to(encoder.device)
    start = encoder.embeddings(batch.input_ids, batch.token_type_ids, batch.position_ids)
    kept: list[tuple[Tensor, Tensor | None]] = []
    encoder.encoder(start, Spans.of(batch.lengths, start.device), None, kept, want_maps)
    return Trace(
        [start, *(state for state, _ in kept)], [maps for _, maps in kept if maps is not None]
    )


@contextmanager
def capture(encoder: BertModel, sites: Iterable[Site]) -> Iterator[dict[Site, list[Tensor]]]:
    """Keep what passes the sites; each has a list with one tensor a pass."""
    kept: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def keep(site: Site) -> Callable[[Tensor], Tensor]:
        def look(tensor: Tensor) -> Tensor:
            kept[site].append(tensor)
            return tensor

        return look

    with changing(encoder, {site: keep(site) for site in kept}):
        yield kept


@contextmanager
def changing(
    encoder: BertModel, changes: Mapping[Site, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Let functions replace what passes the sites: tensor in, tensor of the same shape out.

    A function must not write into the tensor that it is given.
    """
    with ExitStack() as stack:
        for site, change in changes.items():
            module, before = _module_at(encoder, site)
            hook = _before(change) if before else _behind(change)
            register: Any = (
                module.register_forward_pre_hook if before else (module.register_forward_hook)
            )
            stack.callback(register(hook).remove)
        yield


def _module_at(encoder: BertModel, site: Site) -> tuple[nn.Module, bool]:
    """The module to watch, and whether its input is meant rather than what it returns."""
    if site.kind == "hidden" and site.layer == 0:
        return encoder.embeddings, False
    layers = encoder.encoder.layer
    assert 1 <= site.layer <= len(layers), f"{site}: there are layers 1 to {len(layers)}"
    layer: Any = layers[site.layer - 1]
    attention = layer.attention
    places: dict[str, tuple[nn.Module, bool]] = {
        "hidden": (layer, False),
        "query": (attention.self.query, False),
        "key": (attention.self.key, False),
        "value": (attention.self.value, False),
        "context": (attention.self, False),
        "widened": (layer.intermediate, False),
        "attention_sum": (attention.output.LayerNorm, True),
        "sum": (layer.output.LayerNorm, True),
    }
    return places[site.kind]


def _before(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (change(inputs[0]), *inputs[1:])

    return hook


def _behind(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        # A layer and its attention also return maps.
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return hook


@contextmanager
def restored(*parameters: Tensor) -> Iterator[None]:
    """Inside, the numbers of these parameters may be changed in place; they come back exactly."""
    once = {id(parameter): parameter for parameter in parameters}
    before = {key: parameter.detach().clone() for key, parameter in once.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for key, parameter in once.items():
                parameter.copy_(before[key])


def state_hash(model: nn.Module, vectors_only: bool = False) -> str:
    """SHA-256 of all parameters and buffers, by name: two models with one hash are equal in bits.

    With `vectors_only` biases and LayerNorms alone are read: quick, and enough to tell whether two
    models are the same unless someone forges one.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if vectors_only and tensor.dim() != 1:
            continue
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
