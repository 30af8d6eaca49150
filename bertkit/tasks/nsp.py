"""Whether one sentence follows another."""

from __future__ import annotations

import logging
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
from bertkit.tasks.encode import cut_pair, framed

if TYPE_CHECKING:
    from bertkit.text.tokenizer import BertTokenizer

_log = logging.getLogger("bertkit")


class NextSentence(TypedDict):
    """Whether B follows A: the likelier `label` with its `score`, and both probabilities.

    `truncated_tokens` are how many of A's and of B's tokens were cut off, from their ends.
    """

    label: str
    score: float
    is_next: float
    random: float
    truncated_tokens: list[int]


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
        """How likely B is the text that follows A.

        A pair that is longer than the model reads is cut, the longer text first, each from its
        end, as in transformers' "longest_first"; that is logged and told in the answer.

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
        room = self.model.config.max_position_embeddings - 3  # [CLS], [SEP], [SEP]
        rows, cuts = [], []
        for one, other in zip(self._ids(firsts), self._ids(seconds), strict=True):
            kept = cut_pair(len(one), len(other), room)
            cuts.append([len(one) - kept[0], len(other) - kept[1]])
            rows.append(framed(self.tokenizer, one[: kept[0]], other[: kept[1]]))
        _warn(cuts, room)
        answers: dict[int, NextSentence] = {}
        with answering(self.model):
            for chunk in chunks([(len(ids), 0) for ids, _ in rows]):
                types = [[0] * rows[i][1] + [1] * (len(rows[i][0]) - rows[i][1]) for i in chunk]
                batch = pack([rows[i][0] for i in chunk], types)
                logits = self.model.nsp_logits(batch.to(self.model.device))
                for i, (follows, random) in zip(
                    chunk, logits.float().softmax(-1).tolist(), strict=True
                ):
                    answers[i] = NextSentence(
                        label="is_next" if follows >= random else "random",
                        score=max(follows, random),
                        is_next=follows,
                        random=random,
                        truncated_tokens=cuts[i],
                    )
        return [answers[i] for i in range(len(rows))]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def _warn(cuts: list[list[int]], room: int) -> None:
    """Log how many tokens of which text were left out, of the first pair that was cut."""
    long = [number for number, cut in enumerate(cuts) if any(cut)]
    if long:
        pair = f"pair {long[0] + 1}: " if len(cuts) > 1 else ""
        lost = " and ".join(
            f"the last {lost:,} tokens of the {name} text"
            for name, lost in zip(("first", "second"), cuts[long[0]], strict=True)
            if lost
        )
        more = f" ({len(long):,} of {len(cuts):,} pairs are cut)" if len(cuts) > 1 else ""
        _log.warning("%sleft out %s; the model reads %d of a pair%s", pair, lost, room, more)


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
