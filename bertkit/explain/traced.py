"""What `patch` gives: one pair of texts, and shares over a file (tracing.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from bertkit.explain.page import Section
from bertkit.explain.pictures import Look, brief, heat, percent
from bertkit.explain.pushed import layers_of
from bertkit.explain.result import Floats, Result, counted
from bertkit.explain.tables import grid
from bertkit.explain.wording import named, say

if TYPE_CHECKING:
    from rich.console import RenderableType

CAUTION = (
    "A square shows how much of the clean answer comes back when the clean state is put into the "
    "corrupt run at that place: it carries enough for the answer, which does not say that nothing "
    "else carries it too, and another corruption may give another picture."
)
CAUTION_ZH = (
    "每个方格显示：把原文的状态放进被改动文本的运行中这一处，答案恢复了多少。这说明该处带有足够的信息，"
    "并不说明别处没有；换一种改动方式，图也可能不同。"
)
# What a token is in a pair of texts.
ROLES = ("changed words", "just behind", "other words", "asked position", "[CLS]", "[SEP]")


def share(found: Floats, clean: Floats, corrupt: Floats) -> Floats:
    """How much of the way from the corrupt figure to the clean one; NaN where there is no way."""
    way = np.asarray(clean - corrupt)
    gone = np.abs(way) <= 1e-6 * (np.abs(clean) + np.abs(corrupt))
    part: Floats = (found - corrupt) / np.where(gone, np.nan, way)
    return part


@dataclass(frozen=True)
class SiteMap:
    """One kind of place, N layers by P positions.

    Attributes:
        site: "hidden", "attention" or "feed-forward".
        layers: [N] 0 for the embeddings.
        difference: [N, P] logit of the target less that of `against`, after patching.
        probability: [N, P] of the target, after patching.
        restored: [N, P] the share of the difference that is back: 0 as corrupt, 1 as clean.
        restored_probability: [N, P] the same of the probability.
        deviation: [N, P] of the difference over draws of noise; None: there is one run.
    """

    site: str
    layers: list[int]
    difference: Floats
    probability: Floats
    restored: Floats
    restored_probability: Floats
    deviation: Floats | None


@dataclass(frozen=True)
class PatchResult(Result):
    """A clean and a corrupt text.

    Attributes:
        model: its name.
        clean: the user's text, or two.
        corrupt: the other; empty: the clean one with noise.
        columns: [P] the user's own words at each position, and what they were changed to.
        token: the position that is read.
        label: the user's own characters there.
        target: the word or label whose coming back is measured.
        against: the one that its logit is compared with.
        draws: corrupt runs that figures are means of.
        clean_difference: logit of the target less that of `against` in the clean run.
        clean_probability: of the target in the clean run.
        corrupt_difference: in the corrupt run.
        corrupt_probability: in the corrupt run.
        sites: a map each.
    """

    verb: ClassVar[str] = "patch"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    clean: tuple[str, ...]
    corrupt: tuple[str, ...]
    columns: list[str]
    token: int
    label: str
    target: str
    against: str
    draws: int
    clean_difference: float
    clean_probability: float
    corrupt_difference: float
    corrupt_probability: float
    sites: list[SiteMap]

    def title(self) -> str:
        """What was asked."""
        other = " / ".join(self.corrupt) or say("with noise")
        return say("Patched: {clean}", clean=f"{' / '.join(self.clean)} ← {other}")

    def summary(self) -> str:
        """Both runs in a sentence."""
        return say(
            "{target} against {against} at {at}: the logits differ by {clean} in the clean run and "
            "by {corrupt} in the corrupt one; its probability is {p} and {q}.",
            target=self.target,
            against=self.against,
            at=self.label,
            clean=brief(self.clean_difference),
            corrupt=brief(self.corrupt_difference),
            p=brief(self.clean_probability),
            q=brief(self.corrupt_probability),
        )

    def table(self) -> RenderableType:
        """A table a site: a row a position, a column a layer."""
        from rich.console import Group
        from rich.text import Text

        line = f"{self.summary()} {say('% of that difference restored:')}"
        return Group(Text(line), *(_table(one, self._rows()) for one in self.sites))

    def _rows(self) -> list[str]:
        """The user's words; what was done to them, in the language of now."""
        return [named(name) if name.endswith(" + noise") else name for name in self.columns]

    def sections(self) -> list[Section]:
        """Position by layer: what comes back."""
        note = say(
            "In the squares % of that difference restored by the clean state of that layer at that "
            "word."
        )
        found = []
        for i, one in enumerate(self.sites):
            site, of = named(one.site), f"sites.{i}"
            restored = _restored(of, one, self._rows())
            heading = say("What {site} states bring back", site=site)
            found.append(Section(heading, restored, f"{self.summary()} {note}"))
            drawn = heat(
                f"{of}.probability",
                one.probability.T,
                self._rows(),
                layers_of(one.layers),
                Look(say("probability")),
                turned=True,
            )
            heading = say("Probability of {target}: {site}", target=self.target, site=site)
            found.append(Section(heading, drawn))
        return found


