"""Which positions of a text a verb is asked about."""

from __future__ import annotations

from typing import Any, NamedTuple

from bertkit.errors import DataError, MissingHeadError, UsageError
from bertkit.explain.opening import Opened
from bertkit.explain.words import Segmenter, Sentence
from bertkit.tasks.mlm import check_mlm_head


class Question(NamedTuple):
    """One position of a text.

    Attributes:
        sentence: the text as the model is to read it, asked words masked.
        token: the position.
        target: the id of what stood there, or of what the user names; None: nobody knows.
    """

    sentence: Sentence
    token: int
    target: int | None

    @property
    def label(self) -> str:
        """The user's own characters at the position."""
        return self.sentence.labels[self.token]


def has_words(model: Any) -> bool:
    """Whether the model has a masked-word head that was trained."""
    try:
        check_mlm_head(model)
    except MissingHeadError:
        return False
    return True


def masked_questions(
    opened: Opened,
    text: str,
    pair: str | None = None,
    *,
    word: str | int | None = None,
    target: str | None = None,
    segmenter: Segmenter | None = None,
) -> list[Question]:
    """The masks of a text, or the pieces of one word, which is masked and then is the target.

    Args:
        opened: the model.
        text: with a mask where `word` is None.
        pair: the second text.
        word: as it stands in the text, or its number from 0.
        target: one token that may stand at the masks.
        segmenter: "jieba" for Chinese words of several characters.

    Raises:
        UsageError: both a word and a target are named, or the vocabulary has no such target.
        DataError: there is no mask, or no such word.
    """
    sentence, mask = opened.read(text, pair, segmenter), opened.tokenizer.mask_token_id
    if word is not None:
        if target is not None:
            raise UsageError("a word that is masked is its own target; leave out one of both")
        found = sentence.find(word)
        hidden = sentence.masked(found, mask)
        return [Question(hidden, i, sentence.ids[i]) for i in range(found.first, found.last)]
    masks = sentence.masks(mask)
    if not masks:
        raise DataError(
            f"the text has no {opened.tokenizer.mask_token}; write it where a word is wanted, or "
            "name a word of the text to be masked"
        )
    wanted = None if target is None else one_token(opened, target)
    return [Question(sentence, token, wanted) for token in masks]


def one_token(opened: Opened, word: str) -> int:
    """The id of a word that is one token.

    Raises:
        UsageError: the vocabulary has no such token.
    """
    known = opened.tokenizer.get_vocab().get(word)
    ids = [known] if known is not None else opened.tokenizer.encode_sentences([word])[0]
    if len(ids) != 1 or ids[0] == opened.tokenizer.unk_token_id:
        pieces = " ".join(opened.tokenizer.convert_ids_to_tokens(list(ids)))
        raise UsageError(f"the target {word!r} is not one token of the vocabulary but {pieces}")
    return int(ids[0])
