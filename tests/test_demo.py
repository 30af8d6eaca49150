"""The demo's text: what counts as prose, and that enough of it is on any machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertkit import demo

DOCSTRING = '''"""Summary of the module.

Parameters
----------
path : str or Path
    The name of the file that is read, relative to
    the :class:`~pathlib.Path` of the ``root`` folder.
count (int): The number of lines to read before
    the reader stops and closes the file.

>>> read("x", 3)
['a']

- One item of a list that is a sentence.
- two
"""

def read():
    """Read a few lines of the file and return them."""
    def inner():
        """Functions inside functions are documented as well as others."""
'''


def test_docstrings_fall_apart_into_sentences() -> None:
    found = [demo.prose(b) for page in demo.docstrings(DOCSTRING) for b in demo.blocks(page)]
    assert [text for text in found if text] == [
        "The name of the file that is read, relative to the pathlib.Path of the root folder.",
        "The number of lines to read before the reader stops and closes the file.",
        "One item of a list that is a sentence.",
        "Read a few lines of the file and return them.",
        "Functions inside functions are documented as well as others.",
    ]


@pytest.mark.parametrize(
    "block",
    [
        "x = [a for a in range(10) if a > 3 and b]",
        "one two three four five six seven.",
        "Copyright of the authors, all of them, since then.",
        "| a | table | of | words | and | more |",
        "Too short.",
    ],
)
def test_what_is_not_prose_is_left_out(block: str) -> None:
    assert demo.prose(block) is None


def test_a_file_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def (", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    assert demo.paragraphs(tmp_path / "a.py") == []
    assert demo.paragraphs(tmp_path / "b.txt") == []
    assert demo.paragraphs(tmp_path / "missing.txt") == []


def test_pythons_own_manual_is_read() -> None:
    import pydoc_data.topics

    assert len(demo.paragraphs(Path(pydoc_data.topics.__file__))) > 100


def test_gathering_writes_each_paragraph_once_and_stops(tmp_path: Path) -> None:
    target, seen = tmp_path / "text.txt", list[int]()
    documents = demo.gather(target, 200_000, lambda done, total: seen.append(done))
    text = target.read_text(encoding="utf-8")
    lines = text.split()
    paragraphs = [line for line in text.splitlines() if line]
    assert len(paragraphs) == len(set(paragraphs))
    assert text.count("\n\n") == documents == len(seen)
    assert 200_000 <= seen[-1] < 400_000
    assert sum(word.strip(".,").lower() == "the" for word in lines) > 1_000
