"""What the tests of `bertkit explain` share: a small model, a file of texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks import tiny


@pytest.fixture(scope="session")
def model() -> str:
    """A model with a masked-word head."""
    return str(tiny.folder("BertForMaskedLM"))


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """A file of 23 lines, 22 texts."""
    path = tmp_path / "texts.txt"
    lines = ["the cat sat on the mat", "", "我爱北京", *["a dog ran in the park"] * 20]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)
