"""What every verb gives: a typed result that can be read, saved, printed and looked at."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bertkit.checkpoint.files import write_atomically
from bertkit.explain.wording import language_of, named, say, speaking, spoken

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bertkit.explain.page import Section
    from bertkit.explain.wording import Language

Floats = NDArray[np.floating[Any]]


class Result(ABC):
    """The base of all results. Subclasses are frozen dataclasses of plain values and arrays.

    Attributes:
        verb: as in `bertkit explain VERB`.
        caution: in one sentence, what the picture can and cannot tell.
        caution_zh: the same in Chinese.
    """

    verb: ClassVar[str]
    caution: ClassVar[str]
    caution_zh: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values by the names of the fields; NaN and infinity are None."""
        values = {
            field.name: plain(getattr(self, field.name))
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
        }
        return {"verb": self.verb, **values}

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """One JSON object; also written to `path`, whole or not at all."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)
        if path is not None:
            write_atomically(Path(path), (text + "\n").encode())
        return text

    def to_npz(self, path: str | os.PathLike[str]) -> None:
        """All arrays under their names (of parts: `part.0.name`), without pickle.

        Beside them `json` holds the JSON of everything that is no array.
        """
        arrays = dict(_arrays(self, ""))
        rest = {
            field.name: plain(value)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if not isinstance(value := getattr(self, field.name), np.ndarray)
        }
        told = json.dumps({"verb": self.verb, **_without_arrays(rest, arrays)}, ensure_ascii=False)
        # numpy would add an extension to a name without one.
        with open(path, "wb") as file:
            everything: dict[str, Any] = {"json": np.array(told), **arrays}
            np.savez_compressed(file, **everything)

    def to_html(self, path: str | os.PathLike[str], language: Language | None = None) -> None:
        """One file that needs no network: pictures, and the numbers of `to_dict` inside.

        Args:
            path: of the file.
            language: "en" or "zh"; None: that of the texts in the result, English where it has
                none.
        """
        from bertkit.explain.page import as_html, html_page

        with speaking(language or self.language() or "en"):
            caution = self.caution_zh if spoken() == "zh" else self.caution
            note = str(getattr(self, "note", ""))
            text = html_page(
                self.title(),
                f"{caution} {named(note)}" if note else caution,
                self.sections(),
                self.to_dict(),
                model=str(getattr(self, "model", "")),
                numbers=as_html(self.table()),
            )
        write_atomically(Path(path), text.encode())

    def language(self) -> Language | None:
        """Of the texts that were asked about; None where the result does not hold any."""
        names = ("text", "texts", "clean", "least", "wrong", "labels")
        return language_of(_strings([getattr(self, name, None) for name in names]))

    @abstractmethod
    def title(self) -> str:
        """The page's heading: what was asked."""

    @abstractmethod
    def table(self) -> RenderableType:
        """For the terminal, through rich."""

    @abstractmethod
    def sections(self) -> list[Section]:
        """The pictures of the page."""

    def as_text(self, width: int = 100) -> str:
        """`table()` as plain text."""
        from rich.console import Console

        console = Console(
            width=width, color_system=None, force_terminal=False, no_color=True, markup=False
        )
        with console.capture() as capture:
            console.print(self.table())
        return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").splitlines())


def counted(count: int, names: str) -> str:
    """A number with what it counts: "3 texts", "1 text", "1 label of texts"."""
    if spoken() == "zh":
        return say(f"{{n}} {names}", n=f"{count:,}")
    head, of, rest = names.partition(" of ")
    return f"{count:,} {head.removesuffix('s') if count == 1 else head}{of}{rest}"


def headed(what: str, which: str) -> str:
    """What is shown, and of what."""
    return say("{what}: {which}", what=what, which=which)


def token_of(label: str, token: int, target: str | None = None) -> str:
    """A position: the user's own characters there, its number, and what is asked of it."""
    if target is None:
        return say("{at} (token {n})", at=label, n=token)
    return say("{at} (token {n}, target {target})", at=label, n=token, target=target)


def masked_in(positions: int, texts: int) -> str:
    """How many masked positions of how many texts."""
    where = counted(texts, "texts")
    return say("{at} in {texts}", at=counted(positions, "masked positions"), texts=where)


def _strings(value: Any) -> Iterator[str]:
    """Every text inside of a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Sequence):
        for item in value:
            yield from _strings(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _strings(getattr(value, field.name))


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays as lists, dataclasses and named tuples as objects.

    A float32 is written with as few digits as tell it from its neighbours.
    """
    if isinstance(value, np.ndarray):
        return _plain_array(value)
    if isinstance(value, float | np.floating):
        return _short(value)
    if isinstance(value, np.integer):
        return int(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def _short(value: float | np.floating[Any]) -> float | None:
    if not math.isfinite(value):
        return None
    return float(str(value)) if isinstance(value, np.float32) else float(value)


def _plain_array(array: NDArray[Any]) -> Any:
    if array.dtype == np.float32:
        flat: list[Any] = [_short(value) for value in array.ravel()]
    elif array.dtype.kind == "f":
        flat = [x if math.isfinite(x) else None for x in array.ravel().tolist()]
    else:
        return array.tolist()
    for size in reversed(array.shape[1:]):
        flat = [flat[i : i + size] for i in range(0, len(flat), size)] if size else []
    return flat[0] if array.ndim == 0 else flat


def _arrays(value: Any, name: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """All arrays inside, by dotted names."""
    if isinstance(value, np.ndarray):
        yield name, value
        return
    inner: Sequence[tuple[Any, Any]] = []
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        inner = list(value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        inner = list(enumerate(value))
    for key, item in inner:
        yield from _arrays(item, f"{name}.{key}" if name else str(key))


def _without_arrays(rest: Any, arrays: Mapping[str, Any], name: str = "") -> Any:
    """Plain values less those that stand among the arrays."""
    if isinstance(rest, dict):
        named = {key: (f"{name}.{key}" if name else key, item) for key, item in rest.items()}
        return {
            key: _without_arrays(item, arrays, full)
            for key, (full, item) in named.items()
            if full not in arrays
        }
    if isinstance(rest, list):
        return [_without_arrays(item, arrays, f"{name}.{i}") for i, item in enumerate(rest)]
    return rest
