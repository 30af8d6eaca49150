"""What `attribute` asks of a model: which numbers of its own it is to explain (asked_scores.py)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from bertkit.errors import DataError, MissingHeadError, UsageError
from bertkit.explain.asked import Question, has_words, masked_questions
from bertkit.explain.asked_scores import Aim, Part
from bertkit.explain.hooks import still
from bertkit.explain.opening import Opened
from bertkit.explain.readouts import CRF_NOTE
from bertkit.explain.words import Segmenter, Sentence, Word
from bertkit.model.crf_head import BertCrfForTokenClassification
from bertkit.model.task_heads import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from bertkit.tasks.answers import TaskAnswers
from bertkit.tasks.records import Span
from bertkit.tasks.schemes import OUTSIDE, PLAIN, to_spans, to_tags

# What an answer's start and end are called among the two logits of each token.
START, END = 0, 1
VALUE = "value"
MASKED_WORDS = "masked words"


def aims_of(
    opened: Opened,
    text: str,
    pair: str | None = None,
    *,
    word: str | int | None = None,
    target: str | None = None,
    against: str | None = None,
    segmenter: Segmenter | None = None,
) -> list[Aim]:
    """What is asked of a model, as its head has it.

    Args:
        opened: one with a masked-word head, or one that labels texts or words or finds answers.
        text: with masks, or `word`, for masked words; the question where answers are found.
        pair: the second text; the passage.
        word: a word, or words side by side, that is masked or whose label is asked; its number.
        target: what the model may say: a token, a label, a type of entity, an answer of the passage
            ("": that there is none). None: what it does say.
        against: another one; the difference is explained.
        segmenter: "jieba" for Chinese words of several characters.

    Raises:
        UsageError: the model cannot be asked so, or has no such label or token.
        DataError: there is no mask, word, entity or answer as asked, or the text is too long.
        MissingHeadError: the model has no head that can be asked.
    """
    model = opened.model
    if has_words(model):
        return _word_aims(opened, text, pair, word, target, against, segmenter)
    if isinstance(model, BertForTokenClassification):
        if pair is not None:
            raise UsageError(f"{opened.name}: labels the words of one text; leave the pair out")
        return _tag_aims(opened, text, word, target, against, segmenter)
    if word is not None:
        raise UsageError(f"{opened.name}: labels whole texts or finds answers; leave the word out")
    sentence = opened.read(text, pair, segmenter)
    if isinstance(model, BertForSequenceClassification):
        return [_text_aim(opened, sentence, target, against)]
    if isinstance(model, BertForQuestionAnswering):
        return [_answer_aim(opened, sentence, target, against)]
    raise MissingHeadError(
        f"{opened.name}: attribution is for models that guess masked words, label texts or words, "
        "or find answers; this one does not"
    )


def stretch(sentence: Sentence, word: str | int) -> Word:
    """A word, or several side by side as one.

    Raises:
        DataError: there are none that are written so.
    """
    try:
        return sentence.find(word)
    except DataError:
        if isinstance(word, int):
            raise
        firsts = {(w.segment, w.start): w.first for w in sentence.words}
        lasts = {(w.segment, w.end): w.last for w in sentence.words}
        for segment, text in enumerate(sentence.texts):
            start = text.find(word)
            while word and start >= 0:
                end = start + len(word)
                if (segment, start) in firsts and (segment, end) in lasts:
                    first, last = firsts[segment, start], lasts[segment, end]
                    return Word(word, start, end, first, last, segment)
                start = text.find(word, start + 1)
        raise


def _word_aims(
    opened: Opened,
    text: str,
    pair: str | None,
    word: str | int | None,
    target: str | None,
    against: str | None,
    segmenter: Segmenter | None,
) -> list[Aim]:
    """Masked words: the pieces of one together, or each mask by itself."""
    if word is not None:
        if target is not None:
            raise UsageError(
                "a word that is masked is its own target; name another one as what it is set "
                "against"
            )
        plain = opened.read(text, pair, segmenter)
        found = stretch(plain, word)
        hidden = plain.masked(found, opened.tokenizer.mask_token_id)
        places = range(found.first, found.last)
        parts = tuple(Part(i, plain.ids[i]) for i in places)
        other = _pieces(opened, against, list(places))
        return [Aim(hidden, _named(found.text, against), MASKED_WORDS, parts, other)]
    aims = []
    asked = masked_questions(opened, text, pair, target=target, segmenter=segmenter)
    for question in asked:
        best = question.target if question.target is not None else _likeliest(opened, question)
        said = opened.tokenizer.convert_ids_to_tokens([best])[0]
        where = f" (token {question.token})" if len(asked) > 1 else ""
        name = _named(f"{said} at {question.label}{where}", against)
        other = _pieces(opened, against, [question.token])
        label = MASKED_WORDS if target is None else target
        aims.append(Aim(question.sentence, name, label, (Part(question.token, best),), other))
    return aims


def _named(name: str, against: str | None) -> str:
    return name if against is None else f"{name} rather than {against or 'none'}"


def _pieces(opened: Opened, word: str | None, places: list[int]) -> tuple[Part, ...]:
    """The pieces of another word at the places of the first.

    Raises:
        DataError: it has another number of pieces, or one is unknown.
    """
    if word is None:
        return ()
    known = opened.tokenizer.get_vocab().get(word)
    ids = [known] if known is not None else opened.tokenizer.encode_sentences([word])[0]
    if len(ids) != len(places) or opened.tokenizer.unk_token_id in ids:
        pieces = " ".join(opened.tokenizer.convert_ids_to_tokens(list(ids)))
        raise DataError(
            f"{word!r} is {pieces or 'nothing'}: to be set against, it needs {len(places)} known "
            f"{'piece' if len(places) == 1 else 'pieces'}"
        )
    return tuple(Part(place, int(i)) for place, i in zip(places, ids, strict=True))


def _likeliest(opened: Opened, question: Question) -> int:
    """The token that the model would put at a mask; of those that the tokenizer knows."""
    batch = question.sentence.batch().to(opened.encoder.device)
    with still(opened.model):
        logits = opened.model.mlm_logits_at(batch, torch.tensor([question.token]))
    return int(logits[0, : len(opened.tokenizer)].argmax())


def _text_aim(opened: Opened, sentence: Sentence, target: str | None, against: str | None) -> Aim:
    """The label of a text, or its number."""
    task = TaskAnswers(opened.model, opened.tokenizer, "classify", "regress").task
    if task.name == "regress":
        if target is not None or against is not None:
            raise UsageError(f"{opened.name}: gives a number, not labels; name no target")
        return Aim(sentence, VALUE, VALUE, (Part(0, 0),))
    labels = {name: int(n) for n, name in opened.model.config.id2label.items()}
    if target is None:
        with still(opened.model):
            logits = opened.model.ragged(sentence.batch().to(opened.encoder.device))
        target = list(labels)[list(labels.values()).index(int(logits[0].argmax()))]
    part = (Part(0, _label(opened, labels, target)),)
    other = () if against is None else (Part(0, _label(opened, labels, against)),)
    return Aim(sentence, _named(target, against), target, part, other)


def _label(opened: Opened, labels: dict[str, int], name: str) -> int:
    if name not in labels:
        raise UsageError(f"{opened.name}: {name!r} is no label of the model: {', '.join(labels)}")
    return labels[name]


def _tag_aims(
    opened: Opened,
    text: str,
    word: str | int | None,
    target: str | None,
    against: str | None,
    segmenter: Segmenter | None,
) -> list[Aim]:
    """The label of a word or an entity; without a word, of each entity that the model finds."""
    task: Any = TaskAnswers(opened.model, opened.tokenizer, "tag").task
    # The tagger reads the tokenizer's words, whatever words a reader wants to see.
    plain, shown = opened.read(text), opened.read(text, None, segmenter)
    tags, spelled = _tags(opened, plain, task.labels), partial(_spelled, opened, task)
    if word is not None:
        found = stretch(plain, word) if isinstance(word, str) else stretch(shown, word)
        inside = [n for n, w in enumerate(plain.words) if found.first <= w.first < found.last]
        said = [tags[n] for n in inside] if target is None else spelled(target, len(inside))
        kinds = {span.label for span in to_spans(said, task.scheme)} or {OUTSIDE}
        asked = [(inside, said, target or " ".join(sorted(kinds)))]
    else:
        if task.scheme == PLAIN:
            raise UsageError("the model labels every word; name the word that is asked about")
        asked = [
            (list(range(start, end)), tags[start:end], label)
            for start, end, label in to_spans(tags, task.scheme)
            if target in (None, label)
        ]
        if not asked:
            what = "entity" if target is None else repr(target)
            raise DataError(f"the model finds no {what} in the text; name a word that is asked")
    note = CRF_NOTE if isinstance(opened.model, BertCrfForTokenClassification) else ""
    aims = []
    for inside, said, label in asked:
        firsts = [plain.words[n].first for n in inside]
        parts = _at(task, firsts, said)
        other = () if against is None else _at(task, firsts, spelled(against, len(inside)))
        start, end = plain.words[inside[0]].start, plain.words[inside[-1]].end
        written = plain.texts[plain.words[inside[0]].segment][start:end]
        name = _named(f"{label} of {written}", against)
        aims.append(Aim(shown, name, label, parts, other, note))
    return aims


def _at(task: Any, firsts: list[int], tags: list[str]) -> tuple[Part, ...]:
    return tuple(Part(i, task.numbers[tag]) for i, tag in zip(firsts, tags, strict=True))


def _spelled(opened: Opened, task: Any, target: str, count: int) -> list[str]:
    """A tag for each of some words: a tag of the model itself, or a type spelled in its scheme."""
    if target in task.numbers:
        return [target] * count
    tags = to_tags([Span(0, count, target)], count, task.scheme)
    if any(tag not in task.numbers for tag in tags):
        names = dict.fromkeys((*task.types, *task.labels))
        raise UsageError(f"{opened.name}: {target!r} is no label of the model: {', '.join(names)}")
    return tags


def _tags(opened: Opened, sentence: Sentence, labels: list[str]) -> list[str]:
    """What the model says of each word."""
    batch = sentence.batch().to(opened.encoder.device)
    firsts = torch.tensor([word.first for word in sentence.words])
    with still(opened.model):
        if isinstance(opened.model, BertCrfForTokenClassification):
            chosen = opened.model.decode_ragged(batch, firsts, torch.tensor([len(firsts)]))
        else:
            chosen = opened.model.ragged(batch, firsts).argmax(-1)
    return [labels[n] for n in chosen.tolist()]


def _answer_aim(opened: Opened, sentence: Sentence, target: str | None, against: str | None) -> Aim:
    """Start and end of an answer."""
    if len(sentence.texts) != 2:
        raise UsageError("the model finds answers: the text is the question, the pair the passage")
    question, passage = sentence.texts
    if target is None:
        found = TaskAnswers(opened.model, opened.tokenizer, "qa").answer(question, passage)
        target, start = found["answer"], found["start"]
    else:
        start = _start_of(passage, target)
    parts = _ends(sentence, start, start + len(target))
    other: tuple[Part, ...] = ()
    if against is not None:
        begin = _start_of(passage, against)
        other = _ends(sentence, begin, begin + len(against))
    return Aim(sentence, _named(target or "no answer", against), "answer", parts, other)


def _start_of(passage: str, answer: str) -> int:
    start = passage.find(answer)
    if start < 0:
        raise DataError(f"the passage does not hold the answer {answer!r}")
    return start


def _ends(sentence: Sentence, start: int, end: int) -> tuple[Part, ...]:
    """The first and the last token of an answer; of none, both are [CLS]."""
    if start == end:
        return Part(0, START), Part(0, END)
    inside = [
        i
        for i, span in enumerate(sentence.spans)
        if span is not None and sentence.types[i] == 1 and span[0] < end and span[1] > start
    ]
    if not inside:
        raise DataError("no token of the passage stands under the answer")
    return Part(inside[0], START), Part(inside[-1], END)


def asks_for_a_word(opened: Opened, text: str, pair: str | None) -> bool:
    """Whether nothing can be asked of a text unless a word is named."""
    if has_words(opened.model):
        return opened.tokenizer.mask_token not in text + (pair or "")
    if isinstance(opened.model, BertForTokenClassification):
        task: Any = TaskAnswers(opened.model, opened.tokenizer, "tag").task
        return bool(task.scheme == PLAIN)
    return False
