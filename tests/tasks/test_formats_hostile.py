"""Whatever a file holds: rows, or an error in one line; never anything else."""

import json
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkit.errors import DataError
from bertkit.tasks.formats import BadRows, open_rows
from bertkit.tasks.records import TagRow
from tests.tasks.test_formats import file

N = 8
TASKS = ("classify", "regress", "tag", "qa", "choose")
KINDS = (".txt", ".tsv", ".csv", ".jsonl", ".json", ".conll", ".parquet", ".gz")
KEYS = (
    "text label labels entities tokens ner_tags sentence1 sentence2 score id question context "
    "answers qas paragraphs data choices ending0 ending1 start end is_impossible answer articles"
).split()
LEAF = st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.text(max_size=5), st.just("-"),
                 st.floats(allow_nan=False, allow_infinity=False))  # fmt: skip
VALUE = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)
CELLS = st.sampled_from(
    ["a", "label", "text", "1", "0.5", "", " ", "B-X", "I-X", "E-X", "O", "#", "-DOCSTART-", '"',
     "中", "\u3000", "-", "ending0", "sentence1", "a b"]
)  # fmt: skip
LINES = st.lists(
    st.tuples(st.lists(CELLS, max_size=5), st.sampled_from("\t ,")).map(lambda x: x[1].join(x[0])),
    max_size=8,
).map("\n".join)


def assert_rows_or_one_line(path: str, task: str) -> None:
    """All rows are right, or a DataError tells why in one line; with skipping likewise."""
    for bad in (None, BadRows()):
        caught: DataError | None = None
        try:
            opened = open_rows(path, task)
            opened.describe()
            for row in opened.rows(bad):
                if isinstance(row, TagRow):
                    assert all(0 <= a < b <= len(row.text) for a, b, _ in row.entities or ())
                    assert all(0 <= a <= b <= len(row.text) for a, b in row.words or ())
        except DataError as error:
            caught = error
        told = path if caught is None else str(caught)
        assert path in told
        assert "\n" not in told


@pytest.mark.parametrize(("task", "kind"), [*product(TASKS, KINDS)])
@settings(max_examples=N)
@given(content=st.one_of(st.binary(max_size=60), LINES.map(str.encode)))
def test_bytes_and_lines(
    task: str, kind: str, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert_rows_or_one_line(file(tmp_path_factory.getbasetemp(), f"h{kind}", content), task)


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=4 * N)
@given(values=st.lists(st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=6), max_size=3))
def test_json_of_any_shape(
    task: str, values: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert_rows_or_one_line(file(folder, "h.jsonl", "\n".join(map(json.dumps, values))), task)
    assert_rows_or_one_line(file(folder, "h.json", json.dumps({"data": values}, indent=1)), task)
    assert_rows_or_one_line(file(folder, "i.json", json.dumps(values)), task)
