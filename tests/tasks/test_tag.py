"""tag: words and offsets, windows, targets, decoding; against transformers and plain arithmetic."""

from __future__ import annotations

import math
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.layout import read_tensors, write_tensors
from bertkit.errors import DataError, MissingHeadError, UsageError
from bertkit.tasks.build import TaskOptions, new_task, saved_task
from bertkit.tasks.encode import windows
from bertkit.tasks.forward import predict
from bertkit.tasks.load import load
from bertkit.tasks.records import Place, Span, TagRow
from bertkit.tasks.schemes import SCHEMES, tag_set, to_spans
from bertkit.tasks.tag import Tag, TagScores, words_of
from tests.tasks.tiny import folder, labels, ours, pipeline, tokenizer

TYPES = ("LOC", "PER")


def text_row(text: str, *entities: tuple[int, int, str], line: int = 1) -> TagRow:
    return TagRow("0", text, tuple(Span(*e) for e in entities), None, Place("ner.jsonl", line))


def word_row(words: list[str], *entities: tuple[int, int, str], joined: str = " ") -> TagRow:
    """Entities count words."""
    spans, at = [], 0
    for word in words:
        spans.append((at, at + len(word)))
        at += len(word) + len(joined)
    placed = tuple(Span(spans[a][0], spans[b - 1][1], label) for a, b, label in entities)
    return TagRow("0", joined.join(words), placed, tuple(spans), Place("ner.txt", 1))


def tagger(scheme: str = "BIO", **options: Any) -> Tag:
    tags = tag_set(TYPES, scheme)
    return Tag(tokenizer(), tags, TaskOptions(scheme=scheme, **options))


def told(task: Tag, row: TagRow) -> list[Any]:
    """What `decode` says if the model is sure of the training targets."""
    features = task.features(row)
    scores = [
        TagScores(
            F.one_hot(torch.tensor(f.target, dtype=torch.int64), len(task.labels)) * 9.0, None
        )
        for f in features
    ]
    return [
        Span(e["start"], e["end"], e["entity_group"]) for e in task.decode(row, features, scores)
    ]


# Words and what they are read as.


def test_only_the_first_token_of_each_word_is_read() -> None:
    row = word_row(["john", "likes", "catdog", "paris"], (0, 1, "PER"), (3, 4, "LOC"))
    task = tagger()
    (feature,) = task.features(row)
    tokens = tokenizer().convert_ids_to_tokens(feature.ids)
    assert tokens == "[CLS] john likes cat ##d ##o ##g paris [SEP]".split()
    assert [tokens[p] for p in feature.positions] == ["john", "likes", "cat", "paris"]
    assert [task.labels[n] for n in feature.target] == ["B-PER", "O", "O", "B-LOC"]
    assert feature.second == len(feature.ids)
    batch = task.collate([[feature], task.features(row)])
    assert batch.positions.tolist() == [1, 2, 3, 7, 10, 11, 12, 16]
    assert batch.counts.tolist() == [4, 4]
    assert task.items(batch) == 8


@pytest.mark.parametrize("odd", [" ", "\u3000", "\u200b", "\x00", "\ufeff", "\u0301"])
def test_a_word_without_tokens_is_an_unknown_one(odd: str) -> None:
    row = word_row(["我", odd, "上", "海"], (1, 2, "PER"), (2, 4, "LOC"), joined="")
    task = tagger()
    (feature,) = task.features(row)
    assert feature.ids[2] == tokenizer().unk_token_id
    assert len(feature.positions) == 4
    assert told(task, row) == list(row.entities or ())
    assert task.unreachable(row) == []


def test_texts_without_words_of_their_own_have_berts() -> None:
    row = text_row(
        "John's in 上海,cafe\u0301 2008年!", (0, 4, "PER"), (10, 12, "LOC"), (13, 18, "LOC")
    )
    words = [row.text[a:b] for a, b in words_of(row)]
    assert words == ["John", "'", "s", "in", "上", "海", ",", "cafe\u0301", "2008", "年", "!"]
    assert told(tagger(), row) == list(row.entities or ())


