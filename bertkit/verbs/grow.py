"""`bertkit grow`, and what `bertkit vocab --extend` does: models that grow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from bertkit.errors import UsageError
from bertkit.verbs.options import Common, Switch

if TYPE_CHECKING:
    from bertkit.text.extend import ExtendReport

# New words that are printed; --json names all of them.
SHOWN = 20


@Parameter(name="*")
@dataclass(kw_only=True)
class GrowFlags:
    """What grows, and where to."""

    out: Annotated[Path, Parameter(help="The folder for the grown model.")]
    positions: Annotated[int, Parameter(help="Tokens that it is to read at most, such as 1024.")]
    overwrite: Annotated[bool, Switch, Parameter(help="Replace the model that is there.")] = False


def grow(
    model: Annotated[str, Parameter(help="A model folder, a run or a hub id.")],
    /,
    *,
    options: GrowFlags,
    common: Common | None = None,
) -> None:
    """Let a model read longer inputs: its position embeddings are tiled. Then train it."""
    common = common or Common()
    from bertkit.checkpoint.config import BertConfig
    from bertkit.model.grow import check_target, lengthen_folder
    from bertkit.text.tokenizer import BertTokenizer

    check_target(model, options.out, options.overwrite)
    before = BertConfig.from_pretrained(model).max_position_embeddings
    tokenizer = BertTokenizer.from_pretrained(model, model_max_length=options.positions)
    lengthen_folder(model, options.out, options.positions)
    tokenizer.save_pretrained(options.out)
    common.show(
        {"folder": str(options.out), "positions_before": before, "positions": options.positions},
        f"{options.out}: {before} -> {options.positions} tokens, positions tiled; "
        f"beyond {before} it is untrained: bertkit pretrain ... --init {options.out}",
    )


def extend(
    model: str,
    texts: Iterable[str],
    held_out: list[str],
    out: Path,
    *,
    add: int,
    min_frequency: int,
    common: Common,
) -> ExtendReport:
    """Add the words of a corpus that the model breaks up; write the model with its heads.

    Args:
        model: a model folder, a run or a hub id.
        texts: what the words are found in, read once.
        held_out: what old and new tokenizer are compared on; filled while `texts` is read.
        out: the new folder.
        add: how many words at most.
        min_frequency: leave out what is seen fewer times.
        common: for progress.
    """
    from bertkit.model.grow import extend_folder
    from bertkit.text.extend import ExtendReport, check_saved, extend_tokenizer, find_words
    from bertkit.text.tokenizer import BertTokenizer
    from bertkit.text.vocab import coverage_report

    tokenizer = BertTokenizer.from_pretrained(model)
    with common.progress("counting", "characters") as count:
        found = find_words(
            texts,
            tokenizer,
            add,
            min_frequency=min_frequency,
            progress=lambda done: count(done, 0),
        )
    grown = extend_tokenizer(tokenizer, [word.token for word in found.words])
    start = max(tokenizer.get_vocab().values()) + 1
    config = extend_folder(model, out, [word.piece_ids for word in found.words], start)
    grown.save_pretrained(out)
    check_saved(grown, out, held_out[:100])
    return ExtendReport(
        out,
        config.vocab_size,
        found,
        coverage_report(tokenizer, held_out),
        coverage_report(grown, held_out),
    )


def check_extend(model: str, out: Path, overwrite: bool, own: list[str]) -> None:
    """Refuse what `vocab --extend` cannot do, before any text is read.

    Args:
        model: what is to be extended.
        out: where to.
        overwrite: a model there may be replaced.
        own: flags given that shape a new vocabulary.

    Raises:
        UsageError: `own` is not empty, or `out` is taken.
    """
    from bertkit.model.grow import check_target

    if own:
        raise UsageError(f"--extend keeps the model's own kind of vocabulary: leave {own[0]} out")
    check_target(model, out, overwrite)


def extension(report: ExtendReport) -> str:
    """The words that were added, and how held-out text fares, for people."""
    from bertkit.text.extend import pairs_by_script

    words = report.found.words
    width = max([len(word.token) for word in words[:SHOWN]], default=0)
    lines = [
        f"{report.folder}: {len(words):,} words added, {report.vocab_size:,} in all",
        *(
            f"  {word.token:<{width}}  {word.count:>8,}   {' '.join(word.pieces)}"
            for word in words[:SHOWN]
        ),
    ]
    if len(words) > SHOWN:
        lines.append(f"  ... and {len(words) - SHOWN:,} more; --json names all")
    lines += report.found.notes
    if not any(row.words for row in report.before):
        return "\n".join([*lines, "no text was held out: the corpus is too small"])
    lines.append(f"{'held out':<14}{'words':>12}{'tokens a word':>20}{'[UNK]':>20}")
    for before, after in pairs_by_script(report.before, report.after):
        tokens = f"{before.tokens_per_word:.3f} -> {after.tokens_per_word:.3f}"
        unknown = f"{before.unk_rate:.2%} -> {after.unk_rate:.2%}"
        lines.append(f"{before.script:<14}{before.words:>12,}{tokens:>20}{unknown:>20}")
    return "\n".join(lines)
