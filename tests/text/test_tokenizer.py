"""BertTokenizer against transformers' fast BERT tokenizer, and against hostile files."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.models.bert.tokenization_bert import BertTokenizer as Reference

from bertkit.errors import BertkitError, CheckpointError, DataError, UsageError
from bertkit.text.encoding import BatchEncoding
from bertkit.text.tokenizer import BertTokenizer

DATA = Path(__file__).parents[2].parent / "shared" / "data"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [form for c in "abcdefghijklmnopqrstuvwxyz0123456789" for form in (c, "##" + c)]
WORDS = [
    *"the quick brown fox jump ##ing over cafe naive ##s ##ed 模 型 很 好 。 ， ! , . - ' é".split()
]
SMALL = list(dict.fromkeys([*SPECIAL, *LETTERS, *WORDS, "дом", "##ы", "か", "##な", "😀"]))
TEXTS = [
    "The quick brown fox jumps over the café.",
    "naïve  foxes\tjumped, [MASK] over 模型很好！",
    "",
    "[UNK] don't Ünïcode ＡＢＣ１２３ e\u0301 \u200b \x00 x" + "y" * 120,
    "😀👩‍👩‍👧 ﷺ ½ 한국어 ไทย дом домы かな\u3099",
]
VOCABS = {
    "bert-base-uncased": True,
    "bert-base-cased": False,
    "bert-base-chinese": True,
    "bert-base-multilingual-cased": False,
    "bert-base-multilingual-uncased": True,
}
CALLS: list[dict[str, Any]] = [
    {},
    {"padding": True, "truncation": True},
    {"truncation": True, "max_length": 16, "return_special_tokens_mask": True},
    {"padding": "max_length", "max_length": 40, "truncation": "longest_first"},
    {"padding": True, "pad_to_multiple_of": 8, "padding_side": "left", "return_tensors": "np"},
    {"add_special_tokens": False, "return_offsets_mapping": True, "return_length": True},
    {"return_token_type_ids": False, "return_attention_mask": False},
    {
        "truncation": True,
        "max_length": 12,
        "stride": 3,
        "return_overflowing_tokens": True,
        "return_offsets_mapping": True,
        "return_special_tokens_mask": True,
        "padding": "max_length",
    },
]


@lru_cache(maxsize=12)
def both(name: str = "small", lower: bool = True) -> tuple[BertTokenizer, Any]:
    """Ours and the reference, of the same vocabulary."""
    if name == "small":
        vocab = {token: i for i, token in enumerate(SMALL)}
    else:
        path = DATA / "vocab" / f"{name}.txt"
        if not path.exists():
            pytest.skip(f"needs {path}")
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        vocab = {token: i for i, token in enumerate(lines)}
    reference = Reference(vocab=vocab, do_lower_case=lower, model_max_length=512)
    return BertTokenizer(vocab, do_lower_case=lower), reference


def assert_same(ours: Any, theirs: Any) -> None:
    assert list(ours) == list(theirs)
    for name in theirs:
        if isinstance(theirs[name], np.ndarray):
            np.testing.assert_array_equal(ours[name], theirs[name])
        else:
            assert ours[name] == theirs[name], name
    for row, (a, b) in enumerate(zip(ours.encodings, theirs.encodings, strict=True)):
        assert ours.word_ids(row) == theirs.word_ids(row)
        assert ours.sequence_ids(row) == theirs.sequence_ids(row)
        assert ours.tokens(row) == theirs.tokens(row)
        assert a.offsets == b.offsets


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("lower", [True, False])
def test_calls_equal_transformers(call: dict[str, Any], lower: bool) -> None:
    ours, theirs = both("small", lower)
    assert_same(ours(TEXTS, **call), theirs(TEXTS, **call))
    pairs = TEXTS[1:] + TEXTS[:1]
    if call.get("max_length") != 12:
        assert_same(ours(TEXTS, pairs, **call), theirs(TEXTS, pairs, **call))
        assert_same(
            ours(list(zip(TEXTS, pairs, strict=True)), **call),
            theirs(list(zip(TEXTS, pairs, strict=True)), **call),
        )
    for text in TEXTS:
        assert_same(ours(text, **call), theirs(text, **call))
        assert_same(ours(text, "the fox", **call), theirs(text, "the fox", **call))
    words = [text.split() for text in TEXTS]
    call = {**call, "is_split_into_words": True}
    assert_same(ours(words, **call), theirs(words, **call))
    assert_same(ours(words[0], **call), theirs(words[0], **call))


@pytest.mark.parametrize("strategy", ["only_first", "only_second", "longest_first"])
def test_truncation_of_pairs_equals_transformers(strategy: str) -> None:
    ours, theirs = both()
    long = "the quick brown fox " * 12
    call: dict[str, Any] = {"truncation": strategy, "max_length": 30, "stride": 4}
    call |= {"return_overflowing_tokens": True, "return_offsets_mapping": True}
    first, second = (("fox", long), (long, "fox"))[strategy != "only_second"]
    assert_same(ours(first, second, **call), theirs(first, second, **call))


# Every plane, marks, controls, emoji; and the words of the vocabulary, so that not all is [UNK].
any_text = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        st.sampled_from([*WORDS, *SPECIAL, "\u0301", "\u200d", "\ufe0f", "İ", "ß", "\x85", "\x1f"]),
        st.text(st.characters(categories=["Mn", "Cc", "Cf", "Zs", "So"]), max_size=6),
    ),
    max_size=12,
).map(" ".join) | st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=150, deadline=None)
@given(text=any_text, pair=any_text, lower=st.booleans())
def test_any_text_equals_transformers(text: str, pair: str, lower: bool) -> None:
    ours, theirs = both("small", lower)
    call: dict[str, Any] = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    mine = ours(text, pair, **call)
    assert_same(mine, theirs(text, pair, **call))
    ids = mine["input_ids"]
    for skip in (True, False):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip)
    assert ours(text, pair)["input_ids"] == ids
    assert [ours.cls_token_id, *ours.encode_sentences([text])[0], ours.sep_token_id] == ours.encode(
        text
    )
    for start, end in mine["offset_mapping"]:
        assert 0 <= start <= end <= max(len(text), len(pair))


def test_real_vocabularies_equal_transformers() -> None:
    for vocab, lower in VOCABS.items():
        ours, theirs = both(vocab, lower)
        assert_same(ours(TEXTS, **CALLS[-1]), theirs(TEXTS, **CALLS[-1]))
        assert ours.get_vocab() == theirs.get_vocab()
        assert ours.all_special_ids == theirs.all_special_ids


def test_offsets_are_places_in_the_users_text() -> None:
    ours, _ = both()
    text = "naïve 模型！ the fox"
    encoding = ours(text, return_offsets_mapping=True)
    parts = [text[start:end] for start, end in encoding.offset_mapping[1:-1]]
    assert parts == ["naïve", "模", "型", "！", "the", "fox"]
    assert encoding.char_to_token(6) == 2
    assert encoding.token_to_chars(0, 1) == (0, 5)
    assert encoding.word_to_tokens(0) == (1, 2)
    assert encoding.word_to_chars(0, 1) == (6, 7)
    assert encoding.char_to_word(7) == 2
    assert encoding.token_to_word(1) == 0
    assert encoding.token_to_sequence(1) == 0
    assert encoding.token_to_chars(0) is None
    assert encoding.n_sequences == 1


def test_ids_tokens_and_masks_equal_transformers() -> None:
    ours, theirs = both()
    assert ours.tokenize(TEXTS[1]) == theirs.tokenize(TEXTS[1])
    assert ours.convert_tokens_to_ids(["fox", "nowhere"]) == [SMALL.index("fox"), 1]
    assert ours.convert_tokens_to_ids("[MASK]") == ours.mask_token_id == 4
    ids = ours.encode(TEXTS[0], "fox")
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens(ids, True) == theirs.convert_ids_to_tokens(ids, True)
    mask = ours.get_special_tokens_mask(ids, already_has_special_tokens=True)
    assert mask == theirs.get_special_tokens_mask(ids, already_has_special_tokens=True)
    a, b = ours.encode_sentences([TEXTS[0], "fox"])
    assert ours.build_inputs_with_special_tokens(a, b) == ids
    assert ours.get_special_tokens_mask(a, b) == mask
    assert ours.create_token_type_ids_from_sequences(a, b) == ours(TEXTS[0], "fox").token_type_ids
    assert ours.convert_tokens_to_string(["jump", "##ing"]) == "jumping"
    assert ours.decode(torch.tensor(ids)) == theirs.decode(ids)
    assert ours.decode([ids, ids]) == ours.batch_decode(torch.tensor([ids, ids]))
    clean = {"clean_up_tokenization_spaces": True}
    assert ours.decode(ids, **clean) == theirs.decode(ids, **clean)
    assert len(ours) == ours.vocab_size == len(SMALL)


def test_continuation_mask_marks_word_pieces() -> None:
    ours, _ = both()
    assert ours.continuation_mask().tolist() == [token.startswith("##") for token in SMALL]


def test_pad_equals_transformers() -> None:
    ours, theirs = both()
    rows = [dict(ours(t, return_special_tokens_mask=True)) for t in TEXTS]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for options in ({}, {"padding_side": "left"}, {"padding": "max_length", "max_length": 200}):
        for kind in (rows, columns):
            theirs_kind: Any = copy.deepcopy(kind)
            assert ours.pad(kind, **options).data == theirs.pad(theirs_kind, **options).data
    padded = ours.pad(rows, pad_to_multiple_of=8, return_tensors="pt")
    assert padded.input_ids.shape[1] % 8 == 0
    assert padded.attention_mask.sum() == sum(len(row["input_ids"]) for row in rows)
    one = ours.pad({"input_ids": [2, 3]}, padding="max_length", max_length=4)
    assert one.data == {"input_ids": [2, 3, 0, 0], "attention_mask": [1, 1, 0, 0]}


def test_tensors_and_device() -> None:
    ours, _ = both()
    batch = ours(TEXTS, padding=True, return_tensors="pt").to("cpu")
    assert batch.input_ids.dtype == torch.int64
    assert batch["input_ids"].shape == batch.attention_mask.shape
    assert dict(**batch).keys() == {"input_ids", "token_type_ids", "attention_mask"}
    with pytest.raises(DataError, match="padding=True"):
        ours(TEXTS, return_tensors="pt")
    with pytest.raises(UsageError, match="tf"):
        ours(TEXTS, return_tensors="tf")  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="labels"):
        batch.labels  # noqa: B018
    with pytest.raises(UsageError, match="offsets"):
        BatchEncoding({"input_ids": [1]}).word_ids()
    assert ours([])["input_ids"] == []


def test_copies_and_pickles_work_alike() -> None:
    ours, _ = both()
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert other(TEXTS).data == ours(TEXTS).data
    encoding = pickle.loads(pickle.dumps(ours(TEXTS)))
    assert encoding.word_ids(0) == ours(TEXTS).word_ids(0)


def test_calls_from_many_threads_do_not_mix() -> None:
    ours, _ = both()
    wrong: list[int] = []

    def work(length: int) -> None:
        for _ in range(40):
            rows = ours(TEXTS * 4, padding="max_length", truncation=True, max_length=length)
            wrong.extend(len(r) for r in rows["input_ids"] if len(r) != length)

    threads = [threading.Thread(target=work, args=(n,)) for n in (8, 16, 24, 32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("bad", ["a\ud800b", ["ok", "\udfff"], [["ok"], ["\ud83d"]]])
def test_a_lone_surrogate_is_a_clear_error(bad: Any) -> None:
    ours, _ = both()
    words = isinstance(bad, list) and isinstance(bad[0], list)
    with pytest.raises(DataError, match=r"lone surrogate, U\+D"):
        ours(bad, is_split_into_words=words)
    assert ours.convert_tokens_to_ids("\ud800") == ours.unk_token_id
    with pytest.raises(TypeError, match="NoneType"):
        ours(["a", None])


def test_what_would_panic_or_crash_is_an_error() -> None:
    ours, _ = both()
    for length, stride in ((5, 3), (1, 0), (-1, 0)):
        with pytest.raises(UsageError, match="max_length"):
            ours("the quick brown fox", truncation=True, max_length=length, stride=stride)
    with pytest.raises(UsageError, match="longest_first"):
        ours("the fox " * 20, "fox", truncation="only_second", max_length=8)
    with pytest.raises(UsageError, match="multiple"):
        ours("a", truncation=True, padding=True, max_length=10, pad_to_multiple_of=8)
    with pytest.raises(UsageError, match="2 texts"):
        ours(["a", "b"], ["c"])
    with pytest.raises(DataError, match="-100"):
        ours.decode([-100])
    assert len(ours("fox " * 3000)["input_ids"]) == 3002
    assert len(ours("fox " * 3000, truncation=True)["input_ids"]) == 512


def test_saved_folder_reloads_here_and_in_transformers(tmp_path: Path) -> None:
    ours, _ = both("small", False)
    ours = copy.deepcopy(ours)
    ours.model_max_length = 77
    assert ours.add_tokens(["neologism"]) == 1
    assert ours.add_special_tokens({"extra_special_tokens": ["[ENT]"]}) == 1
    texts = [*TEXTS, "a neologism of [ENT] here"]
    names = {Path(path).name for path in ours.save_pretrained(tmp_path)}
    assert names == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
    }
    again = BertTokenizer.from_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for other in (again, theirs):
        assert other(texts)["input_ids"] == ours(texts)["input_ids"]
        assert other.model_max_length == 77
        assert len(other) == len(ours) == ours.vocab_size + 2
    assert again.decode(again.encode("[ENT] fox"), skip_special_tokens=True) == "fox"
    (tmp_path / "tokenizer.json").unlink()
    plain = BertTokenizer.from_pretrained(tmp_path)
    assert plain(TEXTS)["input_ids"] == ours(TEXTS)["input_ids"]
    assert not plain.do_lower_case


def test_a_folder_of_transformers_opens_here(tmp_path: Path) -> None:
    _, theirs = both("small", False)
    theirs = copy.deepcopy(theirs)
    theirs(TEXTS, padding="max_length", truncation=True, max_length=9)  # leaves them in the file
    theirs.save_pretrained(tmp_path)
    ours = BertTokenizer.from_pretrained(tmp_path)
    assert ours(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]
    assert BertTokenizer.from_pretrained(tmp_path, do_lower_case=True).encode("THE FOX") != []


def broken(tmp_path: Path, change: Any) -> Path:
    ours, _ = both()
    ours.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    change(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["model"].update(type="BPE"),
        lambda d: d["model"].update(vocab={}),
        lambda d: d["model"].update(vocab=[["a", 1]]),
        lambda d: d["model"]["vocab"].update(new=2**40),
        lambda d: d["model"]["vocab"].update(new=-1),
        lambda d: d["model"]["vocab"].update(new=True),
        lambda d: d["model"]["vocab"].update(new=0),
        lambda d: d["model"]["vocab"].update({"\ud800": 500}),
        lambda d: d["model"]["vocab"].pop("[UNK]"),
        lambda d: d["model"]["vocab"].pop("[CLS]"),
        lambda d: d["model"].update(unk_token=3),
        lambda d: d["model"].update(max_input_chars_per_word=-1),
        lambda d: d.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        lambda d: d["normalizer"].update(lowercase="yes"),
        lambda d: d.update(pre_tokenizer={"type": "ByteLevel"}),
        lambda d: d.update(post_processor={"type": "RobertaProcessing"}),
        lambda d: d.update(added_tokens=[{"id": 7, "content": ""}]),
        lambda d: d.update(added_tokens=[{"id": 9999, "content": "far"}]),
        lambda d: d.update(added_tokens="none"),
        lambda d: d.update(model=None),
    ],
)
def test_a_hostile_file_is_refused(tmp_path: Path, change: Any) -> None:
    with pytest.raises(CheckpointError):
        BertTokenizer.from_pretrained(broken(tmp_path, change))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BertkitError):
        BertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="JSON"):
        BertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(CheckpointError, match="UTF-8"):
        BertTokenizer.from_pretrained(tmp_path / "vocab.txt")
    with pytest.raises(UsageError, match="vocabulary"):
        BertTokenizer()


def test_stored_padding_and_truncation_are_ignored(tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["truncation"] = {"max_length": 4, "stride": 0, "direction": "Right"}
        data["padding"] = {"strategy": {"Fixed": 64}, "pad_id": 0}

    ours, _ = both()
    again = BertTokenizer.from_pretrained(broken(tmp_path, change))
    assert again(TEXTS).data == ours(TEXTS).data


def test_lower_casing_with_a_cased_vocabulary_is_refused(tmp_path: Path) -> None:
    vocab = [*SPECIAL, *LETTERS, "The", "Fox", "##ING"]
    with pytest.raises(CheckpointError, match="'Fox'"):
        BertTokenizer(vocab)
    BertTokenizer(vocab, do_lower_case=False).save_pretrained(tmp_path)
    assert BertTokenizer.from_pretrained(tmp_path).tokenize("Fox") == ["Fox"]
    with pytest.raises(CheckpointError, match="do_lower_case"):
        BertTokenizer.from_pretrained(tmp_path, do_lower_case=True)


def test_a_vocabulary_without_mask_says_so_when_it_is_asked_for() -> None:
    ours = BertTokenizer([*SPECIAL[:4], *LETTERS])
    assert "[MASK]" not in ours.all_special_tokens
    with pytest.raises(CheckpointError, match=r"\[MASK\]"):
        _ = ours.mask_token_id
