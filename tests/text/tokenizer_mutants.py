"""Broken tokenizer files by the thousand, opened one after another in a process of their own.

python -m tests.text.tokenizer_mutants GOOD_FOLDER WORK_FOLDER SEED COUNT

Prints one JSON object: how many loaded, how many were refused, what went wrong, the peak memory.
A panic of the Rust library shows as a failure, an abort as the exit code.
"""

from __future__ import annotations

import copy
import json
import random
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bertkit.errors import BertkitError
from bertkit.text.tokenizer import BertTokenizer

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 5, 2**31, 2**32, 2**40, 2**64, 10**30, -(2**63), 1.5, 1e308,
    float("nan"), float("inf"), "", " ", "a", "[UNK]", "##", "$A", "a:0", "a\nb", "\r", "\0",
    "\ud800", "\udfff", "\u2028", "x" * 5000, "BPE", "Unigram", "Precompiled", "Sequence", "left",
    [], {}, [[]], [{}], {"": 0}, {"a": {}}, ["[UNK]"], {"type": "Sequence", "normalizers": []},
    {"type": "Replace", "pattern": {"Regex": "(a*)*$"}, "content": ""}, {"content": "[UNK]"},
    {"content": "\n", "id": 3}, {"__type": "AddedToken", "content": "[CLS]", "lstrip": True},
    [{"id": 0, "content": "[PAD]"}] * 3, {str(i): i for i in range(50)},
]  # fmt: skip


def nodes_of(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    found: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        # Not every word of the vocabulary: the rest of the file would be hit too seldom.
        keys = list(keys)[:8]
        found += [(node, key) for key in keys]
        stack += [node[key] for key in keys if isinstance(node[key], (dict, list))]
    return found


def mutate_tree(rng: random.Random, raw: bytes) -> bytes:
    """One to three parts of a JSON file replaced, removed, renamed or nested."""
    tree = json.loads(raw)
    for _ in range(rng.randint(1, 3)):
        nodes = nodes_of(tree)
        if not nodes:
            break
        node, key = rng.choice(nodes)
        what = rng.randrange(5)
        if what < 3:
            node[key] = copy.deepcopy(rng.choice(NASTY))
        elif what == 3 and isinstance(node, dict):
            node[str(rng.choice(NASTY))] = node.pop(key)
        elif isinstance(node, dict):
            del node[key]
        else:
            node.insert(key, copy.deepcopy(rng.choice(NASTY)))
    return json.dumps(tree).encode()


def mutate_bytes(rng: random.Random, raw: bytes) -> bytes:
    """Bits flipped, a piece cut out, doubled or replaced by noise, the end missing."""
    data = bytearray(raw)
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice([1, 2, 10, 200]))
    what = rng.randrange(6)
    if what == 0:
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif what == 1:
        del data[start:]
    elif what == 2:
        del data[start:end]
    elif what == 3:
        data[start:start] = data[start:end] * rng.choice([1, 50])
    elif what == 4:
        data[start:end] = rng.randbytes(end - start)
    else:
        data[start:start] = rng.choice([b"\n", b"\r", b"\0", b"\xff", b"\n\n\n", b"[" * 100_000])
    return bytes(data)


def try_one(folder: Path) -> str:
    """Open a folder and use it; "loaded", "refused" or what is wrong."""
    try:
        tokenizer = BertTokenizer.from_pretrained(folder)
    except BertkitError as error:
        message = str(error)
        if len(message.splitlines()) != 1 or len(message) > 1000:
            return f"not one line: {message[:300]!r}"
        named = any(str(path) in message for path in folder.iterdir())
        return "refused" if named else f"no file named: {message!r}"
    try:
        rows = tokenizer(["The [MASK] fox, \u4e2d\u6587 \u0301e a b"] * 17, truncation=True)
        tokenizer.decode(rows["input_ids"])
        tokenizer.save_pretrained(folder.with_name("saved"))
    except BertkitError as error:
        message = str(error)
        return "loaded" if len(message.splitlines()) == 1 else f"not one line: {message[:300]!r}"
    return "loaded"


def main(good: Path, work: Path, seed: int, count: int) -> dict[str, Any]:
    """Try `count` mutants of the files in `good`."""
    rng = random.Random(seed)
    names = sorted(path.name for path in good.iterdir())
    tally: dict[str, int] = {"loaded": 0, "refused": 0}
    wrong: list[str] = []
    for number in range(count):
        folder = work / "mutant"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        name = rng.choice(names)
        if name != "tokenizer.json" and rng.random() < 0.5:
            (folder / "tokenizer.json").unlink()
        raw = (good / name).read_bytes()
        change: Callable[[random.Random, bytes], bytes] = mutate_bytes
        if name.endswith(".json") and rng.random() < 0.6:
            change = mutate_tree
        (folder / name).write_bytes(change(rng, raw))
        try:
            answer = try_one(folder)
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"[:300]
        if answer in tally:
            tally[answer] += 1
        else:
            wrong.append(f"mutant {number} of {name}: {answer}")
    return {**tally, "wrong": wrong[:20], "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The most memory this process held; getrusage would count the parent that it was forked from.

    0 where there is no /proc.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    good, work, seed, count = sys.argv[1:]
    # What a hostile file makes us take is bounded; past this, memory errors show as failures.
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    print(json.dumps(main(Path(good), Path(work), int(seed), int(count))))
