"""Models that look like BERT and are not: what each does otherwise, so that it cannot be opened.

What makes a model BERT is its `model_type` and its tensors, never its name: RoBERTa-wwm-ext,
MacBERT, BioBERT, FinBERT and MiniLM are BERT and open.
"""

from __future__ import annotations

from bertkit.checkpoint.files import json_kind

# By model_type, as transformers spells them.
_OTHERS = {
    "albert": "its layers share one set of weights, and its embeddings are narrower than they",
    "bart": "it has a decoder beside its encoder",
    "bert-generation": "it is a decoder without segments",
    "big_bird": "its attention is sparse, in blocks",
    "bloom": "it is a decoder",
    "camembert": "it is a RoBERTa: positions start behind the padding id, the vocabulary is no "
    "WordPiece",
    "canine": "it reads characters, not words",
    "convbert": "part of its attention is convolution",
    "data2vec-text": "it is a RoBERTa: positions start behind the padding id",
    "deberta": "its attention has relative positions of its own",
    "deberta-v2": "its attention has relative positions of its own",
    "distilbert": "it has no segments and no pooler",
    "electra": "its embeddings have a projection of their own, it has no pooler, and its head "
    "tells replaced words",
    "ernie": "it adds embeddings of the task",
    "eurobert": "its positions are rotations",
    "flaubert": "it is an XLM",
    "funnel": "it shortens the sequence from layer to layer",
    "gpt2": "it is a decoder",
    "ibert": "it is a RoBERTa in whole numbers",
    "layoutlm": "it adds embeddings of places on a page",
    "llama": "it is a decoder",
    "longformer": "its attention is sparse",
    "megatron-bert": "its LayerNorm stands before each part, not behind",
    "mobilebert": "its layers have bottlenecks",
    "modernbert": "its positions are rotations, its feed-forward has gates, its LayerNorm stands "
    "before each part, and its attention is partly local",
    "mpnet": "its attention has relative positions, and it has no segments",
    "mra": "its attention is approximate",
    "neobert": "its positions are rotations",
    "nezha": "its attention has relative positions",
    "nomic_bert": "its positions are rotations, and its feed-forward has gates",
    "nystromformer": "its attention is approximate",
    "qdqbert": "its layers are quantised",
    "rembert": "its embeddings are narrower than its layers, and not tied",
    "roberta": "its positions start behind the padding id, it has no segments, and its vocabulary "
    "is no WordPiece",
    "roberta-prelayernorm": "it is a RoBERTa with its LayerNorm before each part",
    "roformer": "its positions are rotations",
    "splinter": "it has a head of its own for questions",
    "squeezebert": "its layers are grouped convolutions",
    "t5": "it has a decoder beside its encoder",
    "visual_bert": "it reads pictures too",
    "xlm": "it has embeddings of languages, and no segments",
    "xlm-roberta": "it is a RoBERTa: positions start behind the padding id, the vocabulary is no "
    "WordPiece",
    "xlm-roberta-xl": "it is a RoBERTa with its LayerNorm before each part",
    "xlnet": "it predicts words in any order, with relative positions",
    "xmod": "it is a RoBERTa with adapters of languages",
    "yoso": "its attention is approximate",
}
# How the tensors of such models begin, for folders from before 2020, which tell no model_type.
_BEGINNINGS = {
    "albert": "albert",
    "deberta": "deberta",
    "discriminator": "electra",
    "distilbert": "distilbert",
    "electra": "electra",
    "ernie": "ernie",
    "generator": "electra",
    "longformer": "longformer",
    "mobilebert": "mobilebert",
    "mpnet": "mpnet",
    "nezha": "nezha",
    "roberta": "roberta",
    "roformer": "roformer",
    "transformer": "distilbert, xlnet, xlm or gpt2",
    "xlnet": "xlnet",
}


def why_not_bert(model_type: object) -> str:
    """One clause for an error: what kind of model it is, and what makes it no BERT."""
    if not isinstance(model_type, str):
        return f"model_type is {json_kind(model_type)}, not 'bert'"
    said = f"model_type is {model_type[:40]!r}; bertkit opens 'bert' only"
    reason = _OTHERS.get(model_type)
    return f"{said}: {reason}" if reason else said


def family_of(names: list[str]) -> str | None:
    """The kind of model whose tensors are called so, where it is known and no BERT."""
    for name in names:
        if found := _BEGINNINGS.get(name.replace("/", ".").split(".", 1)[0]):
            return found
    return None
