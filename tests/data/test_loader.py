import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertkit.batch import PretrainBatch
from bertkit.data.loader import Cursor, PretrainLoader, Step, _prefetch
from bertkit.data.shards import TokenStore
from bertkit.data.shardwriter import ShardWriter
from bertkit.errors import UsageError
from bertkit.settings import DataSettings
from tests.data.corpora import FIRST, MASK, numbered, prose, vocabulary

FIELDS = (
    "input_ids",
    "token_type_ids",
    "position_ids",
    "lengths",
    "mlm_positions",
    "mlm_labels",
    "nsp_labels",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loader") / "store"
    numbered(path, prose(600), shard_tokens=50_000)
    return path


Make = Callable[..., PretrainLoader]


@pytest.fixture(scope="module")
def make(folder: Path) -> Make:
    store = TokenStore(folder)

    def loader(batch_tokens: int = 2048, stores: Any = None, **options: Any) -> PretrainLoader:
        own = {k: options.pop(k) for k in list(options) if k in ("parts", "pad_to", "max_length")}
        own["chunk_tokens"] = options.pop("chunk_tokens", 20_000)
        return PretrainLoader(
            stores or [store],
            DataSettings(**options),
            vocabulary(store.vocab_size),
            seed=options.pop("seed", 3),
            batch_tokens=batch_tokens,
            **own,
        )

    return loader


def fingerprint(batches: list[PretrainBatch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for field in FIELDS:
            digest.update(getattr(batch, field).numpy().tobytes() + field.encode())
    return digest.hexdigest()


def steps(loader: PretrainLoader, n: int, cursor: Any = (0, 0, 0)) -> list[tuple[str, Cursor]]:
    return [(fingerprint(b), c) for b, c in islice(loader.batches(cursor), n)]


def epoch_of(loader: PretrainLoader, epoch: int = 0) -> Iterator[list[PretrainBatch]]:
    for batches, cursor in loader.batches((epoch, 0, 0)):
        if cursor.epoch > epoch:
            return
        yield batches


def test_resume_is_exact_from_every_cursor(make: Make) -> None:
    stream = steps(make(chunk_tokens=15_000), 330)
    assert stream[-1][1].epoch >= 2
    assert max(c.block for _, c in stream) >= 1
    assert len({f for f, _ in stream}) == len(stream)
    ends = [k for k in range(326) if stream[k][1][:2] != stream[k + 1][1][:2]]
    assert len(ends) > 4
    for k in {0, 1, 17, 150, *ends}:
        assert steps(make(chunk_tokens=15_000), 3, stream[k][1]) == stream[k + 1 : k + 4]


def test_resume_in_a_fresh_process(make: Make, folder: Path) -> None:
    stream = steps(make(), 60)
    code = f"""
from itertools import islice
from bertkit.data.loader import PretrainLoader
from bertkit.data.shards import TokenStore
from bertkit.settings import DataSettings
from tests.data.corpora import vocabulary
from tests.data.test_loader import steps
store = TokenStore({str(folder)!r})
loader = PretrainLoader([store], DataSettings(), vocabulary(store.vocab_size), seed=3,
                        batch_tokens=2048, chunk_tokens=20_000)
print(*(f for f, _ in steps(loader, 10, {list(stream[40][1])})))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.split() == [f for f, _ in stream[41:51]]


def rows(batches: list[PretrainBatch]) -> list[tuple[list[int], list[int], int]]:
    """All sequences of a step, as (ids, masked positions, label)."""
    found = []
    for batch in batches:
        starts = batch.starts.tolist()
        for start, n, nsp in zip(starts, batch.lengths.tolist(), batch.nsp_labels, strict=True):
            if start < batch.real_tokens:
                at = batch.mlm_positions[
                    (batch.mlm_positions >= start) & (batch.mlm_positions < start + n)
                ]
                ids = batch.input_ids[start : start + n].tolist()
                found.append((ids, (at - start).tolist(), int(nsp)))
    return sorted(found)


@pytest.mark.parametrize("parts", [2, 4, 7])
def test_the_global_batch_is_the_same_in_any_parts(make: Make, parts: int) -> None:
    whole, cut = make(), make(parts=parts)
    for (one, cursor), (many, after) in islice(
        zip(whole.batches(), cut.batches(), strict=False), 100
    ):
        assert cursor == after
        assert rows(one) == rows(many)
        assert len(many) == parts
        loads = [b.real_tokens for b in many]
        assert max(loads) - min(loads) <= 128
        assert max(len(b.input_ids) for b in many) <= cut.part_tokens


def test_static_shapes(make: Make) -> None:
    for parts, pad_to in ((1, 2048), (3, 900)):
        plain = islice(make(parts=parts).batches(), 20)
        padded = islice(make(parts=parts, pad_to=pad_to).batches(), 20)
        for (a, _), (b, _) in zip(plain, padded, strict=True):
            assert {len(x.input_ids) for x in b} == {pad_to}
            assert rows(a) == rows(b)
    with pytest.raises(UsageError, match="part_tokens"):
        make(pad_to=2047)


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm", "mlm+sop"])
@pytest.mark.parametrize("segments", ["long", "sentence"])
@pytest.mark.parametrize(("budget", "longest"), [(1024, 128), (4096, 128), (8192, 512)])
def test_fill_is_above_98_percent(
    make: Make, objective: str, segments: str, budget: int, longest: int
) -> None:
    loader = make(
        budget, objective=objective, segments=segments, max_length=longest, chunk_tokens=1 << 20
    )
    tokens = [sum(b.real_tokens for b in batches) for batches in epoch_of(loader)]
    assert len(tokens) > 10
    assert max(tokens) <= budget
    assert np.mean(tokens) > 0.98 * budget
    # What fills no step is less than one step a block, and the estimate is of what was fed.
    assert loader.epoch_tokens() - 1.5 * budget - 0.03 * sum(tokens) < sum(tokens)
    assert sum(tokens) < 1.03 * loader.epoch_tokens()


def test_epochs_differ_in_order_pairs_and_masks(make: Make) -> None:
    first, second = (list(epoch_of(make(), e)) for e in (0, 1))
    some = {tuple(ids) for batches in first for ids, _, _ in rows(batches)}
    other = {tuple(ids) for batches in second for ids, _, _ in rows(batches)}
    assert len(some & other) < 0.01 * len(some)


def test_an_epoch_passes_over_the_corpus_once(make: Make) -> None:
    # Without pairs, tokens name their sentence: nearly all are seen, none more often than it is.
    loader = make(objective="mlm", chunk_tokens=1 << 20)
    store = loader.stores[0]
    counts = np.zeros(store.vocab_size, dtype=int)
    for batches in epoch_of(loader):
        for batch in batches:
            ids = batch.input_ids.clone()
            ids[batch.mlm_positions] = batch.mlm_labels
            counts += np.bincount(ids.numpy(), minlength=len(counts))
    wanted = np.bincount(
        np.concatenate([store.document_tokens(i) for i in range(len(store))]),
        minlength=len(counts),
    )
    missing = (wanted - counts)[FIRST:]
    assert missing.min() >= 0
    assert missing.sum() < 2048


def test_masking_share_and_settings(make: Make) -> None:
    loader = make(mlm_probability=0.3, mask_share=1.0, random_share=0.0)
    chosen = total = 0
    for (batch,), _ in islice(loader.batches(), 50):
        chosen += len(batch.mlm_positions)
        total += int((batch.input_ids >= FIRST).sum() + (batch.input_ids == MASK).sum())
        assert (batch.input_ids[batch.mlm_positions] == MASK).all()
    assert chosen / total == pytest.approx(0.3, abs=0.01)


def test_second_phase_and_seed(make: Make) -> None:
    assert max(max(b.lengths.max() for b in s) for s in epoch_of(make(max_length=512))) == 512
    store = make().stores[0]
    args = ([store], DataSettings(), vocabulary(store.vocab_size))
    one, two = (PretrainLoader(*args, seed=s, batch_tokens=1024) for s in (0, 1))
    assert steps(one, 1)[0][0] != steps(two, 1)[0][0]


def test_corpora_mix_by_weight(make: Make, tmp_path: Path) -> None:
    long, short = (
        numbered(tmp_path / "l", prose(900, 2, 4)),
        numbered(tmp_path / "s", [[3, 4]] * 500),
    )
    loader = make(stores=[long, short], weights=[0.5, 4.0], objective="mlm", max_length=64)
    sizes = [len(ids) for batches in epoch_of(loader) for ids, _, _ in rows(batches)]
    assert sizes.count(9) == pytest.approx(2000, abs=230)
    text = sum(n - 2 for n in sizes if n != 9)
    assert text == pytest.approx(0.5 * long.tokens, rel=0.15)


def test_stored_words_and_pieces_mix(make: Make, tmp_path: Path) -> None:
    # One corpus says that words are pairs of tokens, the other leaves it to "##".
    ids = np.arange(5, 65)
    with ShardWriter(tmp_path / "w", 70, with_words=True) as writer:
        for _ in range(60):
            writer.add([ids], [ids % 2 == 1])
    with ShardWriter(tmp_path / "p", 70) as writer:
        for _ in range(60):
            writer.add([ids])
    stores = [TokenStore(tmp_path / n) for n in "wp"]
    going_on = np.arange(70) % 3 == 0
    loader = PretrainLoader(
        stores,
        DataSettings(objective="mlm", masking="word", max_length=62),
        vocabulary(70, going_on),
        seed=0,
        batch_tokens=62 * 60,
        chunk_tokens=1 << 20,
    )
    pairs = pieces = 0
    (batches, _) = next(iter(loader.batches()))
    for _, at, _ in rows(batches):
        # Position p holds id p + 4.
        chosen = set(at)
        as_pairs = all((p in chosen) == (p + 1 in chosen) for p in range(1, 61, 2))
        as_pieces = all((p in chosen) == (p - 1 in chosen) for p in range(2, 61) if going_on[p + 4])
        pairs += as_pairs
        pieces += as_pieces and not as_pairs
    assert pairs + pieces == 60
    assert pairs > 10
    assert pieces > 10


def test_dev_batches_are_fixed(make: Make) -> None:
    dev = make(masking="span", mlm_probability=0.4).dev_batches(20_000)
    assert 0.95 * 20_000 < sum(b.real_tokens for b in dev) <= 20_000
    assert max(b.real_tokens for b in dev) <= 2048
    again = make(masking="token").dev_batches(20_000)
    assert fingerprint(dev) == fingerprint(again)
    assert rows(make(8192, parts=2).dev_batches(20_000)) == rows(dev)
    chosen = sum(len(b.mlm_positions) for b in dev)
    assert chosen / 20_000 == pytest.approx(0.145, abs=0.01)
    pairs = torch.cat([b.nsp_labels for b in dev])
    assert 0.4 < (pairs == 1).float().mean() < 0.6
    everything = make().dev_batches(10**9)
    assert 1 <= len(make().dev_batches(1)) < len(everything)


def test_balance_and_samples(make: Make) -> None:
    balance = make().nsp_balance()
    assert 0.45 < balance["random"] / (balance["random"] + balance["next"]) < 0.55
    assert make(objective="mlm").nsp_balance()["next"] == 0
    assert set(make(objective="mlm+sop").nsp_balance()) == {"in_order", "swapped", "none"}
    shown = make().sample(8)
    assert len(shown) == 8
    for example in shown:
        for old, new, label in zip(example.ids, example.masked_ids, example.labels, strict=True):
            assert label in (-100, old)
            assert label == old or new == old
        assert example.nsp_label in (0, 1)
        assert len(example.token_type_ids) == len(example.ids)


def test_a_corpus_smaller_than_a_step_gives_one(make: Make, tmp_path: Path) -> None:
    tiny = numbered(tmp_path / "t", [[4, 5, 6], [7, 8]])
    loader = make(1 << 16, stores=[tiny])
    got = list(islice(loader.batches(), 3))
    assert [c for _, c in got] == [Cursor(0, 0, 1), Cursor(1, 0, 1), Cursor(2, 0, 1)]
    assert steps(loader, 2, got[0][1]) == [(fingerprint(b), c) for b, c in got[1:]]
    parts = next(iter(make(1 << 16, stores=[tiny], parts=16).batches()))[0]
    assert len(parts) == 16
    assert rows(parts) == rows(got[0][0])


def test_settings_are_checked(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch_tokens"):
        make(100)
    with pytest.raises(UsageError, match=r"data\.weights"):
        make(weights=[1.0, 2.0])
    with pytest.raises(UsageError, match="no text"):
        make(stores=[numbered(tmp_path / "e", [])])
    store = numbered(tmp_path / "s", prose(20))
    with pytest.raises(UsageError, match="prepared with"):
        PretrainLoader([store], DataSettings(), vocabulary(50), seed=0, batch_tokens=1024)
    barely = make(stores=[store], weights=[1e-9], objective="mlm")
    with pytest.raises(UsageError, match="no examples"):
        next(iter(barely.batches()))


def test_an_error_in_the_thread_is_raised_here() -> None:
    def failing() -> Iterator[Step]:
        yield [], Cursor(0, 0, 1)
        raise OSError("disk gone")

    stream = _prefetch(failing())
    assert next(stream)[1] == Cursor(0, 0, 1)
    with pytest.raises(OSError, match="disk gone"):
        next(stream)


def test_the_thread_works_ahead_and_ends_with_its_stream() -> None:
    made: list[int] = []

    def endless() -> Iterator[Step]:
        while True:
            made.append(1)
            yield [], Cursor()

    def running() -> bool:
        return any(t.name == "bertkit-data" for t in threading.enumerate())

    stream = _prefetch(endless())
    next(stream)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) == 4
    assert running()
    stream.close()  # type: ignore[attr-defined]
    assert not running()


def test_importing_the_loader_and_drawing_leave_global_randomness_alone(make: Make) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    old = repr(np.random.get_state())
    steps(make(), 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(np.random.get_state()) == old
