"""The log of a run reads as if the run had never been interrupted."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import pytest

from bertkit.errors import UsageError
from bertkit.train.log import Progress, RunLog, clock, read_log


def test_lines_are_json_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with RunLog(path, 0) as log:
        log.write("train", 1, loss=2.5)
        log.write("samples", 1, fills=["中文 [x]"])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == read_log(path)
    assert read_log(path)[0] == {"event": "train", "step": 1, "loss": 2.5}
    assert "中文" in lines[1]


def test_resuming_cuts_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with RunLog(path, 0) as log:
        for step in range(1, 8):
            log.write("train", step, loss=float(step))
    with path.open("a") as file:
        file.write('{"event": "train", "step": 8, "lo')  # a kill
    assert [line["step"] for line in read_log(path)] == [1, 2, 3, 4, 5, 6, 7]
    with RunLog(path, 5) as log:
        log.write("train", 6, loss=0.0)
    assert [(line["step"], line["loss"]) for line in read_log(path)] == [
        *((n, float(n)) for n in range(1, 6)),
        (6, 0.0),
    ]


def test_step_zero_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for _ in range(2):
        with RunLog(path, 0) as log:
            log.write("start", 0, parameters=1)
    assert len(read_log(path)) == 1


def test_a_silent_log_writes_nothing(tmp_path: Path) -> None:
    with RunLog(tmp_path / "log.jsonl", 0, tmp_path / "board", silent=True) as log:
        log.write("train", 1, loss=1.0)
    assert list(tmp_path.iterdir()) == []


def test_nan_and_infinity_are_still_json(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with RunLog(path, 0) as log:
        log.write("bad_step", 1, loss=math.nan, grad_norm=math.inf)
    assert read_log(path) == [{"event": "bad_step", "step": 1, "loss": "nan", "grad_norm": "inf"}]


@pytest.mark.filterwarnings("ignore")  # TensorBoard's own
def test_tensorboard_when_asked(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path / "log.jsonl", 0, tmp_path / "board") as log:
        for step in (1, 2):
            log.write("train", step, loss=step / 2, note="words are left out")
    found = EventAccumulator(str(tmp_path / "board"))
    found.Reload()
    assert found.Tags()["scalars"] == ["train/loss"]
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(1, 0.5), (2, 1.0)]


def test_tensorboard_missing_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"bertkit\[tensorboard\]"):
        RunLog(tmp_path / "log.jsonl", 0, tmp_path / "board")


def test_progress_on_no_terminal_is_plain_lines_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress(quiet=False, every=3600) as progress:
        for done in range(11):
            progress.update(done / 10, f"step {done}", 60)
        progress.say("a line that stays")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "  0.0%  step 0  01:00 left",
        "100.0%  step 10  01:00 left",
        "a line that stays",
    ]


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(quiet=False) as progress:
        progress.update(0.5, "step 5", 61)
        progress.say("plain [red]text[/red]")
    assert "50%" in terminal.getvalue()
    assert "01:01 left" in terminal.getvalue()
    assert "[red]text[/red]" in terminal.getvalue()


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=True) as progress:
        progress.update(1.0, "done", 0)
        progress.say("never seen")
    assert capsys.readouterr() == ("", "")


def test_warnings_show_even_when_quiet_from_one_rank(capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        with Progress(quiet=rank == 0, rank=rank) as progress:
            progress.update(1.0, "done", 0)
            progress.say("never seen")
            progress.warn(f"rank {rank} warns")
    assert capsys.readouterr() == ("", "rank 0 warns\n")


def test_clock() -> None:
    assert [clock(x) for x in (0, 61, 3723.4, math.inf, -5)] == [
        "00:00", "01:01", "1:02:03", "?", "00:00",
    ]  # fmt: skip
