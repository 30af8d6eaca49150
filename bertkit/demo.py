"""`bertkit demo`: the whole story in about five minutes, on English that this machine has already.

The text is the documentation of Python's standard library and of the installed packages: their
docstrings and their .rst, .md and .txt files. The project itself ships no text. Every stage is the
command that a user would type, and is shown before it runs.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any
from zlib import crc32

from cyclopts import Parameter

from bertkit.verbs.options import Common, Report

LARGEST_FILE, SHORTEST_DOCUMENT = 400_000, 300  # bytes; characters
SUFFIXES = (".py", ".rst", ".md", ".txt")
# Folders whose words are not documentation, or are the same words again.
NOT_READ = re.compile(r"/(tests?|testing|_?vendor|idlelib|encodings|third_party|[^/]*-info)/")
LEGAL = re.compile(
    r"copyright|licen[sc]e|warrant|permission is hereby|all rights reserved|redistribut", re.I
)
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_ROLE = re.compile(r":[\w:+-]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`")
_LINK = re.compile(r"!?\[([^\]]+)\]\([^)]*\)|`([^`<]+?)\s*<[^>]*>`_+")
_MARKS = re.compile(r"[`*|]+")
_ITEM = re.compile(r"^(?:[-*+•]|\d+[.)]|#+|\.\.)\s+")
_FIELD = re.compile(r"^(?::\w+[^:]*:|[*`]*\w+[*`]*(?:\s*\([^)]*\))?:)\s+")
_WORD = re.compile(r"[\"'(]*[A-Za-z]+(?:['’/-][A-Za-z]+)*[\"')]*[.,;:!?]*[\"')]*")


def blocks(text: str) -> Iterator[str]:
    """The paragraphs of a docstring or a page, each on one line.

    A paragraph ends at an empty line, at a bullet, at a field (`name: ...`) and where the indent
    changes, so that lists and tables of parameters fall apart into their sentences.
    """
    gathered: list[str] = []
    indent = 0
    hanging = False  # the line before opened an item: the lines under it may stand deeper
    for line in [*text.expandtabs().splitlines(), ""]:
        body = line.strip()
        depth = len(line) - len(line.lstrip())
        opening = _ITEM.match(body) or _FIELD.match(body)
        continues = depth > indent if hanging else depth == indent
        if gathered and (not body or opening or not continues):
            yield " ".join(gathered)
            gathered = []
        if body:
            gathered.append(body[opening.end() :] if opening else body)
            indent, hanging = depth, bool(opening)


def prose(block: str) -> str | None:
    """The block without markup, or None where it is not made of English sentences."""
    text = _ROLE.sub(r"\1", block)
    text = _LINK.sub(lambda match: match[1] or match[2], text)
    text = " ".join(_MARKS.sub("", text).split())
    words = text.split(" ")
    if len(words) < 6 or not text[0].isupper() or text[-1] not in ".!?:" or LEGAL.search(text):
        return None
    real = sum(1 for word in words if _WORD.fullmatch(word))
    return text.replace("::", ":") if real >= 0.85 * len(words) else None


def docstrings(source: str) -> Iterator[str]:
    """Every docstring of a Python file, in its order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    waiting: list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = [tree]
    while waiting:
        node = waiting.pop()
        if text := ast.get_docstring(node):
            yield text
        inner = [child for child in node.body if isinstance(child, DEFINITIONS)]
        waiting += reversed(inner)


def manual(source: str) -> Iterator[str]:
    """The pages of pydoc's own manual, which is one long dictionary."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from map(str, ast.literal_eval(node.value).values())


def pages(path: Path) -> Iterator[str]:
    """The texts of one file: docstrings, or a whole page; none where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".py":
            yield text
        elif path.parent.name == "pydoc_data":
            yield from manual(text)
        else:
            yield from docstrings(text)
    except (OSError, ValueError, SyntaxError, RecursionError):
        return


def paragraphs(path: Path) -> list[str]:
    """What one file has to say, a paragraph a string."""
    return [text for page in pages(path) for block in blocks(page) if (text := prose(block))]


def files_to_read() -> list[Path]:
    """Python's own files, then those of installed packages in an order that favours none."""
    library, packages = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    own = (path for path in library.rglob("*") if not path.is_relative_to(packages))
    own = (path for path in own if not {"site-packages", "dist-packages"} & set(path.parts))
    return _in_order(own, library) + _in_order(packages.rglob("*"), packages)


