"""Held-out masked loss after equal wall-clock: `bertkit pretrain` and transformers' recipe.

    python -m benchmarks.bench_quality --data PREPARED --tokenizer DIR --minutes 15 --side both

Both learn from the same prepared corpus. Both are scored from their saved model folders, opened by
transformers' BertForMaskedLM, on the same held-out rows with the same masks (packed rows of 128 of
the dev split: the peer's own form of input), kept in WORK/held_out.npz. The peer's clock holds its
training steps only; ours starts with the process, so that imports, reading and compiling count.
`--side ours` and `--side peer` run one side and compare it with what WORK holds of the other;
`--side score` only scores again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs as a plain script

from benchmarks import peers, report
from benchmarks.examples import MASK_RATE, NOT_MASKED
from benchmarks.recipe_peer import Mark, Recipe, RecipeSettings, read_marks, write_marks
from bertkit.data.shards import INDEX, TokenStore
from bertkit.runtime import pick_dtype

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare.

    Attributes:
        data: a folder of `bertkit prepare`, with its held-out split.
        tokenizer: the model folder with the tokenizer that prepared it.
        work: where model folders and the held-out masks are kept.
        minutes: wall-clock of the peer.
        our_minutes: wall-clock of ours; 0 is a third of the peer's.
        side: which side to run.
        size: of both networks.
        length: tokens of a packed row, of the peer's training and of the scoring.
        batch: the peer's rows a step.
        learning_rate: the peer's highest.
        marks: models saved along the way, of each side.
        eval_tokens: tokens of the held-out rows.
        precision: auto is bf16 where the processor has it, for both.
        threads: of both; 0 takes all cores.
        peer_compile: run the peer under torch.compile.
        set: settings of `bertkit pretrain`, such as train.batch_tokens=2048 data.objective=mlm.
        recipe: a recipe of `bertkit pretrain`.
        name: results/NAME.md.
    """

    data: Path
    tokenizer: Path
    work: Path = Path("build/quality")
    minutes: float = 15.0
    our_minutes: float = 0.0
    side: Literal["both", "peer", "ours", "score"] = "both"
    size: str = "mini"
    length: int = 128
    batch: int = 8
    learning_rate: float = 1e-3
    marks: int = 15
    eval_tokens: int = 65536
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    threads: int = 0
    peer_compile: bool = False
    set: list[str] = field(default_factory=list)
    recipe: str = ""
    name: str = "quality"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Fixed rows: ids [R, S] with masks applied, labels [R, S] (-100 elsewhere), word counts."""

    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    def unigram(self) -> tuple[float, float]:
        """Loss and accuracy of guessing by the training split's word frequencies."""
        shares = (self.counts + 1) / (self.counts + 1).sum()
        asked = self.labels[self.labels != NOT_MASKED]
        return float(-np.log(shares[asked]).mean()), float((asked == shares.argmax()).mean())


