"""`bertkit explain perturb-vector|patch`: what changing a state does to the answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from bertkit.errors import UsageError
from bertkit.verbs.ask import Model
from bertkit.verbs.inside import Place, Segmenter, Text, Where, opened_for, word_named
from bertkit.verbs.options import Common, Switch

if TYPE_CHECKING:
    from bertkit.explain.directions import Pushes
    from bertkit.explain.patching import Tracing
    from bertkit.explain.result import Result
    from bertkit.explain.tracing import TracePair


@Parameter(name="*")
@dataclass(kw_only=True)
class PushFlags:
    """Which ways a vector is pushed, and how far."""

    towards: Annotated[
        str | None, Parameter(help="A word or label; else the asked word, or the second likeliest.")
    ] = None
    against: Annotated[
        str | None, Parameter(help="The word or label that is left; else the likeliest.")
    ] = None
    step: Annotated[
        list[float] | None,
        Parameter(help="A size in lengths of the vector, walked both ways; may be repeated."),
    ] = None
    layer: Annotated[
        list[int] | None,
        Parameter(help="A layer, 0 for the embeddings; may be repeated. All by default."),
    ] = None
    random: Annotated[int, Parameter(help="Random directions a layer, the control.")] = 8
    singular: Annotated[int, Parameter(help="Singular directions a layer.")] = 2
    positions: Annotated[int, Parameter(help="With --file: how many masked positions.")] = 64

    def pushes(self, seed: int) -> Pushes:
        """As the functions of bertkit.explain take them."""
        from bertkit.explain.directions import Pushes

        return Pushes(
            steps=tuple(self.step) if self.step else Pushes.steps,
            towards=self.towards,
            against=self.against,
            layers=tuple(self.layer) if self.layer else None,
            random=self.random,
            singular=self.singular,
            seed=seed,
        )


def perturb_vector(
    model: Model,
    text: Text = None,
    /,
    *,
    flags: PushFlags | None = None,
    place: Place | None = None,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """Push a masked position's vector in every layer: how the answer changes, and how easily."""
    flags, place, where, common = (
        flags or PushFlags(),
        place or Place(),
        where or Where(),
        common or Common(),
    )
    where.check(text)
    named = place.named()
    if text is None and (flags.towards or flags.against):
        raise UsageError("--towards and --against are for one text; files are pushed at random")
    from bertkit.explain.steering import perturb_vector, perturb_vector_over

    result: Result
    pushes = flags.pushes(common.seed or 0)
    with opened_for(model, common, where.revision) as opened:
        if text is not None:
            result = perturb_vector(opened, text, place.pair, pushes=pushes, **named)
        else:
            with common.progress("pushing", "positions") as report:
                result = perturb_vector_over(
                    opened,
                    where.lines(),
                    pushes=pushes,
                    positions=flags.positions,
                    report=report,
                )
        where.give(common, result)


@Parameter(name="*")
@dataclass(kw_only=True)
class PatchFlags:
    """What is asked, and what is put where."""

    word: Annotated[
        str | None,
        Parameter(help="A word of the clean text to be masked, or whose label is asked; or #3."),
    ] = None
    target: Annotated[
        str | None, Parameter(help="The word or label whose coming back is measured.")
    ] = None
    against: Annotated[
        str | None, Parameter(help="The word or label that the corrupt text should bring.")
    ] = None
    pair: Annotated[str | None, Parameter(help="The clean text's second text.")] = None
    corrupt_pair: Annotated[str | None, Parameter(help="The corrupt text's second text.")] = None
    site: Annotated[
        list[Literal["hidden", "attention", "feed-forward"]] | None,
        Parameter(help="What is put: a layer's states, or what one half adds; may be repeated."),
    ] = None
    by: Annotated[
        Literal["token", "word"], Parameter(help="One token at a time, or all of a word.")
    ] = "token"
    noise: Annotated[
        str | None, Parameter(help="Without a corrupt text: the word that gets noise; or #3.")
    ] = None
    strength: Annotated[
        float, Parameter(help="Of the noise, in deviations of the word embeddings.")
    ] = 3.0
    draws: Annotated[int, Parameter(help="How often noise is drawn.")] = 10
    segmenter: Segmenter = None

    def tracing(self, seed: int) -> Tracing:
        """As the functions of bertkit.explain take it."""
        from bertkit.explain.patching import Tracing

        return Tracing(
            sites=tuple(self.site) if self.site else Tracing.sites,
            by=self.by,
            noise=word_named(self.noise),
            strength=self.strength,
            draws=self.draws,
            seed=seed,
        )


@Parameter(name="*", group="Pairs in files")
@dataclass(kw_only=True)
class PairColumns:
    """Which columns of a file of pairs are what: names, or numbers from 1 without a header."""

    clean: Annotated[str, Parameter(help="The column of the clean text.")] = "clean"
    corrupt: Annotated[str, Parameter(help="The column of the corrupt text.")] = "corrupt"
    target_column: Annotated[
        str, Parameter(help="The column of the target; empty: what the clean run says.")
    ] = "target"
    skip_bad_rows: Annotated[
        bool, Switch, Parameter(help="Leave out pairs of different lengths; they are counted.")
    ] = False


def patch(
    model: Model,
    text: Text = None,
    corrupted: Annotated[str | None, Parameter(help="The corrupt text, of as many tokens.")] = None,
    /,
    *,
    flags: PatchFlags | None = None,
    columns: PairColumns | None = None,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """Causal tracing: clean states put into a corrupt run, layer by layer and word by word."""
    flags, columns = flags or PatchFlags(), columns or PairColumns()
    where, common = where or Where(), common or Common()
    where.check(text)
    from bertkit.explain.tracing import patch, patch_over

    result: Result
    tracing = flags.tracing(common.seed or 0)
    with opened_for(model, common, where.revision) as opened:
        if text is not None:
            result = patch(
                opened,
                _texts(text, flags.pair),
                None if corrupted is None else _texts(corrupted, flags.corrupt_pair),
                word=word_named(flags.word),
                target=flags.target,
                against=flags.against,
                tracing=tracing,
                segmenter=flags.segmenter,
            )
        else:
            assert where.file is not None
            where.speak(where.file, (pair.clean for pair in _pairs(where.file, columns)))
            with common.progress("patching", "pairs") as report:
                result = patch_over(
                    opened,
                    _pairs(where.file, columns),
                    tracing=tracing,
                    skip_bad=columns.skip_bad_rows,
                    report=lambda done: report(done, 0),
                )
        where.give(common, result)


def _texts(text: str, pair: str | None) -> str | tuple[str, str]:
    return text if pair is None else (text, pair)


def _pairs(paths: Sequence[str], columns: PairColumns) -> Iterable[TracePair]:
    from bertkit.explain.tracing import read_trace_pairs

    return chain.from_iterable(
        read_trace_pairs(path, columns.clean, columns.corrupt, columns.target_column or None)
        for path in paths
    )