def _in_order(paths: Iterable[Path], root: Path) -> list[Path]:
    """The readable ones of `paths`, shuffled by name, so the same on every run."""
    kept = [
        path
        for path in paths
        if path.suffix in SUFFIXES
        and not NOT_READ.search(path.as_posix())
        and path.stat().st_size < LARGEST_FILE
    ]
    return sorted(kept, key=lambda path: crc32(str(path.relative_to(root)).encode()))


def gather(target: Path, characters: int, report: Report) -> int:
    """Write about so many characters of prose to `target`, a document a file that was read.

    No paragraph is written twice. Returns the number of documents.
    """
    seen: set[str] = set()
    documents = size = 0
    with (
        get_context("spawn").Pool(min(2, os.cpu_count() or 1)) as pool,
        target.open("w", encoding="utf-8") as out,
    ):
        for found in pool.imap(paragraphs, files_to_read(), chunksize=32):
            new = [text for text in dict.fromkeys(found) if text not in seen]
            if sum(map(len, new)) < SHORTEST_DOCUMENT:
                continue
            seen.update(new)
            out.write("\n".join(new) + "\n\n")
            documents += 1
            size += sum(map(len, new))
            report(size, characters)
            if size >= characters:
                break
    return documents


def run(*arguments: str | Path) -> dict[str, Any]:
    """Show a command, run it as a user would, and return the JSON object it ends with."""
    words = [str(argument) for argument in arguments]
    print("\n$ bertkit " + shlex.join(words), file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "bertkit", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


SENTENCES = (
    "The function returns a [MASK] of strings.",
    "If the file does not [MASK], an error is raised.",
    "This method is called when the [MASK] is closed.",
    "Return True if the two objects are [MASK], otherwise return False.",
    "The default [MASK] is None.",
    "The first [MASK] is the name of the file.",
    "Raises a ValueError if the [MASK] is not valid.",
    "The [MASK] must be a positive integer.",
)


@Parameter(name="*")
@dataclass(kw_only=True)
class DemoOptions:
    """How long the story takes."""

    out: Annotated[Path, Parameter(help="The folder for text, vocabulary, shards and run.")] = Path(
        "demo"
    )
    minutes: Annotated[float, Parameter(help="Minutes of pretraining.")] = 3.5
    megabytes: Annotated[float, Parameter(help="How much text to gather.")] = 5.0


def demo(*, options: DemoOptions | None = None, common: Common | None = None) -> None:
    """Run the whole story on English text that this machine has already."""
    options, common = options or DemoOptions(), common or Common()
    folder = options.out
    text, tokenizer, shards, run_folder = (
        folder / name for name in ("text.txt", "tokenizer", "shards", "run")
    )
    folder.mkdir(parents=True, exist_ok=True)
    common.say("Gathering English prose from the documentation on this machine.")
    with common.progress("gathering", "characters") as report:
        documents = gather(text, int(options.megabytes * 1e6), report)
    common.say(f"{text}: {text.stat().st_size / 1e6:.1f} MB in {documents:,} documents")

    run("vocab", text, "--out", tokenizer, "--size", "8192", "--overwrite")
    run("prepare", text, "--tokenizer", tokenizer, "--out", shards, "--workers", "2", "--overwrite")
    settings = ("--recipe", "minutes", "--minutes", str(options.minutes), "--set", "log.evals=4")
    trained = run("pretrain", shards, "--out", run_folder, *settings, "--overwrite")
    fills = run("fill", run_folder, *SENTENCES)
    common.show({"pretrain": trained, "fill": fills}, story(trained, fills))


def story(trained: dict[str, Any], fills: dict[str, Any]) -> str:
    """What was learnt, for people: held-out figures beside the baselines, then the fills."""
    figures = trained["figures"]
    lines = [
        "",
        "On text held out from training:",
        f"  masked words right     {figures['mlm_accuracy']:.1%}   "
        f"(always the most frequent token: {figures['unigram_accuracy']:.1%})",
        f"  next sentence right    {figures['nsp_accuracy']:.1%}   (by chance: 50%)",
        "",
        "The five likeliest words for each [MASK]:",
    ]
    for result in fills["results"]:
        (words,) = result["masks"]
        lines.append(f"  {result['text']}")
        lines.append("      " + ", ".join(f"{w['token_str']} {w['score']:.2f}" for w in words))
    return "\n".join(lines)
