"""Looking inside a model: what its vectors hold, and what its heads look at.

Each verb of `bertkit explain` is a function here, loaded when first used, and gives a Result with
`to_json`, `to_npz`, `to_html` and a table. Modules have other names than functions.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertkit.explain.ablation import ablate
    from bertkit.explain.attribution import attribute
    from bertkit.explain.attribution_totals import attribute_over
    from bertkit.explain.contributions import AttributionOptions
    from bertkit.explain.comparing import compare, compare_over
    from bertkit.explain.hooks import Site, capture, changing, restored, state_hash, still, trace
    from bertkit.explain.lenses import lens, lens_over
    from bertkit.explain.maps import attention, attention_over
    from bertkit.explain.opening import open_model
    from bertkit.explain.pruning import prune
    from bertkit.explain.scores import pairs, score, score_over
    from bertkit.explain.tuned import TunedLens, train_lens
    from bertkit.explain.vectors import vector, vector_over
    from bertkit.explain.weights import perturb_weights
    from bertkit.infer.lines import Texts
    from bertkit.infer.minimal_pairs import read_pairs

HOMES = {
    "AttributionOptions": "bertkit.explain.contributions",
    "Site": "bertkit.explain.hooks",
    "Texts": "bertkit.infer.lines",
    "TunedLens": "bertkit.explain.tuned",
    "ablate": "bertkit.explain.ablation",
    "attention": "bertkit.explain.maps",
    "attention_over": "bertkit.explain.maps",
    "attribute": "bertkit.explain.attribution",
    "attribute_over": "bertkit.explain.attribution_totals",
    "capture": "bertkit.explain.hooks",
    "changing": "bertkit.explain.hooks",
    "compare": "bertkit.explain.comparing",
    "compare_over": "bertkit.explain.comparing",
    "lens": "bertkit.explain.lenses",
    "lens_over": "bertkit.explain.lenses",
    "open_model": "bertkit.explain.opening",
    "pairs": "bertkit.explain.scores",
    "perturb_weights": "bertkit.explain.weights",
    "prune": "bertkit.explain.pruning",
    "read_pairs": "bertkit.infer.minimal_pairs",
    "restored": "bertkit.explain.hooks",
    "score": "bertkit.explain.scores",
    "score_over": "bertkit.explain.scores",
    "state_hash": "bertkit.explain.hooks",
    "still": "bertkit.explain.hooks",
    "trace": "bertkit.explain.hooks",
    "train_lens": "bertkit.explain.tuned",
    "vector": "bertkit.explain.vectors",
    "vector_over": "bertkit.explain.vectors",
}

__all__ = [
    "AttributionOptions",
    "Site",
    "Texts",
    "TunedLens",
    "ablate",
    "attention",
    "attention_over",
    "attribute",
    "attribute_over",
    "capture",
    "changing",
    "compare",
    "compare_over",
    "lens",
    "lens_over",
    "open_model",
    "pairs",
    "perturb_weights",
    "prune",
    "read_pairs",
    "restored",
    "score",
    "score_over",
    "state_hash",
    "still",
    "trace",
    "train_lens",
    "vector",
    "vector_over",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home, once."""
    home = HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'bertkit.explain' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
