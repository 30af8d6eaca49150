"""Every labelled data set that lies beside the repository: counts as published, spans exact."""

from collections import Counter
from pathlib import Path

import pytest

from bertkit.tasks.formats import RowFile, open_rows, summarize
from bertkit.tasks.records import QuestionRow, TagRow, TextRow

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data is not there")

# Rows without those that OCNLI's annotators did not agree on.
TEXTS = {
    "sst2/train.tsv": 67_349, "sst2/dev.tsv": 872, "sst2/test.tsv": 1_821,
    "cola/train.tsv": 8_551, "cola/dev.tsv": 1_043, "cola/test.tsv": 1_063,
    "chnsenticorp/train.tsv": 9_600, "chnsenticorp/dev.tsv": 1_200, "chnsenticorp/test.tsv": 1_200,
    "waimai_10k/all.csv": 11_987, "smp2020_usual/train.tsv.gz": 27_766,
    "smp2020_usual/dev.tsv": 2_000, "smp2020_usual/test.tsv": 5_000,
    "mrpc/train.tsv": 3_668, "mrpc/dev.tsv": 408, "mrpc/test.tsv": 1_725,
    "rte/train.tsv": 2_490, "rte/dev.tsv": 277, "rte/test.tsv": 3_000,
    "ocnli/train.jsonl.gz": 10_000 - 15, "ocnli/dev.jsonl": 3_000 - 50, "ocnli/test.jsonl": 3_000,
    "afqmc/dev.jsonl": 4_316, "afqmc/test.jsonl": 3_861, "lcqmc/dev.tsv": 8_802,
}  # fmt: skip
LABELS = {
    "waimai_10k/all.csv": {"1": 4_000, "0": 7_987},
    "afqmc/dev.jsonl": {"0": 2_978, "1": 1_338},
    "cola/dev.tsv": {"1": 721, "0": 322},
    "mrpc/train.tsv": {"1": 2_474, "0": 1_194},
    "rte/dev.tsv": {"entailment": 146, "not_entailment": 131},
}
NUMBERS = {"stsb/train.tsv": 5_749, "stsb/dev.tsv": 1_500, "stsb/test.tsv": 1_379}
# Sentences, and tags that are I- with no B- before.
TAGS = {
    "wikiann_en/train.txt": (20_000, 0), "wikiann_en/dev.txt": (10_000, 0),
    "wikiann_en/test.txt": (10_000, 0), "msra_ner/train.txt.gz": (50_658, 6),
    "msra_ner/test.txt": (4_631, 11), "weibo_ner/train.txt": (1_350, 10),
    "weibo_ner/dev.txt": (270, 0), "weibo_ner/test.txt": (270, 4),
    "cluener2020/train.jsonl": (10_748, 0), "cluener2020/dev.jsonl": (1_343, 0),
}  # fmt: skip
# Questions, answers that are not in the passage, answers that stand elsewhere.
QUESTIONS = {
    "squad_v1/train.json": (11_877, 0, 0), "squad_v1/dev.json": (4_961, 0, 0),
    "squad_v2/dev.json": (6_440, 0, 0), "cmrc2018/dev.json": (3_219, 193, 7),
    "cmrc2018/trial.json": (1_002, 0, 5), "drcd/dev.json": (3_524, 0, 0),
}  # fmt: skip
ILLEGAL = "illegal tags, read as conlleval reads them"


def opened(name: str, task: str) -> RowFile:
    return open_rows(DATA / name, task)


@needs_data
@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str) -> None:
    summary = summarize(opened(name, "classify").rows())
    assert summary.rows == TEXTS[name]
    assert summary.unlabelled == (
        summary.rows if "test" in name and "chn" not in name and "smp" not in name else 0
    )
    assert summary.labels == LABELS.get(name, summary.labels)


@needs_data
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    rows = [row for row in opened(name, "regress").rows() if isinstance(row, TextRow)]
    assert len(rows) == NUMBERS[name]
    assert all(row.pair for row in rows)
    if "test" not in name:
        assert {min(r.label for r in rows if isinstance(r.label, float)),
                max(r.label for r in rows if isinstance(r.label, float))} == {0.0, 5.0}  # fmt: skip


@needs_data
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "msra_ner/train.txt.gz" else ()) for n in TAGS],
)
def test_every_entity_is_the_words_of_its_text(name: str) -> None:
    file = opened(name, "tag")
    rows = 0
    for row in file.rows():
        assert isinstance(row, TagRow)
        assert row.entities is not None
        rows += 1
        starts = {start for start, _ in row.words or ()}
        ends = {end for _, end in row.words or ()}
        before = 0
        for start, end, _ in row.entities:
            assert before <= start < end <= len(row.text)
            assert row.words is None or (start in starts and end in ends)
            before = end
    assert (rows, file.findings.counts[ILLEGAL]) == TAGS[name]


@needs_data
def test_entities_are_counted_as_published() -> None:
    labels: Counter[str] = Counter()
    for row in opened("msra_ner/test.txt", "tag").rows():
        assert isinstance(row, TagRow)
        labels.update(span.label for span in row.entities or ())
    # 11 stretches of PER begin with an I-.
    assert labels == {"LOC": 2_877, "ORG": 1_331, "PER": 1_973 + 11}
    file = opened("cluener2020/train.jsonl", "tag")
    assert summarize(file.rows()).labels.total() == 23_972 - 2
    parts, nested = (file.findings.places[kind] for kind in file.findings.counts)
    assert len(parts) == 67  # as 6000 in rtx6000
    assert [place.line for place, _ in nested] == [1_507, 1_507]


@needs_data
@pytest.mark.parametrize("name", QUESTIONS)
def test_every_answer_is_cut_from_its_passage(name: str) -> None:
    file = opened(name, "qa")
    rows = missing = 0
    for row in file.rows():
        assert isinstance(row, QuestionRow)
        assert row.answers is not None
        assert row.is_impossible == (not row.answers)
        rows += 1
        for text, start in row.answers:
            assert start == -1 or row.context[start : start + len(text)] == text
            missing += start == -1
    moved = file.findings.counts["answers found near the place given"]
    assert (rows, missing, moved) == QUESTIONS[name]
