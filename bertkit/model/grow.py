"""Models that grow: other vocabularies, new words, longer inputs.

A word that is new to the vocabulary starts as the mean of the pieces that stood for it: as an
input it is their average, and as an output its logit is the average of their logits (matrix and
bias are both averaged, and the logit is linear in them). So the model that grew answers nearly as
before, and a new word is never likelier than the likeliest of its pieces was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.files import CONFIG_NAME
from bertkit.checkpoint.hub import resolve_model
from bertkit.checkpoint.layout import WEIGHTS_NAME, read_tensors, write_model_folder
from bertkit.errors import CheckpointError, UsageError
from bertkit.model.pretrained import PretrainedModel

# How the names of the tables end that have a row for each word, with and without prefixes.
_DECODER, _BIAS = "cls.predictions.decoder.weight", "cls.predictions.bias"
_DECODER_BIAS = "cls.predictions.decoder.bias"
_BY_WORD = ("embeddings.word_embeddings.weight", _DECODER, _BIAS, _DECODER_BIAS)
_BY_POSITION = ("embeddings.position_embeddings.weight",)
Change = Callable[[Tensor], Tensor]


def resize_token_embeddings(
    model: PretrainedModel,
    new_num_tokens: int | None = None,
    pad_to_multiple_of: int | None = None,
    mean_resizing: bool = True,
) -> nn.Embedding:
    """Give the vocabulary another size, in place: embeddings, decoder, bias, `vocab_size`.

    Rows that stay keep their bits; what was tied stays tied. New rows are the mean of all old
    ones, in each table by itself; transformers draws them close around it, and lets the bias of a
    tied model begin at 0.
    Optimisers made before still hold the old parameters: make them anew.

    Args:
        model: any BERT model.
        new_num_tokens: the new size; smaller cuts the last rows off. None: as it is.
        pad_to_multiple_of: round the size up to a multiple of this (for fast matrix products).
        mean_resizing: False: new rows begin as a new model's do (normal, sd initializer_range,
            cut off at two deviations; biases 0).

    Returns:
        The word embeddings, [V, D].

    Raises:
        UsageError: no such size, or the pad token would be cut off.
    """
    words = _named(model, _BY_WORD[0])
    size = len(words) if new_num_tokens is None else new_num_tokens
    if pad_to_multiple_of is not None:
        if pad_to_multiple_of < 1:
            raise UsageError(f"pad_to_multiple_of is {pad_to_multiple_of}; say 1 or more")
        size += -size % pad_to_multiple_of
    pad = model.config.pad_token_id
    if size < 1 or (pad is not None and pad >= size):
        raise UsageError(f"a vocabulary of {size} has no room for the pad token, {pad}")

    def change(table: Tensor) -> Tensor:
        if size <= len(table):
            return table[:size]
        fresh = table.new_zeros(size - len(table), *table.shape[1:])
        if mean_resizing:
            fresh += _mean(table)
        elif table.ndim == 2:
            sd = model.config.initializer_range
            nn.init.trunc_normal_(fresh, std=sd, a=-2 * sd, b=2 * sd)
        return torch.cat([table, fresh])

    _change(model, _BY_WORD, change)
    embedding = model.get_submodule(_name(model, _BY_WORD[0]).rpartition(".")[0])
    assert isinstance(embedding, nn.Embedding)
    return embedding


def append_words(
    model: PretrainedModel, pieces: Sequence[Sequence[int]], start: int | None = None
) -> None:
    """Add a row for each new word, the mean of the rows of its pieces; in place.

    Args:
        model: any BERT model, tied or not.
        pieces: for each new word the ids of its pieces.
        start: the id of the first new word, at most the vocabulary's size (below it, rows that
            were padding are taken); None: the vocabulary's size.

    Raises:
        UsageError: a piece is no old word, or `start` leaves a gap.
    """
    _check_pieces(pieces, len(_named(model, _BY_WORD[0])), start)
    _change(model, _BY_WORD, lambda table: with_means(table, pieces, start))


def extend_positions(model: PretrainedModel, length: int) -> None:
    """Let a model read longer inputs, in place: the position embeddings are tiled.

    Position i starts as i modulo the old length (Beltagy et al. 2020, Longformer, section 5): local
    order is right from the start. Up to the old length nothing changes. Beyond it, train: no layer
    has ever seen such distances.

    Args:
        model: any BERT model.
        length: the new `max_position_embeddings`.

    Raises:
        UsageError: `length` is not above the old one.
    """
    _check_length(length, len(_named(model, _BY_POSITION[0])))
    _change(model, _BY_POSITION, lambda table: tiled(table, length))


def extend_folder(
    source: str | os.PathLike[str],
    out: Path,
    pieces: Sequence[Sequence[int]],
    start: int,
) -> BertConfig:
    """Write the model of a folder with new words; heads of any kind come along.

    Args:
        source: a model folder, a run or a hub id.
        out: the new folder.
        pieces: see `append_words`.
        start: see `append_words`.

    Returns:
        The configuration written.

    Raises:
        CheckpointError: the model cannot be read, or `out` cannot be written.
        UsageError: see `append_words`.
    """

    def change(tables: dict[str, Tensor], config: BertConfig) -> None:
        _check_pieces(pieces, config.vocab_size, start)
        config.vocab_size = max(config.vocab_size, start + len(pieces))
        _change_all(tables, _BY_WORD, lambda table: with_means(table, pieces, start))

    return _rewrite(source, out, change)


def lengthen_folder(source: str | os.PathLike[str], out: Path, length: int) -> BertConfig:
    """Write the model of a folder with longer positions; heads of any kind come along.

    Raises:
        CheckpointError: the model cannot be read, or `out` cannot be written.
        UsageError: see `extend_positions`.
    """

    def change(tables: dict[str, Tensor], config: BertConfig) -> None:
        _check_length(length, config.max_position_embeddings)
        config.max_position_embeddings = length
        _change_all(tables, _BY_POSITION, lambda table: tiled(table, length))

    return _rewrite(source, out, change)


def check_target(source: str | os.PathLike[str], out: Path, overwrite: bool) -> None:
    """Refuse to write a grown model over a model, or over the one that it grows from.

    Raises:
        UsageError: `out` holds a model or a tokenizer and `overwrite` is not set, or is `source`,
            or a training run, whose own model one beside it would hide.
    """
    if out.exists() and out.resolve() in (resolve_model(source).resolve(), Path(source).resolve()):
        raise UsageError(f"{out} is the model itself; name another folder with --out")
    if (out / "recipe.toml").exists():
        raise UsageError(f"{out} holds a training run; name another folder with --out")
    for name in (CONFIG_NAME, WEIGHTS_NAME, "tokenizer.json", "vocab.txt"):
        if (out / name).exists() and not overwrite:
            raise UsageError(f"{out} holds a model already; say --overwrite to replace it")


def with_means(table: Tensor, pieces: Sequence[Sequence[int]], start: int | None = None) -> Tensor:
    """[V, ...] -> [max(V, start + N), ...]: from `start` on the means of old rows."""
    start = len(table) if start is None else start
    if not pieces:
        return table.clone()
    means = torch.stack([_mean(table[list(ids)]) for ids in pieces])
    return torch.cat([table[:start], means, table[start + len(pieces) :]])


def tiled(table: Tensor, length: int) -> Tensor:
    """[P, D] -> [length, D]: row i is row i modulo P."""
    return table[torch.arange(length, device=table.device) % len(table)]


def _mean(rows: Tensor) -> Tensor:
    """The mean over the first dimension, summed in fp32 at least, in the rows' own dtype."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32)).mean(0).to(rows.dtype)


