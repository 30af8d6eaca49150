"""Which column is the text, which the label: by name, by content, or as the user says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertkit.errors import DataError, UsageError
from bertkit.tasks.schemes import SCHEMES
from bertkit.tasks.tables import Table

FORMATS = ("csv", "tsv", "jsonl", "json", "conll", "lines")


@dataclass(frozen=True)
class Columns:
    """What the user says about a file; None is found out.

    Attributes:
        text: the column of the text, or of the first of a pair; the question (qa); what choices
            continue (choose). A name, or a number from 1 where the file has no header.
        pair: the column of the second text; the passage (qa); the question (choose).
        label: the column of the label; of CoNLL files the column of the tag; of qa the answers.
        id: the column of the row's own id.
        header: whether the first line of a CSV or TSV file names the columns.
        format: one of "csv", "tsv", "jsonl", "json", "conll", "lines".
        scheme: of tags, one of tasks/schemes.py.
        joiner: what stands between the words of a CoNLL file, " " or "".
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    id: str | None = None
    header: bool | None = None
    format: str | None = None
    scheme: str | None = None
    joiner: str | None = None

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise UsageError(f"there is no format {self.format!r}; one of {', '.join(FORMATS)}")
        if self.scheme is not None and self.scheme not in SCHEMES:
            raise UsageError(f"there is no scheme {self.scheme!r}; one of {', '.join(SCHEMES)}")


@dataclass(frozen=True)
class Roles:
    """The columns that were chosen; None: the file has none."""

    text: str
    pair: str | None = None
    label: str | None = None
    id: str | None = None


PAIRS = [
    tuple(pair.split("|"))
    for pair in (
        "text_a|text_b", "sentence1|sentence2", "sentence_a|sentence_b", "sentence_1|sentence_2",
        "sent1|sent2", "#1_string|#2_string", "question1|question2", "premise|hypothesis",
        "question|sentence", "question|passage", "question|context", "query|title",
        "query|passage", "query|document", "query1|query2", "text1|text2", "text_1|text_2",
        "s1|s2", "q1|q2", "text|text_pair", "text|pair", "text|text_b",
        "sentence|sentence2", "sentence_a|sentence2",
    )
]  # fmt: skip
TEXTS = (
    "text text_a sentence review content comment tweet document body utterance message post query "
    "question input sentence1 sent text1 title 文本 内容 正文 评论 评价 句子 text_content"
).split()
LABELS = (
    "label labels gold_label quality is_duplicate score similarity target class category sentiment "
    "emotion intent rating stars star polarity y 标签 类别 分类 情感"
).split()
# What a number is called first, where a file has several of these.
NUMBERS = "score similarity label target rating value stars star y quality labels".split()
IDS = "id index idx guid uid example_id pair_id pairid sid qid".split()
# No text and no label is ever just this.
SURE = {"label", "labels", "gold_label", "text", "text_a", "sentence1", "ending0"}
KNOWN = {name for pair in PAIRS for name in pair} | set(TEXTS) | set(LABELS) | set(IDS)


