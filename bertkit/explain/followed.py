"""What is followed of each verb along checkpoints: a function that runs it, named figures of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bertkit.explain.ablation import AblationResult, ablate
from bertkit.explain.attribution import AttributionResult, attribute
from bertkit.explain.comparing import CompareResult, compare, compare_over
from bertkit.explain.lenses import LensCorpusResult, LensResult, lens, lens_over
from bertkit.explain.maps import AttentionCorpusResult, AttentionResult, attention, attention_over
from bertkit.explain.pictures import layer_names
from bertkit.explain.probing import ProbeResult, probe
from bertkit.explain.result import Floats, Result
from bertkit.explain.scores import (
    PairsResult,
    ScoreCorpusResult,
    ScoreResult,
    pairs,
    score,
    score_over,
)
from bertkit.explain.vectors import VectorCorpusResult, VectorResult, vector, vector_over
from bertkit.explain.weakness import WeakResult, weak_over

# The name of a figure, and its numbers by the names of rows, such as layers.
Named = Iterator[tuple[str, Mapping[str, float]]]


def _layers(values: Floats | NDArray[np.int64], first: int = 0) -> dict[str, float]:
    """By layer, beginning with the embeddings or with layer 1."""
    names = layer_names(len(values) + first)[first:]
    return dict(zip(names, (float(value) for value in values), strict=True))


def _lens(found: LensResult) -> Named:
    for at in found.positions:
        where = f" at {at.label}" + (f" ({at.token})" if len(found.positions) > 1 else "")
        if at.target_probability is not None and at.rank is not None:
            yield f"probability of {at.target}{where}", _layers(at.target_probability)
            yield f"rank of {at.target}{where}", _layers(at.rank)
        yield f"entropy{where}", _layers(at.entropy)


def _lens_over(found: LensCorpusResult) -> Named:
    yield "accuracy", _layers(found.accuracy)
    yield "loss", _layers(found.loss)


def _vector(found: VectorResult) -> Named:
    for at in found.positions:
        where = f" at {at.label}" + (f" ({at.token})" if len(found.positions) > 1 else "")
        yield f"norm{where}", _layers(at.norm)
        yield f"cosine with the last layer{where}", _layers(at.to_last)


def _vector_over(found: VectorCorpusResult) -> Named:
    yield "norm", _layers(found.norm)
    yield "cosine with the last layer", _layers(found.to_last)


def _attention(
    found: AttentionResult | AttentionCorpusResult,
) -> Named:
    yield "entropy, mean of the heads", _layers(found.heads.entropy.mean(-1), 1)
    yield "distance, mean of the heads", _layers(found.heads.distance.mean(-1), 1)


def _score(found: ScoreResult | ScoreCorpusResult) -> Named:
    yield "pseudo-perplexity", {"pseudo-perplexity": found.pseudo_perplexity}
    if isinstance(found, ScoreResult):
        yield "score", {"score": found.score}


def _pairs(found: PairsResult) -> Named:
    kinds = {kind.kind: kind.accuracy for kind in found.kinds if kind.kind}
    yield "accuracy", {"all pairs": found.accuracy, **kinds}


def _compare(found: CompareResult) -> Named:
    spread, last = found.spreads[0], found.spreads[-1].layers
    same = [(i, last.index(layer)) for i, layer in enumerate(spread.layers) if layer in last]
    for name, values in (("CKA", found.cka), ("RSA", found.rsa)):
        yield (
            f"{name} to the last checkpoint",
            {spread.names[i]: float(values[i, j]) for i, j in same},
        )
    for name, numbers in (
        ("anisotropy", spread.anisotropy),
        ("effective rank", spread.effective_rank),
    ):
        yield name, dict(zip(spread.names, map(float, numbers), strict=True))


def _ablate(found: AblationResult) -> Named:
    yield "loss", {"unchanged": found.loss}
    yield "growth of the loss without a layer", _layers(found.layers.growth, 1)
    yield "growth of the loss without a feed-forward", _layers(found.feed_forwards.growth, 1)
    heads = {
        f"head {i + 1}.{j + 1}": float(value)
        for (i, j), value in np.ndenumerate(found.heads.growth)
    }
    yield "growth of the loss without a head", heads


def _attribute(found: AttributionResult) -> Named:
    for target in found.targets:
        yield (
            target.name,
            {f"{i + 1} {word.word}": word.value for i, word in enumerate(target.words)},
        )


def _weak(found: WeakResult) -> Named:
    for part in (found.overall, *found.breakdowns):
        by = f" by {part.by}" if part is not found.overall else ""
        yield f"loss{by}", dict(zip(part.names, map(float, part.figures.loss), strict=True))
        yield f"accuracy{by}", dict(zip(part.names, map(float, part.figures.accuracy), strict=True))


def _probe(found: ProbeResult) -> Named:
    yield "accuracy", _layers(found.accuracy)
    yield "selectivity", _layers(found.selectivity)


class Followed(NamedTuple):
    """How a verb is followed.

    Attributes:
        kind: of its results, for the caution.
        one: the function for one text; None: there is none.
        over: the function for many; None: there is none.
        pick: named figures of what `one` gives.
        pick_over: of what `over` gives.
        settings: which of word, target and seed `one` takes.
        settings_over: which of them `over` takes.
    """

    kind: type[Result]
    one: Callable[..., Any] | None
    over: Callable[..., Any] | None
    pick: Callable[[Any], Named]
    pick_over: Callable[[Any], Named]
    settings: frozenset[str] = frozenset()
    settings_over: frozenset[str] = frozenset()


_SEED = frozenset({"seed"})
_WORD = frozenset({"word"})
FOLLOWED: dict[str, Followed] = {
    "lens": Followed(LensResult, lens, lens_over, _lens, _lens_over, _WORD | {"target"}, _SEED),
    "vector": Followed(VectorResult, vector, vector_over, _vector, _vector_over, _WORD, _SEED),
    "attention": Followed(AttentionResult, attention, attention_over, _attention, _attention),
    "score": Followed(ScoreResult, score, score_over, _score, _score),
    "pairs": Followed(PairsResult, None, pairs, _pairs, _pairs),
    "ablate": Followed(AblationResult, ablate, ablate, _ablate, _ablate, _SEED, _SEED),
    "attribute": Followed(
        AttributionResult, attribute, None, _attribute, _attribute, _WORD | {"target"}
    ),
    # These read rows with labels, and held-out ones as `dev`.
    "probe": Followed(ProbeResult, None, probe, _probe, _probe),
    "weak": Followed(WeakResult, None, weak_over, _weak, _weak, _SEED, _SEED),
    "compare": Followed(CompareResult, compare, compare_over, _compare, _compare, _SEED, _SEED),
}
