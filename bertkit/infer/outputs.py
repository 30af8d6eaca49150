"""What predictions look like in a file: JSONL, CSV, TSV, CoNLL columns, SQuAD's three JSON files.

One row of the user's file becomes one piece of text here, whatever came before it, so that a file
of predictions can be continued where it stopped.
"""

from __future__ import annotations

import csv
import io
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bertkit.errors import UsageError
from bertkit.tasks.records import ChoiceRow, QuestionRow, Row, Span, TagRow, TextRow
from bertkit.tasks.schemes import to_tags
from bertkit.tasks.tag import Tag, words_of
from bertkit.tasks.task import Task

FORMATS = ("jsonl", "csv", "tsv", "conll", "squad")
_BY_ENDING = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "squad",
} | dict.fromkeys((".conll", ".bio", ".iob", ".iob2", ".bioes", ".bmes", ".ner"), "conll")
_FOR_ONE_TASK = {"conll": "tag", "squad": "qa"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}


def choose_format(out: Path | None, told: str | None, task: str) -> str:
    """The format of the output: as told, else by the extension of `out`, else JSONL.

    Args:
        out: the file; of SQuAD's also the folder for them; None: standard output.
        told: one of FORMATS; None: not told.
        task: the model's.

    Raises:
        UsageError: there is no such format, it is not for this task, or `out` does not tell it.
    """
    ending = "" if out is None else out.suffix.lower()
    if told is None and out is not None and task == "qa" and (out.is_dir() or not ending):
        told = "squad"
    if told is None and ending and ending not in _BY_ENDING:
        raise UsageError(f"{out}: {ending} does not tell the format; say --format of {_list()}")
    found = told or _BY_ENDING.get(ending, "jsonl")
    if found not in FORMATS:
        raise UsageError(f"there is no format {found!r}; there are {_list()}")
    if _FOR_ONE_TASK.get(found, task) != task:
        where = f"{out}: " if out is not None else ""
        raise UsageError(f"{where}{found} is for {_FOR_ONE_TASK[found]}, the model is for {task}")
    if found == "squad" and out is None:
        raise UsageError("squad is three files; name a folder or predictions.json with --out")
    return found


def _list() -> str:
    return ", ".join(FORMATS)


class Writer:
    """Turns rows and predictions into the text of one format.

    Args:
        task: the model's.
        format: one of FORMATS; what of "squad" is text a row is JSONL, for `write_squad` to read.
        texts: also write the texts that were read.
    """

    def __init__(self, task: Task[Any], format: str, texts: bool = False) -> None:
        self.task, self.format, self.texts = task, format, texts

    def header(self, first: Row) -> str:
        """What stands before all rows; `first` is one of them."""
        if self.format not in _DELIMITERS:
            return ""
        names = ["id", *(_texts(first) if self.texts else ()), *_columns(self.task)]
        return self._line(names)

    def write(self, row: Row, prediction: Any) -> str:
        """One row, ended by a newline."""
        if self.format == "squad":
            return _json({"id": row.id, "prediction": prediction})
        if self.format == "conll":
            assert isinstance(row, TagRow)
            return conll(self.task, row, prediction)
        texts = _texts(row) if self.texts else {}
        if self.format == "jsonl":
            return _json(record(self.task, row, prediction, texts))
        cells = _cells(self.task, prediction)
        return "".join(self._line([row.id, *texts.values(), *line]) for line in cells)

    def _line(self, cells: Sequence[Any]) -> str:
        text = io.StringIO()
        csv.writer(text, delimiter=_DELIMITERS[self.format], lineterminator="\n").writerow(cells)
        return text.getvalue()


def record(task: Task[Any], row: Row, prediction: Any, texts: dict[str, str]) -> dict[str, Any]:
    """A line of JSONL: the row's id, what was decided, and the prediction as Python gives it."""
    found: dict[str, Any] = {"id": row.id, **texts}
    if task.name == "classify" and task.options.multi_label:
        found["labels"] = given_labels(task, prediction)
    elif task.name in ("classify", "choose"):
        found["label"] = prediction[0]["label"]
    elif task.name == "qa":
        prediction = {key: value for key, value in prediction.items() if key != "id"}
    return found | {"prediction": prediction}


