"""`bertkit fill` and `bertkit next`: ask a trained model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from bertkit.errors import UsageError
from bertkit.verbs.options import Common, warnings_unless_refused

Model = Annotated[
    str, Parameter(help="A model folder, a run folder, or a name on the Hugging Face hub.")
]
Revision = Annotated[str | None, Parameter(help="Branch, tag or commit of a model on the hub.")]


@Parameter(name="*")
@dataclass(kw_only=True)
class FillOptions:
    """What to print for each mask."""

    top: Annotated[int, Parameter(help="Words shown for each [MASK].")] = 5
    targets: Annotated[
        str | None,
        Parameter(
            help="Show these words only, separated by commas, such as good,bad; a score stays the "
            "probability among all words of the vocabulary."
        ),
    ] = None
    revision: Revision = None


def fill(
    model: Model,
    text: Annotated[
        list[str] | None,
        Parameter(help="With [MASK] in it; without any text, a line of standard input is one."),
    ] = None,
    /,
    *,
    options: FillOptions | None = None,
    common: Common | None = None,
) -> None:
    """Predict what stands at each [MASK]."""
    options, common = options or FillOptions(), common or Common()
    texts = text or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if options.top < 1:
        raise UsageError(f"--top {options.top}: at least 1 word is shown")
    if not texts:
        raise UsageError('nothing to fill; give a text such as "The cat [MASK] on the mat."')
    from bertkit import load

    targets = [word for word in (options.targets or "").split(",") if word] or None
    with warnings_unless_refused():
        asked = load(model, device=common.device, revision=options.revision)
        answers = asked.fill(texts, top_k=options.top, targets=targets)
    if targets:
        common.say("scores are probabilities among all words of the vocabulary, not among these")
    pairs = list(zip(texts, answers, strict=True))
    common.show(
        {"results": [{"text": one, "masks": masks} for one, masks in pairs]},
        "\n\n".join(_table_of_fills(one, masks) for one, masks in pairs),
    )


def _table_of_fills(text: str, masks: list[list[dict[str, Any]]]) -> str:
    """The text, then for each of its masks a line a word: `0.412  sat`; three digits count."""
    lines = [text]
    for number, words in enumerate(masks, 1):
        if len(masks) > 1:
            lines.append(f"  mask {number}")
        scores = [f"{word['score']:#.3g}" for word in words]
        width = max(map(len, scores))
        lines += [
            f"  {score:>{width}}  {word['token_str']}"
            for score, word in zip(scores, words, strict=True)
        ]
    return "\n".join(lines)


def next_sentence(
    model: Model,
    a: Annotated[str, Parameter(help="The first sentence.")],
    b: Annotated[str, Parameter(help="The second sentence.")],
    /,
    *,
    revision: Revision = None,
    common: Common | None = None,
) -> None:
    """How likely is it that sentence B follows sentence A?

    A pair longer than the model reads is cut, the longer text first, each from its end; that is
    said, and in --json it is `truncated_tokens`.
    """
    common = common or Common()
    from bertkit import load

    with warnings_unless_refused():
        answer = load(model, device=common.device, revision=revision).next(a, b)
    common.show(answer, f"{answer['score']:#.3g}  {answer['label']}")
