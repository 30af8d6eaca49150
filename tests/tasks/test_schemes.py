"""Tag schemes: reading as seqeval does, writing, converting, what may follow what."""

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from bertkit.errors import DataError
from bertkit.tasks.records import Span
from bertkit.tasks.schemes import (
    LETTERS,
    PLAIN,
    allowed,
    convert,
    detect_scheme,
    illegal,
    tag_set,
    to_spans,
    to_tags,
)

TYPES = ["PER", "LOC", "GPE.NAM", "a-b"]
CHUNKED = [name for name in LETTERS if name != "IO"]
# seqeval knows the letters of BIOES alone.
SAME = {"M": "I", "L": "E", "U": "S"}


@st.composite
def sentences(draw: st.DrawFn) -> tuple[list[Span], int]:
    """Disjoint spans over words, and how many words there are."""
    spans, at = [], 0
    for _ in range(draw(st.integers(0, 5))):
        start = at + draw(st.integers(0, 2))
        at = start + draw(st.integers(1, 4))
        spans.append(Span(start, at, draw(st.sampled_from(TYPES))))
    return spans, at + draw(st.integers(0, 2))


@pytest.mark.parametrize("scheme", CHUNKED)
@given(sentence=sentences())
def test_spans_written_and_read_are_the_same(scheme: str, sentence: tuple[list[Span], int]) -> None:
    spans, length = sentence
    tags = to_tags(spans, length, scheme)
    assert len(tags) == length
    assert set(tags) <= set(tag_set(TYPES, scheme))
    assert to_spans(tags, scheme) == spans
    assert illegal(tags, scheme) == []


@pytest.mark.parametrize("scheme", CHUNKED)
@given(data=st.data())
def test_illegal_spans_are_written_as_illegal_ones(scheme: str, data: st.DataObject) -> None:
    tags = data.draw(st.lists(st.sampled_from(tag_set(TYPES[:2], scheme)), max_size=9))
    spans = to_spans(tags, scheme)

    def loose(tags: list[str]) -> set[Span]:
        spelled = to_tags(spans, len(tags), scheme)
        return {span for span in spans if tags[slice(*span[:2])] != spelled[slice(*span[:2])]}

    written = to_tags(spans, len(tags), scheme, loose(tags))
    assert to_spans(written, scheme) == spans
    assert loose(written) == loose(tags)


@given(sentence=sentences())
def test_io_joins_neighbours_of_one_type_and_nothing_else(sentence: tuple[list[Span], int]) -> None:
    spans, length = sentence
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].end == span.start and joined[-1].label == span.label:
            joined[-1] = joined[-1]._replace(end=span.end)
        else:
            joined.append(span)
    assert to_spans(to_tags(spans, length, "IO"), "IO") == joined


@pytest.mark.parametrize(("source", "target"), [*product(CHUNKED, CHUNKED)])
@settings(max_examples=20)
@given(sentence=sentences())
def test_schemes_are_converted(source: str, target: str, sentence: tuple[list[Span], int]) -> None:
    spans, length = sentence
    assert convert(to_tags(spans, length, source), source, target) == to_tags(spans, length, target)


@given(tags=st.lists(st.sampled_from(["NN", "VB", "O", "B-X"])))
def test_plain_labels_have_a_span_for_each_word(tags: list[str]) -> None:
    spans = to_spans(tags, PLAIN)
    assert [(s.start, s.end) for s in spans] == [(i, i + 1) for i in range(len(tags))]
    assert to_tags(spans, len(tags), PLAIN) == tags


@pytest.mark.parametrize("scheme", LETTERS)
@given(data=st.data())
def test_any_tags_are_read_as_seqeval_reads_them(scheme: str, data: st.DataObject) -> None:
    tags = data.draw(st.lists(st.sampled_from(tag_set(["PER", "a-b"], scheme)), max_size=12))
    theirs = get_entities([SAME.get(tag[0], tag[0]) + tag[1:] for tag in tags])
    assert [(s.label, s.start, s.end - 1) for s in to_spans(tags, scheme)] == theirs


@pytest.mark.parametrize("scheme", CHUNKED)
def test_allowed_are_exactly_the_sequences_that_spans_spell(scheme: str) -> None:
    tags = tag_set(["X", "Y"], scheme)
    starts, transitions, ends = allowed(tags, scheme)
    for length in (1, 2, 3, 4):
        for chosen in product(range(len(tags)), repeat=length):
            legal = starts[chosen[0]] and ends[chosen[-1]]
            legal = legal and all(transitions[a][b] for a, b in pairwise(chosen))
            names = [tags[i] for i in chosen]
            assert legal == (to_tags(to_spans(names, scheme), length, scheme) == names)
            assert legal == (illegal(names, scheme) == [])


@pytest.mark.parametrize("scheme", ["IO", PLAIN])
def test_io_and_plain_allow_everything(scheme: str) -> None:
    tags = tag_set(["X", "Y"], scheme)
    starts, transitions, ends = allowed(tags, scheme)
    assert all(starts)
    assert all(map(all, transitions))
    assert all(ends)


@pytest.mark.parametrize("scheme", [*CHUNKED, "IO"])
def test_schemes_are_detected_from_their_own_tags(scheme: str) -> None:
    assert detect_scheme(tag_set(["PER", "LOC"], scheme)) == scheme


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("O", "BIO"),
        ("O B-X", "BIO"),
        ("O S-X", "BIOES"),
        ("B-X S-X O", "BIOS"),
        ("B-X E-X", "BIOES"),
        ("B-X M-X E-X", "BMES"),
        ("B-X M-X E-X W-X", "BMES"),
        ("B M E S", "BMES"),
        ("B I O", "BIO"),
        ("NN VB O", PLAIN),
        ("B C D", PLAIN),
        ("B_PER I_PER O", "BIO"),
    ],
)
def test_schemes_are_detected(tags: str, scheme: str) -> None:
    assert detect_scheme(tags.split()) == scheme


@pytest.mark.parametrize("tags", ["B-X NN", "B-X M-X I-X E-X", "B-X L-X E-X", "I-X W-X"])
def test_mixed_schemes_are_an_error(tags: str) -> None:
    with pytest.raises(DataError, match="mixed schemes"):
        detect_scheme(tags.split())


def test_illegal_tags_are_named() -> None:
    assert illegal("O I-X I-X O B-X I-Y".split(), "BIO") == [1, 5]
    assert illegal("B-X O I-X E-X B-Y".split(), "BIOES") == [0, 2, 4]


def test_a_tag_without_a_type() -> None:
    assert to_spans("B I O B".split()) == [Span(0, 2, "_"), Span(3, 4, "_")]