def _restored(of: str, one: SiteMap | RoleMap, rows: Sequence[str]) -> str:
    look = Look(say("% restored"), figure=percent, most=1.0)
    layers = layers_of(one.layers)
    return heat(f"{of}.restored", one.restored.T, rows, layers, look, turned=True)


def _whole(part: float) -> str:
    return "–" if np.isnan(part) else str(round(100 * part))


def _table(one: SiteMap | RoleMap, names: Sequence[str]) -> RenderableType:
    rows = [
        [name, *(_whole(float(value)) for value in one.restored[:, p])]
        for p, name in enumerate(names)
    ]
    return grid("", (say("{site}, layer", site=named(one.site)), *map(str, one.layers)), rows)


@dataclass(frozen=True)
class RoleMap:
    """One kind of place over many pairs, N layers by R roles of tokens.

    Attributes:
        site: "hidden", "attention" or "feed-forward".
        layers: [N] 0 for the embeddings.
        restored: [N, R] the share of the logits' difference that is back.
    """

    site: str
    layers: list[int]
    restored: Floats


@dataclass(frozen=True)
class PatchCorpusResult(Result):
    """Many pairs of clean and corrupt texts.

    Attributes:
        model: its name.
        pairs: how many were compared.
        skipped: how many were left out.
        why_skipped: the first of these, with place and reason.
        roles: [R] what the tokens are that are patched together.
        role_pairs: [R] how many pairs have such tokens.
        clean_difference: mean of the logit of the target less that of what the corrupt run says.
        clean_probability: mean of the target's.
        corrupt_difference: the same in the corrupt runs.
        corrupt_probability: the same in the corrupt runs.
        sites: a map each.
    """

    verb: ClassVar[str] = "patch"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    model: str
    pairs: int
    skipped: int
    why_skipped: list[str]
    roles: list[str]
    role_pairs: NDArray[np.int64]
    clean_difference: float
    clean_probability: float
    corrupt_difference: float
    corrupt_probability: float
    sites: list[RoleMap]

    def title(self) -> str:
        """What was asked."""
        left = say(", {n} left out", n=f"{self.skipped:,}") if self.skipped else ""
        return say("Patched: {clean}", clean=counted(self.pairs, "pairs of texts")) + left

    def table(self) -> RenderableType:
        """A table a site: a row a role, a column a layer."""
        from rich.console import Group
        from rich.text import Text

        lines = [
            say(
                "{pairs}; % of the difference of logits restored (–: no pair has such words):",
                pairs=self.title(),
            ),
            *(say("left out: {why}", why=why) for why in self.why_skipped[:3]),
        ]
        roles = [named(role) for role in self.roles]
        return Group(*map(Text, lines), *(_table(one, roles) for one in self.sites))

    def sections(self) -> list[Section]:
        """Role by layer."""
        note = say(
            "All tokens of a kind are patched together; % of the logits' difference restored, "
            "which is {clean} in the clean runs and {corrupt} in the corrupt ones (means).",
            clean=brief(self.clean_difference),
            corrupt=brief(self.corrupt_difference),
        )
        roles = [named(role) for role in self.roles]
        return [
            Section(
                say("What {site} states bring back", site=named(one.site)),
                _restored(f"sites.{i}", one, roles),
                note,
            )
            for i, one in enumerate(self.sites)
        ]
