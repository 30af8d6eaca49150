"""`patch`: causal tracing. Where does a model keep what decides its answer?

A clean text and a corrupt one, of as many tokens, differ in what the answer should depend on. The
clean state at one place is put into the corrupt run; what comes back of the clean answer has
passed through there (Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bertkit.errors import DataError, UsageError
from bertkit.explain.hooks import Site, still
from bertkit.explain.opening import Model, Opened, open_model
from bertkit.explain.patching import (
    Compared,
    SiteName,
    Texts,
    Tracing,
    Trial,
    compared,
    corrupt_runs,
    patched,
    site_layers,
    trial_of,
)
from bertkit.explain.readouts import Readout, readout_of
from bertkit.explain.traced import ROLES, PatchCorpusResult, PatchResult, RoleMap, SiteMap, share
from bertkit.explain.words import CONTINUED, Segmenter
from bertkit.tasks.columns import Columns
from bertkit.tasks.formats import open_rows
from bertkit.tasks.records import Place, TextRow

# Bad pairs of a file that a result names.
SHOWN = 20


def patch(
    model: Model,
    clean: Texts,
    corrupt: Texts | None = None,
    *,
    word: str | int | None = None,
    target: str | None = None,
    against: str | None = None,
    tracing: Tracing | None = None,
    segmenter: Segmenter | None = None,
) -> PatchResult:
    """Put clean states into a corrupt run, one layer and position at a time.

    Args:
        model: one with a masked-word head, or one that labels texts or words.
        clean: a text, or two; with [MASK] or `word` of a model with a masked-word head, whose
            first one is read.
        corrupt: of as many tokens, masked at the same; None: noise on a word, see `Tracing`.
        word: a word of the clean text to be masked; of models that label words, the one asked.
        target: the word or label whose coming back is measured; None: the word that was masked,
            or else what the clean run says.
        against: what the corrupt run should say; None: the likeliest there but for the target.
        tracing: sites, tokens or words, noise.
        segmenter: "jieba" for Chinese words of several characters.

    Raises:
        MissingHeadError: the model has no head that can be read.
        UsageError: settings contradict each other, or there is no such target.
        DataError: the texts differ in length or masks, or lack a mask or a word.
    """
    opened, tracing = open_model(model), tracing or Tracing()
    tracing.check()
    if (corrupt is None) == (tracing.noise is None):
        raise UsageError("give a corrupt text, or name the word that gets noise; not both")
    readout = readout_of(opened)
    asked = compared(opened, clean, corrupt, word=word, target=target, segmenter=segmenter)
    question = asked.question
    with still(opened.model):
        runs = list(corrupt_runs(opened, asked, tracing))
        trial = trial_of(opened, readout, question, tracing.sites, runs[0], against)
        columns, masks = _columns(asked, tracing)
        own, lost = trial.own(trial.states), torch.stack([trial.own(run) for run in runs])
        found = [_site_map(trial, runs, name, masks, (own, lost.mean(0))) for name in tracing.sites]
    return PatchResult(
        model=opened.name,
        clean=question.sentence.texts,
        corrupt=() if asked.corrupt is None else asked.corrupt.texts,
        columns=columns,
        token=question.token,
        label=question.label,
        target=readout.names[trial.target],
        against=readout.names[trial.against],
        draws=len(runs),
        clean_difference=float(own[0]),
        clean_probability=float(own[1]),
        corrupt_difference=float(lost[:, 0].mean()),
        corrupt_probability=float(lost[:, 1].mean()),
        sites=found,
    )


def _columns(asked: Compared, tracing: Tracing) -> tuple[list[str], Tensor]:
    """Names of the P positions, and which tokens are patched together, [P, S]."""
    sentence = asked.question.sentence
    parts = [range(i, i + 1) for i in range(len(sentence.ids))]
    if tracing.by == "word":
        words = {word.first: range(word.first, word.last) for word in sentence.words}
        inside = {i for word in words.values() for i in word[1:]}
        parts = [words.get(part[0], part) for part in parts if part[0] not in inside]
    masks = torch.zeros(len(parts), len(sentence.ids), dtype=torch.bool)
    for row, part in enumerate(parts):
        masks[row, part[0] : part[-1] + 1] = True
    noisy = None if tracing.noise is None else sentence.find(tracing.noise)
    names = []
    for part in parts:
        name = _joined(sentence.labels, part)
        if asked.corrupt is not None and any(asked.changed[i] for i in part):
            name += f" → {_joined(asked.corrupt.labels, part)}"
        elif noisy is not None and noisy.first <= part[0] < noisy.last:
            name += " + noise"
        names.append(name)
    return names, masks


def _joined(labels: Sequence[str], part: range) -> str:
    first, *more = (labels[i] for i in part)
    return first + "".join(label.removeprefix(CONTINUED) for label in more)


def _site_map(
    trial: Trial,
    runs: Sequence[Sequence[Tensor]],
    name: SiteName,
    masks: Tensor,
    ends: tuple[Tensor, Tensor],
) -> SiteMap:
    """One site, all layers by P positions: means over the corrupt runs."""
    own, lost = ends
    sites = site_layers(name, len(trial.states) - 1)
    masks = masks.to(trial.states[0].device)
    found = torch.stack([torch.stack([_figures(trial, r, s, masks) for s in sites]) for r in runs])
    mean = found.mean(0)  # [N, P, 2]
    spread = found[..., 0].std(0).numpy() if len(runs) > 1 else None
    back = share(mean.numpy(), own.numpy(), lost.numpy())
    return SiteMap(
        name,
        [site.layer for site in sites],
        mean[..., 0].numpy(),
        mean[..., 1].numpy(),
        back[..., 0],
        back[..., 1],
        spread,
    )


def _figures(trial: Trial, run: Sequence[Tensor], site: Site, masks: Tensor) -> Tensor:
    return trial.figures(patched(trial, run, site, masks)).double().cpu()


class TracePair(NamedTuple):
    """A row of a file: two texts, the target or None, and where the row stands."""

    clean: str
    corrupt: str
    target: str | None
    place: Place


def read_trace_pairs(
    path: str | Path,
    clean: str = "clean",
    corrupt: str = "corrupt",
    target: str | None = "target",
) -> Iterator[TracePair]:
    """Stream the pairs of a CSV, TSV, JSONL or Parquet file.

    Args:
        path: the file, also compressed; "-" is standard input.
        clean: the column of the clean text: a name, or a number from 1 without a header.
        corrupt: of the corrupt one.
        target: of the word or label that the clean text is to bring; None: what the model says.

    Raises:
        DataError: the file is bad, with the line.
    """
    columns = Columns(text=clean, pair=corrupt, label=target)
    for row in open_rows(path, "classify", columns, labels=target is not None).rows():
        assert isinstance(row, TextRow)
        assert row.pair is not None
        wanted = None if target is None else str(row.label)
        yield TracePair(row.text, row.pair, wanted, row.place)


def patch_over(
    model: Model,
    pairs: Iterable[TracePair],
    *,
    tracing: Tracing | None = None,
    skip_bad: bool = False,
    report: Callable[[int], None] = lambda done: None,
) -> PatchCorpusResult:
    """Where what decides the answer passes, over many pairs of texts.

    Positions are grouped by what they are (ROLES); all tokens of a group are patched together, and
    a share is that of the sums over all pairs that have such tokens.

    Args:
        model: one with a masked-word head, or one that labels texts.
        pairs: of `read_trace_pairs`, or one's own.
        tracing: the sites; noise has no place here.
        skip_bad: leave out pairs of different lengths and the like, and count them.
        report: told how many pairs are done.

    Raises:
        MissingHeadError: the model has no head that can be read.
        UsageError: noise is asked for.
        DataError: a pair is bad, with its line; or there is no good one.
    """
    opened, tracing = open_model(model), tracing or Tracing()
    tracing.check()
    if tracing.noise is not None:
        raise UsageError("files have clean and corrupt texts; noise is for one text")
    readout = readout_of(opened)
    sums: dict[SiteName, Tensor] = {}
    ends = torch.zeros(2, 2, dtype=torch.float64)
    weights = torch.zeros(3, len(ROLES), dtype=torch.float64)
    good, bad = 0, []
    with still(opened.model):
        for done, pair in enumerate(pairs, 1):
            report(done)
            try:
                trial, run, masks = _started(opened, readout, pair, tracing)
            except (DataError, UsageError) as error:
                if not skip_bad:
                    raise DataError(str(error), *pair.place) from error
                bad.append(f"{pair.place}: {error}")
                continue
            good += 1
            own, lost = trial.own(trial.states), trial.own(run)
            ends += torch.stack([own, lost])
            there = masks.any(1).cpu()
            weights[0] += there
            weights[1:] += torch.where(there, torch.stack([own, lost])[:, :1], 0.0)
            for name in tracing.sites:
                layers = site_layers(name, len(trial.states) - 1)
                one = torch.stack([_figures(trial, run, site, masks)[:, 0] for site in layers])
                one = torch.where(there, one, 0.0)
                sums[name] = sums[name] + one if name in sums else one
    if not good:
        raise DataError(
            f"there is no pair that can be compared; {bad[0] if bad else 'none at all'}"
        )
    return _summary(opened, (good, bad), ends / good, sums, weights)


def _started(
    opened: Opened, readout: Readout, pair: TracePair, tracing: Tracing
) -> tuple[Trial, list[Tensor], Tensor]:
    """Both runs of a pair, and the tokens of each role, [R, S]."""
    asked = compared(opened, pair.clean, pair.corrupt, target=pair.target)
    (run,) = corrupt_runs(opened, asked, tracing)
    trial = trial_of(opened, readout, asked.question, tracing.sites, run)
    changed = asked.changed
    special = {opened.tokenizer.cls_token_id: "[CLS]", opened.tokenizer.sep_token_id: "[SEP]"}
    roles = []
    for i, token in enumerate(asked.question.sentence.ids):
        if changed[i]:
            role = "changed words"
        elif i == trial.token:
            role = "asked position"
        elif token in special:
            role = special[token]
        else:
            role = "just behind" if i and changed[i - 1] else "other words"
        roles.append(role)
    masks = torch.tensor([[role == name for role in roles] for name in ROLES])
    return trial, run, masks.to(run[0].device)


def _summary(
    opened: Opened,
    counted: tuple[int, list[str]],
    ends: Tensor,
    sums: dict[SiteName, Tensor],
    weights: Tensor,
) -> PatchCorpusResult:
    """Shares of sums."""
    good, bad = counted
    count, own, lost = weights
    return PatchCorpusResult(
        model=opened.name,
        pairs=good,
        skipped=len(bad),
        why_skipped=bad[:SHOWN],
        roles=list(ROLES),
        role_pairs=count.long().numpy(),
        clean_difference=float(ends[0, 0]),
        clean_probability=float(ends[0, 1]),
        corrupt_difference=float(ends[1, 0]),
        corrupt_probability=float(ends[1, 1]),
        sites=[
            RoleMap(
                name,
                list(range(name != "hidden", opened.model.config.num_hidden_layers + 1)),
                share(total.numpy(), own.numpy(), lost.numpy()),
            )
            for name, total in sums.items()
        ],
    )