@given(st.text(st.sampled_from("ab 中文国.,'\u0301\u200b\u3000é１😀\t\n"), max_size=40), st.data())
@settings(deadline=None)
def test_every_entity_of_whole_words_comes_back(text: str, data: st.DataObject) -> None:
    row = text_row(text)
    words = words_of(row)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(words)), max_size=6)))
    spans = [
        (words[a][0], words[b - 1][1], data.draw(st.sampled_from(TYPES)))
        for a, b in list(pairwise(cuts))[::2]
    ]
    row = text_row(text, *spans)
    task = tagger(
        data.draw(st.sampled_from(["BIO", "BIOS", "BIOES", "BMES", "BILOU"])), max_length=8
    )
    assert task.unreachable(row) == []
    if all(b - a < 3 for a, b in pairwise(cuts)):  # longer ones do not lie whole in a window
        assert told(task, row) == list(row.entities or ())
    assert len(task.features(row)) >= 1


def test_entities_that_cannot_be_said_are_listed_and_widened() -> None:
    text = "iPhone6 in London Park 上海大学"
    inside = Span(0, 6, "PER")  # "iPhone" of "iPhone6"
    blank = Span(10, 18, "LOC")  # "London " with its space
    outer, inner = Span(23, 27, "LOC"), Span(23, 25, "PER")
    row = text_row(text, inside, blank, outer, inner)
    task = tagger()
    assert task.unreachable(row) == [inside, blank, inner]
    assert told(task, row) == [Span(0, 7, "PER"), Span(11, 17, "LOC"), outer]
    twice = text_row(text, outer, outer)
    assert task.unreachable(twice) == []
    assert told(task, twice) == [outer]
    assert task.unreachable(text_row("a   b", (1, 3, "PER"))) == [Span(1, 3, "PER")]


# Long texts.


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("length", "stride"), [(8, 0), (8, 2), (12, 4), (16, 128), (64, 20)])
def test_windows_read_each_word_once_with_most_context(
    length: int, stride: int, labelled: bool
) -> None:
    words = ["cat", "dogs", "上", "xyz", "on"] * 20
    row = word_row(words, *((i, i + 2, "LOC") for i in range(0, 98, 7)))
    task = tagger(max_length=length, doc_stride=stride)
    features = task.features(row, labelled=labelled)
    assert len(features) > 1
    assert all(len(f.ids) <= length for f in features)
    read = [f.ids[p] for f in features for p in f.positions]
    first = [tokenizer().encode(word, add_special_tokens=False)[0] for word in words]
    assert read == first
    if labelled and stride:  # without an overlap some entities lie whole in no window
        assert told(task, row) == list(row.entities or ())


def max_context(spans: list[tuple[int, int]], position: int) -> int:
    """BERT's run_squad.py, _check_is_max_context, turned round."""
    best, best_index = None, -1
    for index, (start, end) in enumerate(spans):
        if not start <= position < end:
            continue
        score = min(position - start, end - 1 - position) + 0.01 * (end - start)
        if best is None or score > best:
            best, best_index = score, index
    return best_index


