"""What stands before the first step: data, settings, the run folder, the model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.files import write_atomically
from bertkit.checkpoint.store import list_steps, newest_step, verify_step
from bertkit.data.collate import Vocabulary
from bertkit.data.loader import PretrainLoader
from bertkit.data.shards import TokenStore
from bertkit.errors import CheckpointError, UsageError
from bertkit.runtime import Runtime, has_compiler
from bertkit.settings import ModelSettings, Recipe, dump_recipe, load_recipe
from bertkit.text.scripts import script_of
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train.early import AnyRecipe, check_data, check_old, check_out, check_settings
from bertkit.train.optim import default_batch_tokens, default_learning_rate
from bertkit.train.start import config_of
from bertkit.train.unigram import word_shares

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

BUDGETS = ("steps", "tokens", "epochs", "minutes")
# Of the learning rate of a new model, the share for one that is trained already: it forgot nothing
# in the one run measured, where the whole rate learned three times as much (docs/en/grow.md).
CONTINUING_SHARE = 0.2


# Text with more Han characters among its tokens than this share is Chinese.
CHINESE = 0.05


@dataclass(frozen=True, slots=True)
class Source:
    """Prepared data: the splits of each DATA folder and the tokenizer that made them."""

    train: list[TokenStore]
    dev: list[TokenStore]
    tokenizer: BertTokenizer


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """What became of a run.

    Attributes:
        run: the run folder.
        model: the finished model folder; None when interrupted.
        steps: optimiser steps done.
        tokens: real tokens seen.
        seconds: wall-clock seconds, all sittings together.
        skipped: steps skipped for a bad loss.
        figures: held-out figures at the end, beside the unigram baseline.
        before_after: of a run that went on from a model, a row for old text (where there is some)
            and one for new: text, masked, mlm_loss_before, mlm_loss_after, mlm_accuracy_before,
            mlm_accuracy_after.
        new_parts: parameters that this model lacked; they began untrained.
        interrupted: stopped before the budget was spent; everything is saved.
    """

    run: Path
    model: Path | None
    steps: int
    tokens: int
    seconds: float
    skipped: int
    figures: dict[str, Any]
    interrupted: bool
    before_after: list[dict[str, Any]] = field(default_factory=list)
    new_parts: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        return values | {"run": str(self.run), "model": self.model and str(self.model)}


def open_data(folders: Sequence[Path]) -> Source:
    """Open the shards of `prepare` and the tokenizer in them.

    Raises:
        DataError: a folder is no prepared data, or is damaged.
        UsageError: no folder, or folders prepared with different tokenizers.
    """
    check_data(folders)
    train, dev, vocabularies = [], [], []
    tokenizer = None
    for folder in folders:
        tokenizer = BertTokenizer.from_pretrained(folder / "tokenizer")
        vocabularies.append(tokenizer.get_vocab())
        if vocabularies[-1] != vocabularies[0]:
            raise UsageError(f"{folder} was prepared with another vocabulary than {folders[0]}")
        train.append(TokenStore(folder / "train"))
        if (folder / "dev").is_dir() and (store := TokenStore(folder / "dev")).tokens:
            dev.append(store)
    assert tokenizer is not None
    return Source(train, dev, tokenizer)


def resolve(recipe: Recipe, device: torch.device, out: Path, resume: bool) -> Recipe:
    """Fill in what the recipe leaves open: learning rate, batch, budget (one epoch).

    With `resume` and nothing set, the run's own recipe is taken.

    With `model.init`, the dimensions of the network are that model's.

    Raises:
        UsageError: two budgets, or settings that contradict each other.
        CheckpointError: there is no such model as `model.init`.
        DataError: a file of `log.old` is missing.
    """
    saved = out / "recipe.toml"
    before = load_recipe(saved, {}, Recipe) if resume and saved.is_file() else None
    if before is not None and recipe == Recipe():
        return before
    recipe = msgspec.convert(msgspec.to_builtins(recipe), Recipe)  # a copy
    train, data = recipe.train, recipe.data
    init = recipe.model.init
    check_old(recipe)
    if init is not None:
        if before is not None and before.model.init == init:
            recipe.model = before.model  # what is there goes on, wherever the model is by now
        else:
            _take_dimensions(recipe.model, init)
    given = [name for name in BUDGETS if getattr(train, name) is not None]
    if len(given) > 1:
        raise UsageError(f"one budget, please: {' and '.join(f'train.{g}' for g in given)} are set")
    if not given:
        train.epochs = 1.0
    hidden = config_of(recipe, 1000).hidden_size
    if train.learning_rate is None:
        train.learning_rate = default_learning_rate(hidden, train.optimizer)
        if init is not None:
            train.learning_rate *= CONTINUING_SHARE
    if train.batch_tokens is None:
        train.batch_tokens = default_batch_tokens(device, hidden)
    longest = max(data.max_length, data.final_max_length)
    if longest > recipe.model.max_position_embeddings:
        most = recipe.model.max_position_embeddings
        raise UsageError(
            f"examples of {longest} tokens need model.max_position_embeddings >= {longest}; it is "
            + (f"{most}" if init is None else f"{most} in {init}; see `bertkit grow --positions`")
        )
    if train.batch_tokens < longest:
        raise UsageError(f"train.batch_tokens={train.batch_tokens} holds no example of {longest}")
    return recipe


def check_word_starts(recipe: Recipe, source: Source) -> None:
    """Refuse to mask words of Chinese text that was prepared without them.

    Nothing else tells where its words start: single characters would be masked, unnoticed. Spans
    of such text are runs of characters, which is a scheme of its own.

    Raises:
        UsageError: more than CHINESE of a folder's tokens are Han characters, and it has no words.
    """
    if recipe.data.masking != "word":
        return
    tokens = source.tokenizer.convert_ids_to_tokens(range(len(source.tokenizer)))
    han = [script_of(token.removeprefix("##")[:1] or "#") == "Han" for token in tokens]
    for store in source.train:
        if not store.with_words and word_shares([store], source.tokenizer)[han].sum() > CHINESE:
            raise UsageError(
                f"{store.folder.parent} does not know where Chinese words start, for --masking "
                "word; prepare it with --words jieba, or use --masking token"
            )


def _take_dimensions(model: ModelSettings, init: str) -> None:
    """Note in the recipe how large `init` is.

    Raises:
        UsageError: the recipe asks for another size.
    """
    config = BertConfig.from_pretrained(init)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        asked, there = getattr(model, name), getattr(config, name)
        if asked is not None and asked != there:
            raise UsageError(f"model.{name} is {asked}, but {init} has {there}; leave it out")
        setattr(model, name, there)
    model.max_position_embeddings = config.max_position_embeddings


def open_run(out: Path, recipe: AnyRecipe, resume: bool, overwrite: bool, machine: Runtime) -> None:
    """Make the run folder, or check that the one there may be continued.

    Raises:
        UsageError: see check_out; or the settings of the run there differ from the recipe, or what
            overwrite would remove is still training.
        CheckpointError: it has checkpoints, none of which verifies.
    """
    if machine.rank == 0:
        saved = out / "recipe.toml"
        check_out(out, resume, overwrite)
        if overwrite and saved.is_file():
            init = recipe.model.init
            if init is not None and Path(init).resolve().is_relative_to(out.resolve()):
                raise UsageError(f"{out} holds {init}, which is to go on; name another folder")
            with only_one(out, machine):  # never from under a run that is still training
                _put_aside(out)
        if resume and saved.is_file():
            check_settings(load_recipe(saved, {}, type(recipe)), recipe, saved)
            _check_checkpoints(out / "checkpoints")
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(saved, dump_recipe(recipe).encode())
        except OSError as error:
            raise UsageError(f"{out}: cannot be written: {error.strerror or error}") from error
    if machine.world > 1:
        dist.barrier()


def _replaced(out: Path) -> Path:
    """Where a run waits until the one that replaces it has begun."""
    return out.with_name(f"{out.name}.replaced")


def _put_aside(out: Path) -> None:
    begun = list(out.iterdir()) != [out / "recipe.toml"]
    if begun or not _replaced(out).exists():
        shutil.rmtree(_replaced(out), ignore_errors=True)
        out.rename(_replaced(out))
    else:  # the start that replaced it was killed
        shutil.rmtree(out)


@contextmanager
def leaving_nothing_if_refused(out: Path, machine: Runtime) -> Iterator[None]:
    """Where a start is refused, take back the recipe and the folders that it made.

    The run that it was to replace is put back; once the new one has begun, it is removed.
    """
    made = [place for place in (out, *out.parents) if not place.exists()]
    continued = (out / "recipe.toml").exists()
    try:
        yield
    except BaseException:
        if machine.rank == 0 and (_replaced(out).exists() or not continued):
            _take_back(out, made)
        raise
    finally:
        if machine.rank == 0:
            shutil.rmtree(_replaced(out), ignore_errors=True)


def _take_back(out: Path, made: list[Path]) -> None:
    saved, old, log = out / "recipe.toml", _replaced(out), out / "log.jsonl"
    if log.exists() and not log.stat().st_size:
        log.unlink()
    if out.exists() and list(out.iterdir()) not in ([], [saved]):
        return
    saved.unlink(missing_ok=True)
    with suppress(OSError):  # something else has been put there
        if old.exists():
            old.replace(out)  # which is empty, or not there
        for folder in made:
            folder.rmdir()


def _check_checkpoints(root: Path) -> None:
    """Refuse to begin again in a folder whose checkpoints are all damaged."""
    steps = list_steps(root)
    if not steps or newest_step(root) is not None:
        return
    faults = [f"{one.name}: {verify_step(one)[0].removeprefix(f'{one}/')}" for one in steps]
    raise CheckpointError(
        f"{root}: no checkpoint is whole ({'; '.join(faults)}); start again with another --out"
    )


@contextmanager
def only_one(out: Path, machine: Runtime) -> Iterator[None]:
    """Hold the run folder, so that no second process trains in it; freed even by a kill.

    Raises:
        UsageError: another process holds it.
    """
    if machine.rank or fcntl is None:
        yield
        return
    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UsageError(f"{out}: another process is training here") from error
    finally:
        os.close(folder)


def build_loader(
    stores: Sequence[TokenStore],
    recipe: Recipe,
    tokenizer: BertTokenizer,
    machine: Runtime,
    phase: int,
) -> PretrainLoader:
    """The stream of a phase; neither ranks, replicas nor accumulation change its order.

    Raises:
        UsageError: see PretrainLoader.
    """
    train, data = recipe.train, recipe.data
    assert train.batch_tokens is not None
    micro = train.micro_tokens or train.batch_tokens
    at_once = machine.world * machine.replicas
    parts = at_once * max(1, -(-train.batch_tokens // (micro * machine.world)))
    return PretrainLoader(
        stores,
        data,
        vocabulary_of(tokenizer),
        seed=train.seed + phase,
        batch_tokens=train.batch_tokens,
        parts=parts,
        max_length=data.final_max_length if phase else data.max_length,
    )


def vocabulary_of(tokenizer: BertTokenizer) -> Vocabulary:
    """What the data needs to know of a tokenizer."""
    return Vocabulary(
        size=len(tokenizer),
        pad=tokenizer.pad_token_id,
        cls=tokenizer.cls_token_id,
        sep=tokenizer.sep_token_id,
        mask=tokenizer.mask_token_id,
        specials=tuple(tokenizer.all_special_ids),
        continuation=tokenizer.continuation_mask(),
    )


def wants_compile(recipe: AnyRecipe, machine: Runtime) -> bool:
    """Whether layers are compiled.

    "auto" compiles where the arithmetic is fast enough for the passes between the matrix products
    to matter: on GPUs, and in bf16 (expected, not yet measured). In fp32 on one busy Zen 3 core a
    compiled mini ran at 0.96 of eager speed (docs/en/log.md).

    Raises:
        UsageError: train.compile=on without a compiler on this machine.
    """
    able = has_compiler(machine.device)
    if recipe.train.compile == "on" and not able:
        raise UsageError("train.compile=on, but there is no C++ compiler (CPU) or Triton (GPU)")
    if recipe.train.compile == "auto":
        pays = machine.device.type == "cuda" or machine.dtype == torch.bfloat16
        return able and pays
    return recipe.train.compile == "on"
