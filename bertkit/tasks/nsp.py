"""Whether one sentence follows another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict, overload

from bertkit.errors import DataError, MissingHeadError
from bertkit.tasks.asking import (
    answering,
    check_head_is_there,
    check_tokenizer_fits,
    chunks,
    model_name,
    pack,
)

if TYPE_CHECKING:
    from bertkit.text.tokenizer import BertTokenizer


class NextSentence(TypedDict):
    """Whether B follows A: the likelier `label` with its `score`, and both probabilities."""

    label: str
    score: float
    is_next: float
    random: float


class NextSentencePrediction:
    """Tells whether a sentence follows another.

    Args:
        model: a model with the next-sentence head.
        tokenizer: the tokenizer it was trained with.

    Raises:
        MissingHeadError: the model lacks the head, or the head was never trained.
        CheckpointError: the tokenizer has more tokens than the model.
    """

    def __init__(self, model: Any, tokenizer: BertTokenizer) -> None:
        check_nsp_head(model)
        check_tokenizer_fits(model, tokenizer)
        self.model, self.tokenizer = model, tokenizer

    @overload
    def next(self, a: str, b: str) -> NextSentence: ...

    @overload
    def next(self, a: list[str], b: list[str]) -> list[NextSentence]: ...

    def next(self, a: str | list[str], b: str | list[str]) -> NextSentence | list[NextSentence]:
        """How likely B is the text that follows A. Too long a pair is cut, the longer text first.

        Args:
            a: a text, or several.
            b: a text, or as many.

        Raises:
            DataError: a text is empty, or there are not as many of B as of A.
        """
        single = isinstance(a, str) and isinstance(b, str)
        firsts, seconds = ([x] if isinstance(x, str) else list(x) for x in (a, b))
        if len(firsts) != len(seconds):
            raise DataError(f"there are {len(firsts)} first texts and {len(seconds)} second ones")
        for name, texts in (("first", firsts), ("second", seconds)):
            if not all(text.strip() for text in texts):
                raise DataError(f"the {name} text is empty; give two sentences")
        answers = self._answer(firsts, seconds) if firsts else []
        return answers[0] if single else answers

    def _answer(self, firsts: list[str], seconds: list[str]) -> list[NextSentence]:
        limit = self.model.config.max_position_embeddings
        rows = self.tokenizer(firsts, seconds, truncation="longest_first", max_length=limit)
        ids, types = rows["input_ids"], rows["token_type_ids"]
        answers: dict[int, NextSentence] = {}
        with answering(self.model):
            for chunk in chunks([(len(row), 0) for row in ids]):
                batch = pack([ids[i] for i in chunk], [types[i] for i in chunk])
                logits = self.model.nsp_logits(batch.to(self.model.device))
                for i, (follows, random) in zip(
                    chunk, logits.float().softmax(-1).tolist(), strict=True
                ):
                    label = "is_next" if follows >= random else "random"
                    answers[i] = NextSentence(
                        label=label, score=max(follows, random), is_next=follows, random=random
                    )
        return [answers[i] for i in range(len(ids))]


def check_nsp_head(model: Any) -> None:
    """Raise MissingHeadError where a model lacks the next-sentence head, or never trained it.

    A head trained on sentence order (mlm+sop) answers another question and is refused as well.
    """
    if getattr(getattr(model, "config", None), "pair_objective", None) == "sop":
        raise MissingHeadError(
            f"{model_name(model)}: its pair head was trained on sentence order (mlm+sop), not on "
            "next sentences"
        )
    head = getattr(getattr(model, "cls", None), "seq_relationship", None)
    what = "next-sentence head (cls.seq_relationship)"
    check_head_is_there(model, head, ("cls.seq_relationship.", "bert.pooler."), what)
    if not head.bias.any() and not model.bert.pooler.dense.bias.any():  # type: ignore[union-attr]
        raise MissingHeadError(f"{model_name(model)}: its {what} was never trained")
