"""Pseudo-log-likelihood: how probable a masked language model finds a text, token by token.

Each token is hidden in a copy of the text of its own, and the log-probability that the model gives
to what stood there is summed (Salazar et al. 2020, arXiv 1910.14659). Two ways of hiding:

    original      the token alone. The other pieces of its word then give it away, so that rare
                  words that fall into many pieces seem likely.
    within-word   also the pieces behind it in its word, as a reader from left to right would have
                  it (Kauf and Ivanova 2023, arXiv 2305.10588). The default. A segmenter makes words
                  of Chinese characters, which otherwise are words by themselves.

All copies of many texts lie end to end in one batch; the last layer answers at the hidden token
only, and the vocabulary is computed there only.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from bertkit.batch import Batch
from bertkit.errors import UsageError
from bertkit.model.bert import readers_at
from bertkit.model.losses import CHUNK_BYTES, ROW_MULTIPLE
from bertkit.tasks.asking import answering, check_tokenizer_fits
from bertkit.tasks.mlm import check_mlm_head
from bertkit.text.sentences import word_spans

if TYPE_CHECKING:
    from bertkit.text.encoding import BatchEncoding
    from bertkit.text.tokenizer import BertTokenizer

Method = Literal["within-word", "original"]
METHODS: tuple[str, ...] = get_args(Method)
# Tokens of one forward pass; and how many texts, and how many tokens of their copies, are read
# ahead to be sorted by length.
BATCH_TOKENS = 4096
STRETCH_TEXTS = 512
STRETCH_TOKENS = 64 * BATCH_TOKENS


class WordScore(NamedTuple):
    """The log-probability of one word, the sum over its pieces, at its place in the user's text."""

    word: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A text with the log-probability (in nats) of each of its tokens.

    Attributes:
        text: the user's own.
        ids: token ids, without [CLS] and [SEP].
        spans: the characters of the text under each token, end exclusive.
        owners: the number of the word that each token belongs to.
        log_probabilities: of each token.
    """

    text: str
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    owners: tuple[int, ...]
    log_probabilities: tuple[float, ...]

    @property
    def score(self) -> float:
        """The pseudo-log-likelihood of the text in nats."""
        return math.fsum(self.log_probabilities)

    @property
    def words(self) -> list[WordScore]:
        """The same by words."""
        found = []
        for _, group in groupby(range(len(self.ids)), key=self.owners.__getitem__):
            tokens = list(group)
            start, end = self.spans[tokens[0]][0], self.spans[tokens[-1]][1]
            score = math.fsum(self.log_probabilities[i] for i in tokens)
            found.append(WordScore(self.text[start:end], start, end, score))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        words = [word._asdict() for word in self.words]
        return {"text": self.text, "score": self.score, "tokens": len(self.ids), "words": words}


class _Block(NamedTuple):
    """Copies of one text: the text's number, its first and last copy, tokens of a copy."""

    text: int
    first: int
    last: int
    length: int


