"""How much each token or word of a text pushes a number of the model: four methods.

integrated-gradients  the gradient along the straight way from a baseline to the text's word
                      embeddings, times the difference (Sundararajan et al. 2017, arXiv 1703.01365;
                      Captum, Gauss-Legendre points); the values add up to f(text) - f(baseline)
gradient-x-input      the gradient at the text times its word embeddings
occlusion             f(text) - f(text with a word masked), word by word
deletion              f(text) - f(text without a word), word by word

Position and segment embeddings stay, and so do [CLS], [SEP] and [MASK] in every baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from bertkit.errors import UsageError
from bertkit.explain.asked_scores import Aim, Copies, Quantity, numbers
from bertkit.explain.corpus import BATCH_TOKENS
from bertkit.explain.hooks import still
from bertkit.explain.opening import Opened
from bertkit.explain.result import Floats
from bertkit.explain.words import Sentence
from bertkit.model.task_heads import BertForSequenceClassification
from bertkit.tasks.asking import pack

Method = Literal["integrated-gradients", "gradient-x-input", "occlusion", "deletion"]
Baseline = Literal["mask", "pad", "zero"]
# Tokens of a pass with gradients, which keeps all layers' states: about 0.75 GB of a base model.
GRADIENT_TOKENS = 1024


@dataclass(frozen=True)
class AttributionOptions:
    """How a number is explained.

    Attributes:
        method: one of the four above.
        quantity: "logit", or "probability": of several tokens the product of theirs.
        baseline: of integrated gradients: the embedding of [MASK] or [PAD] in place of each token,
            or zeros.
        steps: of integrated gradients: points on the way from the baseline to the text.

    Raises:
        UsageError: one of them is none of these.
    """

    method: Method = "integrated-gradients"
    quantity: Quantity = "logit"
    baseline: Baseline = "mask"
    steps: int = 50

    def __post_init__(self) -> None:
        known = {"method": Method, "quantity": Quantity, "baseline": Baseline}
        for name, allowed in known.items():
            given = getattr(self, name)
            if given not in get_args(allowed):
                raise UsageError(f"{name} is {given!r}; one of {', '.join(get_args(allowed))}")
        if self.steps < 1:
            raise UsageError(f"steps is {self.steps}; at least 1 is taken")


class Contributions(NamedTuple):
    """What one number is made of.

    Attributes:
        value: the number at the text.
        baseline_value: at the baseline; NaN where there is none.
        tokens: [S] what each token pushes; empty where words were hidden as wholes.
        words: [W] the same of the words of the sentence; NaN for one that cannot be left out, since
            the number is read there.
    """

    value: float
    baseline_value: float
    tokens: Floats
    words: Floats


def contributions_of(opened: Opened, aim: Aim, options: AttributionOptions) -> Contributions:
    """Explain one number.

    Raises:
        UsageError: integrated gradients are wanted and Captum is not installed, or a probability
            of a model that gives a number.
    """
    if options.quantity == "probability" and _gives_a_number(opened.model):
        raise UsageError(f"{opened.name}: gives a number, which has no probability; take the logit")
    gradients = options.method in ("integrated-gradients", "gradient-x-input")
    with still(opened.model, grad=gradients):
        if not gradients:
            return _hidden_words(opened, aim, options)
        return _gradients(opened, aim, options)


def _gives_a_number(model: Any) -> bool:
    if not isinstance(model, BertForSequenceClassification):
        return False
    kind = model.config.problem_type
    return kind == "regression" or (kind is None and model.config.num_labels == 1)


def _gradients(opened: Opened, aim: Aim, options: AttributionOptions) -> Contributions:
    vectors = _vectors(opened, aim.sentence)
    size = len(vectors)

    def measure(copies: Tensor) -> Tensor:
        """[n, S, D] word embeddings -> [n]."""
        same = Copies.of(aim.sentence, len(copies))
        return numbers(opened, aim, options.quantity, same, copies.flatten(0, 1))

    if options.method == "gradient-x-input":
        here = vectors.unsqueeze(0).requires_grad_()
        value = measure(here)
        (gradient,) = torch.autograd.grad(value.sum(), here)
        values, baseline_value = gradient * here.detach(), float("nan")
    else:
        base = baseline_of(opened, aim.sentence, options.baseline)
        explain = _integrated_gradients()(measure)
        values = explain.attribute(
            vectors.unsqueeze(0),
            base.unsqueeze(0),
            n_steps=options.steps,
            method="gausslegendre",
            internal_batch_size=max(1, GRADIENT_TOKENS // size),
        )
        with torch.no_grad():
            value = measure(vectors.unsqueeze(0))
            baseline_value = float(measure(base.unsqueeze(0)))
    tokens = _numpy(values[0].sum(-1))
    exact = tokens.astype(np.float64)
    words = np.array([exact[word.first : word.last].sum() for word in aim.sentence.words])
    return Contributions(float(value.detach()), baseline_value, tokens, words)


def _integrated_gradients() -> Callable[[Callable[[Tensor], Tensor]], Any]:
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise UsageError(
            'integrated gradients need Captum: pip install "bertkit[captum]", or take another '
            "method"
        ) from error
    return IntegratedGradients  # type: ignore[no-any-return]


def _vectors(opened: Opened, sentence: Sentence) -> Tensor:
    """[S, D]: the word embeddings that the text is read with."""
    ids = sentence.batch().input_ids.to(opened.encoder.device)
    vectors: Tensor = opened.encoder.embeddings.word_embeddings(ids)
    return vectors.detach().clone()


def baseline_of(opened: Opened, sentence: Sentence, baseline: Baseline) -> Tensor:
    """[S, D]: word embeddings that say nothing; [CLS], [SEP] and [MASK] keep theirs."""
    tokenizer, vectors = opened.tokenizer, _vectors(opened, sentence)
    table = opened.encoder.embeddings.word_embeddings.weight.detach()
    nothing = {
        "mask": table[tokenizer.mask_token_id],
        "pad": table[tokenizer.pad_token_id],
        "zero": torch.zeros_like(table[0]),
    }[baseline]
    stays = [
        span is None or token == tokenizer.mask_token_id
        for span, token in zip(sentence.spans, sentence.ids, strict=True)
    ]
    return torch.where(torch.tensor(stays, device=table.device).unsqueeze(1), vectors, nothing)


def _hidden_words(opened: Opened, aim: Aim, options: AttributionOptions) -> Contributions:
    """What the number loses when a word is hidden: all copies end to end, in parts."""
    value = float(numbers(opened, aim, options.quantity, Copies.of(aim.sentence, 1)))
    words = np.full(len(aim.sentence.words), np.nan)
    asked = set(aim.tokens)
    gone = [
        number
        for number, word in enumerate(aim.sentence.words)
        if options.method == "occlusion" or asked.isdisjoint(range(word.first, word.last))
    ]
    many = max(1, BATCH_TOKENS // len(aim.sentence.ids))
    for start in range(0, len(gone), many):
        part = gone[start : start + many]
        copies = (_masked if options.method == "occlusion" else _shortened)(opened, aim, part)
        found = numbers(opened, aim, options.quantity, copies)
        words[part] = value - found.double().cpu().numpy()
    return Contributions(value, float("nan"), np.zeros(0), words)


def _masked(opened: Opened, aim: Aim, gone: list[int]) -> Copies:
    copies = Copies.of(aim.sentence, len(gone))
    ids = copies.batch.input_ids.view(len(gone), -1)
    for row, number in zip(ids, gone, strict=True):
        word = aim.sentence.words[number]
        row[word.first : word.last] = opened.tokenizer.mask_token_id
    return copies


def _shortened(opened: Opened, aim: Aim, gone: list[int]) -> Copies:
    sentence = aim.sentence
    rows, types = [], []
    places = torch.full((len(gone), len(sentence.ids)), -1)
    start = 0
    for copy, number in enumerate(gone):
        word = sentence.words[number]
        left = [i for i in range(len(sentence.ids)) if not word.first <= i < word.last]
        rows.append([sentence.ids[i] for i in left])
        types.append([sentence.types[i] for i in left])
        places[copy, left] = torch.arange(start, start + len(left))
        start += len(left)
    return Copies(pack(rows, types), places)


def _numpy(values: Tensor) -> Floats:
    """On the CPU, in a format that numpy has."""
    values = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    array: Floats = values.cpu().numpy()
    return array
