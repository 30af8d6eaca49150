"""The names that `import bertkit` offers are written down here; a change of them is a decision."""

from __future__ import annotations

import importlib
import subprocess
import sys

import bertkit

NAMES = [
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


def test_all_is_sorted_and_as_written() -> None:
    assert sorted(NAMES) == bertkit.__all__


def test_every_name_resolves_to_one_object() -> None:
    for name in bertkit.__all__:
        value = getattr(bertkit, name)
        home = importlib.import_module(bertkit.HOMES[name])
        assert value is getattr(home, name)
    assert set(bertkit.__all__) <= set(dir(bertkit))


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(bertkit, "BertForNothing")


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_bertkit_loads_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules); import bertkit; print(*set(sys.modules) - before)"
    )
    loaded = {name.split(".")[0] for name in run_python(code).split()}
    assert loaded.isdisjoint({"torch", "numpy", "tokenizers", "transformers", "cyclopts", "rich"})


def test_importing_bertkit_takes_no_time() -> None:
    code = (
        "import time; start = time.process_time(); import bertkit;"
        "print(time.process_time() - start)"
    )
    assert min(float(run_python(code)) for _ in range(3)) < 0.1
