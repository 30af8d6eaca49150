"""What the manual says is executed or compared: commands, Python, settings, links, the tree."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest

import bertkit
from bertkit.cli import app, with_underscores
from bertkit.settings import SIZES, FinetuneRecipe, Recipe
from bertkit.verbs.pretrain import PretrainOptions, overrides
from bertkit.verbs.recipes import RunOptions

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("README*.md"), *ROOT.glob("docs/en/[!l]*.md"), *ROOT.glob("docs/zh/*.md")]
)
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fences(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in fences(page, "sh") for line in block.splitlines()]
    return [shlex.split(line.split(" < ")[0]) for line in lines if line]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def test_there_is_a_manual_in_both_languages() -> None:
    english = {page.name for page in (ROOT / "docs/en").glob("*.md")} - {"log.md"}
    assert english == {page.name for page in (ROOT / "docs/zh").glob("*.md")} - {"log.md"}
    assert len(english) >= 6


@by_page
def test_every_command_is_one_that_the_command_line_takes(page: Path) -> None:
    found = commands(page)
    assert found
    for words in found:
        if words[0] == "torchrun":
            words = words[words.index("-m") + 1 :]
        match words:
            case ["bertkit", *arguments]:
                function, bound, _ = app.parse_args(
                    with_underscores(arguments), exit_on_error=False, print_error=False
                )
                if function.__name__ == "pretrain":
                    check_pretrain(bound.arguments["run"], bound.arguments.get("options"))
            case ["make", target]:
                assert target in make_targets()
            case _:
                assert words[:2] == ["pip", "install"], words


def check_pretrain(run: RunOptions, options: PretrainOptions | None) -> None:
    overrides(options or PretrainOptions(), None, run.set)
    run.file()


# Of each small file on the page of formats: for which task, and what its rows are.
EXAMPLES: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
    "tickets.csv": ("classify", [("T-17", "It does not print, and blinks.", None),
                                 ("T-18", "My password is wrong.", None)]),
    "notes.tsv": ("classify", [("0", "text", "label"), ("1", "that broke off", "label"),
                               ("2", "of the letter", "text")]),
    "filme.csv": ("classify", [("0", "Ein schöner Film.", "gut"),
                               ("1", "Langweilig.", "schlecht")]),
    "export.txt": ("classify", [("0", "Fast, and well packed.", "good"),
                                ("1", "It came broken.", "bad")]),
    "thai.conll": ("tag", [("0", "ฉันอยู่กรุงเทพ", ((7, 14, "LOC"),))]),
}  # fmt: skip


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_small_files_are_read_as_the_page_of_formats_says(
    language: str, tmp_path: Path
) -> None:
    from bertkit.tasks.formats import open_rows

    page = ROOT / "docs" / language / "formats.md"
    # Prose, kind of block, block, prose, ...: a file's name stands last in the prose before it.
    pieces = re.split(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), flags=re.M | re.S)
    files = {
        re.findall(r"`(\w+\.\w+)`", prose)[-1]: content
        for prose, kind, content in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=False)
        if kind in ("csv", "tsv", "conll")
    }
    assert files.keys() == EXAMPLES.keys()
    asked = {words[3]: words for words in commands(page) if words[0] == "bertkit"}
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        _, bound, _ = app.parse_args(
            with_underscores(asked[name][1:]), exit_on_error=False, print_error=False
        )
        task, expected = EXAMPLES[name]
        rows = open_rows(tmp_path / name, task, bound.arguments["reading"].columns()).rows()
        found = [
            (row.id, row.text, row.entities if task == "tag" else row.label)  # type: ignore
            for row in rows
        ]
        assert found == expected, name


@by_page
def test_every_python_example_uses_names_that_exist(page: Path) -> None:
    for block in fences(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                assert node.module == "bertkit"
                assert {alias.name for alias in node.names} <= set(bertkit.__all__)


@by_page
def test_every_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def settings_table(page: Path) -> dict[str, str]:
    rows = re.findall(r"^\| `(\w+\.\w+)` \| (.*?) \| .+ \|$", page.read_text("utf-8"), re.M)
    assert len(rows) == len({name for name, _ in rows})
    return {name: default.strip("`") for name, default in rows}


def written(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else str(value).lower()


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    ("name", "recipe"), [("pretrain", Recipe()), ("finetune", FinetuneRecipe())]
)
def test_the_table_of_settings_is_complete_and_its_defaults_are_the_defaults(
    name: str, recipe: msgspec.Struct, language: str
) -> None:
    tree = msgspec.to_builtins(recipe)
    defaults = {f"{s}.{k}": written(v) for s, keys in tree.items() for k, v in keys.items()}
    assert settings_table(ROOT / "docs" / language / f"{name}.md") == defaults


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_table_of_sizes_is_right(language: str) -> None:
    text = (ROOT / "docs" / language / "pretrain.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.M)
    assert {name: (int(a), int(b), int(c)) for name, a, b, c in rows} == SIZES


def test_the_tree_in_the_readme_names_every_module() -> None:
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```")[-2]
    named: set[str] = set()
    folder = ""
    for line in block.splitlines():
        match = re.match(r"( +)(\w+)(\.py|/)\s{2,}\S", line)
        if match and match[3] == "/":
            folder = match[2] + "/"
        elif match:
            named.add((folder if len(match[1]) > 2 else "") + match[2] + ".py")
    package = ROOT / "bertkit"
    there = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    assert named == {name for name in there if "/" not in name or "__init__" not in name}


def test_the_keys_that_the_manual_reads_from_an_answer_are_there() -> None:
    from bertkit.tasks.mlm import Fill

    page = (ROOT / "docs/en/fill.md").read_text(encoding="utf-8")
    assert set(re.findall(r'word\["(\w+)"\]', page)) == set(Fill.__annotations__) - {"token"}