def split_documents(data: Path, split: str, tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of each document of a split, with [CLS] and [SEP]."""
    store = TokenStore(data / split)
    for document in range(store.documents):
        ids = store.document_tokens(document).tolist()
        yield [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]


def make_held_out(options: Options, tokenizer: Any) -> HeldOut:
    """The fixed held-out rows, made once and kept in WORK/held_out.npz."""
    path = options.work / "held_out.npz"
    # Rows of other data, or of other lengths, in the same folder would be compared unnoticed.
    key = f"{(options.data / 'dev' / INDEX).read_text()} {options.length} {options.eval_tokens}"
    if path.is_file():
        with np.load(path) as kept:
            if str(kept["key"]) != key:
                raise SystemExit(f"{path} was made from other data; name another --work")
            return HeldOut(kept["ids"], kept["labels"], kept["counts"])
    rows = peers.group_texts(split_documents(options.data, "dev", tokenizer), options.length)
    rows = rows[: max(1, options.eval_tokens // options.length)]
    train = peers.group_texts(split_documents(options.data, "train", tokenizer), options.length)
    special = np.array(tokenizer.all_special_ids)
    rng = np.random.default_rng(2018)
    chosen = (rng.random(rows.shape) < MASK_RATE) & ~np.isin(rows, special)
    words = np.setdiff1d(np.arange(len(tokenizer)), special)
    draw, noise = rng.random(rows.shape), rng.choice(words, rows.shape)
    ids = np.where(chosen & (draw < 0.8), tokenizer.mask_token_id, rows)
    ids = np.where(chosen & (draw >= 0.9), noise, ids)
    counts = np.bincount(train.ravel(), minlength=len(tokenizer))
    counts[special] = 0
    made = HeldOut(ids, np.where(chosen, rows, NOT_MASKED), counts)
    np.savez(path, key=key, ids=made.ids, labels=made.labels, counts=made.counts)
    return made


@torch.inference_mode()
def score(folder: str, held_out: HeldOut, batch: int = 32) -> tuple[float, float]:
    """Masked loss and accuracy of a saved model folder, opened by transformers, in fp32."""
    model = peers.transformers().BertForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    loss, correct, asked = 0.0, 0, 0
    for start in range(0, len(held_out.ids), batch):
        ids = torch.from_numpy(held_out.ids[start : start + batch])
        labels = torch.from_numpy(held_out.labels[start : start + batch])
        masked = labels != NOT_MASKED
        logits, wanted = model(input_ids=ids).logits[masked], labels[masked]
        loss += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
        correct += int((logits.argmax(-1) == wanted).sum())
        asked += len(wanted)
    return loss / asked, correct / asked


def run_peer(options: Options, tokenizer: Any) -> list[Mark]:
    """Train the peer, saving as it goes."""
    out = options.work / "peer"
    out.mkdir(parents=True, exist_ok=True)
    rows = peers.group_texts(split_documents(options.data, "train", tokenizer), options.length)
    settings = RecipeSettings(
        size=options.size,
        seconds=options.minutes * 60,
        mark_seconds=options.minutes * 60 / options.marks,
        batch=options.batch,
        learning_rate=options.learning_rate,
        dtype=pick_dtype(torch.device("cpu"), options.precision),
        compile=options.peer_compile,
    )
    return Recipe(settings, tokenizer, out).run(rows)


def our_command(options: Options, run: Path) -> list[str]:
    """The command that a user would type."""
    minutes = our_minutes(options)
    settings: dict[str, object] = {
        "model.size": options.size,
        "train.minutes": minutes,
        "train.precision": options.precision,
        "checkpoint.every_minutes": minutes / options.marks,
        "checkpoint.keep": 10_000,
        "log.evals": 0,  # the scorer below takes the place of its own evaluations
    }
    settings |= dict(item.split("=", 1) for item in options.set)
    command = [sys.executable, "-m", "bertkit", "pretrain", str(options.data.resolve())]
    command += ["--out", str(run.resolve()), "--overwrite", "--device", "cpu"]
    command += ["--recipe", options.recipe] if options.recipe else []
    return command + [
        part for name, value in settings.items() for part in ("--set", f"{name}={value}")
    ]


def our_minutes(options: Options) -> float:
    """The wall-clock of our training."""
    return options.our_minutes or options.minutes / 3


def run_ours(options: Options) -> list[Mark]:
    """Train ours in a process of its own; its clock starts with the process."""
    run = options.work / "ours"
    run.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    start = time.time()
    # Its results go to stderr: the last line of stdout is this benchmark's JSON object.
    done = subprocess.run(our_command(options, run), env=environment, stdout=sys.stderr, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"bertkit pretrain ended with {done.returncode}")
    marks: list[Mark] = []
    for weights in sorted(run.glob("checkpoints/step-*/model.safetensors")):
        told = json.loads((weights.parent / "trainer_state.json").read_text(encoding="utf-8"))
        marks.append(Mark(str(weights.parent), weights.stat().st_mtime - start, told["tokens"]))
    final = run / "model" / "model.safetensors"
    tokens = marks[-1].tokens if marks else 0
    marks.append(Mark(str(final.parent), final.stat().st_mtime - start, tokens))
    write_marks(run / "marks.json", marks)
    return marks


def scored(options: Options, side: str, held_out: HeldOut) -> list[Mark]:
    """A side's marks with their scores; folders that are scored already are not opened again."""
    path = options.work / side / "marks.json"
    marks = read_marks(path)
    for index, mark in enumerate(marks):
        if mark.loss != mark.loss:
            loss, accuracy = score(mark.folder, held_out)
            marks[index] = replace(mark, loss=loss, accuracy=accuracy)
            report.say(f"{side}: {mark.seconds:.0f} s: loss {loss:.4f}, accuracy {accuracy:.4f}")
    if marks:
        write_marks(path, marks)
    return marks


def reached(marks: Sequence[Mark], target: float) -> Mark | None:
    """The first mark whose held-out loss is the target or lower."""
    return next((mark for mark in marks if mark.loss <= target), None)


def verdict(peer: Sequence[Mark], ours: Sequence[Mark]) -> str:
    """In a sentence: when ours had the peer's final loss."""
    if not peer or not ours:
        return "Only one side has been run."
    final = peer[-1]
    mark = reached(ours, final.loss)
    if mark is None:
        return f"Ours did not reach the peer's final loss, {final.loss:.3f}."
    return (
        f"The peer ends after {final.seconds:.0f} s at loss {final.loss:.3f}. Ours is at "
        f"{mark.loss:.3f} after {mark.seconds:.0f} s, {mark.seconds / final.seconds:.2f} of the "
        f"time, start-up and compiling counted."
    )


def write_results(options: Options, held_out: HeldOut) -> None:
    """Score what there is, then the table and the JSON line."""
    sides = {name: scored(options, name, held_out) for name in ("peer", "ours")}
    unigram = held_out.unigram()
    titles = {"peer": "transformers", "ours": "bertkit"}
    body = [["unigram of the training split", "-", "-", f"{unigram[0]:.3f}", f"{unigram[1]:.3f}"]]
    body += [
        [
            titles[name],
            f"{mark.seconds:.0f}",
            f"{mark.tokens:,}",
            f"{mark.loss:.3f}",
            f"{mark.accuracy:.3f}",
        ]
        for name, marks in sides.items()
        for mark in marks
    ]
    dtype = pick_dtype(torch.device("cpu"), options.precision)
    masked = int((held_out.labels != NOT_MASKED).sum())
    intro = (
        f"BERT-{options.size}, {'bf16' if dtype == torch.bfloat16 else 'fp32'}, vocabulary "
        f"{len(held_out.counts):,}. Scored in fp32 by transformers on {held_out.ids.size:,} "
        f"held-out tokens, {masked:,} of them masked (15%, 80/10/10), the same for both. Peer: "
        f"packed rows of {options.length}, batch {options.batch}, learning rate "
        f"{options.learning_rate}, 6% warm-up, linear decay over {options.minutes:g} minutes"
        f"{', compiled' if options.peer_compile else ''}. Ours: `bertkit pretrain` over "
        f"{our_minutes(options):g} minutes, {' '.join(options.set) or 'default settings'}."
    )
    sections = [
        intro,
        verdict(sides["peer"], sides["ours"]),
        report.table(["side", "seconds", "tokens seen", "held-out loss", "accuracy"], body),
    ]
    figures: dict[str, object] = {
        "unigram": unigram,
        **{name: [asdict(mark) for mark in marks] for name, marks in sides.items()},
    }
    title = f"Held-out masked loss by wall-clock, BERT-{options.size}"
    report.publish(options.name, title, sections, figures, report.describe_machine())


app = cyclopts.App(default_parameter=report.FLAGS)


@app.default
def main(options: Annotated[Options, cyclopts.Parameter(name="*")]) -> None:
    """Train both sides for their time and score them on the same held-out masks."""
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer = peers.load_tokenizer(options.tokenizer)
    held_out = make_held_out(options, tokenizer)
    if options.side in ("both", "peer"):
        run_peer(options, tokenizer)
    if options.side in ("both", "ours"):
        run_ours(options)
    write_results(options, held_out)


if __name__ == "__main__":
    app()