@given(st.integers(0, 300), st.integers(5, 60), st.integers(0, 40))
@settings(deadline=None)
def test_windows_of_tokens_follow_the_rule_of_the_first_bert(
    n: int, room: int, shared: int
) -> None:
    cuts = windows([1] * n, room, shared)
    assert [cuts[0].start, cuts[-1].end] == [0, n]
    for one, other in pairwise(cuts):
        assert one.end - one.start == room
        assert one.end - other.start == min(shared, room // 2)
    spans = [(cut.start, cut.end) for cut in cuts]
    owner = {p: i for i, cut in enumerate(cuts) for p in range(cut.first, cut.last)}
    assert owner == {p: max_context(spans, p) for p in range(n)}


@given(st.lists(st.integers(1, 9), max_size=80), st.integers(9, 30), st.integers(0, 20))
@settings(deadline=None)
def test_windows_of_words_hold_everything_and_go_on(
    sizes: list[int], room: int, shared: int
) -> None:
    cuts = windows(sizes, room, shared)
    assert all(sum(sizes[c.start : c.end]) <= room for c in cuts)
    assert all(c.start <= c.first <= c.last <= c.end for c in cuts)
    assert [w for c in cuts for w in range(c.first, c.last)] == list(range(len(sizes)))
    for one, other in pairwise(cuts):
        assert one.start < other.start <= one.end < other.end
        assert sum(sizes[other.start : one.end]) <= shared


def test_an_entity_is_trained_whole_where_a_window_holds_it() -> None:
    words = ["cat"] * 30
    task = tagger("BIOES", max_length=14, doc_stride=6)
    for start in range(28):
        row = word_row(words, (start, start + 3, "PER"))
        tags = [[task.labels[n] for n in f.target] for f in task.features(row)]
        assert sum(tag == ["B-PER", "I-PER", "E-PER"] for w in tags for tag in
                   ([w[i : i + 3] for i in range(len(w))])) == 1  # fmt: skip
    whole = word_row(words, (0, 30, "PER"))
    for window in task.features(whole):  # its parts are at least legal
        assert {task.labels[window.target[0]], task.labels[window.target[-1]]} == {"B-PER", "E-PER"}


def test_predictions_do_not_see_the_labels() -> None:
    words = ["cat"] * 60
    bare, marked = word_row(words), word_row(words, *((i, i + 4, "PER") for i in range(0, 56, 4)))
    task = tagger(max_length=14, doc_stride=6)
    assert task.features(bare, labelled=False) == task.features(marked, labelled=False)
    assert [f.positions for f in task.features(marked)] != [
        f.positions for f in task.features(marked, labelled=False)
    ]


def test_text_of_a_hundred_thousand_characters_and_a_word_of_as_many() -> None:
    model = ours("BertForTokenClassification", **labels(*tag_set(TYPES)))
    task = saved_task(model.config, tokenizer())
    whole, odd, none = predict(
        task, model, [text_row("我 " * 50_000), text_row("x" * 100_000 + " cat"), text_row("")]
    )
    assert none == []
    assert whole[-1]["end"] <= 100_000
    assert all(e["word"] == ("我 " * 50_000)[e["start"] : e["end"]] for e in whole)
    assert isinstance(odd, list)
    many = tagger(max_length=8).features(word_row(["catdogcatdogcat", "on"]))
    assert [len(f.ids) for f in many] == [8, 3]


# Labels.


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "plain"])
def test_tags_are_learned_in_one_order(scheme: str) -> None:
    rows = [word_row(["a", "b"], (0, 1, "z")), word_row(["a", "b"], (1, 2, "b"), (0, 1, "地址"))]
    task = new_task("tag", tokenizer(), rows, TaskOptions(scheme=scheme))
    assert isinstance(task, Tag)
    assert task.labels == tag_set(["b", "z", "地址"], scheme)
    assert task.labels[0] == "O"
    assert (task.types, task.metric) == (["b", "z", "地址"], "f1")
    again = saved_task(type(ours("BertModel").config)(**task.config_changes()), tokenizer())
    assert isinstance(again, Tag)
    assert (again.labels, again.scheme, again.options) == (task.labels, scheme, task.options)


def test_a_label_for_each_word_is_no_entity() -> None:
    rows = [word_row(["a", "cat"], (0, 1, "DET"), (1, 2, "NOUN")), word_row(["on"], (0, 1, "ADP"))]
    task = new_task("tag", tokenizer(), rows)
    assert isinstance(task, Tag)
    assert (task.scheme, task.labels, task.metric) == ("plain", ["ADP", "DET", "NOUN"], "accuracy")
    assert told(task, rows[0]) == list(rows[0].entities or ())
    some = word_row(["a", "cat", "sat"], (1, 2, "NOUN"))
    (feature,) = task.features(some)
    assert (list(feature.positions), feature.target) == ([2], [2])
    assert len(task.features(some, labelled=False)[0].positions) == 3
    asked = new_task("tag", tokenizer(), rows, TaskOptions(scheme="BIO"))
    assert isinstance(asked, Tag)
    assert asked.labels == tag_set(["ADP", "DET", "NOUN"])


