"""The tasks of the fine-tuning benchmarks: public data, cut alike for both sides, and settings.

Cut files keep the form of their sources, so that what is measured reads what users have.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Form = Literal["table", "jsonl", "conll", "squad"]
ENDINGS: dict[Form, str] = {"table": "tsv", "jsonl": "jsonl", "conll": "txt", "squad": "json"}
SHUFFLE_SEED = 2018
# Small models want higher rates than BERT-base: Turc et al. 2019 (section 4.2) go up to 3e-4 for
# models of any size; at 5e-5 a mini left cluener2020's F1 at 1%.
MINI_RATE = 3e-4
# What the default limits were made for: minutes of a run on two Zen 3 cores, with MiniLM in English
# (about 400,000 tokens, epochs counted) and a mini in Chinese (about a million).
MINUTES = 5.0


@dataclass(frozen=True, slots=True)
class Source:
    """A file below the data folder; of SQuAD files perhaps only the articles from `first` on."""

    path: str
    first: int = 0
    last: int | None = None


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One line of the table.

    Attributes:
        name: of the line; also of the folder of cut files.
        task: as in `bertkit finetune TASK`.
        language: en or zh.
        form: of all its files.
        train: training files; each gives its share of `limit`.
        dev: what is scored; None: `dev_limit` records are set aside from the training file.
        limit: training records.
        dev_limit: records that are scored.
        max_length: tokens of a sequence.
        metrics: what is shown; the first one counts.
        learning_rate: of both sides.
        epochs: of both sides.
        batch_size: of both sides.
        crf: tags are decided together.
        no_answer: a passage may not answer its question.
        speed_examples: records of an epoch in the benchmark of speed.
        note: what a reader should know of the cut.
    """

    name: str
    task: str
    form: Form
    train: tuple[Source, ...]
    dev: Source | None
    limit: int
    dev_limit: int
    max_length: int
    metrics: tuple[str, ...]
    language: str = "en"
    learning_rate: float = 5e-5
    epochs: float = 3.0
    batch_size: int = 32
    crf: bool = False
    no_answer: bool = False
    speed_examples: int = 0
    note: str = ""

    @property
    def folder(self) -> str:
        """Cut files are shared by the lines with and without a CRF."""
        return self.name.removesuffix(CRF)

    @property
    def doc_stride(self) -> int:
        """What windows of a passage share: run_squad's 128 of 384."""
        return self.max_length // 3

    @property
    def scale(self) -> float:
        """What makes a percentage of a figure: answers have percentages already."""
        return 1.0 if self.task == "qa" else 100.0


CRF = "+crf"
_F1 = ("f1", "precision", "recall")


def _with_crf(spec: TaskSpec) -> list[TaskSpec]:
    return [spec, TaskSpec(**{**spec.__dict__, "name": spec.name + CRF, "crf": True})]


