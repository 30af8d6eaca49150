"""bertkit: the whole life of a BERT encoder.

The names below load the modules they live in when first used, so that `import bertkit` costs
nothing and `bertkit --help` never waits for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertkit.checkpoint.auto import AutoConfig
    from bertkit.checkpoint.config import BertConfig
    from bertkit.data.masking import mask_tokens
    from bertkit.data.pairs import build_pair, sentence_pairs
    from bertkit.errors import BertkitError
    from bertkit.model.auto import (
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForMultipleChoice,
        AutoModelForNextSentencePrediction,
        AutoModelForPreTraining,
        AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )
    from bertkit.model.base import BertPreTrainedModel
    from bertkit.model.bert import BertModel
    from bertkit.model.crf_head import BertCrfForTokenClassification
    from bertkit.model.grow import extend_positions
    from bertkit.model.heads import (
        BertForMaskedLM,
        BertForNextSentencePrediction,
        BertForPreTraining,
    )
    from bertkit.model.losses import BertPretrainingLoss
    from bertkit.model.task_heads import (
        BertForMultipleChoice,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
    )
    from bertkit.tasks.load import load
    from bertkit.text.auto import AutoTokenizer
    from bertkit.text.tokenizer import BertTokenizer, BertTokenizerFast

__version__ = "0.1.0"

HOMES = {
    "AutoConfig": "bertkit.checkpoint.auto",
    "AutoModel": "bertkit.model.auto",
    "AutoModelForMaskedLM": "bertkit.model.auto",
    "AutoModelForMultipleChoice": "bertkit.model.auto",
    "AutoModelForNextSentencePrediction": "bertkit.model.auto",
    "AutoModelForPreTraining": "bertkit.model.auto",
    "AutoModelForQuestionAnswering": "bertkit.model.auto",
    "AutoModelForSequenceClassification": "bertkit.model.auto",
    "AutoModelForTokenClassification": "bertkit.model.auto",
    "AutoTokenizer": "bertkit.text.auto",
    "BertConfig": "bertkit.checkpoint.config",
    "BertCrfForTokenClassification": "bertkit.model.crf_head",
    "BertForMaskedLM": "bertkit.model.heads",
    "BertForMultipleChoice": "bertkit.model.task_heads",
    "BertForNextSentencePrediction": "bertkit.model.heads",
    "BertForPreTraining": "bertkit.model.heads",
    "BertForQuestionAnswering": "bertkit.model.task_heads",
    "BertForSequenceClassification": "bertkit.model.task_heads",
    "BertForTokenClassification": "bertkit.model.task_heads",
    "BertModel": "bertkit.model.bert",
    "BertPreTrainedModel": "bertkit.model.base",
    "BertPretrainingLoss": "bertkit.model.losses",
    "BertTokenizer": "bertkit.text.tokenizer",
    "BertTokenizerFast": "bertkit.text.tokenizer",
    "BertkitError": "bertkit.errors",
    "build_pair": "bertkit.data.pairs",
    "extend_positions": "bertkit.model.grow",
    "load": "bertkit.tasks.load",
    "mask_tokens": "bertkit.data.masking",
    "sentence_pairs": "bertkit.data.pairs",
}

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForNextSentencePrediction",
    "AutoModelForPreTraining",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "BertConfig",
    "BertCrfForTokenClassification",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "BertPreTrainedModel",
    "BertPretrainingLoss",
    "BertTokenizer",
    "BertTokenizerFast",
    "BertkitError",
    "build_pair",
    "extend_positions",
    "load",
    "mask_tokens",
    "sentence_pairs",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home, once."""
    home = HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'bertkit' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
