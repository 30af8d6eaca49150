"""Clean states put into a corrupt run, many copies in one pass (tracing.py asks for them)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bertkit.batch import Batch
from bertkit.errors import DataError, UsageError
from bertkit.explain.asked import Question, has_words
from bertkit.explain.directions import generator
from bertkit.explain.hooks import Kind, Site, capture, changing
from bertkit.explain.onward import in_passes, onward, states_of
from bertkit.explain.opening import Opened
from bertkit.explain.readouts import Readout, number_of, questions_for
from bertkit.explain.words import Segmenter, Sentence
from bertkit.model.bert import BertModel
from bertkit.model.task_heads import BertForTokenClassification

SiteName = Literal["hidden", "attention", "feed-forward"]
# Attention's output is linear in its context, the feed-forward's in its widened activations: to put
# these in is to put the output in.
KINDS: dict[SiteName, Kind] = {
    "hidden": "hidden",
    "attention": "context",
    "feed-forward": "widened",
}
Texts = str | tuple[str, str]


@dataclass(frozen=True)
class Tracing:
    """What is put where.

    Attributes:
        sites: "hidden", what a layer gives on; "attention", what its attention adds;
            "feed-forward", what its feed-forward adds.
        by: "token": one token at a time; "word": all tokens of a word together.
        noise: the word whose embeddings get noise, where there is no corrupt text; or its number.
        strength: of the noise, in standard deviations of the word embeddings.
        draws: how often noise is drawn; figures are means.
        seed: of the noise.
    """

    sites: tuple[SiteName, ...] = ("hidden",)
    by: Literal["token", "word"] = "token"
    noise: str | int | None = None
    strength: float = 3.0
    draws: int = 10
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError where a setting makes no sense."""
        unknown = [site for site in self.sites if site not in KINDS]
        if unknown or not self.sites:
            raise UsageError(f"sites are {', '.join(KINDS)}; not {', '.join(unknown) or 'none'}")
        if self.draws < 1 or not self.strength > 0:
            raise UsageError("noise is drawn at least once, and its strength is above 0")


class Compared(NamedTuple):
    """The question to both texts.

    Attributes:
        question: to the clean text.
        corrupt: the other text; None: the clean one with noise.
    """

    question: Question
    corrupt: Sentence | None

    @property
    def changed(self) -> list[bool]:
        """[S] True where the texts have other tokens."""
        clean = self.question.sentence.ids
        other = clean if self.corrupt is None else self.corrupt.ids
        return [a != b for a, b in zip(clean, other, strict=True)]


def compared(
    opened: Opened,
    clean: Texts,
    corrupt: Texts | None,
    *,
    word: str | int | None = None,
    target: str | None = None,
    segmenter: Segmenter | None = None,
) -> Compared:
    """Read both texts; the corrupt one is masked where the clean one is.

    Raises:
        UsageError: the target is no label or token, or a word must be named and is not.
        DataError: the texts differ in length or masks, or lack a mask or a word.
    """
    if isinstance(opened.model, BertForTokenClassification) and word is None:
        raise UsageError(f"{opened.name} labels words; name the word whose label is asked")
    question = questions_for(opened, *_two(clean), word=word, target=target, segmenter=segmenter)[0]
    if corrupt is None:
        return Compared(question, None)
    sentence, mask = question.sentence, opened.tokenizer.mask_token_id
    other = opened.read(*_two(corrupt))
    if other.types != sentence.types:
        raise DataError(
            f"the clean text has {len(sentence.ids)} tokens and the corrupt one {len(other.ids)}; "
            "choose words of as many tokens"
        )
    masks = sentence.masks(mask)
    if word is not None and has_words(opened.model):
        ids, labels = list(other.ids), list(other.labels)
        for i in masks:
            ids[i], labels[i] = mask, sentence.labels[i]
        other = replace(other, ids=tuple(ids), labels=tuple(labels))
    if other.masks(mask) != masks:
        raise DataError("the clean text and the corrupt one must have masks at the same tokens")
    if other.ids == sentence.ids:
        raise DataError("the corrupt text is the clean one; change a word")
    return Compared(question, other)


def _two(texts: Texts) -> tuple[str, str | None]:
    return (texts, None) if isinstance(texts, str) else texts


class Trial(NamedTuple):
    """A clean run, and what runs are compared by.

    Attributes:
        encoder: in eval mode.
        readout: its head.
        states: L + 1 times [S, D].
        inner: [S, X] of the attention and feed-forward sites.
        token: the position whose answer is read.
        target: the word or label that the clean run is to say.
        against: the one that its logit is compared with.
    """

    encoder: BertModel
    readout: Readout
    states: list[Tensor]
    inner: dict[Site, Tensor]
    token: int
    target: int
    against: int

    def figures(self, last: Tensor) -> Tensor:
        """[n, 2] of [n, D] last states: the logits' difference, and the target's probability."""
        logits = self.readout.logits(last)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        difference = logits[:, self.target] - logits[:, self.against]
        return torch.stack([difference, logits.softmax(-1)[:, self.target]], 1)

    def own(self, states: Sequence[Tensor]) -> Tensor:
        """[2] the figures of a whole run; float64 on the CPU."""
        return self.figures(states[-1][self.token][None])[0].double().cpu()


