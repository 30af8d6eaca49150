"""qa: windows, targets, losses and answers against transformers, and against trying every span."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkit.errors import DataError, UsageError
from bertkit.tasks.build import TaskOptions, new_task, saved_task
from bertkit.tasks.encode import encode_spans
from bertkit.tasks.forward import predict
from bertkit.tasks.qa import Answer, find_answer
from bertkit.tasks.records import Answer as Gold
from bertkit.tasks.records import Place, QuestionRow
from tests.tasks.test_tag import max_context
from tests.tasks.tiny import WORDS, folder, ours, tokenizer

PLACE = Place("squad.json", 3)
PASSAGE = "John lives in London. The cat sat on the mat in a park; Mary likes Paris, who ran? " * 3
HAN = "我爱北京天安门，张三住在上海大学。" * 5


def row(
    question: str, context: str, *answers: tuple[str, int], labelled: bool = True
) -> QuestionRow:
    gold = tuple(Gold(*a) for a in answers) if labelled else None
    return QuestionRow("q", question, context, gold, labelled and not answers, PLACE)


ROWS = [
    row("who sat?", PASSAGE),
    row("张三住在哪", HAN),
    row("where " * 99, PASSAGE),
    row("", "cat"),
]


def answerer(**options: Any) -> Answer:
    return Answer(tokenizer(), TaskOptions(**{"max_length": 48, "doc_stride": 12} | options))


# Features.


@pytest.mark.parametrize("length", [24, 48, 384])
def test_windows_are_those_of_run_qa(length: int) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder("BertForQuestionAnswering"))
    stride = min(12, (length - 3) // 4)
    for one in (ROWS[0], ROWS[1], ROWS[3]):
        ours_ = answerer(max_length=length, doc_stride=stride).features(one)
        expected = theirs(
            [one.question], [one.context], truncation="only_second", max_length=length,
            stride=stride, return_overflowing_tokens=True,
        )  # fmt: skip
        assert [f.ids for f in ours_] == expected["input_ids"]
        assert [[int(i >= f.second) for i in range(len(f.ids))] for f in ours_] == (
            expected["token_type_ids"]
        )


def test_a_long_question_is_cut_and_counted() -> None:
    (feature, *_) = answerer(max_length=384).features(ROWS[2])
    assert (feature.second, feature.cut) == (66, 99 - 64)
    (feature, *_) = answerer(max_length=16).features(ROWS[2])
    assert feature.second == 8
    assert len(feature.ids) == 16


@pytest.mark.parametrize("passage", [PASSAGE, HAN])
def test_targets_point_at_the_answer_where_a_window_holds_it(passage: str) -> None:
    task = answerer()
    ids, spans = encode_spans(tokenizer(), [passage], [PLACE])[0]
    for first in range(0, len(ids) - 3, 5):
        start, end = spans[first][0], spans[first + 2][1]
        features = task.features(row("who?", passage, (passage[start:end], start)))
        held = 0
        for feature in features:
            a, b = feature.target
            if (a, b) != (0, 0):
                assert feature.ids[a : b + 1] == ids[first : first + 3]
                held += 1
        assert held >= 1
    assert {f.target for f in task.features(row("who?", passage))} == {(0, 0)}
    assert {f.target for f in task.features(row("who?", passage, labelled=False))} == {None}
    marked = row("who?", passage, ("not there", 0))
    assert {f.target for f in task.features(marked, labelled=False)} == {None}


def test_answers_are_found_where_the_file_is_wrong() -> None:
    text = "cat dog cat dog cat"
    assert find_answer(row("", text, ("cat", 8))) == (8, 11)
    assert find_answer(row("", text, ("cat", -1))) == (0, 3)
    assert find_answer(row("", text, ("cat", 9))) == (8, 11)
    assert find_answer(row("", text, ("cat", 14))) == (16, 19)
    assert find_answer(row("", text, ("cat", 99))) == (16, 19)
    assert find_answer(row("", text, ("mouse", 0), ("dog", 4))) == (4, 7)
    assert find_answer(row("", text, ("mouse", 0), ("", 0))) is None


def test_of_an_answer_that_is_not_there_nothing_is_learned() -> None:
    for text, answer in (("cat dog", "mouse"), ("a \u200b b", "\u200b")):
        one = row("who?", text, (answer, 0))
        assert answerer().features(one) == []
        (feature,) = answerer().features(one, labelled=False)
        assert feature.target is None


def test_an_answer_within_a_token_means_that_token() -> None:
    task = answerer()
    (feature,) = task.features(row("who", "likes the catdog", ("at", 11)))
    a, b = feature.target
    assert tokenizer().convert_ids_to_tokens(feature.ids[a : b + 1]) == ["cat"]


# Losses.


def test_the_loss_is_transformers_for_windows_without_padding() -> None:
    theirs = transformers.BertForQuestionAnswering.from_pretrained(
        folder("BertForQuestionAnswering")
    )
    model = ours("BertForQuestionAnswering")
    task = answerer()
    rows = [row("who?", PASSAGE, ("London", 14)), row("谁", HAN), row("who", "cat", ("cat", 0))]
    features = task.features_of(rows)
    batch = task.collate(features)
    logits = task.logits(model, batch)
    losses = task.losses(model, logits, batch)
    flat = [f for one in features for f in one]
    assert losses.shape == (task.items(batch),) == (len(flat),)
    competing = task.log_probabilities(logits, batch)
    for feature, loss, logs in zip(flat, losses, competing, strict=True):
        ids = torch.tensor([feature.ids])
        types = torch.tensor([[int(i >= feature.second) for i in range(len(feature.ids))]])
        start, end = feature.target
        expected = theirs.eval()(
            ids,
            token_type_ids=types,
            start_positions=torch.tensor([start]),
            end_positions=torch.tensor([end]),
        )
        torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            F.nll_loss(logs, torch.tensor(feature.target)), loss, atol=1e-5, rtol=1e-5
        )
    losses.mean().backward()
    assert torch.isfinite(model.qa_outputs.weight.grad).all()


# Answers.


def every_span(
    task: Answer, one: QuestionRow, logits: list[torch.Tensor]
) -> list[tuple[float, int, int]]:
    """All answers with their scores, best first, by trying each."""
    _, spans = encode_spans(tokenizer(), [one.context], [PLACE])[0]
    cuts = [f.extra.window for f in task.features(one, labelled=False)]
    bounds = [(cut.start, cut.end) for cut in cuts]
    found = []
    for number, (feature, scores) in enumerate(
        zip(task.features(one, labelled=False), logits, strict=True)
    ):
        begin, end = bounds[number]
        for i in range(begin, end):
            if max_context(bounds, i) != number:
                continue
            for j in range(i, min(end, i + task.longest_answer)):
                a, b = feature.second + i - begin, feature.second + j - begin
                score = float(scores[a, 0].double() + scores[b, 1].double())
                found.append((score, spans[i][0], spans[j][1]))
    return sorted(found, key=lambda f: (-f[0], f[1:]))


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 25), st.booleans())
@settings(deadline=None, max_examples=40)
def test_the_best_answers_are_the_best_of_all_spans(
    seed: int, longest: int, most: int, no_answer: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    task = answerer(max_length=24, doc_stride=seed % 9, max_answer_length=longest, n_best_size=most,
                    no_answer=no_answer)  # fmt: skip
    one = ROWS[seed % 2]
    features = task.features(one, labelled=False)
    logits = [torch.randn(len(f.ids), 2, generator=generator) for f in features]
    expected = every_span(task, one, logits)[:most]
    got = task.decode(one, features, logits)
    null = min(float(part[0].double().sum()) for part in logits)
    assert got["null_odds"] == pytest.approx(null - expected[0][0])
    entries = [(score, start, end) for score, start, end in expected]
    if no_answer:
        better = [e for e in entries if e[0] >= null]
        entries = [*better, (null, 0, 0), *entries[len(better) :]][: max(most, len(better) + 1)]
    assert [(e["start"], e["end"]) for e in got["n_best"]] == [e[1:] for e in entries]
    weights = np.exp([e[0] for e in entries])
    assert [e["score"] for e in got["n_best"]] == pytest.approx(list(weights / weights.sum()))
    assert all(e["answer"] == one.context[e["start"] : e["end"]] for e in got["n_best"])
    none = no_answer and got["null_odds"] > 0
    chosen = (0, 0) if none else expected[0][1:]
    assert (got["start"], got["end"]) == chosen
    assert got["answer"] == one.context[slice(*chosen)]
    assert got["score"] == next(
        e["score"] for e in got["n_best"] if (e["start"], e["end"]) == chosen
    )


def run_qa_postprocessing(
    one: QuestionRow, theirs: Any, encode: Any, task: Answer, version_2: bool
) -> dict[str, Any]:
    """postprocess_qa_predictions of transformers' examples, in plain words, for one question."""
    rows = encode(
        [one.question], [one.context], truncation="only_second", max_length=task.max_length,
        stride=task.options.doc_stride, return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    prelim: list[dict[str, Any]] = []
    null: dict[str, Any] | None = None
    size = task.options.n_best_size
    for number, ids in enumerate(rows["input_ids"]):
        with torch.no_grad():
            out = theirs(
                torch.tensor([ids]), token_type_ids=torch.tensor([rows["token_type_ids"][number]])
            )
        starts, ends = out.start_logits[0].numpy(), out.end_logits[0].numpy()
        offsets = [
            o if s == 1 else None
            for o, s in zip(rows["offset_mapping"][number], rows.sequence_ids(number), strict=True)
        ]
        score = starts[0] + ends[0]
        if null is None or null["total"] > score:
            null = {"offsets": (0, 0), "total": score}
        for i in np.argsort(starts)[-1 : -size - 1 : -1].tolist():
            for j in np.argsort(ends)[-1 : -size - 1 : -1].tolist():
                if offsets[i] is None or offsets[j] is None:
                    continue
                if j < i or j - i + 1 > task.longest_answer:
                    continue
                prelim.append(
                    {"offsets": (offsets[i][0], offsets[j][1]), "total": starts[i] + ends[j]}
                )
    assert null is not None
    candidates = [*prelim, null] if version_2 else prelim
    found = sorted(candidates, key=lambda x: x["total"], reverse=True)[:size]
    if version_2 and all(p["offsets"] != (0, 0) for p in found):
        found.append(null)
    scores = np.array([p["total"] for p in found])
    sure = np.exp(scores - scores.max())
    for entry, probability in zip(found, sure / sure.sum(), strict=True):
        entry["probability"] = probability
    best = next(p for p in found if p["offsets"] != (0, 0))
    return {"n_best": found, "best": best, "null_odds": null["total"] - best["total"]}


@pytest.mark.parametrize("version_2", [False, True])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_answers_equal_transformers_postprocessing(number: int, version_2: bool) -> None:
    """In one window, and with as many best starts as there are tokens, both rules are one."""
    theirs = transformers.BertForQuestionAnswering.from_pretrained(
        folder("BertForQuestionAnswering")
    )
    encode = transformers.AutoTokenizer.from_pretrained(folder("BertForQuestionAnswering"))
    model = ours("BertForQuestionAnswering")
    task = saved_task(model.config, tokenizer()).with_options(n_best_size=400, no_answer=version_2)
    assert isinstance(task, Answer)
    expected = run_qa_postprocessing(ROWS[number], theirs.eval(), encode, task, version_2)
    (got,) = predict(task, model, [ROWS[number]])
    assert [(e["start"], e["end"]) for e in got["n_best"][:20]] == [
        p["offsets"] for p in expected["n_best"][:20]
    ]
    assert [e["score"] for e in got["n_best"]] == pytest.approx(
        [p["probability"] for p in expected["n_best"]], abs=1e-5
    )
    assert got["null_odds"] == pytest.approx(expected["null_odds"], abs=1e-5)
    if not version_2 or got["null_odds"] <= 0:
        assert (got["start"], got["end"]) == expected["best"]["offsets"]
        assert got["score"] == pytest.approx(expected["best"]["probability"], abs=1e-5)
    else:
        assert (got["answer"], got["start"], got["end"]) == ("", 0, 0)


def test_the_threshold_decides_and_is_kept() -> None:
    model = ours("BertForQuestionAnswering")
    task = saved_task(model.config, tokenizer()).with_options(no_answer=True)
    (first,) = predict(task, model, ROWS[:1])
    odds = first["null_odds"]
    (given_,) = predict(task.with_options(null_threshold=odds + 0.01), model, ROWS[:1])
    (none,) = predict(task.with_options(null_threshold=odds - 0.01), model, ROWS[:1])
    assert given_["answer"] == PASSAGE[given_["start"] : given_["end"]] != ""
    assert (none["answer"], none["start"], none["end"]) == ("", 0, 0)
    assert none["n_best"] == given_["n_best"]
    assert none["score"] == next(e["score"] for e in none["n_best"] if not e["answer"])
    changes = task.with_options(null_threshold=1.25).config_changes()
    again = saved_task(type(model.config).from_dict(model.config.to_dict(), **changes), tokenizer())
    assert (again.options.null_threshold, again.options.no_answer) == (1.25, True)


def test_what_rows_tell_about_the_task() -> None:
    def learned(*rows: QuestionRow) -> tuple[bool, str]:
        options = new_task("qa", tokenizer(), rows).options
        return options.no_answer, options.squad_metric

    english, chinese = row("a", PASSAGE, ("cat", 0)), row("a", HAN, ("我", 0))
    assert learned(english) == (False, "squad")
    assert learned(chinese) == (False, "cmrc")
    assert learned(english, row("a", PASSAGE)) == (True, "squad2")
    with pytest.raises(DataError, match="no training rows"):
        new_task("qa", tokenizer(), [])


def test_chinese_answers_may_be_longer() -> None:
    def longest(*rows: QuestionRow, **options: Any) -> int:
        task = new_task("qa", tokenizer(), rows, TaskOptions(**options))
        assert isinstance(task, Answer)
        assert task.options.max_answer_length == task.longest_answer  # kept with the model
        return task.longest_answer

    english, chinese = row("a", PASSAGE, ("cat", 0)), row("a", HAN, ("我", 0))
    assert longest(english) == 30  # BERT's
    assert longest(chinese) == longest(chinese, row("a", HAN)) == 50
    assert longest(english, squad_metric="cmrc") == 50
    assert longest(chinese, max_answer_length=30) == 30
    assert (answerer().longest_answer, answerer(squad_metric="cmrc").longest_answer) == (30, 50)
    with pytest.raises(UsageError, match="max_answer_length is -1"):
        TaskOptions(max_answer_length=-1)
    # An answer of 40 characters wins, where it may.
    task, one = answerer(max_length=120, squad_metric="cmrc"), row("a", HAN)
    (feature,) = task.features(one, labelled=False)
    logits = torch.zeros(len(feature.ids), 2)
    logits[10, 0] = logits[49, 1] = 9
    assert len(task.decode(one, [feature], [logits])["answer"]) == 40
    shorter = task.with_options(squad_metric="squad")
    assert len(shorter.decode(one, [feature], [logits])["answer"]) <= 30


def test_answers_end_with_their_accents() -> None:
    text = "cafe\u0301 on"
    task = answerer(max_answer_length=4)
    features = task.features(row("who", text), labelled=False)
    logits = torch.zeros(len(features[0].ids), 2)
    logits[3, 0] = logits[6, 1] = 9
    got = task.decode(row("who", text), features, [logits])
    assert got["answer"] == "cafe\u0301"
    assert text[got["start"] : got["end"]] == got["answer"]


def test_empty_and_endless_passages_are_answered() -> None:
    model = ours("BertForQuestionAnswering")
    task = saved_task(model.config, tokenizer())
    long = "我 " * 50_000
    empty, blank, whole = predict(
        task, model, [row("who", ""), row("", " \u200b "), row("who", long)]
    )
    for none in (empty, blank):
        assert (none["answer"], none["start"], none["end"], none["score"]) == ("", 0, 0, 1.0)
        assert math.isfinite(none["null_odds"])
    assert whole["answer"] == long[whole["start"] : whole["end"]] != ""


def test_a_passage_asked_often_is_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task = answerer()
    asked: list[int] = []
    call = type(task.tokenizer).__call__

    def counted(self: Any, texts: Any, *args: Any, **options: Any) -> Any:
        asked.append(len(texts))
        return call(self, texts, *args, **options)

    monkeypatch.setattr(type(task.tokenizer), "__call__", counted)
    many = [row(f"who {word}?", PASSAGE) for word in WORDS]
    together = task.features_of(many)
    assert asked == [1, len(many)]
    assert together == [task.features(one) for one in many]
