import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkit.data.shards import TokenStore
from bertkit.errors import DataError, StaleDataError, UsageError
from bertkit.text.corpus import CorpusOptions, read_documents
from bertkit.text.sentences import split_sentences
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train import parts as parts_module
from bertkit.train import prepare as prepare_module
from bertkit.train.heldout import DEV, DROPPED, TRAIN, choose
from bertkit.train.parts import ChunkEncoder, EncodeSettings, chunked, read_part, write_part
from bertkit.train.prepare import PrepareEvent, PrepareOptions, prepare, read_manifest

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *NUMBERS]
VOCAB += [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
VOCAB += [*"我爱语言模型学习，。"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    BertTokenizer(VOCAB).save_pretrained(folder)
    return folder


def in_words(number: int) -> str:
    return " ".join(NUMBERS[int(d)] for d in str(number))


def corpus(documents: int, sentences: int = 4) -> str:
    """Documents that all differ: "One two three. One two three four." and so on."""
    return "\n".join(
        "".join(f"{in_words(1000 * d + s).capitalize()} mice.\n" for s in range(sentences))
        for d in range(documents)
    )


def write(folder: Path, text: str, name: str = "a.txt") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def all_tokens(store: TokenStore) -> list[list[int]]:
    return [s.tolist() for d in range(store.documents) for s in store.sentences_of(d)]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = parts_module.chunked
    monkeypatch.setattr(prepare_module, "chunked", lambda documents: cut(documents, 500))


def test_shards_hold_the_tokens_of_the_text(tmp_path: Path, tokenizer: Path) -> None:
    source = write(tmp_path, corpus(50))
    events: list[PrepareEvent] = []
    report = prepare([source], tokenizer, tmp_path / "out", progress=events.append)
    train, dev = (TokenStore(tmp_path / "out" / split) for split in ("train", "dev"))
    assert (train.documents, dev.documents) == (48, 2)
    assert (report.train.documents, report.dev.documents) == (48, 2)
    assert report.train.tokens + report.dev.tokens == train.tokens + dev.tokens
    assert report.documents == 50
    assert report.train.sentences + report.dev.sentences == 200
    assert (report.files, report.duplicates, report.held_out) == (1, 0, "documents")
    assert train.index.dtype == "uint16"
    tok = BertTokenizer.from_pretrained(str(tokenizer))
    wanted = [
        tok.encode(s, add_special_tokens=False)
        for d in read_documents([source])
        for p in d.paragraphs
        for s in split_sentences(p)
    ]
    found = all_tokens(train) + all_tokens(dev)
    assert sorted(found) == sorted(wanted)
    assert [t for t in wanted if t in all_tokens(train)] == all_tokens(train)  # order is kept
    manifest = read_manifest(tmp_path / "out")
    assert manifest.report == report
    assert not (tmp_path / "out" / ".work").exists()
    stages = [e.stage for e in events]
    assert stages[0] == "size"
    assert sorted(set(stages)) == ["encode", "merge", "size"]
    assert 0.5 < events[0].done / report.bytes_on_disk < 2


@pytest.mark.usefixtures("small_chunks")
def test_the_same_bytes_whatever_the_workers(tmp_path: Path, tokenizer: Path) -> None:
    source = write(tmp_path, corpus(60))
    one = prepare([source], tokenizer, tmp_path / "one", PrepareOptions(workers=1))
    two = prepare([source], tokenizer, tmp_path / "two", PrepareOptions(workers=2))
    assert one == two
    assert one.parts > 5
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.usefixtures("small_chunks")
def test_interrupted_it_continues(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path, corpus(60))
    whole = prepare([source], tokenizer, tmp_path / "whole")
    out = tmp_path / "out"

    def stop(event: PrepareEvent) -> None:
        if event.stage == "encode" and event.done > 3000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([source], tokenizer, out, progress=stop)
    made = sorted((out / ".work").glob("part-*"))
    assert len(made) > 3
    made[1].write_bytes(made[1].read_bytes()[:-1] + b"\xff")  # damaged meanwhile
    report = prepare([source], tokenizer, out)
    assert report.parts_kept == len(made) - 1
    assert tree(out) == tree(tmp_path / "whole")
    for call in ("merge_parts", "_commit"):
        out = tmp_path / call
        with monkeypatch.context() as patch:
            patch.setattr(prepare_module, call, _raise)
            with pytest.raises(DataError, match="No space left on device; run again"):
                prepare([source], tokenizer, out)
        assert not (out / "manifest.json").exists()
        assert prepare([source], tokenizer, out).parts_kept == whole.parts
        assert tree(out) == tree(tmp_path / "whole")


def _raise(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_interrupted_between_the_renames(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path, corpus(60))
    prepare([source], tokenizer, tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        real = prepare_module._write_synced
        calls: list[Path] = []

        def fail_second(path: Path, content: bytes) -> None:
            calls.append(path)
            if len(calls) > 1:
                _raise()
            real(path, content)

        patch.setattr(prepare_module, "_write_synced", fail_second)
        with pytest.raises(DataError, match="No space left"):
            prepare([source], tokenizer, out)
    assert (out / "train").exists()
    assert not (out / "manifest.json").exists()
    prepare([source], tokenizer, out)
    assert tree(out) == tree(tmp_path / "whole")


def test_what_is_there_already_is_used_or_refused(tmp_path: Path, tokenizer: Path) -> None:
    source, out = write(tmp_path, corpus(30)), tmp_path / "out"
    first = prepare([source], tokenizer, out)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    again = prepare([source], tokenizer, out, PrepareOptions(workers=2))
    assert again == msgspec.structs.replace(first, parts_kept=first.parts)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == times

    other = write(tmp_path, corpus(31), "b.txt")
    cased = tmp_path / "cased"
    BertTokenizer(VOCAB, do_lower_case=False).save_pretrained(cased)
    before = tree(out)
    for arguments, what in [
        (([other], tokenizer, PrepareOptions()), r"other text \(.*b\.txt\)"),
        (([source], cased, PrepareOptions()), "another tokenizer"),
        (([source], tokenizer, PrepareOptions(dedup=True)), "dedup was False, now True"),
    ]:
        sources, folder, options = arguments
        with pytest.raises(StaleDataError, match=rf"was made from .*{what}.*--overwrite"):
            prepare(sources, folder, out, options)
        assert tree(out) == before
    moved = write(tmp_path, corpus(30), "c.txt")
    assert prepare([moved], tokenizer, out) == again
    report = prepare([other], tokenizer, out, PrepareOptions(overwrite=True))
    assert report.documents == 31
    assert tree(out) != before
    prepare([source], tokenizer, out, PrepareOptions(overwrite=True))
    assert tree(out) == before


def test_unfinished_work_of_another_kind_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    out = tmp_path / "out"

    with pytest.raises(KeyboardInterrupt):
        prepare([write(tmp_path, corpus(30))], tokenizer, out, progress=_stop)
    other = write(tmp_path, corpus(31), "b.txt")
    with pytest.raises(StaleDataError, match=r"other text .*unfinished"):
        prepare([other], tokenizer, out)
    assert prepare([other], tokenizer, out, PrepareOptions(overwrite=True)).documents == 31


def _stop(event: PrepareEvent) -> None:
    if event.stage == "encode":
        raise KeyboardInterrupt


def test_damaged_shards_are_not_called_finished(tmp_path: Path, tokenizer: Path) -> None:
    source, out = write(tmp_path, corpus(30)), tmp_path / "out"
    prepare([source], tokenizer, out)
    before = tree(out)
    for name in ("train/tokens-00000.bin", "manifest.json"):
        (out / name).write_bytes(b"junk")
        with pytest.raises(DataError, match="--overwrite"):
            prepare([source], tokenizer, out)
        prepare([source], tokenizer, out, PrepareOptions(overwrite=True))
        assert tree(out) == before
    foreign = tmp_path / "foreign"
    (foreign / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="is in the way"):
        prepare([source], tokenizer, foreign)


def test_copies_are_counted_and_dropped(tmp_path: Path, tokenizer: Path) -> None:
    text = corpus(30)
    copies = text.replace(" ", "  ").split("\n\n")
    source = write(tmp_path, text + "\n" + "\n\n".join(copies[:10]) + "\n")
    plain = prepare([source], tokenizer, tmp_path / "plain")
    clean = prepare([source], tokenizer, tmp_path / "clean", PrepareOptions(dedup=True))
    assert plain.duplicates == clean.duplicates == 10
    assert plain.train.documents + plain.dev.documents == 40
    assert clean.train.documents + clean.dev.documents == 30
    for folder in ("plain", "clean"):  # no copy of a held-out document is trained on
        dev = all_tokens(TokenStore(tmp_path / folder / "dev"))
        assert not [s for s in all_tokens(TokenStore(tmp_path / folder / "train")) if s in dev]


def test_a_single_document(tmp_path: Path, tokenizer: Path) -> None:
    source = write(tmp_path, corpus(1, sentences=100))
    report = prepare([source], tokenizer, tmp_path / "out")
    assert report.held_out == "end of one document"
    assert (report.train.sentences, report.dev.sentences) == (98, 2)
    tok = BertTokenizer.from_pretrained(str(tokenizer))
    last = tok.encode("Nine nine mice.", add_special_tokens=False)
    assert all_tokens(TokenStore(tmp_path / "out" / "dev"))[-1] == last
    none = prepare([source], tokenizer, tmp_path / "none", PrepareOptions(held_out=0))
    assert none.held_out == "nothing"
    assert not (tmp_path / "none" / "dev").exists()
    assert prepare([source], tokenizer, tmp_path / "none", PrepareOptions(held_out=0)).parts_kept
    tiny = write(tmp_path, "One mouse.", "tiny.txt")
    with pytest.raises(DataError, match="too little text"):
        prepare([tiny], tokenizer, tmp_path / "tiny")


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 9)), min_size=1, max_size=300),
    st.sampled_from([0.001, 0.01, 0.1, 0.5]),
    st.booleans(),
)
def test_the_held_out_share(drawn: list[tuple[int, int]], share: float, dedup: bool) -> None:
    hashes = np.array([h for h, _ in drawn], dtype=np.uint64)
    size = dict(drawn)  # documents of one hash are of one text, so of one size
    tokens = np.array([size[h] for h, _ in drawn], dtype=np.int64)
    sentences = np.maximum(tokens, 1)
    try:
        choice = choose(hashes, sentences, tokens, share, dedup)
    except DataError:
        assert tokens.max() < 2
        return
    assert ((choice.sides == DROPPED) >= (tokens == 0)).all()
    train, dev = (tokens[choice.sides == side].sum() for side in (TRAIN, DEV))
    assert train > 0
    assert (dev > 0) == (choice.tail is None)
    assert dev <= max(0.05, share) * (train + dev)
    assert not np.isin(hashes[choice.sides == DEV], hashes[choice.sides == TRAIN]).any()
    if choice.tail is not None:
        document, count = choice.tail
        assert choice.sides[document] == TRAIN
        assert 1 <= count <= sentences[document] // 2
    if dedup:
        kept = hashes[choice.sides != DROPPED]
        assert len(set(kept.tolist())) == len(kept)


