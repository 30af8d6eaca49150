import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertkit.data.shards import TokenStore, flat_ranges
from bertkit.data.shardwriter import ShardWriter
from bertkit.errors import DataError

Documents = list[list[list[int]]]
sentence = st.lists(st.integers(0, 69_999), max_size=12)
corpora = st.lists(st.lists(sentence, max_size=6), max_size=12)


def without_empty(documents: Documents) -> Documents:
    kept = [[s for s in d if s] for d in documents]
    return [d for d in kept if d]


def write(
    folder: Path, documents: Documents, vocab: int = 70_000, shard_tokens: int = 99
) -> TokenStore:
    with ShardWriter(folder, vocab, shard_tokens=shard_tokens) as writer:
        for document in documents:
            writer.add(document)
    return TokenStore(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    documents=corpora,
    shard_tokens=st.integers(1, 60),
    seed=st.integers(0, 99),
    small=st.booleans(),
)
def test_documents_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    documents: Documents,
    shard_tokens: int,
    seed: int,
    small: bool,
) -> None:
    vocab = 300 if small else 70_000
    documents = [[[t % vocab for t in s] for s in d] for d in documents]
    folder = tmp_path_factory.mktemp("store") / "train"
    rng = np.random.default_rng(seed)
    with ShardWriter(folder, vocab, with_words=True, shard_tokens=shard_tokens) as writer:
        words = [[rng.random(len(s)) < 0.5 for s in d] for d in documents]
        for document, starts in zip(documents, words, strict=True):
            writer.add(document, starts)
    store = TokenStore(folder)
    store.verify()
    wanted = without_empty(documents)
    assert [[s.tolist() for s in store.sentences_of(i)] for i in range(len(store))] == wanted
    assert store.tokens == sum(len(s) for d in wanted for s in d) == writer.tokens
    assert store.sentences == sum(map(len, wanted)) == writer.sentences
    flat = [np.concatenate(w) for d, w in zip(documents, words, strict=True) if any(map(len, d))]
    for i, starts_of in enumerate(flat):
        assert store.word_starts(i).tolist() == starts_of.tolist()
    order = np.arange(store.sentences)
    ends = np.cumsum([0] + [len(s) for d in wanted for s in d])
    assert store.sentence_offsets(order).tolist() == ends[:-1].tolist()
    everything = np.array([t for d in wanted for s in d for t in s])
    picked = rng.permutation(store.sentences)
    parts = [everything[ends[k] : ends[k + 1]] for k in picked]
    got = store.gather(ends[:-1][picked], np.diff(ends)[picked])
    assert got.tolist() == [t for p in parts for t in p.tolist()]


def test_bytes_do_not_depend_on_how_documents_were_added(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [
        [rng.integers(0, 100, rng.integers(0, 9)).tolist() for _ in range(rng.integers(0, 5))]
        for _ in range(200)
    ]
    write(tmp_path / "one", documents, 100, shard_tokens=301)
    with ShardWriter(tmp_path / "many", 100, shard_tokens=301) as writer:
        for k in range(0, 200, 37):
            part = documents[k : k + 37]
            writer.add_many(
                np.array([t for d in part for s in d for t in s], dtype=np.int32),
                np.array([len(s) for d in part for s in d], dtype=np.int32),
                np.array([len(d) for d in part], dtype=np.int32),
            )
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "many").iterdir())
    assert len(names) > 10
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


def test_fewer_than_two_and_a_half_bytes_a_token(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = np.full(3000, 20)
    with ShardWriter(tmp_path / "s", 30522, with_words=True) as writer:
        ids = rng.integers(0, 30522, 60_000)
        writer.add_many(ids, lengths, np.full(3000, 1), rng.random(60_000) < 0.7)
    size = sum(p.stat().st_size for p in (tmp_path / "s").iterdir())
    assert size < 2.5 * 60_000


@pytest.mark.parametrize("kind", ["tokens", "lengths", "counts"])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "s", [[[1, 2, 3], [4, 5]], [[6]]])
    path = tmp_path / "s" / f"{kind}-00000.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=path.name):
        TokenStore(tmp_path / "s")
    path.unlink()
    with pytest.raises(DataError, match=path.name):
        TokenStore(tmp_path / "s")


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    store = write(tmp_path / "s", [[[1, 2, 3], [4, 5]], [[6]]])
    store.verify()
    tokens = tmp_path / "s" / "tokens-00000.bin"
    data = bytearray(tokens.read_bytes())
    data[0] ^= 1
    tokens.write_bytes(bytes(data))
    with pytest.raises(DataError, match=tokens.name):
        TokenStore(tmp_path / "s").verify()
    lengths = tmp_path / "s" / "lengths-00000.bin"
    lengths.write_bytes(bytes([3, 200, 1]))
    with pytest.raises(DataError, match=r"lengths-00000.bin.*adds up"):
        TokenStore(tmp_path / "s")


def test_an_index_is_not_believed(tmp_path: Path) -> None:
    write(tmp_path / "s", [[[1, 2, 3]]])
    path = tmp_path / "s" / "index.json"
    index = json.loads(path.read_text())
    index["shards"][0]["tokens"] = 1 << 50
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"tokens-00000\.bin"):
        TokenStore(tmp_path / "s")
    path.write_text("{")
    with pytest.raises(DataError, match=r"index\.json"):
        TokenStore(tmp_path / "s")
    index["format"] = 99
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match="format 99"):
        TokenStore(tmp_path / "s")


def test_a_failed_writer_leaves_no_store(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="outside a vocabulary"):
        write(tmp_path / "s", [[[1]], [[70_000]]])
    with pytest.raises(DataError, match="no prepared shards"):
        TokenStore(tmp_path / "s")
    assert not list((tmp_path / "s").glob("*.partial"))
    assert write(tmp_path / "s", [[[1]]]).tokens == 1
    with pytest.raises(DataError, match="already holds"):
        ShardWriter(tmp_path / "s", 10)


def test_an_empty_store_opens(tmp_path: Path) -> None:
    store = write(tmp_path / "s", [[], [[]]])
    assert (store.documents, store.sentences, store.tokens) == (0, 0, 0)
    with pytest.raises(IndexError):
        store.document(0)


def test_flat_ranges() -> None:
    found = flat_ranges(np.array([5, 0, 9]), np.array([2, 0, 3]))
    assert found.tolist() == [5, 6, 9, 10, 11]