def site_layers(name: SiteName, count: int) -> list[Site]:
    """A kind of place in all layers; hidden states begin with the embeddings."""
    return [Site(KINDS[name], layer) for layer in range(name != "hidden", count + 1)]


def trial_of(
    opened: Opened,
    readout: Readout,
    question: Question,
    sites: Sequence[SiteName],
    corrupt: Sequence[Tensor],
    against: str | None = None,
) -> Trial:
    """Run the clean text, and settle what is compared.

    Args:
        opened: in eval mode.
        readout: its head.
        question: to the clean text; without a target it is what the clean run says.
        sites: what will be put into the corrupt run.
        corrupt: L + 1 times [S, D], a corrupt run.
        against: a word or label; None: the likeliest of the corrupt run but for the target.

    Raises:
        UsageError: the word or label is the target, or is no label and not one token.
    """
    count = opened.model.config.num_hidden_layers
    inner = [site for name in sites if name != "hidden" for site in site_layers(name, count)]
    with capture(opened.encoder, inner) as seen:
        states = states_of(opened.encoder, question.sentence.batch(), question.token)
    values = {site: seen[site][0] for site in inner}

    def best(run: Sequence[Tensor]) -> list[int]:
        logits = readout.logits(run[-1][question.token][None])[0, : len(readout.names)]
        found: list[int] = logits.topk(2).indices.tolist()
        return found

    target = best(states)[0] if question.target is None else question.target
    if against is None:
        other = next(i for i in best(corrupt) if i != target)
    else:
        other = number_of(opened, readout, against)
    if other == target:
        raise UsageError(f"{readout.names[target]!r} cannot be compared with itself")
    return Trial(opened.encoder, readout, states, values, question.token, target, other)


def corrupt_runs(opened: Opened, asked: Compared, tracing: Tracing) -> Iterator[list[Tensor]]:
    """L + 1 times [S, D] of the corrupt text, or of the clean one for each draw of noise."""
    question, encoder = asked.question, opened.encoder
    sentence = question.sentence
    if asked.corrupt is not None:
        yield states_of(encoder, asked.corrupt.batch(), question.token)
        return
    assert tracing.noise is not None
    word, batch = sentence.find(tracing.noise), sentence.batch().to(encoder.device)
    spread = float(encoder.embeddings.word_embeddings.weight.double().std()) * tracing.strength
    for draw in range(tracing.draws):
        start = _noisy(encoder, batch, slice(word.first, word.last), spread, (tracing.seed, draw))
        with changing(encoder, {Site("hidden", 0): partial(_instead, start)}):
            yield states_of(encoder, batch, question.token)


def _instead(other: Tensor, _: Tensor) -> Tensor:
    return other


def _noisy(
    encoder: BertModel, batch: Batch, where: slice, spread: float, keys: tuple[int, int]
) -> Tensor:
    """[S, D] what the embeddings give, where some tokens' word embeddings have noise on them."""
    words: Tensor = encoder.embeddings.word_embeddings(batch.input_ids)
    noise = generator(*keys).standard_normal(words[where].shape) * spread
    words = words.clone()
    words[where] += torch.from_numpy(noise).to(words)
    start: Tensor = encoder.embeddings(None, batch.token_type_ids, batch.position_ids, words)
    return start


def patched(trial: Trial, corrupt: Sequence[Tensor], site: Site, masks: Tensor) -> Tensor:
    """The corrupt run with clean values at some positions of one site.

    Args:
        trial: the clean run.
        corrupt: L + 1 times [S, D].
        site: "hidden" of a layer from 0, "context" or "widened" of a layer from 1.
        masks: [n, S] True where the clean values are put; each row is a run of its own.

    Returns:
        [n, D] the last states at the position that is read.
    """
    size, token = masks.shape[1], trial.token

    def hidden(some: Tensor) -> Tensor:
        changed = torch.where(some.unsqueeze(-1), trial.states[site.layer], corrupt[site.layer])
        return onward(trial.encoder, changed, site.layer, token)

    def inner(some: Tensor) -> Tensor:
        copies, clean = len(some), trial.inner[site]

        def put(values: Tensor) -> Tensor:
            # The last layer computes one row for each copy: that of the token.
            rows = slice(None) if len(values) == copies * size else slice(token, token + 1)
            here = some[:, rows].reshape(-1, 1)
            return torch.where(here, clean[rows].repeat(copies, 1), values)

        before = corrupt[site.layer - 1].expand(copies, -1, -1)
        with changing(trial.encoder, {site: put}):
            return onward(trial.encoder, before, site.layer - 1, token)

    return in_passes(hidden if site.kind == "hidden" else inner, masks, size)
