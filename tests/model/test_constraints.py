"""Which tag may follow which, against the words of the schemes, told here once more by hand."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from bertkit.model.constraints import constraints_of, continuations_of, distances_of

BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
BIOES = ["O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC"]
SEGMENTS = ["B", "M", "E", "S"]
BIOS = ["O", "S-PER", "B-PER", "I-PER", "S-LOC", "B-LOC", "I-LOC"]


def is_legal(labels: list[str], sequence: tuple[str, ...]) -> bool:
    starts, transitions, ends = constraints_of(labels)
    numbers = [labels.index(tag) for tag in sequence]
    return (
        starts[numbers[0]]
        and ends[numbers[-1]]
        and all(transitions[i][j] for i, j in pairwise(numbers))
    )


def spelled(labels: list[str], length: int) -> set[tuple[str, ...]]:
    """Every tagging of `length` words that stretches of entities and O can spell."""
    kinds = sorted({label.partition("-")[2] for label in labels if label != "O"})
    closing, middle = "E-" in "".join(labels) or "E" in labels, "M" if "M" in labels else "I"

    def name(role: str, kind: str) -> str:
        return f"{role}-{kind}" if kind else role

    def entity(kind: str, size: int) -> tuple[str, ...]:
        if size == 1 and name("S", kind) in labels:
            return (name("S", kind),)
        if not closing:
            return (name("B", kind), *[name("I", kind)] * (size - 1))
        return (name("B", kind), *[name(middle, kind)] * (size - 2), name("E", kind))

    found: list[set[tuple[str, ...]]] = [{()}]
    for end in range(1, length + 1):
        here = {(*rest, "O") for rest in found[end - 1]} if "O" in labels else set()
        for size, kind in product(range(1, end + 1), kinds):
            here |= {(*rest, *entity(kind, size)) for rest in found[end - size]}
        found.append(here)
    return found[length]


@pytest.mark.parametrize(
    "labels",
    [BIO, BIOES, SEGMENTS, BIOS, list(reversed(BIO))],
    ids=["BIO", "BIOES", "BMES", "BIOS", "reversed"],
)
@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_legal_is_what_entities_spell(labels: list[str], length: int) -> None:
    legal = {tags for tags in product(labels, repeat=length) if is_legal(labels, tags)}
    assert legal == spelled(labels, length)


@pytest.mark.parametrize(
    "labels",
    [["NN", "VB"], ["LABEL_0", "LABEL_1"], ["O", "I-PER"], ["O", "B-PER", "X"], ["B", "O-"]],
)
def test_labels_of_no_scheme_follow_as_they_like(labels: list[str]) -> None:
    everything = [True] * len(labels)
    assert constraints_of(labels) == (everything, [everything] * len(labels), everything)


def test_without_single_tags_a_single_word_is_a_beginning() -> None:
    labels = ["O", "B-X", "E-X"]
    assert is_legal(labels, ("B-X",))
    assert is_legal(labels, ("B-X", "B-X", "E-X", "O"))
    assert not is_legal(labels, ("O", "E-X"))


def test_letters_of_other_schemes() -> None:
    bilou = ["O", "B-X", "I-X", "L-X", "U-X"]
    assert constraints_of(bilou) == constraints_of(["O", "B-X", "I-X", "E-X", "S-X"])
    assert constraints_of(["O", "B_X", "I_X"]) == constraints_of(["O", "B-X", "I-X"])


def test_a_type_may_hold_a_hyphen() -> None:
    assert is_legal(["O", "B-a-b", "I-a-b", "B-a", "I-a"], ("B-a-b", "I-a-b"))
    assert not is_legal(["O", "B-a-b", "I-a-b", "B-a", "I-a"], ("B-a-b", "I-a"))


def test_what_goes_on_with_an_entity() -> None:
    goes_on = continuations_of(BIOES)
    pairs = {
        (BIOES[i], BIOES[j]) for i, row in enumerate(goes_on) for j, on in enumerate(row) if on
    }
    assert pairs == {
        (f"{a}-{kind}", f"{b}-{kind}") for a in "BI" for b in "IE" for kind in ("PER", "LOC")
    }
    assert continuations_of(["O", "I-X"]) == [[False, False], [False, True]]
    assert continuations_of(["NN", "VB"]) == [[False, False], [False, False]]


def test_distances() -> None:
    far = distances_of(["O", "B-X", "I-X", "B-Y"])
    assert far[2] == [2.5, 1.0, 0.0, 3.0]
    assert far[0] == [0.0, 2.0, 2.0, 2.0]
    assert distances_of(["NN", "VB"]) == [[0.0, 1.0], [1.0, 0.0]]