def test_bad_labels_and_schemes_are_refused_by_name() -> None:
    row = text_row("in Paris", (3, 8, "GPE"), line=12)
    with pytest.raises(
        DataError, match=r"^ner\.jsonl:12: the label 'GPE' of 'Paris' .*: LOC, PER$"
    ):
        tagger().features(row)
    assert tagger().features(row, labelled=False)
    with pytest.raises(DataError, match=r"ner\.jsonl: .*no labelled entity"):
        new_task("tag", tokenizer(), [text_row("a")])
    with pytest.raises(UsageError, match="scheme is 'BOI'"):
        new_task("tag", tokenizer(), [row], TaskOptions(scheme="BOI"))


# Losses and decoding.


def test_the_mean_of_the_losses_is_the_models_own_over_first_tokens() -> None:
    task = tagger(max_length=10, doc_stride=4)
    model = ours("BertForTokenClassification", **task.label_settings())
    rows = [word_row(["catdog", "in", "paris"] * 4, (2, 3, "LOC"), (5, 6, "LOC")), text_row("")]
    batch = task.collate(task.features_of(rows))
    logits = task.logits(model, batch)
    losses = task.losses(model, logits, batch)
    assert losses.shape == (task.items(batch),) == (12,)
    everything = model.ragged(batch)
    marks = torch.full((len(everything),), -100)
    assert batch.targets is not None
    marks[batch.positions] = batch.targets
    torch.testing.assert_close(losses.mean(), model.loss(everything, marks))
    (logs,) = task.log_probabilities(logits, batch)
    torch.testing.assert_close(F.nll_loss(logs, marks[batch.positions]), losses.mean())


@pytest.mark.parametrize("names", [tag_set(TYPES), ["I-X", "O", "B-X", "B-Y", "I-Y"]])
def test_entities_equal_transformers_pipeline(names: list[str]) -> None:
    named = labels(*names)
    path = folder("BertForTokenClassification", **named)
    ask = pipeline("token-classification", path, aggregation_strategy="first")
    model = ours("BertForTokenClassification", **named)
    task = saved_task(model.config, tokenizer())
    texts = [
        "The cat sat on the mat. John lives in London, likes dogs!",
        "我爱北京天安门，张三在上海大学。",
        "who likes zebra's 2008年 catdog ran; mary-john",
    ]
    found = predict(task, model, [text_row(text) for text in texts])
    seen = 0
    for text, entities in zip(texts, found, strict=True):
        expected = ask(text)
        keys = ("entity_group", "start", "end")
        assert [[e[k] for k in keys] for e in entities] == [[e[k] for k in keys] for e in expected]
        assert [e["score"] for e in entities] == pytest.approx(
            [e["score"] for e in expected], abs=1e-5
        )
        assert all(e["word"] == text[e["start"] : e["end"]] for e in entities)
        seen += len(entities)
    assert seen > 9


def test_plain_labels_equal_transformers_tokens() -> None:
    model = ours("BertForTokenClassification", num_labels=4)
    task = saved_task(model.config, tokenizer())
    assert isinstance(task, Tag)
    assert task.plain
    ask = pipeline("token-classification", folder("BertForTokenClassification", num_labels=4))
    text = "the cat, 上海 in a park"  # a token a word
    (found,) = predict(task, model, [text_row(text)])
    expected = ask(text)
    assert [(e["entity_group"], e["start"], e["end"]) for e in found] == [
        (e["entity"], e["start"], e["end"]) for e in expected
    ]
    assert [e["score"] for e in found] == pytest.approx([e["score"] for e in expected], abs=1e-5)


