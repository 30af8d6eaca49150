"""What a verb says with --json."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bertkit.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run a command that must succeed; the JSON of its last line."""
    assert main([*arguments, "--json", "--quiet", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def run_explain(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The same of a verb of explain."""
    return run(capsys, "explain", *arguments)