def plain_name(name: str) -> str:
    """A column's name as the tables above write it."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def is_header(first: list[str], rest: list[list[str]]) -> bool:
    """The first row names columns: names that are known, or a word above a column of numbers."""
    names = [plain_name(cell) for cell in first]
    if any(len(name) > 60 for name in names):
        return False
    known = sum(name in KNOWN or _serial(name) for name in names)
    if known >= 2 or (known and len(names) == 1) or not SURE.isdisjoint(names):
        return True
    rows = [row for row in rest if len(row) == len(first)]
    return len(rows) > 1 and any(
        name and not is_number(name) and all(is_number(row[i]) for row in rows)
        for i, name in enumerate(names)
    )


def _serial(name: str) -> bool:
    """ending0, choice1, option_a ... of multiple choice."""
    return name.rstrip("0123456789").rstrip("_") in ("ending", "choice", "option") or (
        name.startswith("option_") and len(name) == 8
    )


def is_number(text: Any) -> bool:
    """Whether a value can be read as a finite number."""
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False


def find_roles(table: Table, columns: Columns, numeric: bool) -> Roles:
    """Choose the columns of texts and labels.

    Args:
        table: the file.
        columns: what the user says.
        numeric: the label is a number (regress).

    Raises:
        DataError: a named column is missing, or the columns can be taken in several ways.
    """
    named = {
        role: name
        for role in ("text", "pair", "label", "id")
        if (name := getattr(columns, role)) is not None
    }
    for name in named.values():
        if name not in table.names:
            raise table.source.error(f"there is no column {name!r}; there are {table.columns()}")
    if not table.names:
        raise table.source.error("no row of it can be read")
    if "text" in named:
        # Who names the text names all that counts, but labels and ids are found by their names.
        found = _by_name(table, numeric) if table.header else {}
        found = {k: v for k, v in found.items() if k in ("label", "id")}
    elif table.header:
        found = _by_name(table, numeric)
    else:
        taken = set(named.values())
        found = _by_content(table, [name for name in table.names if name not in taken], numeric)
    taken = set(named.values())
    roles = {k: v for k, v in found.items() if v not in taken} | named
    if "text" not in roles:
        raise _unclear(table, "which column is the text")
    return Roles(**roles)


def _unclear(table: Table, what: str) -> DataError:
    flags = "--text, --pair, --label"
    if not table.header:
        flags += " with numbers from 1, or with names if the first line has them"
    return table.source.error(f"cannot tell {what}: there are {table.columns()}; say {flags}")


def _by_name(table: Table, numeric: bool) -> dict[str, str]:
    """Roles by the names of the columns."""
    names = {plain_name(name): name for name in table.names}
    found: dict[str, str] = {}
    if identity := next((names[key] for key in IDS if key in names), None):
        found["id"] = identity
    label = next((names[k] for k in (NUMBERS if numeric else LABELS) if k in names), None)
    if label is not None:
        found["label"] = label
    pair = next((pair for pair in PAIRS if all(name in names for name in pair)), None)
    if pair is not None:
        return found | {"text": names[pair[0]], "pair": names[pair[1]]}
    text = next((names[key] for key in TEXTS if key in names), None)
    if text is None:
        # One column is left over, or one of those that are left holds text.
        left = [name for name in table.names if name not in found.values()]
        text = left[0] if len(left) == 1 else None
    return found if text is None else found | {"text": text}


def _by_content(table: Table, names: list[str], numeric: bool) -> dict[str, str]:
    """Roles of columns without names, by what stands in them.

    Known are: text; label, text; text, label; label, text, pair; text, pair, label; text, pair
    where nothing looks like labels; and CoLA's source, label, mark, text.
    """
    values = {name: [row[name] for row in table.sample] for name in names}
    if len(names) == 1:
        return {"text": names[0]}
    if len(names) == 4 and _is_cola(list(values.values())):
        return {"label": names[1], "text": names[3]}
    if len(names) > 3:
        raise _unclear(table, "which column is the text")
    ends = [names[0], names[-1]]
    likely = [_like_labels(values[name], numeric) for name in ends]
    if not any(likely) and len(names) == 2:
        short, long = sorted(names, key=lambda name: _mean(values[name]))
        if _mean(values[short]) * 3 > _mean(values[long]):
            return {"text": names[0], "pair": names[1]}
        if not numeric and max(map(len, values[short])) <= 40:
            return {"label": short, "text": long}
    if not any(likely):
        raise _unclear(table, f"which column is the label{', none has numbers' * numeric}")
    # The convention is label first, so it wins where both ends could be labels.
    label = ends[int(likely[1] > likely[0])]
    rest = [name for name in names if name != label]
    return {"label": label, **dict(zip(("text", "pair"), rest, strict=False))}


def _is_cola(columns: list[list[str]]) -> bool:
    marks = set(columns[2])
    return set(columns[1]) <= {"0", "1"} and all(m.strip("*?#%") == "" for m in marks)


def _like_labels(values: Sequence[str], numeric: bool) -> int:
    """How much a column looks like labels: 2 numbers, 1 few and short names, 0 not."""
    if not values or any(len(value) > 40 or not value.strip() for value in values):
        return 0
    if all(map(is_number, values)):
        return 2
    return int(not numeric and len(set(values)) <= max(2, len(values) // 3))


def _mean(values: Sequence[str]) -> float:
    return sum(map(len, values)) / max(1, len(values))


def describe_roles(roles: Roles, table: Table) -> str:
    """One line: what each column was taken for; of those without names what stands first in it."""
    shown = {name: name for name in table.names}
    if not table.header and table.sample:
        shown = {n: f"column {n} ({str(x)[:20]!r} ...)" for n, x in table.sample[0].items()}
    parts = [
        f"{role}: {shown.get(name, name)}"
        for role in ("id", "text", "pair", "label")
        if (name := getattr(roles, role)) is not None
    ]
    used = {roles.id, roles.text, roles.pair, roles.label}
    left = [name for name in table.names if name not in used]
    if left:
        parts.append(f"not used: {', '.join(left[:10])}{' ...' if len(left) > 10 else ''}")
    return "; ".join(parts)
