"""The command line: exit status, one line an error, JSON last, and help that never waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from bertkit import cli
from bertkit.cli import main, with_underscores
from bertkit.errors import DataError, UsageError
from bertkit.verbs import explain
from bertkit.verbs.options import Common, _plain_lines

VERBS = ["vocab", "prepare", "pretrain", "fill", "next", "doctor", "demo"]
VERBS += ["finetune", "evaluate", "predict"]


def bertkit(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bertkit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], Callable[[], int]]:
    """Make `bertkit trial` run a given function."""

    def register(body: Callable[[], None]) -> Callable[[], int]:
        def trial(*, common: Common | None = None) -> None:
            body()

        app = App(**SETTINGS)
        app.command(trial)
        monkeypatch.setattr(cli, "app", app)
        return lambda: main(["trial"])

    return register


SETTINGS: dict[str, Any] = {
    "result_action": "return_value",
    "exit_on_error": False,
    "print_error": False,
    "suppress_keyboard_interrupt": False,
}


def raises(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("is empty", "a.txt", 3), 1, "bertkit: error: a.txt:3: is empty"),
        (UsageError("two\nlines"), 2, "bertkit: error: two lines"),
        (
            FileNotFoundError(2, "No such file", "x"),
            1,
            "bertkit: error: x: No such file",
        ),
        (KeyboardInterrupt(), 130, "bertkit: interrupted"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    verb: Callable[..., Callable[[], int]],
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert verb(raises(error))() == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == line + "\n"


def test_a_mistake_of_the_programmer_shows_its_traceback(
    verb: Callable[..., Callable[[], int]],
) -> None:
    run = verb(raises(AssertionError("broken invariant")))
    with pytest.raises(AssertionError):
        run()


def test_debug_shows_the_traceback_of_an_error() -> None:
    with pytest.raises(UsageError):
        main(["fill", "nowhere", "--top", "0", "a", "--debug"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["vocab", "text.txt", "--out", "tokenizer", "--bogus", "1"],
        ["prepare", "text.txt", "-x", "--out", "data", "--tokenizer", "t"],
        ["fill"],
        ["fill", "m", "text", "--bogus", "1"],
        ["fill", "m", "text", "--top", "many"],
        ["pretrain", "data"],
        ["pretrain", "data", "--out", "run", "--size", "huge"],
        ["pretrain", "data", "--out", "run", "--set", "train.nothing=1"],
        ["pretrain", "data", "--out", "run", "--set", "steps"],
        ["pretrain", "data", "--out", "run", "--steps", "2", "--minutes", "3"],
        ["pretrain", "data", "--out", "run", "--recipe", "nobodys"],
        ["pretrain", "data", "--out", "run", "--batch_tokens", "-5"],
    ],
)
def test_wrong_usage_exits_2_in_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bertkit: error: ")
    assert err.count("\n") == 1


def test_flags_may_be_written_with_dashes() -> None:
    assert with_underscores(["a-b", "--skip-bad-rows", "--max-length=3-4", "--", "--a-b"]) == [
        "a-b",
        "--skip_bad_rows",
        "--max_length=3-4",
        "--",
        "--a-b",
    ]


LINES = [(place, line) for place, line, _ in cli.VERBS.values()] + [*explain.VERBS.values()]


@pytest.mark.parametrize(("place", "line"), LINES)
def test_the_line_of_a_verb_is_the_first_of_its_docstring(place: str, line: str) -> None:
    module, _, name = place.partition(":")
    found = getattr(import_module(module), name)
    told = found.help if isinstance(found, App) else found.__doc__
    assert told.split("\n")[0] == line


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb != "explain"])
def test_usage_names_what_must_be_given(verb: str) -> None:
    usage = cli.VERBS[verb][2].split()
    arguments = cli.app[verb].assemble_argument_collection()
    must = [argument for argument in arguments if argument.required and argument.show]
    flags = [word for word in usage if word.startswith("--")]
    assert sorted(flags) == sorted(a.name for a in must if a.name.startswith("--"))
    named = [word.rstrip(".") for i, word in enumerate(usage) if not usage[i - 1].startswith("--")]
    named = [word for word in named if word[0] not in "-["]
    assert named == [a.name.upper() for a in must if not a.name.startswith("--")]


def test_main_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert [verb for verb in VERBS if f"  {verb}:" not in out] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_the_common_flags(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--json", "--quiet", "--seed", "--device", "--debug"):
        assert flag in out


@pytest.mark.parametrize(
    "arguments", [["--help"], ["pretrain", "--help"], ["finetune", "--help"], ["--version"]]
)
def test_help_loads_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from bertkit.cli import main; main(sys.argv[1:]);"
        "print(*(m for m in ('torch', 'numpy', 'tokenizers', 'pyarrow') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == ""


def test_help_takes_less_than_a_third_of_a_second() -> None:
    """Processor time of the whole process, the best of three: it does not hang on the load."""

    def once() -> float:
        before = os.times()
        assert bertkit("prepare", "--help").returncode == 0
        after = os.times()
        return (
            after.children_user
            + after.children_system
            - (before.children_user + before.children_system)
        )

    assert min(once() for _ in range(3)) < 0.5


def test_json_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    Common(json=True).show({"word": "词"}, "for people")
    assert json.loads(capsys.readouterr().out) == {"word": "词"}
    Common().show({"word": "词"}, "for people")
    assert capsys.readouterr().out == "for people\n"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Common(quiet=True).progress("reading", "documents") as report:
        report(1, 2)
    Common(quiet=True).say("hm")
    assert capsys.readouterr() == ("", "")


def test_progress_is_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _plain_lines("reading", "documents", every=0.0)(0, 4)
    assert capsys.readouterr().err == ""  # there is no rate yet
    with Common().progress("reading", "documents") as report:
        report(1, 4)
        report(4, 4)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("reading: 4 documents, ")
    assert err.count("\n") == 1


def test_doctor_reports_this_machine() -> None:
    done = bertkit("doctor", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["bertkit"] == bertkit("--version").stdout.strip()
    assert facts["cpu_matrix_peak_fp32_gflops"] > 1
    assert facts["free_disk_gib"] > 0


def test_a_missing_model_is_one_line_and_status_1(tmp_path: Path) -> None:
    done = bertkit("fill", str(tmp_path / "nowhere"), "a [MASK]")
    assert done.returncode == 1
    assert done.stderr.startswith("bertkit: error: ")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_stops_early_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m bertkit --help | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("Usage: bertkit")
    assert done.stderr == ""
