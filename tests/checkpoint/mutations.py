"""Thousands of broken model folders, opened one by one under a memory limit; told as JSON.

    python -m tests.checkpoint.mutations FOLDER SEED SHARE

A process of its own, so that a crash is seen, memory is bounded by the system, and an audit hook
can watch every file that is opened. SHARE scales the number of mutations of each kind.
"""

from __future__ import annotations

import io
import json
import random
import resource
import shutil
import sys
import sysconfig
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.crc32c import crc32c
from bertkit.checkpoint.files import config_file
from bertkit.checkpoint.layout import read_weights, write_tensors
from bertkit.errors import BertkitError
from bertkit.model.heads import BertForPreTraining
from bertkit.text.tokenizer import BertTokenizer

GOOGLE = Path(__file__).parent / "fixtures" / "google"
EXTRA_BYTES = 400_000_000  # what opening a folder of some kilobytes may take at most
SHARDS = ("first-00001-of-00002", "second-00002-of-00002")
SCRAPS: list[Any] = [
    None, True, -1, 0, 1, 9, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", "x",
    "bert", "roberta", "../../../etc/passwd.safetensors", "/etc/passwd.bin", "\n", "\ud800",
    "a" * 5000, [], {}, [[[[[[]]]]]], {"a": {"b": [1]}}, [2**40, 2**40], [0, 2**62],
    "F64", "I8", "BOOL",
]  # fmt: skip
Mutate = Callable[[random.Random, bytes], bytes]


def scratch(chance: random.Random, raw: bytes) -> bytes:
    """Flip, cut out, put in, cut off, repeat: the bytes of any file."""
    changed = bytearray(raw)
    for _ in range(chance.choice((1, 1, 2, 4)) if changed else 0):
        # Most of what can be misread stands at either end of a file.
        edge = min(len(changed), 600)
        at = chance.choice((chance.randrange(edge), -chance.randrange(1, edge + 1)))
        at = chance.choice((at, chance.randrange(len(changed)))) % len(changed)
        match chance.randrange(6):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at] = chance.choice((0, 255, chance.randrange(256)))
            case 2 if len(changed) > 32:
                del changed[at : at + chance.randint(1, 16)]
            case 3:
                changed[at:at] = chance.randbytes(chance.randint(1, 16))
            case 4:
                start = chance.randrange(len(changed))
                changed[at : at + 20] = changed[start : start + 20]
            case 5:
                del changed[max(at, 1) :]
    return bytes(changed) or b"\0"


def edit(chance: random.Random, tree: Any) -> Any:
    """A JSON tree with one place of it replaced, dropped or put elsewhere."""
    path: list[tuple[Any, Any]] = []
    node = tree
    while isinstance(node, dict | list) and node and (not path or chance.random() < 0.8):
        key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
        path.append((node, key))
        node = node[key]
    if not path:
        return deepcopy(chance.choice(SCRAPS))
    inside, key = path[-1]
    if chance.random() < 0.2:
        del inside[key]
    elif chance.random() < 0.1 and isinstance(inside, dict):
        inside[chance.choice(("a", "", "__metadata__", "x" * 999))] = inside.pop(key)
    else:
        inside[key] = deepcopy(chance.choice(SCRAPS))
    return tree


def edit_json(chance: random.Random, raw: bytes) -> bytes:
    """The same for a JSON file; at times nested without end, or with a key twice."""
    match chance.randrange(12):
        case 0:
            return chance.choice((b"[", b'{"a":', b'{"weight_map":')) * chance.randint(1, 50_000)
        case 1:
            return raw.rstrip().removesuffix(b"}") + b"," + raw.lstrip().removeprefix(b"{")
    tree = json.loads(raw)
    for _ in range(chance.randint(1, 3)):
        tree = edit(chance, tree) if isinstance(tree, dict) else tree
    return json.dumps(tree).encode()


def edit_header(chance: random.Random, raw: bytes) -> bytes:
    """A safetensors file with its table of tensors edited and its length put right."""
    size = int.from_bytes(raw[:8], "little")
    head = edit_json(chance, raw[8 : 8 + size])
    size = len(head) if chance.random() < 0.9 else chance.choice((2**63, 2**40, len(raw), 0))
    return size.to_bytes(8, "little") + head + raw[8 + int.from_bytes(raw[:8], "little") :]


