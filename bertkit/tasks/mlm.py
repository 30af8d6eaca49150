"""What stands at a [MASK]: the question that a pretrained BERT was trained to answer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, overload

import torch
from torch import Tensor

from bertkit.checkpoint.report import is_initial
from bertkit.errors import DataError, MissingHeadError, UsageError
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


class Fill(TypedDict):
    """One candidate for a mask, with the keys of transformers' fill-mask pipeline.

    `token` is its id (a list of ids for a word of several), `token_str` how it is written, `score`
    its probability, `sequence` the user's own text with this mask replaced.
    """

    token: int | list[int]
    token_str: str
    score: float
    sequence: str


@dataclass(frozen=True, slots=True)
class _Text:
    """A text, its ids without special tokens, and where its masks are among ids and characters."""

    text: str
    ids: list[int]
    masks: list[int]
    spans: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Question:
    """Ids without special tokens, the indices that are asked, and the span that must be kept."""

    ids: list[int]
    asked: list[int]
    keep: tuple[int, int]


class FillMask:
    """Predicts what stands at each mask of a text.

    Args:
        model: a model with the masked-word head (BertForMaskedLM, BertForPreTraining).
        tokenizer: the tokenizer it was trained with.

    Raises:
        MissingHeadError: the model lacks the head, or the head was never trained.
        CheckpointError: the tokenizer has more tokens than the model.
    """

    def __init__(self, model: Any, tokenizer: BertTokenizer) -> None:
        check_mlm_head(model)
        check_tokenizer_fits(model, tokenizer)
        self.model, self.tokenizer = model, tokenizer
        self.max_length: int = model.config.max_position_embeddings

    @overload
    def fill(
        self, texts: str, top_k: int = 5, targets: Sequence[str] | None = None
    ) -> list[list[Fill]]: ...

    @overload
    def fill(
        self, texts: list[str], top_k: int = 5, targets: Sequence[str] | None = None
    ) -> list[list[list[Fill]]]: ...

    def fill(
        self, texts: str | list[str], top_k: int = 5, targets: Sequence[str] | None = None
    ) -> list[list[Fill]] | list[list[list[Fill]]]:
        """The likeliest candidates for each mask, best first.

        The score of a single token is its probability at the mask, as in transformers. A target
        of k pieces takes the mask's place as k masks, and its score is the product of the
        probabilities of its pieces from left to right, each given those before it: the chain rule,
        so that no piece is predicted while the rest of its own word gives it away (Kauf and
        Ivanova 2023, arXiv 2305.10588). A target of one piece scores the same either way.

        Args:
            texts: one text or several, with the mask token where words are wanted. Of a text
                longer than the model reads, the part around its masks counts.
            top_k: how many candidates for each mask.
            targets: only these words compete; each may be several tokens.

        Returns:
            For one text a list a mask; for several, a list of these.

        Raises:
            DataError: a text has no mask, or its masks stand too far apart, or the vocabulary
                cannot write a target.
        """
        if top_k < 1:
            raise UsageError(f"top_k is {top_k}; it must be 1 or more")
        read = self._read([texts] if isinstance(texts, str) else list(texts))
        with answering(self.model):
            answers = self._open(read, top_k) if targets is None else self._among(read, targets)
        answers = [[mask[:top_k] for mask in answer] for answer in answers]
        return answers[0] if isinstance(texts, str) else answers

    def _read(self, texts: list[str]) -> list[_Text]:
        if not texts:
            return []
        mask = self.tokenizer.mask_token
        rows = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        read = []
        for number, (text, ids, offsets) in enumerate(
            zip(texts, rows["input_ids"], rows["offset_mapping"], strict=True), 1
        ):
            masks = [i for i, token in enumerate(ids) if token == self.tokenizer.mask_token_id]
            if not masks:
                like = re.search(re.escape(mask), text, re.IGNORECASE)
                example = f"where a word is wanted, such as 'The cat {mask} on the mat.'"
                raise DataError(
                    f"text {number} has no {mask}: {_short(text)!r}; write {mask} "
                    + (f"instead of {like[0]}" if like else example)
                )
            read.append(_Text(text, ids, masks, [tuple(offsets[i]) for i in masks]))
        return read

    def _open(self, texts: list[_Text], top_k: int) -> list[list[list[Fill]]]:
        """All tokens compete."""
        questions = [_Question(t.ids, t.masks, (t.masks[0], t.masks[-1] + 1)) for t in texts]
        answers: list[list[list[Fill]]] = [[] for _ in texts]
        for i, log_probabilities in self._ask(questions):
            # A model may have more rows than the tokenizer has tokens: these name nothing.
            known = log_probabilities[:, : len(self.tokenizer)]
            best = known.topk(min(top_k, known.shape[1]))
            for span, scores, ids in zip(
                texts[i].spans, best.values.exp().tolist(), best.indices.tolist(), strict=True
            ):
                words = self.tokenizer.convert_ids_to_tokens(ids)
                answers[i].append(
                    [
                        Fill(token=t, token_str=w, score=s, sequence=_put(texts[i].text, span, w))
                        for t, w, s in zip(ids, words, scores, strict=True)
                    ]
                )
        return answers

    def _among(self, texts: list[_Text], targets: Sequence[str]) -> list[list[list[Fill]]]:
        """Only `targets` compete."""
        pieces = {word: self._pieces(word) for word in targets}
        if not pieces:
            raise UsageError("targets is empty; name the words that compete, or leave it out")
        # A question is a prefix of pieces and how many masks are left for the rest.
        steps = sorted({step for ids in pieces.values() for step in _steps(ids)})
        questions = [
            self._with_prefix(text, mask, *step)
            for text in texts
            for mask in text.masks
            for step in steps
        ]
        wanted = [[ids for ids in pieces.values() if step in _steps(ids)] for step in steps]
        # By (number of the question, next piece): the log-probability.
        found: dict[tuple[int, int], float] = {}
        for i, log_probabilities in self._ask(questions):
            prefix, _ = steps[i % len(steps)]
            for ids in wanted[i % len(steps)]:
                piece = ids[len(prefix)]
                found[i, piece] = float(log_probabilities[0, piece])
        places = {step: place for place, step in enumerate(steps)}
        firsts = iter(range(0, len(questions), len(steps)))
        return [
            [
                _best_first(text.text, span, pieces, places, found, next(firsts))
                for span in text.spans
            ]
            for text in texts
        ]

    def _with_prefix(self, text: _Text, mask: int, prefix: tuple[int, ...], left: int) -> _Question:
        """The text with a mask become `prefix` and `left` masks, the first of which is asked."""
        place = [*prefix, *[self.tokenizer.mask_token_id] * left]
        ids = text.ids[:mask] + place + text.ids[mask + 1 :]
        return _Question(ids, [mask + len(prefix)], (text.masks[0], text.masks[-1] + len(place)))

    def _pieces(self, word: str) -> list[int]:
        known = self.tokenizer.get_vocab().get(word)
        ids = [known] if known is not None else self.tokenizer.encode_sentences([word])[0]
        if not ids or self.tokenizer.unk_token_id in ids:
            raise DataError(f"the vocabulary cannot write the target {word!r}")
        return ids

    def _ask(self, questions: list[_Question]) -> Iterator[tuple[int, Tensor]]:
        """(number of the question, [asked, V] log-probabilities on the CPU), in any order."""
        rows = []
        for question in questions:
            start, stop = _window(len(question.ids), question.keep, self.max_length - 2)
            ids = [
                self.tokenizer.cls_token_id,
                *question.ids[start:stop],
                self.tokenizer.sep_token_id,
            ]
            rows.append((ids, [1 + at - start for at in question.asked]))
        for chunk in chunks([(len(ids), len(asked)) for ids, asked in rows]):
            batch = pack([rows[i][0] for i in chunk])
            starts = batch.starts.tolist()
            positions = torch.tensor(
                [start + at for i, start in zip(chunk, starts, strict=True) for at in rows[i][1]]
            )
            logits = self.model.mlm_logits_at(batch.to(self.model.device), positions)
            parts = logits.float().log_softmax(-1).cpu().split([len(rows[i][1]) for i in chunk])
            yield from zip(chunk, parts, strict=True)


def check_mlm_head(model: Any) -> None:
    """Raise MissingHeadError where a model lacks the masked-word head, or never trained it."""
    head = getattr(getattr(model, "cls", None), "predictions", None)
    what = "masked-word head (cls.predictions)"
    check_head_is_there(model, head, ("cls.predictions.",), what)
    norm = head.transform.LayerNorm  # type: ignore[union-attr]
    if is_initial(head.decoder.bias, norm.weight, norm.bias):  # type: ignore[union-attr]
        raise MissingHeadError(f"{model_name(model)}: its {what} was never trained")


def _window(length: int, keep: tuple[int, int], room: int) -> tuple[int, int]:
    """The `room` ids with as much before as after those that are kept, as the ends allow."""
    if length <= room:
        return 0, length
    first, last = keep
    if last - first > room:
        raise DataError(
            f"the masks of a text stand {last - first} tokens apart; the model reads {room} at once"
        )
    start = min(max((first + last - room) // 2, 0), length - room)
    return start, start + room


def _steps(ids: list[int]) -> list[tuple[tuple[int, ...], int]]:
    """For each piece of a word: the pieces before it, and the masks from it on."""
    return [(tuple(ids[:done]), len(ids) - done) for done in range(len(ids))]


def _best_first(
    text: str,
    span: tuple[int, int],
    pieces: dict[str, list[int]],
    places: dict[tuple[tuple[int, ...], int], int],
    found: dict[tuple[int, int], float],
    first: int,
) -> list[Fill]:
    """The target words at one mask, whose questions are numbered from `first`."""
    fills = []
    for word, ids in pieces.items():
        log = sum(
            found[first + places[step], piece] for step, piece in zip(_steps(ids), ids, strict=True)
        )
        token = ids[0] if len(ids) == 1 else ids
        sequence = _put(text, span, word)
        fills.append(Fill(token=token, token_str=word, score=math.exp(log), sequence=sequence))
    return sorted(fills, key=lambda fill: -fill["score"])


def _put(text: str, span: tuple[int, int], word: str) -> str:
    """The user's own text with the characters of one mask replaced."""
    before = text[: span[0]]
    if word.startswith("##") and len(word) > 2:
        before, word = before.rstrip(), word[2:]
    return before + word + text[span[1] :]


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
