"""What a fine-tuned model is asked from Python: texts in, the predictions of its task out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bertkit.errors import ConfigError, DataError, MissingHeadError, UsageError
from bertkit.tasks.asking import check_tokenizer_fits, model_name
from bertkit.tasks.build import saved_task
from bertkit.tasks.forward import predict
from bertkit.tasks.records import ChoiceRow, Place, QuestionRow, TagRow, TextRow
from bertkit.tasks.task import Prediction, Task

if TYPE_CHECKING:
    from bertkit.text.tokenizer import BertTokenizer

# Texts that are tokenized in one call and run side by side.
_AT_ONCE = 1024
_HEADS = {
    "classify": "sentence classifier (classifier)",
    "regress": "sentence classifier (classifier)",
    "tag": "token classifier (classifier)",
    "qa": "question-answering head (qa_outputs)",
    "choose": "multiple-choice head (classifier)",
}

Text = str | tuple[str, str]


class TaskAnswers:
    """Answers of a fine-tuned model; the same code as in evaluation and prediction.

    Args:
        model: of a class that the task names.
        tokenizer: the model's own.
        wanted: the tasks that the caller is about to ask for.

    Raises:
        MissingHeadError: the model is for something else, lacks the head, or never trained it.
        CheckpointError: the tokenizer has more tokens than the model.
    """

    def __init__(self, model: Any, tokenizer: BertTokenizer, *wanted: str) -> None:
        self.model = model
        try:
            self.task = saved_task(model.config, tokenizer)
        except ConfigError as error:
            raise _without(model, wanted[0], str(error)) from error
        if self.task.name not in wanted:
            raise _without(model, wanted[0], f"it was fine-tuned for {self.task.name}")
        check_task_head(self.task, model)
        check_tokenizer_fits(model, tokenizer)

    def classify(self, texts: Text | Sequence[Text], top_k: int | None = None) -> Any:
        """Labels with their probabilities, best first; of a regression model its number.

        Args:
            texts: a text, a pair of texts (a tuple), or a list of either.
            top_k: how many labels; None: all.

        Returns:
            `[{"label", "score"}, ...]`, or `{"score"}`; for a list of texts a list of these.
        """
        if top_k is not None and top_k < 1:
            raise UsageError(f"top_k is {top_k}; it must be 1 or more")
        one = isinstance(texts, (str, tuple))
        given = [texts] if one else given_list(texts, "texts", "a text, a pair (a tuple) or a list")
        rows = [
            _text_row(text, number, "texts" if one else f"texts[{number}]")
            for number, text in enumerate(given)
        ]
        found = self._ask(rows)
        if top_k is not None and self.task.name == "classify":
            found = [labels[:top_k] for labels in found]
        return found[0] if one else found

    def tag(self, texts: str | Sequence[str | Sequence[str]]) -> Any:
        """Entities, or the label of each word.

        Args:
            texts: a text, or a list of texts; each may be a list of words instead, which are
                joined by blanks.

        Returns:
            `[{"entity_group", "score", "word", "start", "end"}, ...]`; for a list a list of these.
        """
        one = isinstance(texts, str)
        listed = [texts] if one else given_list(texts, "texts", "a text or a list of texts")
        rows = [
            _tag_row(text, number, "texts" if one else f"texts[{number}]")
            for number, text in enumerate(listed)
        ]
        found = self._ask(rows)
        return found[0] if one else found

    def answer(self, question: str | Sequence[str], context: str | Sequence[str]) -> Any:
        """The stretch of each context that answers its question.

        Args:
            question: one, or a list.
            context: one, or a list of as many; one passage may serve many questions.

        Returns:
            `{"answer", "score", "start", "end", "id", "null_odds", "n_best"}`; for lists a list.
        """
        one = isinstance(question, str) and isinstance(context, str)
        asked, read = given_texts(question, "question", blank=True), given_texts(context, "context")
        if isinstance(question, str):
            asked = asked * len(read)
        if isinstance(context, str):
            read = read * len(asked)
        if len(asked) != len(read):
            raise UsageError(f"there are {len(asked)} questions and {len(read)} contexts")
        rows = [
            QuestionRow(str(number), q, c, None, False, _place(number))
            for number, (q, c) in enumerate(zip(asked, read, strict=True))
        ]
        found = self._ask(rows)
        return found[0] if one else found

    def choose(
        self,
        context: str | Sequence[str],
        choices: Sequence[str] | Sequence[Sequence[str]],
        question: str | Sequence[str] = "",
    ) -> Any:
        """The choices with their probabilities, best first.

        Args:
            context: one, or a list.
            choices: of the context; for a list a list of choices for each.
            question: stands before each choice; for a list one for all, or a list.

        Returns:
            `[{"label", "score", "choice"}, ...]`; for a list a list of these.
        """
        one = isinstance(context, str)
        contexts, asked = (
            given_texts(value, name, blank=True)
            for value, name in ((context, "context"), (question, "question"))
        )
        groups = [choices] if one else given_list(choices, "choices", "a list for each context")
        if isinstance(question, str):
            asked = asked * len(contexts)
        if not len(contexts) == len(groups) == len(asked):
            raise UsageError(
                f"there are {len(contexts)} contexts, {len(groups)} lists of choices and "
                f"{len(asked)} questions"
            )
        rows = []
        for number, (text, before, group) in enumerate(zip(contexts, asked, groups, strict=True)):
            at = "" if one else f"[{number}]"
            given_text(before + text, f"context{at}")
            listed = given_list(group, f"choices{at}", "a list of texts")
            given = tuple(given_texts(listed, f"choices{at}"))
            rows.append(ChoiceRow(str(number), text, before, given, None, _place(number)))
        found = self._ask(rows)
        return found[0] if one else found

    def _ask(self, rows: Sequence[Any]) -> list[Prediction]:
        found: list[Prediction] = []
        for start in range(0, len(rows), _AT_ONCE):
            found += predict(self.task, self.model, rows[start : start + _AT_ONCE])
        return found


def check_task_head(task: Task[Any], model: Any) -> None:
    """Refuse a model that lacks what a task needs, or never trained it.

    Raises:
        MissingHeadError: naming the head.
    """
    what = _HEADS[task.name]
    report = getattr(model, "load_report", None)
    parts = (task.head, "crf.", "bert.pooler.")
    lost = [n for n in (*report.missing, *report.resized) if n.startswith(parts)] if report else []
    if lost:
        raise _without(model, task.name, f"the checkpoint lacks {lost[0]}")
    if not isinstance(model, task.model_class):
        raise _without(model, task.name, f"it is a {type(model).__name__}")
    head = getattr(model, task.head.removesuffix("."))
    # Training moves the bias off zero; not surely where it is added to all that compete.
    if task.name != "choose" and not head.bias.any():
        raise MissingHeadError(f"{model_name(model)}: its {what} was never trained")


def _without(model: Any, task: str, why: str) -> MissingHeadError:
    return MissingHeadError(
        f"{model_name(model)}: has no {_HEADS[task]}: {why}; fine-tune one with "
        f"`bertkit finetune {task}`"
    )


def _place(number: int) -> Place:
    return Place("texts", number + 1)


def given_text(value: Any, where: str, blank: bool = False) -> str:
    """A text as it was given.

    Args:
        value: what was given.
        where: as the caller would write it: texts[3].
        blank: it may be blank.

    Raises:
        DataError: it is no text, or blank.
    """
    if not isinstance(value, str):
        raise DataError(f"{where} is {_shown(value)}; a text (str) is wanted")
    if not blank and not value.strip():
        raise DataError(f"{where} is blank: {value!r}")
    return value


def given_texts(value: Any, where: str, blank: bool = False) -> list[str]:
    """A text or a list of texts, as a list.

    Raises:
        DataError: it is neither, or one of them is blank.
    """
    if isinstance(value, str):
        return [given_text(value, where, blank)]
    texts = given_list(value, where, "a text or a list of texts")
    return [given_text(text, f"{where}[{n}]", blank) for n, text in enumerate(texts)]


def given_list(value: Any, where: str, wanted: str) -> list[Any]:
    """What was given, item by item.

    Raises:
        DataError: it is no list, nor anything like one.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise DataError(f"{where} is {_shown(value)}; {wanted} is wanted")
    return list(value)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _text_row(text: Text, number: int, where: str) -> TextRow:
    """A text or a pair."""
    if not isinstance(text, tuple):
        return TextRow(str(number), given_text(text, where), None, None, _place(number))
    if len(text) != 2:
        raise DataError(f"{where} has {len(text)} parts; a pair of texts has two")
    first, second = (given_text(part, f"{where}[{n}]") for n, part in enumerate(text))
    return TextRow(str(number), first, second, None, _place(number))


def _tag_row(text: str | Sequence[str], number: int, where: str) -> TagRow:
    """A text, or words joined by blanks."""
    if isinstance(text, str):
        return TagRow(str(number), given_text(text, where), None, None, _place(number))
    spans, start = [], 0
    words = given_texts(given_list(text, where, "a text or a list of words"), where, blank=True)
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    joined = given_text(" ".join(words), where)
    return TagRow(str(number), joined, None, tuple(spans), _place(number))
