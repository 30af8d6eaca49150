"""Predictions from files to files: the same as Python's, continued after a kill, never lost."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2

from bertkit.errors import DataError, MissingHeadError, StaleDataError, UsageError
from bertkit.infer import predict as module
from bertkit.infer.evaluate import evaluate_file
from bertkit.infer.outputs import choose_format
from bertkit.infer.partial import open_partial, read_done
from bertkit.infer.predict import PredictOptions, open_answers, predict_file
from bertkit.infer.report import Report
from bertkit.infer.stream import predict_stream
from bertkit.tasks.formats import Columns, open_rows
from bertkit.tasks.forward import predict
from bertkit.tasks.load import load
from tests.infer.every_task import CASES, Case, chinese, decided, scores, sentence, write_rows
from tests.tasks.tiny import folder, labels

ROWS = 23
every_task = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prepared(case: Case, to: Path, rows: int = ROWS) -> tuple[Any, Path]:
    return open_answers(case.model(to / "model"), "cpu"), write_rows(case, to, rows)


@every_task
def test_predict_evaluate_and_python_say_the_same(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, path = prepared(case, tmp_path)
    seen: list[Any] = []
    add = Report.add

    def noted(self: Report, row: Any, prediction: Any) -> None:
        seen.append(prediction)
        add(self, row, prediction)

    monkeypatch.setattr(Report, "add", noted)
    monkeypatch.setattr(module, "STRETCH_ROWS", 7)
    evaluation = evaluate_file(answers, path)
    predict_file(answers, path, tmp_path / "out.jsonl", PredictOptions())
    written = [line["prediction"] for line in read_lines(tmp_path / "out.jsonl")]
    asked = case.ask(load(case.model(tmp_path / "model"), "cpu"), ROWS)
    assert evaluation.rows == len(written) == len(asked) == len(seen) == ROWS
    for ways in zip(seen, written, asked, strict=True):
        first, *others = (decided(case.task, prediction) for prediction in ways)
        assert all(other == first for other in others)
        sure, *rest = (scores(case.task, prediction) for prediction in ways)
        assert all(other == pytest.approx(sure, abs=1e-5) for other in rest)
    assert any(map(bool, written))


@every_task
def test_a_line_of_json_has_an_id_and_what_users_expect(case: Case, tmp_path: Path) -> None:
    answers, path = prepared(case, tmp_path, 9)
    predict_file(answers, path, tmp_path / "out.jsonl", PredictOptions(texts=True))
    for number, line in enumerate(read_lines(tmp_path / "out.jsonl")):
        own = {"several": f"r{number}", "qa": f"q{number}"}
        name = next(name for name, one in CASES.items() if one is case)
        assert line["id"] == own.get(name, str(number))
        prediction = line["prediction"]
        if case.task == "tag":
            for one in prediction:
                assert {"entity_group", "score", "word", "start", "end"} <= set(one)
                assert one["word"] == line["text"][one["start"] : one["end"]]
        elif case.task == "qa":
            keys = {"answer", "score", "start", "end", "null_odds", "n_best"}
            assert set(prediction) == keys
            assert prediction["n_best"][0]["answer"] == prediction["answer"]
            assert prediction["answer"] == line["context"][prediction["start"] : prediction["end"]]
        elif case.task == "regress":
            assert set(prediction) == {"score"}
        else:
            assert [*prediction[0]][:2] == ["label", "score"]
            assert prediction == sorted(prediction, key=lambda one: -one["score"])
        if name == "several":
            assert line["labels"] == [one["label"] for one in prediction if one["score"] >= 0.5]
        elif case.task in ("classify", "choose"):
            assert line["label"] == prediction[0]["label"]


def stops_at(
    monkeypatch: pytest.MonkeyPatch, call: int, error: type[BaseException] = KeyboardInterrupt
) -> None:
    """The model is interrupted at its so-many-th stretch."""
    calls = iter(range(10_000))

    def stopping(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise error
        return predict(*arguments, **options)

    monkeypatch.setattr(module, "predict", stopping)


RESUMED = [
    ("classify", "out.csv", PredictOptions()),
    ("several", "out.tsv", PredictOptions(texts=True)),
    ("tag", "out.conll", PredictOptions()),
    ("crf", "out.csv", PredictOptions()),
    ("qa", "out", PredictOptions()),
    ("choose", "out.jsonl", PredictOptions()),
]


@pytest.mark.parametrize(("name", "out", "options"), RESUMED, ids=[row[0] for row in RESUMED])
def test_interrupted_and_run_again_ends_with_the_same_bytes(
    name: str, out: str, options: PredictOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRETCH_ROWS", 5)
    answers, path = prepared(CASES[name], tmp_path)
    whole = predict_file(answers, path, tmp_path / "whole" / out, options)
    assert whole.rows == ROWS
    for call in range(5):
        place = tmp_path / f"stopped{call}" / out
        with pytest.MonkeyPatch.context() as patch:
            stops_at(patch, call)
            with pytest.raises(KeyboardInterrupt):
                predict_file(answers, path, place, options)
        first = place / "predictions.json" if name == "qa" else place
        assert not first.exists()
        # A kill may also leave bytes that were never counted.
        with first.with_name(first.name + ".partial").open("ab") as file:
            file.write(b"half a li")
        again = predict_file(answers, path, place, options)
        assert (again.rows, again.continued) == (ROWS, 5 * call)
        assert contents(place.parent) == contents(tmp_path / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_kill_behind_the_last_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, path = prepared(CASES["classify"], tmp_path)
    out = tmp_path / "out.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict_file(answers, path, out)
    assert (out.exists(), (tmp_path / "out.jsonl.progress").exists()) == (True, True)
    before = out.read_bytes()
    stops_at(monkeypatch, 0)
    assert predict_file(answers, path, out).continued == ROWS
    assert out.read_bytes() == before
    assert not (tmp_path / "out.jsonl.progress").exists()
    with pytest.raises(UsageError, match="is there already; say --overwrite"):
        predict_file(answers, path, out)


@pytest.mark.slow
def test_killed_without_warning_again_and_again(tmp_path: Path) -> None:
    case = CASES["classify"]
    model, path = case.model(tmp_path / "model"), write_rows(case, tmp_path, 6000)
    command = [sys.executable, "-m", "bertkit", "predict", str(model), str(path), "--quiet"]
    subprocess.run([*command, "--out", str(tmp_path / "whole.csv")], check=True)
    out, kills = tmp_path / "out.csv", 0
    progress = tmp_path / "out.csv.progress"
    while not out.exists():
        before = read_done(out)
        run = subprocess.Popen([*command, "--out", str(out)])
        while run.poll() is None:
            time.sleep(0.01)
            done = read_done(out) if progress.exists() else None
            if done is not None and done.rows > (before.rows if before else 0) + 1000:
                time.sleep(0.05 * kills)
                os.kill(run.pid, signal.SIGKILL)
                run.wait()
                kills += 1
    assert kills > 2, kills
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def interrupted(answers: Any, path: Path, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRETCH_ROWS", 5)
        stops_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            predict_file(answers, path, out)


def test_what_was_begun_with_something_else_is_refused(tmp_path: Path) -> None:
    answers, path = prepared(CASES["classify"], tmp_path)
    out = tmp_path / "out.csv"
    interrupted(answers, path, out)
    part = (tmp_path / "out.csv.partial").read_bytes()
    other = open_answers(folder("BertForSequenceClassification", **labels("x", "y")), "cpu")
    with pytest.raises(StaleDataError, match=r"out\.csv\.partial: was begun with another model"):
        predict_file(other, path, out)
    with pytest.raises(StaleDataError, match="was begun with other options"):
        predict_file(answers, path, out, PredictOptions(texts=True))
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "x\tmore\n", encoding="utf-8")
    with pytest.raises(StaleDataError, match="another input; say --overwrite to begin anew"):
        predict_file(answers, path, out)
    assert (tmp_path / "out.csv.partial").read_bytes() == part
    with pytest.raises(StaleDataError, match="with another input and another model and other op"):
        predict_file(other, path, out, PredictOptions(texts=True))
    assert predict_file(answers, path, out, PredictOptions(overwrite=True)).rows == ROWS + 1


def test_where_nothing_was_done_yet_anything_may_change(tmp_path: Path) -> None:
    answers, path = prepared(CASES["classify"], tmp_path)
    out = tmp_path / "out.csv"
    with pytest.MonkeyPatch.context() as patch:
        stops_at(patch, 0)
        with pytest.raises(KeyboardInterrupt):
            predict_file(answers, path, out)
    assert predict_file(answers, path, out, PredictOptions(texts=True)).continued == 0
    assert out.read_text(encoding="utf-8").startswith("id,text,label,score\n")


def test_a_part_without_its_record_is_left_alone(tmp_path: Path) -> None:
    answers, path = prepared(CASES["classify"], tmp_path)
    (tmp_path / "out.csv.partial").write_text("somebody's")
    with pytest.raises(DataError, match=r"is no part that out\.csv\.progress tells of"):
        predict_file(answers, path, tmp_path / "out.csv")
    assert (tmp_path / "out.csv.partial").read_text() == "somebody's"
    with open_partial(tmp_path / "other", {}, overwrite=False):
        with pytest.raises(UsageError, match="another process is writing it"):
            with open_partial(tmp_path / "other", {}, overwrite=False):
                pass


def test_bad_rows_are_told_before_any_work_or_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRETCH_ROWS", 2)
    answers, _ = prepared(CASES["classify"], tmp_path)
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    lines = [json.dumps({"id": f"n{i}", "text": sentence(i)}) for i in range(6)]
    lines[3] = '{"id": "n3"}'
    lines[4] = '{"id": "n4", "text": '
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:4: no text.*--skip-bad-rows"):
        predict_file(answers, path, out)
    assert not out.exists()
    result = predict_file(answers, path, out, PredictOptions(skip_bad_rows=True))
    assert [line["id"] for line in read_lines(out)] == ["n0", "n1", "n2", "n5"]
    assert (result.rows, len(result.skipped)) == (4, 2)
    assert {place.line for place, _ in result.skipped} == {4, 5}


def test_rows_that_the_model_cannot_take_are_counted_also_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRETCH_ROWS", 5)
    answers, path = prepared(CASES["classify"], tmp_path)
    features, task = answers.task.features_of, answers.task

    def refuses(rows: Any, labelled: bool = True) -> Any:
        for row in rows:
            if row.id in ("3", "11"):
                raise DataError("cannot be read", row.place.path, row.place.line)
        return features(rows, labelled)

    monkeypatch.setattr(task, "features_of", refuses)
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"rows\.tsv:5: cannot be read"):
        predict_file(answers, path, out)
    skip = PredictOptions(skip_bad_rows=True)
    with pytest.MonkeyPatch.context() as patch:
        stops_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            predict_file(answers, path, out, skip)
    result = predict_file(answers, path, out, skip)
    assert result.continued > 5
    assert {str(place) for place, _ in result.skipped} == {f"{path}:5", f"{path}:13"}
    assert [line["id"] for line in read_lines(out)] == [
        str(i) for i in range(ROWS) if i not in (3, 11)
    ]


def test_csv_holds_any_text(tmp_path: Path) -> None:
    answers, _ = prepared(CASES["classify"], tmp_path)
    texts = ['a, "quoted" cat', "two\nlines", "中文 text", " spaces "]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    predict_file(answers, path, tmp_path / "out.csv", PredictOptions(texts=True))
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == texts
    assert set(rows[0]) == {"id", "text", "label", "score"}
    assert {row["label"] for row in rows} <= {"x", "y", "z"}


@pytest.mark.parametrize("name", ["tag", "crf"])
def test_conll_that_was_written_is_read_as_what_was_predicted(name: str, tmp_path: Path) -> None:
    answers, path = prepared(CASES[name], tmp_path)
    predict_file(answers, path, tmp_path / "out.jsonl")
    predict_file(answers, path, tmp_path / "out.conll")
    rows = open_rows(tmp_path / "out.conll", "tag").rows()
    before = list(open_rows(path, "tag").rows())
    for row, gold, line in zip(rows, before, read_lines(tmp_path / "out.jsonl"), strict=True):
        found: Any = row
        assert (found.text, found.words) == (gold.text, gold.words)  # type: ignore[union-attr]
        spans = [(e["start"], e["end"], e["entity_group"]) for e in line["prediction"]]
        assert [tuple(span) for span in found.entities] == spans


def test_a_conll_file_has_the_figures_of_an_evaluation(tmp_path: Path) -> None:
    answers, path = prepared(CASES["tag"], tmp_path)
    figures = evaluate_file(answers, path).figures
    predict_file(answers, path, tmp_path / "out.conll")
    gold, said = (
        [
            [line.split()[-1] for line in text.splitlines()]
            for text in file.read_text().split("\n\n")
        ]
        for file in (path, tmp_path / "out.conll")
    )
    assert figures["f1"] != figures["conlleval_f1"], "some tags are illegal"
    assert figures["f1"] == f1_score(gold, said, mode="strict", scheme=IOB2)
    assert figures["conlleval_f1"] == f1_score(gold, said)


def test_squads_files(tmp_path: Path) -> None:
    answers, path = prepared(CASES["qa"], tmp_path)
    answers.task = answers.task.with_options(no_answer=True, n_best_size=4)
    result = predict_file(answers, path, tmp_path / "out")
    assert [file.name for file in result.files] == [
        "predictions.json",
        "nbest_predictions.json",
        "null_odds.json",
    ]
    given, best, odds = (json.loads(file.read_bytes()) for file in result.files)
    assert list(given) == list(best) == list(odds) == [f"q{i}" for i in range(ROWS)]
    for key, answer in given.items():
        assert (answer == "") == (odds[key] > 0)
        assert answer in [one["text"] for one in best[key]]
        assert 0 < sum(one["probability"] for one in best[key]) <= 1 + 1e-6
    named = predict_file(answers, path, tmp_path / "dev_predictions.json")
    assert [file.name for file in named.files][1:] == [
        "nbest_dev_predictions.json",
        "dev_null_odds.json",
    ]
    assert contents(tmp_path / "out")["predictions.json"] == named.files[0].read_bytes()


@pytest.mark.parametrize(
    ("out", "told", "task", "found"),
    [
        ("a.csv", None, "classify", "csv"),
        ("a.csv", "jsonl", "classify", "jsonl"),
        ("a", None, "classify", "jsonl"),
        ("a", None, "qa", "squad"),
        ("a.json", None, "qa", "squad"),
        ("a.bmes", None, "tag", "conll"),
        (None, None, "qa", "jsonl"),
        ("a.json", None, "classify", "squad is for qa, the model is for classify"),
        ("a.conll", None, "qa", "conll is for tag"),
        ("a.docx", None, "tag", "docx does not tell the format; say --format"),
        ("a.txt", None, "tag", "does not tell the format"),
        (None, "squad", "qa", "three files"),
        (None, "xml", "qa", "there is no format 'xml'"),
    ],
)
def test_formats_by_extension(out: str | None, told: str | None, task: str, found: str) -> None:
    place = None if out is None else Path(out)
    if " " not in found:
        assert choose_format(place, told, task) == found
    else:
        with pytest.raises(UsageError, match=found):
            choose_format(place, told, task)


def test_options_that_would_change_nothing_are_refused(tmp_path: Path) -> None:
    one, several, qa = (CASES[n].model(tmp_path / n) for n in ("classify", "several", "qa"))
    for model, said, option in (
        (one, "several labels", {"threshold": 0.7}),
        (several, r"questions \(qa\); the model is for classify", {"n_best_size": 3}),
        (qa, "needs --no_answer", {"null_threshold": 1.0}),
    ):
        with pytest.raises(UsageError, match=said):
            open_answers(model, "cpu", **option)
    open_answers(qa, "cpu", null_threshold=1.0, no_answer=True)


@pytest.mark.parametrize("pairs", [True, False])
def test_pairs_and_single_texts_are_told_apart(pairs: bool, tmp_path: Path) -> None:
    answers = open_answers(CASES["classify"].model(tmp_path / "m"), "cpu")
    answers.task = answers.task.with_options(pairs=pairs)
    text, both = tmp_path / "text.txt", tmp_path / "pairs.tsv"
    text.write_text("the cat\n")
    both.write_text("label\ttext_a\ttext_b\nx\tthe cat\ta dog\n")
    good, bad = (both, text) if pairs else (text, both)
    said = "name the second with --pair" if pairs else "name the text with --text"
    with pytest.raises(DataError, match=said):
        predict_file(answers, bad, tmp_path / "out.jsonl")
    with pytest.raises(DataError, match=said):
        predict_stream(answers, bad, lambda text: None)
    assert predict_file(answers, good, tmp_path / "out.jsonl").rows == 1


def test_columns_and_thresholds_are_heeded(tmp_path: Path) -> None:
    path, case = tmp_path / "rows.csv", CASES["several"]
    path.write_text("one,two\nthe cat,a dog\nparis,london\n")
    answers = open_answers(case.model(tmp_path / "m"), "cpu", threshold=0.999)
    options = PredictOptions(columns=Columns(text="two"), texts=True)
    predict_file(answers, path, tmp_path / "out.jsonl", options)
    lines = read_lines(tmp_path / "out.jsonl")
    assert [line["text"] for line in lines] == ["a dog", "london"]
    for line in lines:
        sure = [one["label"] for one in line["prediction"] if one["score"] >= 0.999]
        assert line["labels"] == sure


def test_a_model_without_a_head_is_refused_and_the_head_named(tmp_path: Path) -> None:
    for kind, head in (("BertModel", "classifier"), ("BertForPreTraining", "classifier")):
        with pytest.raises(MissingHeadError, match=head):
            open_answers(folder(kind), "cpu")


def test_memory_is_flat_in_the_size_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times the rows: the same memory, for predictions and for an evaluation."""
    answers = open_answers(CASES["classify"].model(tmp_path), "cpu")
    said = [{"label": "x", "score": 0.6}, {"label": "y", "score": 0.3}]
    monkeypatch.setattr(module, "predict", lambda task, model, rows, **_: [said] * len(rows))

    def peak(rows: int, run: Callable[[Path, Path], Any]) -> int:
        path = tmp_path / f"rows{rows}.tsv"
        with path.open("w", encoding="utf-8") as file:
            file.write("label\ttext\n")
            file.writelines(f"{'xyz'[i % 3]}\t{i} {'word ' * 200}\n" for i in range(rows))
        out = tmp_path / f"out{rows}"
        tracemalloc.start()
        run(path, out)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        for name in (path, out):
            if name.is_file():
                name.unlink()
        return found

    runs: list[Callable[[Path, Path], Any]] = [
        lambda path, out: predict_file(answers, path, out, PredictOptions(texts=True)),
        lambda path, out: evaluate_file(answers, path),
    ]
    for run in runs:
        peak(100, run)  # caches of all kinds
        small, large = peak(1500, run), peak(15_000, run)
        assert large < small * 1.3 + 500_000, (small, large)


