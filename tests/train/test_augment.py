"""Changed rows keep their labels true, and are functions of (seed, epoch, row)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkit.tasks.build import TaskOptions, new_task
from bertkit.tasks.formats import open_rows
from bertkit.tasks.records import Place, Span, TagRow
from bertkit.tasks.tag import Tag
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train.augment import Mentions, hide_words, is_flat, swap_rows
from bertkit.train.features import store_features
from tests.train.small_tasks import write_model, write_tags

PLACE = Place("file", 1)
WORDS = ["a", "bc", "模型", "é", "x1", "🙂"]


def row(words: list[str], tags: list[tuple[int, int, str]], joiner: str, own: bool) -> TagRow:
    """A row of words whose entities are runs of words."""
    spans, place = [], 0
    for word in words:
        spans.append((place, place + len(word)))
        place += len(word) + len(joiner)
    entities = tuple(Span(spans[a][0], spans[b - 1][1], kind) for a, b, kind in tags)
    return TagRow("0", joiner.join(words), entities, tuple(spans) if own else None, PLACE)


@st.composite
def tag_rows(draw: st.DrawFn) -> TagRow:
    words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8))
    tags, place = [], 0
    while place < len(words):
        size = draw(st.integers(1, 3))
        if draw(st.booleans()) and place + size <= len(words):
            tags.append((place, place + size, draw(st.sampled_from(["A", "B"]))))
        place += size
    return row(words, tags, draw(st.sampled_from([" ", ""])), draw(st.booleans()))


@given(st.lists(tag_rows(), min_size=1, max_size=5), st.integers(0, 3), st.integers(0, 5))
def test_swapped_rows_hold_entities_of_the_same_types(
    rows: list[TagRow], seed: int, epoch: int
) -> None:
    mentions = Mentions(rows)
    texts = {(e.label, r.text[e.start : e.end]) for r in rows for e in r.entities or ()}
    for number, (old, new) in enumerate(
        zip(rows, swap_rows(rows, mentions, 0.7, seed, epoch), strict=True)
    ):
        assert new == mentions.swapped(old, 0.7, seed, epoch, number)
        assert old.entities is not None
        assert new.entities is not None
        assert [e.label for e in new.entities] == [e.label for e in old.entities]
        for entity in new.entities:
            assert (entity.label, new.text[entity.start : entity.end]) in texts
        assert outside(new) == outside(old)
        if old.words is not None:
            assert new.words is not None
            assert is_flat(new)
            assert {new.text[a:b] for a, b in new.words} <= set(WORDS)
            assert not "".join(between(new, new.words)).strip()


def between(row: TagRow, places: Iterable[tuple[int, int]]) -> list[str]:
    """What stands between these stretches of its text."""
    cuts = [0, *(place for pair in places for place in pair), len(row.text)]
    return [row.text[a:b] for a, b in zip(cuts[::2], cuts[1::2], strict=True)]


def outside(row: TagRow) -> list[str]:
    """What stands between the entities."""
    return between(row, [(e.start, e.end) for e in row.entities or ()])


def test_words_of_the_new_entity_come_with_it() -> None:
    one = row(["to", "New", "York", "now"], [(1, 3, "LOC")], " ", own=True)
    other = row(["in", "Rio"], [(1, 2, "LOC")], " ", own=True)
    mentions = Mentions([one, other])
    seen = set()
    for epoch in range(20):
        new = mentions.swapped(other, 1.0, 0, epoch, 1)
        assert new.words is not None
        seen.add((new.text, tuple(new.text[a:b] for a, b in new.words)))
    assert seen == {("in Rio", ("in", "Rio")), ("in New York", ("in", "New", "York"))}


def test_overlapping_entities_and_cut_words_are_left_alone() -> None:
    nested = TagRow("0", "abcdef", (Span(0, 4, "A"), Span(2, 6, "A")), None, PLACE)
    cut = TagRow("0", "abcdef", (Span(0, 4, "A"),), ((0, 6),), PLACE)
    plain = TagRow("0", "xyz", (Span(0, 3, "A"),), None, PLACE)
    mentions = Mentions([nested, cut, plain])
    assert mentions.by_type == {("A", True): [("xyz", ())]}
    for odd in (nested, cut):
        assert mentions.swapped(odd, 1.0, 0, 0, 0) is odd


@pytest.fixture
def tags(tmp_path: Path) -> tuple[Tag, list[TagRow]]:
    tokenizer = BertTokenizer.from_pretrained(write_model(tmp_path / "model"))
    file = open_rows(write_tags(tmp_path / "tags.conll", 60, longest=30), "tag")
    rows = [one for one in file.rows() if isinstance(one, TagRow)]
    task = new_task("tag", tokenizer, rows, TaskOptions(max_length=24, doc_stride=6))
    assert isinstance(task, Tag)
    return task, rows


def test_hidden_words_are_no_entities(tags: tuple[Tag, list[TagRow]]) -> None:
    task, rows = tags
    store = store_features(task, rows)
    mask = task.tokenizer.mask_token_id
    hidden = hide_words(store, mask, 0.3, task.numbers["O"], 0, 1)
    changed = hidden.ids != store.ids
    assert (hidden.ids[changed] == mask).all()
    entity = np.zeros(len(store.ids), dtype=bool)
    counts = np.diff(store.position_starts)
    places = np.repeat(store.starts[:-1], counts) + store.positions
    outside = store.targets.numpy() == task.numbers["O"]
    entity[places[~outside]] = True
    assert not (changed & entity).any()
    specials = np.isin(store.ids, task.tokenizer.all_special_ids)
    assert not (changed & specials).any()
    share = changed[places[outside]].mean()
    assert 0.25 < share < 0.35
    again = hide_words(store, mask, 0.3, task.numbers["O"], 0, 1)
    assert (again.ids == hidden.ids).all()
    other = hide_words(store, mask, 0.3, task.numbers["O"], 0, 2)
    assert (other.ids != hidden.ids).any()
    assert (hide_words(store, mask, 0.0, task.numbers["O"], 0, 1).ids == store.ids).all()