def given_labels(task: Task[Any], prediction: Any) -> list[str]:
    """Of several labels those that count as given, surest first."""
    least = task.options.threshold
    return [one["label"] for one in prediction if one["score"] >= least]


def _texts(row: Row) -> dict[str, str]:
    match row:
        case TextRow(text=text, pair=pair):
            return {"text": text} if pair is None else {"text": text, "pair": pair}
        case TagRow(text=text):
            return {"text": text}
        case QuestionRow(question=question, context=context):
            return {"question": question, "context": context}
        case ChoiceRow(context=context, question=question):
            return {"context": context, "question": question}


def _columns(task: Task[Any]) -> list[str]:
    """Of CSV and TSV, behind the id and the texts."""
    if task.name == "classify":
        return ["labels", "scores"] if task.options.multi_label else ["label", "score"]
    return {
        "regress": ["score"],
        "tag": ["entity_group", "score", "word", "start", "end"],
        "qa": ["answer", "score", "start", "end", "null_odds"],
        "choose": ["label", "score", "choice"],
    }[task.name]


def _cells(task: Task[Any], prediction: Any) -> list[list[Any]]:
    """The lines of a row: one, but of entities one each."""
    if task.name == "classify" and task.options.multi_label:
        scores = {one["label"]: one["score"] for one in prediction}
        return [[_text(given_labels(task, prediction)), _text(scores)]]
    if task.name in ("classify", "choose"):
        prediction = prediction[0]
    lines = prediction if task.name == "tag" else [prediction]
    return [[one[name] for name in _columns(task)] for one in lines]


def conll(task: Task[Any], row: TagRow, prediction: Any) -> str:
    """The row's words, each with its tag in the model's scheme, and a blank line.

    Entities that the model spelled illegally stay so: scored strictly or by conlleval, the file has
    the figures that an evaluation of the same rows has.
    """
    assert isinstance(task, Tag)
    words = words_of(row)
    starts, ends = [start for start, _ in words], [end for _, end in words]
    spans = [
        Span(bisect_right(ends, one["start"]), bisect_left(starts, one["end"]), one["entity_group"])
        for one in prediction
    ]
    loose = {s for s, one in zip(spans, prediction, strict=True) if not one.get("strict", True)}
    tags = to_tags(spans, len(words), task.scheme, loose)
    lines = [f"{row.text[a:b]}\t{tag}\n" for (a, b), tag in zip(words, tags, strict=True)]
    return "".join([*lines, "\n"])


def squad_files(out: Path) -> tuple[Path, Path, Path]:
    """Where answers, n-best lists and null odds go: into a folder, or beside `out`, a .json file.

    Returns:
        predictions.json, nbest_predictions.json, null_odds.json, or names after that of `out`.
    """
    if out.suffix.lower() != ".json" or out.is_dir():
        out = out / "predictions.json"
    odds = out.name.replace("predictions", "null_odds")
    odds = odds if odds != out.name else f"null_odds_{out.name}"
    return out, out.with_name(f"nbest_{out.name}"), out.with_name(odds)


def squad_text(lines: Iterator[bytes], number: int) -> Iterator[str]:
    """One of SQuAD's files, a question a line, as BERT's run_squad writes it.

    Args:
        lines: what `Writer.write` made of the rows.
        number: which of `squad_files`.
    """
    before = "{\n"
    for line in lines:
        whole = msgspec.json.decode(line)
        key, said = whole["id"], whole["prediction"]
        value = (said["answer"], _n_best(said), said["null_odds"])[number]
        yield f"{before}{_text(key)}: {_text(value)}"
        before = ",\n"
    yield "\n}\n" if before != "{\n" else "{}\n"


def _n_best(said: dict[str, Any]) -> list[dict[str, Any]]:
    renamed = {"answer": "text", "score": "probability"}
    return [{renamed.get(k, k): v for k, v in one.items()} for one in said["n_best"]]


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _json(value: Any) -> str:
    return _text(value) + "\n"
