"""The peers, each at its best settings: transformers' BERT and its masked-LM recipe, datasets.map.

Run as a program (`python -m benchmarks.peers tokenise ...`) it is the preparation peer, in a
process of its own so that its imports, its workers and its memory can be measured from outside.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs as a plain script

from benchmarks import report
from benchmarks.examples import NOT_MASKED, Example
from bertkit.settings import SIZES

Encoding = dict[str, list[list[int]]]


def transformers() -> Any:
    """The library, imported late (seconds) and untyped (its annotations lag behind its code)."""
    module = importlib.import_module("transformers")
    module.utils.logging.disable_progress_bar()
    module.utils.logging.set_verbosity_error()  # a page about unused heads for each folder scored
    return module


def vocab_tokenizer(vocab: Path) -> Any:
    """The fast uncased tokenizer of a vocab.txt."""
    return transformers().BertTokenizerFast(str(vocab), do_lower_case=True)


def peer_config(size: str, vocab_size: int, dropout: float, positions: int = 512) -> Any:
    """BertConfig of a named size, with sdpa attention."""
    layers, hidden, heads = SIZES[size]
    return transformers().BertConfig(
        vocab_size=vocab_size,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max(512, positions),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation="sdpa",  # its fastest attention for BERT on CPU and GPU alike
    )


def peer_model(name: Literal["pretraining", "masked_lm"], config: Any, device: str) -> nn.Module:
    """A freshly initialised transformers model in training mode."""
    torch.manual_seed(0)
    names = {"pretraining": "BertForPreTraining", "masked_lm": "BertForMaskedLM"}
    model: nn.Module = getattr(transformers(), names[name])(config)
    return model.to(device).train()


def compiled(model: nn.Module, ragged: bool, mode: str = "default") -> Any:
    """The peer under torch.compile.

    Rows of one length compile to static shapes. Batches padded to their own longest row have many
    shapes: dynamic from the start, so that the peer is not recompiled for each.
    """
    forward: Any = torch.compile(model, dynamic=True if ragged else None, mode=mode)
    return forward


def pad_batch(examples: Sequence[Example], pad: int, device: str) -> dict[str, Tensor]:
    """What the peer's collator hands its model: [B, S] tensors, padded to the longest row.

    On a GPU S is rounded up to a multiple of 8, which its tensor cores want. The attention mask is
    left out where no row has padding: the model then takes its faster, unmasked path.
    """
    multiple = 8 if device.startswith("cuda") else 1
    longest = max(len(example.ids) for example in examples)
    width = -(-longest // multiple) * multiple
    shape = (len(examples), width)
    ids, labels = np.full(shape, pad, np.int64), np.full(shape, NOT_MASKED, np.int64)
    types, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length], types[row, :length] = example.ids, example.types
        labels[row, :length], mask[row, :length] = example.labels, 1
    batch = {"input_ids": ids, "token_type_ids": types, "labels": labels}
    if not mask.all():
        batch["attention_mask"] = mask
    batch["next_sentence_label"] = np.array([e.next_label for e in examples], np.int64)
    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}


def group_texts(documents: Iterator[Sequence[int]], length: int) -> npt.NDArray[np.int64]:
    """run_mlm.py's packing: [CLS] text [SEP] end to end, cut into rows of `length`, rest dropped.

    Args:
        documents: token ids with [CLS] and [SEP] already on.
        length: tokens a row.
    """
    stream = np.fromiter(chain.from_iterable(documents), np.int64)
    return stream[: len(stream) // length * length].reshape(-1, length)


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a model folder."""
    return transformers().AutoTokenizer.from_pretrained(str(folder))


def tokenizer_folder(vocab: Path, out: Path) -> Path:
    """Save an uncased tokenizer as a model folder that both sides read."""
    tokenizer = vocab_tokenizer(vocab)
    tokenizer.save_pretrained(str(out))
    transformers().BertConfig(vocab_size=len(tokenizer)).save_pretrained(str(out))
    shutil.copyfile(vocab, out / "vocab.txt")  # transformers 5 no longer writes it
    return out


@dataclass(frozen=True, slots=True)
class MapSettings:
    """How datasets.map is driven; the benchmark tries several and keeps the fastest.

    Attributes:
        workers: num_proc of each map.
        passes: 2 tokenises, then groups, as run_mlm.py does; 1 does both in one map, which saves
            writing and reading every token once.
        batch: rows that a map function gets at a time.
        threads: let the Rust tokenizer run its own threads inside each process.
    """

    workers: int = 2
    passes: int = 2
    batch: int = 1000
    threads: bool = False


MAP_DEFAULTS = MapSettings()


def map_prepare(
    corpus: Path, tokenizer: Path, out: Path, length: int, settings: MapSettings
) -> int:
    """Text file -> rows of `length` ids with datasets.map; returns the rows' tokens.

    Only input_ids are kept: attention masks and segments of packed rows are constant, and dropping
    them saves the peer two thirds of its writing.
    """
    import datasets

    encoder = load_tokenizer(tokenizer)
    encoder.model_max_length = 1 << 30  # no warning, no truncation: the rows are cut below
    data = datasets.load_dataset(
        "text", data_files=str(corpus), split="train", cache_dir=str(out / "cache")
    )

    def tokenise(rows: dict[str, list[str]]) -> Encoding:
        lines = [line for line in rows["text"] if line.strip()]
        encoded = encoder(lines, return_attention_mask=False, return_token_type_ids=False)
        return {"input_ids": encoded["input_ids"]}

    def group(rows: Encoding) -> Encoding:
        stream = list(chain.from_iterable(rows["input_ids"]))
        end = len(stream) // length * length
        return {"input_ids": [stream[i : i + length] for i in range(0, end, length)]}

    def both(rows: dict[str, list[str]]) -> Encoding:
        return group(tokenise(rows))

    steps: list[Any] = [both] if settings.passes == 1 else [tokenise, group]
    for number, function in enumerate(steps, start=1):
        last = number == len(steps)
        data = data.map(
            function,
            batched=True,
            batch_size=settings.batch,
            num_proc=settings.workers if settings.workers > 1 else None,
            remove_columns=data.column_names,
            cache_file_name=str(out / ("rows.arrow" if last else "tokens.arrow")),
        )
    return len(data) * length


app = cyclopts.App(default_parameter=report.FLAGS)


@app.command
def tokenise(
    corpus: Path,
    *,
    tokenizer: Path,
    out: Path,
    length: int = 128,
    settings: Annotated[MapSettings, cyclopts.Parameter(name="*")] = MAP_DEFAULTS,
) -> None:
    """Prepare CORPUS with datasets.map; print tokens and seconds, imports not counted."""
    # A process a core leaves no core for the tokenizer's own threads.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if settings.threads else "false"
    os.environ["HF_HOME"] = str(out / "home")
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    out.mkdir(parents=True, exist_ok=True)
    importlib.import_module("datasets")
    load_tokenizer(tokenizer)
    start = time.perf_counter()
    tokens = map_prepare(corpus, tokenizer, out, length, settings)
    print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    app()
