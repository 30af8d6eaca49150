"""`bertkit explain VERB`: look inside a model.

A verb takes texts, or with --file whole files. Results are tables on a terminal; --json, --html and
--npz give the numbers, a page with pictures, the arrays. Verbs are named here and loaded when run.
"""

from __future__ import annotations

from cyclopts import App

app = App(
    name="explain",
    help="Look inside a model: vectors, layers, heads, scores. Each verb has its own --help.",
)

VERBS = {
    "vector": (
        "bertkit.verbs.looking:vector",
        "The vector of each [MASK] in every layer: length, change, nearest words.",
    ),
    "lens": (
        "bertkit.verbs.looking:lens",
        "What the model's head reads in every layer: likeliest words, rank, entropy, KL.",
    ),
    "tune-lens": (
        "bertkit.verbs.looking:tune_lens",
        "Train a tuned lens: an affine map a layer, for `lens --tuned`.",
    ),
    "perturb-vector": (
        "bertkit.verbs.changing:perturb_vector",
        "Push a masked position's vector in every layer: how the answer changes, and how easily.",
    ),
    "attention": (
        "bertkit.verbs.looking:attention",
        "What each head looks at: maps, entropy, distance, norm-weighted, rollout.",
    ),
    "attribute": (
        "bertkit.verbs.attributing:attribute",
        "Which words of the input made the model say that.",
    ),
    "patch": (
        "bertkit.verbs.changing:patch",
        "Causal tracing: clean states put into a corrupt run, layer by layer and word by word.",
    ),
    "score": (
        "bertkit.verbs.scoring:score_inside",
        "How probable the model finds a text, word by word (pseudo-log-likelihood).",
    ),
    "pairs": (
        "bertkit.verbs.scoring:pairs",
        "How often the model prefers the better text of a minimal pair.",
    ),
    "compare": (
        "bertkit.verbs.comparing:compare",
        "How alike layers, checkpoints or models represent texts: CKA, RSA, anisotropy, rank.",
    ),
    "trajectory": (
        "bertkit.verbs.comparing:trajectory",
        "How the figures of a verb came about, along the checkpoints of a run.",
    ),
    "probe": (
        "bertkit.verbs.probing:probe",
        "Which labels each layer's states hold: probes, with control tasks and selectivity.",
    ),
    "weak": (
        "bertkit.verbs.probing:weak",
        "Where masked words are guessed badly: by frequency, part of word, position, script.",
    ),
    "perturb-weights": (
        "bertkit.verbs.weights:perturb_weights",
        "Zero, shake, quantise, re-initialise each weight tensor: loss, KL, flips, Fisher.",
    ),
    "ablate": (
        "bertkit.verbs.weights:ablate",
        "Take away each head, feed-forward and layer: loss, KL, flips, gate gradients.",
    ),
    "prune": (
        "bertkit.verbs.weights:prune",
        "Write a smaller model: layers dropped, feed-forwards narrowed, heads zeroed.",
    ),
}
for _name, (_place, _help) in VERBS.items():
    app.command(_place, name=_name, help=_help)