def edit_pickle(chance: random.Random, raw: bytes) -> bytes:
    """A torch file whose archive is sound and whose pickle is not."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith(("data.pkl", "byteorder", "version")):
                content = scratch(chance, content)
            kind = zipfile.ZIP_DEFLATED if chance.random() < 0.005 else zipfile.ZIP_STORED
            new.writestr(entry.filename, content, kind)
    return out.getvalue()


def edit_block(chance: random.Random, raw: bytes) -> bytes:
    """A TensorFlow index with bytes of its blocks changed and their checksums put right."""
    changed = bytearray(raw)
    footer = len(raw) - 48
    for _ in range(chance.randint(1, 4)):
        changed[chance.randrange(footer)] = chance.choice((0, 1, 127, 128, 255))
    start = 0
    for end in _block_ends(raw):
        crc = crc32c(bytes(changed[start : end - 4]))
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        changed[end - 4 : end] = masked.to_bytes(4, "little")
        start = end
    return bytes(changed)


@cache
def _block_ends(raw: bytes) -> list[int]:
    """Where each block of an index ends and the next begins; their checksums tell."""
    ends, start = [], 0
    for end in range(5, len(raw) - 47):
        crc = crc32c(raw[start : end - 4])
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        if raw[end - 4 : end] == masked.to_bytes(4, "little"):
            ends.append(end)
            start = end
    return ends


# Folder, file, how it is broken, how often.
PLAN: list[tuple[str, str, Mutate, int]] = [
    ("safetensors", "model.safetensors", scratch, 300),
    ("safetensors", "model.safetensors", edit_header, 400),
    ("safetensors", "config.json", scratch, 200),
    ("safetensors", "config.json", edit_json, 300),
    ("shards", "model.safetensors.index.json", scratch, 100),
    ("shards", "model.safetensors.index.json", edit_json, 250),
    ("shards", f"{SHARDS[1]}.safetensors", edit_header, 60),
    ("zip", "pytorch_model.bin", scratch, 200),
    ("zip", "pytorch_model.bin", edit_pickle, 250),
    ("legacy", "pytorch_model.bin", scratch, 200),
    ("zip shards", "pytorch_model.bin.index.json", edit_json, 80),
    ("zip shards", f"{SHARDS[0]}.bin", scratch, 40),
    ("google", "bert_model.ckpt.index", scratch, 150),
    ("google", "bert_model.ckpt.index", edit_block, 250),
    ("google", "bert_model.ckpt.data-00000-of-00001", scratch, 100),
    ("google", "bert_config.json", edit_json, 80),
    ("tokenizer", "tokenizer.json", scratch, 60),
    ("tokenizer", "tokenizer.json", edit_json, 150),
    ("tokenizer", "tokenizer_config.json", edit_json, 80),
    ("tokenizer", "special_tokens_map.json", edit_json, 40),
    ("tokenizer", "vocab.txt", scratch, 30),
    ("google", "vocab.txt", scratch, 60),
]


def make_folders(root: Path) -> None:
    """One sound model folder of each form, all with the same small random model."""
    config = BertConfig.from_json_file(GOOGLE / "bert_config.json")
    state = read_weights(GOOGLE).tensors
    names = sorted(state)
    halves = [{n: state[n] for n in names[i::2]} for i in range(2)]
    for form in ("safetensors", "shards", "zip", "legacy", "zip shards"):
        config.save_pretrained(root / form)
        suffix = "safetensors" if form == "shards" else "bin"
        if form == "safetensors":
            write_tensors(root / form / "model.safetensors", state)
        elif "shards" in form:
            for shard, part in zip(SHARDS, halves, strict=True):
                path = root / form / f"{shard}.{suffix}"
                write_tensors(path, part) if suffix != "bin" else torch.save(part, path)
            of = {n: f"{s}.{suffix}" for s, half in zip(SHARDS, halves, strict=True) for n in half}
            stem = "model.safetensors" if suffix != "bin" else "pytorch_model.bin"
            index = root / form / f"{stem}.index.json"
            index.write_text(json.dumps({"metadata": {}, "weight_map": of}))
        else:
            path = root / form / "pytorch_model.bin"
            torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    shutil.copytree(GOOGLE, root / "google")
    BertTokenizer.from_pretrained(GOOGLE).save_pretrained(root / "tokenizer")


def open_folder(folder: Path) -> None:
    """What from_pretrained does, and a look at every number; then the tokenizer, where one is."""
    if (folder / "vocab.txt").exists():
        ids = BertTokenizer.from_pretrained(folder)("The cat, 模型 [MASK].")["input_ids"]
        assert all(isinstance(i, int) and i >= 0 for i in ids)
    if folder.name == "tokenizer":
        return
    config = BertConfig.from_json_file(config_file(folder))
    model = BertForPreTraining.from_weights(read_weights(folder), config)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def outcome(folder: Path) -> str:
    """How one folder is met: opened, or refused in one line that names a file of it."""
    try:
        open_folder(folder)
    except BertkitError as error:
        text = str(error)
        if "\n" in text or len(text) > 600:
            return f"not one line: {text[:300]!r}"
        named = any(f"{folder / entry.name}" in text for entry in folder.iterdir())
        return "refused" if named else f"names no file: {text[:300]}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    return "opened"


def run(root: Path, seed: int, share: float) -> Iterator[tuple[str, str]]:
    """Each kind of mutation with what came of it, one by one."""
    for form, name, mutate, count in PLAN:
        path = root / form / name
        raw = path.read_bytes()
        chance = random.Random(f"{seed} {form} {name} {mutate.__name__}")
        for _ in range(round(count * share)):
            path.write_bytes(mutate(chance, raw))
            yield f"{form}/{name} {mutate.__name__}", outcome(path.parent)
            path.unlink()  # what was mapped keeps its file
        path.write_bytes(raw)
        assert outcome(path.parent) == "opened", outcome(path.parent)


def watch(root: Path) -> list[str]:
    """Record every file opened elsewhere than in `root` or Python's own folders, and all worse."""
    homes = [str(root), *(p for p in sysconfig.get_paths().values()), "/proc/", "/sys/"]
    homes += [sys.prefix, sys.base_prefix, str(Path(__file__).parents[2])]
    seen: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            name = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode()
            if not name.startswith(tuple(homes)):
                seen.append(f"open {name}")
        elif event in {"os.system", "subprocess.Popen", "socket.connect", "os.exec", "os.mkdir"}:
            seen.append(f"{event} {arguments}"[:200])

    sys.addaudithook(hook)
    return seen


def main() -> None:
    """Run the plan; the last line of standard output is what came of it."""
    root, seed, share = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    make_folders(root)
    for form in {form for form, *_ in PLAN}:
        open_folder(root / form)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outside = watch(root)
    counts: Counter[str] = Counter()
    bad: list[str] = []
    for kind, what in run(root, seed, share):
        counts[what if what in ("opened", "refused") else "bad"] += 1
        if what not in ("opened", "refused"):
            bad.append(f"{kind}: {what}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({**counts, "problems": bad[:20], "outside": outside[:20], "peak_kib": peak}))


if __name__ == "__main__":
    main()