_SPECS = [
    TaskSpec(
        name="sst2", task="classify", form="table", metrics=("accuracy",), max_length=128,
        train=(Source("sst2/train.tsv"),), dev=Source("sst2/dev.tsv"),
        limit=9_000, dev_limit=872, speed_examples=3072,
    ),
    TaskSpec(
        name="mrpc", task="classify", form="table", metrics=("f1", "accuracy"), max_length=128,
        train=(Source("mrpc/train.tsv"),), dev=Source("mrpc/dev.tsv"),
        limit=2_400, dev_limit=408, learning_rate=1e-4, speed_examples=768,
    ),
    TaskSpec(
        name="stsb", task="regress", form="table", metrics=("pearson", "spearman"), max_length=128,
        train=(Source("stsb/train.tsv"),), dev=Source("stsb/dev.tsv"),
        limit=4_500, dev_limit=1_500, learning_rate=2e-4,
    ),
    *_with_crf(TaskSpec(
        name="wikiann_en", task="tag", form="conll", metrics=_F1, max_length=128,
        train=(Source("wikiann_en/train.txt"),), dev=Source("wikiann_en/dev.txt"),
        limit=9_000, dev_limit=3_000, speed_examples=3072,
    )),
    TaskSpec(
        name="squad_v1", task="qa", form="squad", metrics=("f1", "exact"), max_length=384,
        train=(Source("squad_v1/train.json"),), dev=Source("squad_v1/dev.json"),
        limit=1_400, dev_limit=1_000, learning_rate=1e-4, epochs=2.0, batch_size=8,
        speed_examples=256, note="questions of the 44 articles that are there",
    ),
    TaskSpec(
        name="squad_v2", task="qa", form="squad", max_length=384,
        metrics=("best_f1", "f1", "exact"),
        train=(Source("squad_v1/train.json"), Source("squad_v2/dev.json", 0, 14)),
        dev=Source("squad_v2/dev.json", 14, None),
        limit=1_200, dev_limit=1_000, learning_rate=1e-4, epochs=2.0, batch_size=8,
        no_answer=True,
        note="half from 14 of squad_v2's 19 articles, half from squad_v1; scored on the other 5",
    ),
    TaskSpec(
        name="chnsenticorp", task="classify", form="table", language="zh", max_length=128,
        learning_rate=MINI_RATE,
        metrics=("accuracy",), train=(Source("chnsenticorp/train.tsv"),),
        dev=Source("chnsenticorp/dev.tsv"), limit=4_000, dev_limit=1_200,
        note="training texts that dev holds too are left out",
    ),
    TaskSpec(
        name="smp2020_usual", task="classify", form="table", language="zh", max_length=128,
        learning_rate=MINI_RATE,
        metrics=("macro_f1", "accuracy"), train=(Source("smp2020_usual/train.tsv.gz"),),
        dev=Source("smp2020_usual/dev.tsv"), limit=8_000, dev_limit=2_000,
    ),
    TaskSpec(
        name="ocnli", task="classify", form="jsonl", language="zh", max_length=128,
        learning_rate=MINI_RATE,
        metrics=("accuracy",), train=(Source("ocnli/train.jsonl.gz"),),
        dev=Source("ocnli/dev.jsonl"), limit=9_985, dev_limit=2_950,
    ),
    *_with_crf(TaskSpec(
        name="msra_ner", task="tag", form="conll", language="zh", max_length=192, metrics=_F1,
        learning_rate=MINI_RATE,
        train=(Source("msra_ner/train.txt.gz"),), dev=None, limit=8_000, dev_limit=2_000,
        note="dev set aside from train",
    )),
    *_with_crf(TaskSpec(
        name="cluener2020", task="tag", form="jsonl", language="zh", max_length=128, metrics=_F1,
        learning_rate=MINI_RATE,
        train=(Source("cluener2020/train.jsonl"),), dev=Source("cluener2020/dev.jsonl"),
        limit=10_748, dev_limit=1_343,
    )),
    TaskSpec(
        name="cmrc2018", task="qa", form="squad", language="zh", max_length=384,
        metrics=("f1", "exact"),
        train=(Source("cmrc2018/trial.json"), Source("drcd/dev.json")),
        dev=Source("cmrc2018/dev.json"),
        limit=1_000, dev_limit=800, learning_rate=MINI_RATE, epochs=2.0, batch_size=8,
        note="half from CMRC's trial questions, half from DRCD (traditional characters)",
    ),
]  # fmt: skip
SPECS = {spec.name: spec for spec in _SPECS}


@dataclass(frozen=True, slots=True)
class Cut:
    """The files of a task as both sides get them."""

    train: Path
    dev: Path
    train_records: int
    dev_records: int


@dataclass(frozen=True, slots=True)
class Job:
    """A task with its cut files and the model that it begins with."""

    spec: TaskSpec
    files: Cut
    model_name: str
    model: Path