def test_illegal_tags_are_read_as_conlleval_reads_them_and_marked() -> None:
    task = tagger()
    row = word_row(["a", "b", "c", "d", "e"])
    tags = ["I-LOC", "I-LOC", "I-PER", "O", "B-LOC"]
    logits = torch.tensor([[5.0 * (label == tag) for label in task.labels] for tag in tags])
    found = task.decode(row, task.features(row), [TagScores(logits, None)])
    assert [(e["entity_group"], e["word"], e.get("strict", True)) for e in found] == [
        ("LOC", "a b", False), ("PER", "c", False), ("LOC", "e", True)]  # fmt: skip


def test_a_prediction_knows_its_least_sure_tag() -> None:
    task, row = tagger(), word_row(["a", "b", "c"])
    logits = torch.zeros(3, 5)
    logits[:, 0] = torch.tensor([9.0, 2.0, 9.0])
    found = task.decode(row, task.features(row), [TagScores(logits, None)])
    assert found == []
    assert found.confidence == pytest.approx(math.exp(2) / (math.exp(2) + 4), abs=1e-6)


def test_a_long_text_is_one_sequence() -> None:
    """Emissions of windows joined: an entity over their border is one entity."""
    task = tagger(max_length=8, doc_stride=2)
    row = word_row(["cat"] * 20)
    features = task.features(row, labelled=False)
    number = task.numbers["I-LOC"]
    scores = [
        TagScores(F.one_hot(torch.full((len(f.positions),), number), 5) * 9.0, None)
        for f in features
    ]
    (entity,) = task.decode(row, features, scores)
    assert (entity["start"], entity["end"]) == (0, len(row.text))


# The CRF.


def crf_folder(to: Path, scheme: str = "BIO") -> tuple[Tag, Path]:
    """A trained CRF model as fine-tuning saves it."""
    task = tagger(scheme, crf=True, max_length=12, doc_stride=4)
    source = folder("BertForTokenClassification", num_labels=len(task.labels))
    config = BertConfig.from_json_file(source / "config.json", **task.config_changes())
    torch.manual_seed(3)
    model = task.model_class.from_pretrained(source, config=config)
    with torch.no_grad():
        for parameter in model.crf.parameters():
            parameter.normal_()
    model.save_pretrained(to)
    tokenizer().save_pretrained(to)
    return task, to


def every_tagging(crf: Any, emissions: torch.Tensor) -> list[tuple[float, tuple[int, ...]]]:
    """The scores of all legal taggings, best first, by trying each."""
    found = []
    for tags in product(range(crf.num_tags), repeat=len(emissions)):
        legal = crf.may_start[tags[0]] and crf.may_end[tags[-1]]
        legal = legal and all(crf.may_follow[a, b] for a, b in pairwise(tags))
        if not legal:
            continue
        score = crf.start_transitions[tags[0]] + crf.end_transitions[tags[-1]]
        score = score + sum(crf.transitions[a, b] for a, b in pairwise(tags))
        score = score + sum(emissions[i, tag] for i, tag in enumerate(tags))
        found.append((float(score), tags))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
def test_with_a_crf_entities_are_of_the_best_tagging_and_so_probable(
    scheme: str, tmp_path: Path
) -> None:
    task, path = crf_folder(tmp_path, scheme)
    model = task.model_class.from_pretrained(path)
    row = word_row(["john", "likes", "paris", "上"])
    features = task.features(row, labelled=False)
    batch = task.collate([features])
    emissions = model.ragged(batch, batch.positions).detach()
    with torch.no_grad():
        taggings = every_tagging(model.crf, emissions)
    total = math.fsum(math.exp(score) for score, _ in taggings)
    best = [task.labels[n] for n in taggings[0][1]]
    (found,) = predict(task, model, [row])
    spans = to_spans(best, scheme)
    words = list(row.words or ())
    assert [(e["entity_group"], e["start"], e["end"]) for e in found] == [
        (s.label, words[s.start][0], words[s.end - 1][1]) for s in spans
    ]
    assert spans, "the model finds something"
    shares = [
        math.fsum(math.exp(s) for s, tags in taggings if tags[i] == taggings[0][1][i]) / total
        for i in range(len(words))
    ]
    assert found.confidence == pytest.approx(min(shares), abs=1e-5)
    for entity, span in zip(found, spans, strict=True):
        probability = math.fsum(
            math.exp(score)
            for score, tags in taggings
            if span in to_spans([task.labels[n] for n in tags], scheme)
        )
        assert entity["score"] == pytest.approx(probability / total, abs=1e-5)
        assert "strict" not in entity