class Scorer:
    """Scores texts with a model that has the masked-word head.

    Args:
        model: BertForMaskedLM or BertForPreTraining, on any device.
        tokenizer: the one it was trained with.
        method: what is hidden with a token.
        batch_tokens: tokens of a forward pass.
        segmenter: "jieba" makes words of Chinese characters; None: each is a word.

    Raises:
        UsageError: there is no such method.
        MissingHeadError: the model lacks the head, or the head was never trained.
        CheckpointError: the tokenizer has more tokens than the model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: BertTokenizer,
        method: Method = "within-word",
        batch_tokens: int = BATCH_TOKENS,
        segmenter: Literal["jieba"] | None = None,
    ) -> None:
        if method not in METHODS:
            raise UsageError(f"there is no method {method!r}; one of {', '.join(METHODS)}")
        check_mlm_head(model)
        check_tokenizer_fits(model, tokenizer)
        self.model, self.tokenizer, self.method = model, tokenizer, method
        self.batch_tokens, self.segmenter = batch_tokens, segmenter
        self.room: int = model.config.max_position_embeddings - 2

    def score(
        self, texts: Sequence[str], report: Callable[[int, int], None] = lambda done, total: None
    ) -> list[ScoredText]:
        """Score texts, in their order.

        Of a text longer than the model reads, each token is scored in the window around it.

        Args:
            texts: any number that fits in memory; see `stream` for more.
            report: takes progress, as texts done and in all.
        """
        done = []
        for scored in self.stream(texts):
            done.append(scored)
            report(len(done), len(texts))
        return done

    def stream(self, texts: Iterable[str]) -> Iterator[ScoredText]:
        """Score texts as they come, in order, with flat memory: a stretch is read ahead."""
        for ahead in _stretches(texts):
            yield from self._stretch(ahead)

    def _stretch(self, texts: list[str]) -> list[ScoredText]:
        rows = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[list[int]] = rows["input_ids"]
        owners = [self._owners(rows, i, text) for i, text in enumerate(texts)]
        # Filled on the CPU in the order of the texts.
        ends = torch.tensor([0, *map(len, ids)]).cumsum(0).tolist()
        found = torch.empty(ends[-1], dtype=torch.float64)
        sources = [torch.tensor(row, dtype=torch.long) for row in ids]
        groups = [torch.tensor(row, dtype=torch.long) for row in owners]
        with answering(self.model):
            for blocks in self._batches([len(row) for row in ids]):
                answer = self._ask(blocks, sources, groups)
                at = 0
                for block in blocks:
                    count = block.last - block.first
                    begin = ends[block.text] + block.first
                    found[begin : begin + count] = answer[at : at + count]
                    at += count
        values = found.tolist()
        return [
            ScoredText(
                text,
                tuple(ids[i]),
                tuple(map(tuple, rows["offset_mapping"][i])),
                tuple(owners[i]),
                tuple(values[ends[i] : ends[i + 1]]),
            )
            for i, text in enumerate(texts)
        ]

    def _owners(self, rows: BatchEncoding, number: int, text: str) -> list[int]:
        """The word of each token of one text."""
        if self.segmenter is None:
            return [-1 if word is None else word for word in rows.word_ids(number)]
        words = word_spans(text, self.segmenter)
        return [word_at(words, start) for start, _ in rows["offset_mapping"][number]]

    def _batches(self, sizes: list[int]) -> Iterator[list[_Block]]:
        """All copies of texts of these many tokens, copies of like length together."""
        blocks: list[_Block] = []
        left = self.batch_tokens
        for text in sorted(range(len(sizes)), key=sizes.__getitem__):
            first, length = 0, min(sizes[text], self.room) + 2
            while first < sizes[text]:
                fit = left // length
                if not fit and blocks:
                    yield blocks
                    blocks, left = [], self.batch_tokens
                    continue
                last = min(sizes[text], first + max(fit, 1))
                blocks.append(_Block(text, first, last, length))
                left -= (last - first) * length
                first = last
        if blocks:
            yield blocks

    def _ask(self, blocks: list[_Block], ids: list[Tensor], groups: list[Tensor]) -> Tensor:
        """[M] float64 on the CPU: the log-probabilities of the hidden tokens."""
        copies = [self._copies(block, ids[block.text], groups[block.text]) for block in blocks]
        lengths = torch.cat([torch.full((len(at),), rows.shape[1]) for rows, at in copies])
        starts = lengths.cumsum(0) - lengths
        total = int(lengths.sum())
        batch = Batch(
            torch.cat([rows.flatten() for rows, _ in copies]),
            torch.zeros(total, dtype=torch.long),
            torch.arange(total) - starts.repeat_interleave(lengths),
            lengths,
        )
        asked = starts + torch.cat([at for _, at in copies])
        targets = torch.cat([ids[block.text][block.first : block.last] for block in blocks])
        device = self.model.device
        hidden = self.model.bert.encode(batch.to(device), readers_at(batch, asked))
        head = self.model.cls.predictions
        logs = target_log_probabilities(head, head.transform(hidden), targets.to(device))
        return logs.double().cpu()

    def _copies(self, block: _Block, ids: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """[n, length] ids with the tokens hidden, and [n] where in a row each asked token is."""
        room = block.length - 2
        tokens = torch.arange(block.first, block.last)
        begins = (tokens - room // 2).clamp(0, len(ids) - room)
        index = begins[:, None] + torch.arange(room)
        hidden = index == tokens[:, None]
        if self.method == "within-word":
            hidden |= (index > tokens[:, None]) & (groups[index] == groups[tokens, None])
        rows = torch.empty(len(tokens), block.length, dtype=torch.long)
        rows[:, 0], rows[:, -1] = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        rows[:, 1:-1] = ids[index].masked_fill(hidden, self.tokenizer.mask_token_id)
        return rows, tokens - begins + 1


def word_at(words: Sequence[tuple[int, int]], place: int) -> int:
    """Which of the (start, end) words holds a character; below 0, one for each place: none does."""
    number = bisect_right(words, (place, sys.maxsize)) - 1
    return number if number >= 0 and place < words[number][1] else -1 - place


def target_log_probabilities(head: Any, transformed: Tensor, targets: Tensor) -> Tensor:
    """[M]: the log-probability of each target; logits are made and thrown away in chunks.

    Args:
        head: a BertLMPredictionHead.
        transformed: [M, D], what its `transform` makes of the hidden states.
        targets: [M] int64.
    """
    weight, bias = head.decoder.weight, head.decoder.bias
    if torch.is_autocast_enabled(transformed.device.type):
        dtype = torch.get_autocast_dtype(transformed.device.type)
        transformed, weight, bias = transformed.to(dtype), weight.to(dtype), bias.to(dtype)
    exact = torch.promote_types(transformed.dtype, torch.float32)
    rows = max(16, CHUNK_BYTES[transformed.device.type] // (4 * len(weight)))
    width = -(-len(weight) // ROW_MULTIPLE) * ROW_MULTIPLE
    whole = transformed.new_empty(min(rows, len(transformed)), width)
    out = transformed.new_empty(len(transformed), dtype=exact)
    for start in range(0, len(transformed), rows):
        part = slice(start, start + rows)
        logits = whole[: len(targets[part]), : len(weight)]
        torch.addmm(bias, transformed[part], weight.t(), out=logits)
        logits = logits.to(exact)
        chosen = logits.gather(-1, targets[part, None]).squeeze(-1)
        out[part] = chosen - logits.logsumexp(-1)
    return out


def _stretches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts that are read ahead; a text of n characters makes n copies of n tokens at most."""
    ahead: list[str] = []
    tokens = 0
    for text in texts:
        ahead.append(text)
        # English has about five characters a token; for Chinese a stretch then is shorter.
        tokens += min(len(text), 512) * len(text) // 8
        if len(ahead) >= STRETCH_TEXTS or tokens >= STRETCH_TOKENS:
            yield ahead
            ahead, tokens = [], 0
    if ahead:
        yield ahead


def pseudo_perplexity(scored: Iterable[ScoredText]) -> float:
    """The exponential of minus the mean log-probability of a token (Salazar et al., equation 4)."""
    logs = [log for text in scored for log in text.log_probabilities]
    return math.exp(-math.fsum(logs) / len(logs)) if logs else math.nan