def cut(spec: TaskSpec, data: Path, out: Path, limit: int = 0, dev_limit: int = 0) -> Cut:
    """Write the cut files of a task; the same records whenever the limits are the same.

    Args:
        spec: the task.
        data: the folder with the public data.
        out: where to write; a folder for the task is made in it.
        limit: training records; 0: the task's own.
        dev_limit: records to score; 0: the task's own.
    """
    limit, dev_limit = limit or spec.limit, dev_limit or spec.dev_limit
    header = dev_header = ""
    dev: list[Any] = []
    if spec.dev is not None:
        dev_header, dev = _shuffled(spec, data, spec.dev)
    train: list[Any] = []
    for number, source in enumerate(spec.train):
        header, found = _shuffled(spec, data, source)
        if spec.dev is None:
            dev_header, dev, found = header, found[: spec.dev_limit], found[spec.dev_limit :]
        known = {_text(spec.form, record) for record in dev}
        found = [r for r in found if _is_sound(spec.form, r) and _text(spec.form, r) not in known]
        train += found[: (limit - len(train)) // (len(spec.train) - number)]
    dev = dev[:dev_limit]
    folder = out / spec.folder
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{part}-{len(records)}.{ENDINGS[spec.form]}"
             for part, records in (("train", train), ("dev", dev))]  # fmt: skip
    write_records(paths[0], spec.form, header, train)
    write_records(paths[1], spec.form, dev_header, dev)
    return Cut(paths[0], paths[1], len(train), len(dev))


def _shuffled(spec: TaskSpec, data: Path, source: Source) -> tuple[str, list[Any]]:
    header, records = read_records(data / source.path, spec.form, source.first, source.last)
    records = [record for record in records if _is_agreed(spec.form, record)]
    random.Random(SHUFFLE_SEED).shuffle(records)
    return header, records


def read_records(
    path: Path, form: Form, first: int = 0, last: int | None = None
) -> tuple[str, list[Any]]:
    """The header ("" where there is none) and the records: lines, sentences, questions."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    if form == "squad":
        articles = json.loads(text)["data"][first:last]
        return "", [
            (paragraph["context"], question)
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    if form == "conll":
        return "", [block.strip("\n") for block in text.split("\n\n") if block.strip()]
    lines = [line for line in text.split("\n") if line.strip()]
    return (lines[0], lines[1:]) if form == "table" else ("", lines)


def write_records(path: Path, form: Form, header: str, records: Sequence[Any]) -> None:
    """Write records as `read_records` gave them."""
    if form == "squad":
        passages: dict[str, list[Any]] = {}
        for context, question in records:
            passages.setdefault(context, []).append(question)
        paragraphs = [{"context": context, "qas": qas} for context, qas in passages.items()]
        text = json.dumps({"data": [{"title": "", "paragraphs": paragraphs}]}, ensure_ascii=False)
    else:
        between = "\n\n" if form == "conll" else "\n"
        text = between.join([header, *records] if header else records) + between
    path.write_text(text, encoding="utf-8")


def _is_agreed(form: Form, record: Any) -> bool:
    """Not one of OCNLI's records without a majority label."""
    return form != "jsonl" or json.loads(record).get("label") != "-"


def _is_sound(form: Form, record: Any) -> bool:
    """Its answers stand where the file says: those that do not are no use for training."""
    if form != "squad":
        return True
    context, question = record
    return all(context.startswith(a["text"], a["answer_start"]) and a["answer_start"] >= 0
               for a in question["answers"])  # fmt: skip


def _text(form: Form, record: Any) -> str:
    """What must not stand in train and dev: a line, the words of a sentence, a question's id."""
    match form:
        case "squad":
            return str(record[1]["id"])
        case "conll":
            return " ".join(line.split()[0] for line in record.split("\n") if line.split())
        case "jsonl":
            fields = json.loads(record)
            return "\t".join(fields.get(key, "") for key in ("text", "sentence1", "sentence2"))
        case "table":
            return str(record)
