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
    from bertkit.explain.comparing import compare, compare_over
    from bertkit.explain.contributions import AttributionOptions
    from bertkit.explain.directions import Pushes
    from bertkit.explain.hooks import Site, capture, changing, restored, state_hash, still, trace
    from bertkit.explain.lenses import lens, lens_over
    from bertkit.explain.maps import attention, attention_over
    from bertkit.explain.opening import open_model
    from bertkit.explain.patching import Tracing
    from bertkit.explain.probe_training import ProbeSettings
    from bertkit.explain.probing import probe
    from bertkit.explain.pruning import prune
    from bertkit.explain.scores import pairs, score, score_over
    from bertkit.explain.steering import perturb_vector, perturb_vector_over
    from bertkit.explain.tracing import TracePair, patch, patch_over, read_trace_pairs
    from bertkit.explain.trajectories import trajectory, trajectory_over
    from bertkit.explain.tuned import TunedLens, train_lens
    from bertkit.explain.vectors import vector, vector_over
    from bertkit.explain.weakness import weak_over
    from bertkit.explain.weights import perturb_weights
    from bertkit.infer.lines import Texts
    from bertkit.infer.minimal_pairs import read_pairs

HOMES = {
    "AttributionOptions": "bertkit.explain.contributions",
    "ProbeSettings": "bertkit.explain.probe_training",
    "Pushes": "bertkit.explain.directions",
    "Site": "bertkit.explain.hooks",
    "Texts": "bertkit.infer.lines",
    "TracePair": "bertkit.explain.tracing",
    "Tracing": "bertkit.explain.patching",
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
    "patch": "bertkit.explain.tracing",
    "patch_over": "bertkit.explain.tracing",
    "perturb_vector": "bertkit.explain.steering",
    "perturb_vector_over": "bertkit.explain.steering",
    "perturb_weights": "bertkit.explain.weights",
    "probe": "bertkit.explain.probing",
    "prune": "bertkit.explain.pruning",
    "read_pairs": "bertkit.infer.minimal_pairs",
    "read_trace_pairs": "bertkit.explain.tracing",
    "restored": "bertkit.explain.hooks",
    "score": "bertkit.explain.scores",
    "score_over": "bertkit.explain.scores",
    "state_hash": "bertkit.explain.hooks",
    "still": "bertkit.explain.hooks",
    "trace": "bertkit.explain.hooks",
    "train_lens": "bertkit.explain.tuned",
    "trajectory": "bertkit.explain.trajectories",
    "trajectory_over": "bertkit.explain.trajectories",
    "vector": "bertkit.explain.vectors",
    "vector_over": "bertkit.explain.vectors",
    "weak_over": "bertkit.explain.weakness",
}

__all__ = [
    "AttributionOptions",
    "ProbeSettings",
    "Pushes",
    "Site",
    "Texts",
    "TracePair",
    "Tracing",
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
    "patch",
    "patch_over",
    "perturb_vector",
    "perturb_vector_over",
    "perturb_weights",
    "probe",
    "prune",
    "read_pairs",
    "read_trace_pairs",
    "restored",
    "score",
    "score_over",
    "state_hash",
    "still",
    "trace",
    "train_lens",
    "trajectory",
    "trajectory_over",
    "vector",
    "vector_over",
    "weak_over",
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
