"""The stream of pretraining steps: endless, packed to a budget, resumed from three integers.

An epoch is an order of documents, cut into blocks of some million tokens. A block is made into
examples a chunk at a time; a chunk's examples are shuffled and packed into steps, and what fills
no step joins the next chunk. At the end of a block less than one step is left over and is dropped
(other examples in every epoch), so a block depends on nothing before it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from queue import Empty, Full, Queue
from typing import Any, NamedTuple

import numpy as np

from bertkit.batch import PretrainBatch
from bertkit.data.collate import Vocabulary, collate, pack, split_evenly
from bertkit.data.examples import ExampleRules, Examples, balance, join_examples, make_examples
from bertkit.data.masking import IGNORE, MaskRules
from bertkit.data.order import Units, cut_evenly, epoch_units, join_units, permutation, units_of
from bertkit.data.shards import Ints, TokenStore
from bertkit.errors import UsageError
from bertkit.settings import DataSettings

# Evaluation must not depend on the seed of the run.
_DEV_SEED, _DEV_EPOCH = 0, 0
_SAMPLE_TOKENS = 300_000


class Cursor(NamedTuple):
    """Where a stream stands: `step` steps of this block of this epoch are done."""

    epoch: int = 0
    block: int = 0
    step: int = 0


START = Cursor()
Step = tuple[list[PretrainBatch], Cursor]


class PretrainLoader:
    """Batches for pretraining from prepared stores.

    The global batch of a step is a function of (stores, settings, seed, batch_tokens, max_length)
    and of the cursor; `parts` only says how it is dealt out.

    Args:
        stores: one split of each DATA folder.
        settings: objective, segments, masking, weights.
        vocabulary: the tokenizer's ids.
        seed: of order, pairs and masks.
        batch_tokens: tokens of a step, special tokens included, over all parts.
        parts: micro-batches a step (accumulation x ranks), balanced by tokens.
        max_length: tokens of an example; default settings.max_length.
        pad_to: pad each micro-batch to this many tokens, for static shapes; see `part_tokens`.
        chunk_tokens: text tokens that are made into examples at a time.

    Raises:
        UsageError: the settings contradict each other or the stores.
    """

    def __init__(
        self,
        stores: Sequence[TokenStore],
        settings: DataSettings,
        vocabulary: Vocabulary,
        *,
        seed: int,
        batch_tokens: int,
        parts: int = 1,
        max_length: int | None = None,
        pad_to: int | None = None,
        chunk_tokens: int = 1 << 20,
    ) -> None:
        self.stores, self.settings, self.vocabulary = list(stores), settings, vocabulary
        self.seed, self.batch_tokens, self.parts = seed, batch_tokens, parts
        self.max_length = max_length or settings.max_length
        self.pad_to, self.chunk_tokens = pad_to, chunk_tokens
        self.weights = list(settings.weights) or [1.0] * len(self.stores)
        self._check()
        self.corpora = [units_of(s, n, chunk_tokens) for n, s in enumerate(self.stores)]
        wanted = ExampleRules(
            settings.objective, settings.segments, self.max_length, settings.short_probability
        )
        both = zip(self.stores, self.corpora, strict=True)
        self.rules = [balance(store, units, wanted) for store, units in both]
        self.masking = MaskRules(
            vocabulary.mask,
            vocabulary.special_table,
            settings.mlm_probability,
            settings.mask_share,
            settings.random_share,
            settings.masking,
            vocabulary.continuation,
        )

    def _check(self) -> None:
        if sum(s.tokens for s in self.stores) == 0:
            raise UsageError("the prepared data holds no text")
        if len(self.weights) != len(self.stores):
            raise UsageError(
                f"data.weights has {len(self.weights)} values for {len(self.stores)} DATA folders"
            )
        if self.batch_tokens < self.max_length:
            raise UsageError(
                f"train.batch_tokens={self.batch_tokens} is less than one example of "
                f"data.max_length={self.max_length}"
            )
        for store in self.stores:
            if store.vocab_size > self.vocabulary.size:
                raise UsageError(
                    f"{store.folder} was prepared with {store.vocab_size} ids, the tokenizer has "
                    f"{self.vocabulary.size}; prepare again"
                )
        if self.pad_to is not None and self.pad_to < self.part_tokens:
            raise UsageError(f"pad_to={self.pad_to} is below part_tokens={self.part_tokens}")

    @property
    def part_tokens(self) -> int:
        """No micro-batch has more tokens than this."""
        if self.parts == 1:
            return self.batch_tokens
        # Dealing longest first never passes the mean by as much as one example.
        return self.batch_tokens // self.parts + self.max_length

    def batches(self, cursor: Cursor | Sequence[int] = START) -> Iterator[Step]:
        """Steps from a cursor on, without end; a thread prepares the next ones meanwhile.

        Yields:
            the micro-batches of one step, and the cursor from which the stream goes on after it.
        """
        return _prefetch(self._steps(Cursor(*cursor)))

    def _steps(self, cursor: Cursor) -> Iterator[Step]:
        epoch, first, skip = cursor
        empty = 0
        while empty < 3:
            units = self._epoch(epoch)
            bounds = self._blocks(units)
            made = first
            for block in range(first, len(bounds) - 1):
                part = units.take(np.arange(bounds[block], bounds[block + 1]))
                for step, (examples, chosen) in enumerate(
                    self._block(part, epoch, keep_partial=len(bounds) == 2), start=1
                ):
                    made += 1
                    if step > skip:
                        yield self._collate(examples.take(chosen)), Cursor(epoch, block, step)
                skip = 0
            # An epoch can be empty by chance only where a weight is near zero.
            empty = 0 if made else empty + 1
            epoch, first = epoch + 1, 0
        raise UsageError("the prepared data gives no examples; see data.weights and the corpus")

    def _epoch(self, epoch: int) -> Units:
        return epoch_units(self.corpora, self.weights, self.seed, epoch)

    def _blocks(self, units: Units) -> Ints:
        """Where the blocks of an epoch start; at least 32 steps each, so that little is dropped."""
        wanted = max(4 * self.chunk_tokens, 32 * self.batch_tokens)
        return cut_evenly(units.tokens, max(1, int(units.tokens.sum()) // wanted))

    def _block(
        self, units: Units, epoch: int, keep_partial: bool
    ) -> Iterator[tuple[Examples, Ints]]:
        """The steps of a block: examples, and which of them the step has.

        An epoch of less than one step gives what it has (`keep_partial`).
        """
        chunks = max(1, round(int(units.tokens.sum()) / self.chunk_tokens))
        bounds = cut_evenly(units.tokens, chunks).tolist()
        carried: list[Examples] = []
        made = 0
        for n, (low, high) in enumerate(pairwise(bounds)):
            examples = self._examples(units.take(np.arange(low, high)), epoch)
            examples = join_examples([*carried, examples])
            order = np.argsort(examples.keys, kind="stable")
            # The last examples of a pool pack badly: they go to the next chunk.
            reserve = 0 if n == chunks - 1 else 3 * self.batch_tokens + 32 * self.max_length
            bins, left = pack(examples.lengths[order], self.batch_tokens, reserve)
            for chosen in bins:
                yield examples, order[chosen]
            carried = [examples.take(order[left])]
            made += len(bins)
        if keep_partial and made == 0 and len(carried[0]):
            yield carried[0], np.arange(len(carried[0]))

    def _examples(self, units: Units, epoch: int, seed: int | None = None) -> Examples:
        """All examples of these units, whatever corpora they are from."""
        words = self.settings.masking != "token" and any(s.with_words for s in self.stores)
        parts = []
        for corpus in np.unique(units.corpus).tolist() or [0]:
            here = units.take(units.corpus == corpus)
            store, rules = self.stores[corpus], self.rules[corpus]
            made = make_examples(store, here, rules, self.seed if seed is None else seed, epoch)
            parts.append(replace(made, words=self._words(made) if words else None))
        return join_examples(parts)

    def _words(self, examples: Examples) -> Any:
        """Stored word starts; beside them a store without says what its tokens say."""
        if examples.words is not None:
            return examples.words
        table = self.vocabulary.continuation
        if table is None:
            return np.ones(len(examples.tokens), dtype=np.bool_)
        return ~table[examples.tokens]

    def _collate(self, examples: Examples) -> list[PretrainBatch]:
        parts = [np.arange(len(examples))]
        if self.parts > 1:
            parts = split_evenly(examples.lengths, self.parts)
        return [self._batch(examples.take(p), self.masking, self.pad_to) for p in parts]

    def _batch(self, examples: Examples, masking: MaskRules, pad_to: int | None) -> PretrainBatch:
        return collate(examples, self.vocabulary, masking, pad_to, self.max_length)

    def _sample(self, tokens: int, seed: int, epoch: int) -> Examples:
        """Shuffled examples from about so many tokens of text, chosen over all corpora."""
        units = join_units(self.corpora)
        order = permutation(len(units), seed, epoch)
        enough = int(np.searchsorted(np.cumsum(units.tokens[order]), tokens)) + 1
        examples = self._examples(units.take(order[:enough]), epoch, seed)
        return examples.take(np.argsort(examples.keys, kind="stable"))

    def epoch_tokens(self) -> int:
        """About how many tokens, special ones included, an epoch feeds to the model."""
        total = 0.0
        for units, weight in zip(self.corpora, self.weights, strict=True):
            order = permutation(len(units), self.seed)
            enough = int(np.searchsorted(np.cumsum(units.tokens[order]), _SAMPLE_TOKENS)) + 1
            sample = units.take(order[:enough])
            if len(sample):
                ratio = self._examples(sample, 0).lengths.sum() / sample.tokens.sum()
                total += weight * float(ratio) * float(units.tokens.sum())
        return int(total)

    def dev_batches(self, tokens: int) -> list[PretrainBatch]:
        """Batches for evaluation: at most so many tokens, the same whenever it is called.

        Examples and masks (15% of tokens, 80/10/10, whatever training uses) do not depend on the
        seed, on batch_tokens or on parts.
        """
        examples = self._sample(int(tokens * 1.5) + 4 * self.max_length, _DEV_SEED, _DEV_EPOCH)
        fits = int(np.searchsorted(np.cumsum(examples.lengths), tokens, side="right"))
        examples = examples.take(np.arange(min(max(fits, 1), len(examples))))
        budget = max(self.max_length, self.batch_tokens // self.parts)
        bins, left = pack(examples.lengths, budget, 0)
        if len(left):
            bins.append(left)
        masking = MaskRules(self.vocabulary.mask, self.vocabulary.special_table)
        return [self._batch(examples.take(b), masking, None) for b in bins]

    def nsp_balance(self) -> dict[str, int]:
        """How many pairs of a sample of the first epoch are "next", "random", or no pair."""
        nsp = self._sample(_SAMPLE_TOKENS, self.seed, 0).nsp
        names = ("in_order", "swapped") if "sop" in self.settings.objective else ("next", "random")
        none = int((nsp < 0).sum())
        return {names[0]: int((nsp == 0).sum()), names[1]: int((nsp == 1).sum()), "none": none}

    def sample(self, n: int) -> list[SampleExample]:
        """Examples of the first epoch as training will see them, to be shown to a person."""
        examples = self._sample(n * 4 * self.max_length, self.seed, 0)
        shown = []
        for k in range(min(n, len(examples))):
            batch = self._batch(examples.take(np.array([k])), self.masking, None)
            labels = np.full(len(batch.input_ids), IGNORE, dtype=np.int64)
            labels[batch.mlm_positions.numpy()] = batch.mlm_labels.numpy()
            masked = batch.input_ids.numpy()
            original = np.where(labels == IGNORE, masked, labels)
            shown.append(
                SampleExample(
                    original.tolist(),
                    masked.tolist(),
                    labels.tolist(),
                    batch.token_type_ids.tolist(),
                    int(batch.nsp_labels[0]),
                )
            )
        return shown


@dataclass(frozen=True, slots=True)
class SampleExample:
    """One example, for a person to look at; `nsp_label` as in PretrainBatch."""

    ids: list[int]
    masked_ids: list[int]
    labels: list[int]
    token_type_ids: list[int]
    nsp_label: int


def _prefetch(source: Iterator[Step], depth: int = 2) -> Iterator[Step]:
    """Run an iterator in a thread that stays `depth` items ahead and ends with this generator."""
    queue: Queue[Step | BaseException | None] = Queue(depth)
    stop = threading.Event()

    def put(item: Step | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return queue.put(item, timeout=0.2)
            except Full:
                continue

    def work() -> None:
        try:
            for item in source:
                put(item)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="bertkit-data", daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        while True:
            try:
                queue.get_nowait()
            except Empty:
                break
        thread.join(timeout=10)