def test_with_a_crf_the_losses_are_of_windows_and_of_what_they_train(tmp_path: Path) -> None:
    task, path = crf_folder(tmp_path)
    model = task.model_class.from_pretrained(path)
    long = word_row(["cat"] * 40, *((i, i + 3, "PER") for i in range(0, 36, 4)))
    features = task.features_of([long, word_row(["paris"], (0, 1, "LOC"))])
    batch = task.collate(features)
    logits = task.logits(model, batch)
    losses = task.losses(model, logits, batch)
    assert losses.shape == (task.items(batch),) == (len(features[0]) + 1,)
    assert batch.targets is not None
    assert model.crf.repaired == 0, "no window begins or ends inside an entity"
    assert not bool(model.crf.illegal(batch.targets, batch.counts).any())
    for loss, scores, tags in zip(
        losses,
        logits.split(batch.counts.tolist()),
        batch.targets.split(batch.counts.tolist()),
        strict=True,
    ):
        one = model.crf.log_likelihood(scores, tags, torch.tensor([len(tags)]))
        torch.testing.assert_close(-one[0], loss)
    losses.mean().backward()
    assert model.crf.transitions.grad.abs().sum() > 0


def test_with_a_crf_a_long_text_is_one_sequence(tmp_path: Path) -> None:
    task, path = crf_folder(tmp_path)
    model = task.model_class.from_pretrained(path)
    row = word_row([*"the cat sat on the mat in london".split()] * 9)
    features = task.features(row, labelled=False)
    assert len(features) > 5
    emissions = torch.cat(
        [s.logits for f in features for s in task.scores(model, task.collate([[f]]))]
    )
    tags = model.crf.decode(emissions, torch.tensor([72])).tolist()
    words = list(row.words or ())
    (found,) = predict(task, model, [row])
    assert [(e["start"], e["end"]) for e in found] == [
        (words[s.start][0], words[s.end - 1][1]) for s in to_spans([task.labels[n] for n in tags])
    ]
    many = predict(task, model, [row, text_row(""), word_row(["cat"]), row])
    assert [[e["start"] for e in one] for one in (many[0], many[3])] == [
        [e["start"] for e in found]
    ] * 2
    assert many[1] == []


def test_a_saved_crf_answers_and_its_emissions_open_in_transformers(tmp_path: Path) -> None:
    task, path = crf_folder(tmp_path)
    asked = load(path, "cpu")
    assert asked.model.crf.num_tags == 5
    text = "john likes paris"
    assert asked.tag(text) == predict(task, asked.model, [text_row(text)])[0]
    again = saved_task(BertConfig.from_pretrained(path), tokenizer())
    assert again.options == task.options
    theirs = pipeline("token-classification", path).model
    ids = tokenizer()(text, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(theirs(**ids).logits, asked.model(**ids).logits)
    theirs.save_pretrained(tmp_path / "theirs")  # keeps our settings, not the CRF
    tokenizer().save_pretrained(tmp_path / "theirs")
    plain = load(tmp_path / "theirs", "cpu")
    assert not hasattr(plain.model, "crf")
    assert isinstance(plain.tag(text), list)


def test_a_crf_without_its_transitions_is_refused(tmp_path: Path) -> None:
    _, path = crf_folder(tmp_path)
    kept = {n: t.clone() for n, t in read_tensors(path).items() if not n.startswith("crf.")}
    write_tensors(path / "model.safetensors", kept)
    with pytest.raises(MissingHeadError, match=r"lacks crf\.end_transitions"):
        load(path, "cpu").tag("john")
