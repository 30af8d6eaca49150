"""What the peer of the fine-tuning benchmarks reads: rows as its fast tokenizer makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.finetune_tasks import TaskSpec
from bertkit.tasks.records import QuestionRow, TagRow, TextRow

IGNORED = -100
Example = dict[str, Any]


@dataclass(slots=True)
class Encoded:
    """What the model reads of some rows.

    Attributes:
        inputs: ids, segments and labels of each sequence, as the model's forward names them.
        rows: the number of the row that each comes from.
        places: what leads back to the text: words' first tokens and stretches, or tokens' ones.
    """

    inputs: list[Example] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    places: list[Any] = field(default_factory=list)

    def add(self, row: int, ids: list[int], types: list[int], place: Any, **labels: Any) -> None:
        """One more sequence."""
        self.inputs.append({"input_ids": ids, "token_type_ids": types, **labels})
        self.rows.append(row)
        self.places.append(place)


def learn_labels(task: str, rows: Sequence[Any]) -> list[str]:
    """The label names of training rows; of tags in BIO."""
    if task == "tag":
        types = sorted({span.label for row in rows for span in row.entities})
        return ["O", *(f"{letter}-{kind}" for kind in types for letter in "BI")]
    return sorted({row.label for row in rows}) if task == "classify" else []


def encode(spec: TaskSpec, tokenizer: Any, rows: Sequence[Any], labels: Sequence[str]) -> Encoded:
    """Tokenize rows, with their labels."""
    numbers = {label: number for number, label in enumerate(labels)}
    match spec.task:
        case "tag":
            return _encode_tags(spec, tokenizer, rows, numbers)
        case "qa":
            return _encode_questions(spec, tokenizer, rows)
        case _:
            return _encode_texts(spec, tokenizer, rows, numbers)


def _encode_texts(
    spec: TaskSpec, tokenizer: Any, rows: Sequence[TextRow], numbers: dict[str, int]
) -> Encoded:
    pairs = [row.pair for row in rows] if rows[0].pair is not None else None
    found = tokenizer(
        [row.text for row in rows], pairs, truncation=True, max_length=spec.max_length
    )
    encoded = Encoded()
    for number, row in enumerate(rows):
        label = float(row.label) if spec.task == "regress" else numbers[str(row.label)]  # type: ignore[arg-type]
        ids, types = found["input_ids"][number], found["token_type_ids"][number]
        encoded.add(number, ids, types, None, labels=label)
    return encoded


def _encode_tags(
    spec: TaskSpec, tokenizer: Any, rows: Sequence[TagRow], numbers: dict[str, int]
) -> Encoded:
    """The file's own words; where it gives plain text, those of the tokenizer's first step."""
    split = rows[0].words is not None
    texts: list[Any] = [row.text for row in rows]
    if split:
        texts = [[row.text[a:b] for a, b in row.words or ()] for row in rows]
    found = tokenizer(
        texts,
        is_split_into_words=split,
        truncation=True,
        max_length=spec.max_length,
        return_offsets_mapping=True,
    )
    encoded = Encoded()
    for number, row in enumerate(rows):
        words = found.word_ids(number)
        offsets = found["offset_mapping"][number]
        first: dict[int, int] = {}
        stretches: dict[int, tuple[int, int]] = {}
        for token, word in enumerate(words):
            if word is None:
                continue
            first.setdefault(word, token)
            if split:
                stretches[word] = row.words[word]  # type: ignore[index]
            else:
                start = stretches.get(word, offsets[token])[0]
                stretches[word] = (start, offsets[token][1])
        places = [(first[word], *stretches[word]) for word in first]
        labels = [IGNORED] * len(words)
        for (token, _, _), tag in zip(places, _tags(row, places), strict=True):
            labels[token] = numbers[tag]
        ids, types = found["input_ids"][number], found["token_type_ids"][number]
        encoded.add(number, ids, types, places, labels=labels)
    return encoded


def _tags(row: TagRow, places: Sequence[tuple[int, int, int]]) -> list[str]:
    tags = ["O"] * len(places)
    for start, end, kind in row.entities or ():
        inside = [i for i, (_, a, b) in enumerate(places) if start <= a and b <= end]
        for order, i in enumerate(inside):
            tags[i] = f"{'I' if order else 'B'}-{kind}"
    return tags


def _encode_questions(spec: TaskSpec, tokenizer: Any, rows: Sequence[QuestionRow]) -> Encoded:
    found = tokenizer(
        [row.question.strip() for row in rows],
        [row.context for row in rows],
        truncation="only_second",
        max_length=spec.max_length,
        stride=spec.doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    encoded = Encoded()
    for window, number in enumerate(found["overflow_to_sample_mapping"]):
        offsets = [
            span if part == 1 else None
            for span, part in zip(
                found["offset_mapping"][window], found.sequence_ids(window), strict=True
            )
        ]
        start, end = _answer_tokens(rows[number], offsets)
        ids, types = found["input_ids"][window], found["token_type_ids"][window]
        encoded.add(number, ids, types, offsets, start_positions=start, end_positions=end)
    return encoded


def _answer_tokens(row: QuestionRow, offsets: Sequence[Any]) -> tuple[int, int]:
    """First and last token of the first answer; [CLS] twice where the window lacks it."""
    if not row.answers:
        return 0, 0
    begin, finish = row.answers[0].start, row.answers[0].start + len(row.answers[0].text)
    passage = [token for token, span in enumerate(offsets) if span is not None]
    if begin < offsets[passage[0]][0] or finish > offsets[passage[-1]][1]:
        return 0, 0
    inside = [t for t in passage if offsets[t][1] > begin and offsets[t][0] < finish]
    return (inside[0], inside[-1]) if inside else (0, 0)