def _check_pieces(pieces: Sequence[Sequence[int]], size: int, start: int | None) -> None:
    last = size if start is None else start
    if not 0 <= last <= size:
        raise UsageError(f"the first new word would be {last}, the model has {size} words")
    for ids in pieces:
        if not ids or min(ids) < 0 or max(ids) >= last:
            raise UsageError(f"the pieces {list(ids)} are not words below {last}")


def _check_length(length: int, old: int) -> None:
    if length <= old:
        raise UsageError(f"the model reads {old} tokens already; {length} is not longer")


def _name(model: PretrainedModel, end: str) -> str:
    return next(name for name, _ in model.named_parameters() if name.endswith(end))


def _named(model: PretrainedModel, end: str) -> Tensor:
    return model.get_parameter(_name(model, end))


@torch.no_grad()
def _change(model: PretrainedModel, ends: tuple[str, ...], change: Change) -> None:
    """Replace the parameters whose names end so; one that has several names keeps them all."""
    new: dict[int, nn.Parameter] = {}
    for name, old in list(model.named_parameters(remove_duplicate=False)):
        if not name.endswith(ends):
            continue
        if id(old) not in new:
            table = change(old.detach()).clone()
            new[id(old)] = nn.Parameter(table, requires_grad=old.requires_grad)
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        setattr(module, last, new[id(old)])
        if isinstance(module, nn.Embedding):
            module.num_embeddings = len(new[id(old)])
        elif isinstance(module, nn.Linear):
            module.out_features = len(new[id(old)])
    config, rows = model.config, len(_named(model, ends[0]))
    if ends is _BY_WORD:
        config.vocab_size = rows
    else:
        config.max_position_embeddings = rows


def _change_all(tables: dict[str, Tensor], ends: tuple[str, ...], change: Change) -> None:
    for name in tables:
        if name.endswith(ends):
            tables[name] = change(tables[name])


def _rewrite(
    source: str | os.PathLike[str],
    out: Path,
    change: Callable[[dict[str, Tensor], BertConfig], None],
) -> BertConfig:
    """Read all tensors of a folder, change them, write them under the names that they had."""
    folder = resolve_model(source)
    config = BertConfig.from_json_file(folder / CONFIG_NAME)
    tables = read_tensors(folder)
    _check_tables(tables, config, folder)
    if config.tie_word_embeddings:
        tables.pop(_DECODER, None)  # the word embeddings once more
    elif _BIAS in tables:
        tables.setdefault(_DECODER_BIAS, tables[_BIAS])  # transformers reads the bias from here
    change(tables, config)
    write_model_folder(out, tables, config)
    return config


def _check_tables(tables: Mapping[str, Tensor], config: BertConfig, folder: Path) -> None:
    for ends, rows in (
        (_BY_WORD, config.vocab_size),
        (_BY_POSITION, config.max_position_embeddings),
    ):
        found = {name: table for name, table in tables.items() if name.endswith(ends)}
        if not any(name.endswith(ends[0]) for name in found):
            raise CheckpointError(f"{folder}: the weights lack {ends[0]}; not a BERT encoder")
        for name, table in found.items():
            if len(table) != rows:
                raise CheckpointError(
                    f"{folder}: {name} has {len(table)} rows, {rows} by the configuration"
                )
