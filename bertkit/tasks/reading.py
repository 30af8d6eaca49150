"""What becomes of bad rows, and what had to be mended, while a labelled file is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from bertkit.errors import DataError
from bertkit.tasks.records import Place, Where

KEPT = 1000
SHOWN = 3


@dataclass
class Findings:
    """Things found in a file, counted by kind, with their places.

    Attributes:
        counts: how many of each kind.
        places: (where, what) of the first KEPT of each kind.
    """

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[tuple[Place, str]]] = field(default_factory=dict)

    def add(self, place: Place, what: str) -> None:
        """Count one; the kind is what stands before the first colon of `what`."""
        kind, _, detail = what.partition(": ")
        self.counts[kind] += 1
        kept = self.places.setdefault(kind, [])
        if len(kept) < KEPT:
            kept.append((place, detail))

    def __len__(self) -> int:
        return self.counts.total()

    def __iter__(self) -> Iterator[tuple[Place, str]]:
        """The places that were kept, each with what was found there."""
        for kind, kept in self.places.items():
            yield from ((place, f"{kind}: {detail}" if detail else kind) for place, detail in kept)

    def lines(self, shown: int = SHOWN) -> list[str]:
        """One line for each kind: how many, and the first few places."""
        found = []
        for kind, count in self.counts.most_common():
            first = self.places[kind][:shown]
            where = "; ".join(f"{place} {detail}".rstrip() for place, detail in first)
            found.append(f"{count:,} x {kind} ({where}{'; ...' if count > len(first) else ''})")
        return found


class BadRows(Findings):
    """Rows that were left out because they are bad; hand one in to skip them."""


@dataclass(slots=True)
class Reading:
    """One pass over a file: where its errors and repairs go.

    Attributes:
        path: the file, as the user named it.
        bad: bad rows are counted here and skipped; None: they raise.
        findings: what was mended or left out on purpose.
        labels: whether labels are wanted; where not, they cannot be wrong.
        passed: how many rows have been read, bad ones too: the number of the next, from 0.
    """

    path: str
    bad: BadRows | None
    findings: Findings
    labels: bool = True
    passed: int = 0

    def place(self, line: Where) -> Place:
        """The place of a line of this file."""
        return Place(self.path, line)

    def refuse(self, error: DataError) -> None:
        """Count a bad row, or raise: `error.what` is "kind: detail", and it has its line.

        Raises:
            DataError: bad rows are not to be skipped.
        """
        if self.bad is None:
            what = f"{error.what} (or skip bad rows: --skip-bad-rows)"
            raise DataError(what, self.path, error.line) from error
        self.passed += 1
        self.bad.add(self.place(error.line or 0), error.what)

    def note(self, line: Where, what: str) -> None:
        """Count something that was mended: "kind: detail"."""
        self.findings.add(self.place(line), what)