@pytest.mark.parametrize("documents", [20, 21, 100, 1000])
def test_enough_documents_are_never_without_held_out_ones(documents: int) -> None:
    hashes = np.arange(documents, dtype=np.uint64)
    tokens = np.full(documents, 100)
    sides = choose(hashes, tokens, tokens, 0.01, False).sides
    assert 1 <= (sides == DEV).sum() <= 0.05 * documents
    assert (sides == DEV).sum() == max(documents // 100, min(16, documents // 20))


def test_chinese_words(tmp_path: Path, tokenizer: Path) -> None:
    source = write(tmp_path, "我爱语言模型，one two learn。\n学习 x。\n" * 20)
    options = PrepareOptions(words="jieba", held_out=0)
    prepare([source], tokenizer, tmp_path / "out", options)
    store = TokenStore(tmp_path / "out" / "train")
    tok = BertTokenizer.from_pretrained(str(tokenizer))
    first = tok.convert_ids_to_tokens(store.document_tokens(0)[:19].tolist())
    starts = store.word_starts(0)[:19]
    assert "".join("|" * int(s) + t for t, s in zip(first, starts, strict=True)) == (
        "|我|爱|语言|模型|，|one|two|l##e##a##r##n|。|学习|x|。"
    )
    user = write(tmp_path, "语言模型 99999\n", "user.txt")
    options = PrepareOptions(words="jieba", held_out=0, user_dict=user, overwrite=True)
    prepare([source], tokenizer, tmp_path / "out", options)
    store = TokenStore(tmp_path / "out" / "train")
    assert store.word_starts(0)[:7].tolist() == [1, 1, 1, 0, 0, 0, 1]
    plain = prepare([source], tokenizer, tmp_path / "plain", PrepareOptions(held_out=0))
    same = TokenStore(tmp_path / "plain" / "train")
    assert same.document_tokens(0).tolist() == store.document_tokens(0).tolist()
    assert plain.unknown_tokens == 0
    Path(user).write_text("语言模型 99998\n", encoding="utf-8")
    options = PrepareOptions(words="jieba", held_out=0, user_dict=user)
    with pytest.raises(StaleDataError, match="user_dict"):
        prepare([source], tokenizer, tmp_path / "out", options)


def test_standard_input(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = corpus(30)
    source = write(tmp_path, text)
    prepare([source], tokenizer, tmp_path / "file")
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        report = prepare(["-"], tokenizer, tmp_path / "stdin")
        assert report.documents == 30
        assert not (tmp_path / "stdin" / ".work").exists()
    ours, theirs = tree(tmp_path / "stdin"), tree(tmp_path / "file")
    assert json.loads(ours.pop("manifest.json"))["plan"]["inputs"][0]["name"] == "-"
    del theirs["manifest.json"]
    assert ours == theirs
    bad = io.BytesIO(text.encode() + b"\n\xff\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(bad))
    with pytest.raises(DataError, match=r"^standard input, line 151: bad encoding"):
        prepare(["-"], tokenizer, tmp_path / "bad")


def test_bad_rows_are_counted(tmp_path: Path, tokenizer: Path) -> None:
    rows = [json.dumps({"body": t}) for t in corpus(30).split("\n\n")]
    source = write(tmp_path, "\n".join([*rows, "{broken"]) + "\n", "a.jsonl")
    options = PrepareOptions(corpus=CorpusOptions(field="body"))
    with pytest.raises(DataError, match=r"a\.jsonl:31: broken JSON"):
        prepare([source], tokenizer, tmp_path / "out", options)
    options = PrepareOptions(corpus=CorpusOptions(field="body", skip_bad_rows=True))
    report = prepare([source], tokenizer, tmp_path / "new", options)
    assert report.skipped == {"broken JSON": 1}
    assert "a.jsonl:31" in report.first_bad[0]


@pytest.mark.parametrize("ending", [".gz", ""])
def test_the_size_told_is_about_right(tmp_path: Path, tokenizer: Path, ending: str) -> None:
    data = corpus(3000).encode()
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(gzip.compress(data) if ending else data)
    events: list[PrepareEvent] = []
    report = prepare([str(path)], tokenizer, tmp_path / "out", progress=events.append)
    assert 0.5 < events[0].done / report.bytes_on_disk < 2
    assert report.bytes_per_token < 2.5


def test_a_full_disk_is_seen_before_writing(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Full())
    with pytest.raises(DataError, match="the disk is too full: about"):
        prepare([write(tmp_path, corpus(30))], tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class _Full:
    free = 100


def test_options_out_of_range(tmp_path: Path, tokenizer: Path) -> None:
    source = write(tmp_path, corpus(30))
    for options in (
        PrepareOptions(held_out=0.9),
        PrepareOptions(workers=0),
        PrepareOptions(user_dict="x"),
    ):
        with pytest.raises(UsageError):
            prepare([source], tokenizer, tmp_path / "out", options)
    with pytest.raises(DataError, match="no prepared data here"):
        read_manifest(tmp_path)


def test_shards_are_not_put_among_the_texts(tmp_path: Path, tokenizer: Path) -> None:
    folder = Path(write(tmp_path, corpus(30))).parent
    for out in (folder, folder / "deep" / "data"):
        with pytest.raises(UsageError, match="whose files are the text; name another --out"):
            prepare([str(folder)], tokenizer, out, PrepareOptions())
    assert not (folder / "deep").exists()


def test_parts_come_back_and_damage_is_seen(tmp_path: Path, tokenizer: Path) -> None:
    source = write(tmp_path, corpus(30))
    encoder = ChunkEncoder(EncodeSettings(str(tokenizer), "x"))
    chunks = list(chunked(read_documents([source]), 1000))
    assert [p for c in chunks for p in c] == [d.paragraphs for d in read_documents([source])]
    part, path = encoder.encode(chunks[0]), tmp_path / "part-000000"
    key = encoder.key(chunks[0])
    assert key != encoder.key(chunks[1])
    assert key != ChunkEncoder(EncodeSettings(str(tokenizer), "y")).key(chunks[0])
    write_part(path, key, part)
    found = read_part(path, key)
    assert found is not None
    for name in ("hashes", "counts", "lengths", "tokens"):
        assert np.array_equal(getattr(found[1], name), getattr(part, name))
    assert part.document_tokens().sum() == len(part.tokens)
    assert read_part(path, "another") is None
    whole = path.read_bytes()
    for damaged in (b"", b"junk", whole[:-1], whole + b"x", whole[:300] + b"\x99" + whole[301:]):
        path.write_bytes(damaged)
        assert read_part(path, key) is None


def test_workers_end_with_a_killed_parent(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "run.py"
    path.write_text(
        "import time, psutil\n"
        "from pathlib import Path\n"
        "from bertkit.train.parts import EncodeSettings, make_parts\n"
        "def jobs():\n"
        f"    yield Path({str(tmp_path)!r}) / 'a', [['one']]\n"
        f"    yield Path({str(tmp_path)!r}) / 'b', [['two']]\n"
        "    print(*(child.pid for child in psutil.Process().children()), flush=True)\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        f"    list(make_parts(jobs(), EncodeSettings({str(tokenizer)!r}, 'x'), 2))\n"
    )
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(number)) for number in parent.stdout.readline().split()]
        assert len(workers) >= 2
        parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


@pytest.mark.slow
def test_killed_at_any_moment_it_continues(tmp_path: Path, tokenizer: Path) -> None:
    source = write(tmp_path, corpus(20_000, 10))
    prepare([source], tokenizer, tmp_path / "whole")
    script = (
        "from bertkit.train.prepare import prepare, PrepareOptions\n"
        "if __name__ == '__main__':\n"
        f"    prepare([{source!r}], {str(tokenizer)!r}, {str(tmp_path / 'out')!r},"
        " PrepareOptions(workers=2))\n"
    )
    path = tmp_path / "run.py"
    path.write_text(script)
    for seconds in (1.0, 2.0, 3.0, 4.0):
        process = subprocess.Popen([sys.executable, str(path)], start_new_session=True)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    prepare([source], tokenizer, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