@pytest.mark.slow
def test_memory_of_the_process_is_flat(tmp_path: Path) -> None:
    """The resident memory of the whole command, with the model, on ten times the rows."""
    case = CASES["tag"]
    model = case.model(tmp_path / "model")
    peaks = {}
    for verb in ("predict", "evaluate"):
        for rows in (1_000, 10_000):
            path = write_rows(case, tmp_path, rows)
            extra = ["--out", str(tmp_path / f"{verb}{rows}.jsonl")] if verb == "predict" else []
            code = (
                "import resource, sys; from bertkit.cli import main; code = main(sys.argv[1:]);"
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, code)"
            )
            arguments = [verb, str(model), str(path), *extra, "--quiet"]
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            kilobytes, code_of = done.stdout.split()[-2:]
            assert code_of == "0", done.stderr
            peaks[verb, rows] = int(kilobytes) / 1024
        assert peaks[verb, 10_000] < peaks[verb, 1_000] + 30, peaks


def test_a_text_without_end_is_cut_and_not_refused(tmp_path: Path) -> None:
    answers, _ = prepared(CASES["classify"], tmp_path)
    path = tmp_path / "long.txt"
    path.write_text("\n".join([sentence(1), "the cat " * 12_500, chinese(3)]) + "\n")
    note = "1 of 3 rows are longer than the 512 tokens that the model reads: cut off at the end"
    for out in (tmp_path / "out.jsonl", None):
        made = (
            predict_stream(answers, path, lambda text: None)
            if out is None
            else predict_file(answers, path, out)
        )
        assert (made.rows, made.cut, list(made.notes)) == (3, 1, [note])


def test_what_is_read_in_windows_is_not_cut_but_questions_are(tmp_path: Path) -> None:
    for name, text, cut in (
        ("tag", "the cat " * 600, 0),
        ("qa", f"{'who ' * 99}\t{'the cat ' * 600}", 1),
        ("qa", f"who\t{'the cat ' * 600}", 0),
    ):
        answers = open_answers(CASES[name].model(tmp_path / name), "cpu")
        path = tmp_path / "long.tsv"
        path.write_text(text + "\n")
        made = predict_stream(answers, path, lambda text: None)
        assert made.cut == cut
        assert ("1 of 1 rows are longer than the 64 tokens of a question" in str(made.notes)) == cut


def test_ends_cut_off_before_a_kill_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRETCH_ROWS", 2)
    answers, out = open_answers(CASES["classify"].model(tmp_path / "m"), "cpu"), tmp_path / "o.csv"
    path = tmp_path / "long.txt"
    path.write_text("the cat " * 400 + "\na dog\n" * 5)
    with pytest.MonkeyPatch.context() as patch:
        stops_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            predict_file(answers, path, out)
    again = predict_file(answers, path, out)
    assert (again.continued, again.rows, again.cut) == (2, 6, 1)
