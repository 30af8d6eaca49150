"""The bytes and lines of a labelled file, or of standard input, its beginning looked at first.

Lines are those that byte 10 ends, nothing else: U+2028, U+0085 and their like are characters of the
text. Reading is by blocks, so memory does not grow with the file.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from bertkit.errors import DataError
from bertkit.tasks.records import Where
from bertkit.text.sources import BROKEN, kind_of, open_source

HEAD = 1 << 20
BLOCK = 1 << 20
MAX_LINE = 1 << 26
TABLES = (".parquet", ".arrow")

# A line with its number from 1, or what is wrong with it.
Line = tuple[int, str | DataError]


class Input:
    """A file or "-", standard input, which can be read once.

    Attributes:
        path: as the user named it.
        kind: the extension, without that of a compression; "" for standard input.
        head: the beginning; of standard input what has arrived, up to the end of a line.
        whole: `head` is all there is.
    """

    def __init__(self, path: str) -> None:
        """Open a file and look at its beginning.

        Raises:
            DataError: it is missing, a folder, empty or cannot be read.
        """
        self.path = path
        self.kind = "" if path == "-" else kind_of(path)
        self.head, self.whole, self._used = b"", False, False
        self._document: bytes | None = None
        if path != "-" and not os.path.exists(path):
            raise DataError("no such file", path)
        if os.path.isdir(path):
            raise DataError("this is a folder; name one file", path)
        if self.kind in TABLES:
            return
        try:
            with open_source(path) as file:
                self._look(file)
        except BROKEN as error:
            raise DataError(f"cannot be read: {say(error)}", path) from error
        if self.whole and not self.head.strip():
            raise DataError("empty file: there are no rows in it", path)

    def _look(self, file: BinaryIO) -> None:
        head = bytearray()
        while len(head) < HEAD:
            block = _some(file, HEAD)
            head += block
            self.whole = not block
            # A pipe may be slow: what has arrived must do, if it holds a line.
            if not block or (self.path == "-" and b"\n" in block):
                break
        self.head = bytes(head)

    def first_lines(self, most: int = 200) -> list[str]:
        """The complete lines that `head` holds, for a look at the format; bad bytes replaced."""
        text = self.head.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
        lines = text.split("\n", most)
        if not self.whole or text.endswith("\n") or len(lines) > most:
            lines = lines[:-1] or lines
        return [line.removesuffix("\r") for line in lines]

    def blocks(self) -> Iterator[bytes]:
        """All bytes, in blocks of any size.

        Raises:
            DataError: the file breaks off, or standard input was read already.
        """
        if self.path == "-":
            if self._used:
                raise DataError("standard input can be read once only; give a file", "-")
            self._used = True
            yield self.head
            if self.whole:
                return
        try:
            with open_source(self.path) as file:
                while block := _some(file, BLOCK):
                    yield block
        except BROKEN as error:
            raise DataError(f"broken file: it breaks off: {say(error)}", self.path) from error

    def lines(self) -> Iterator[Line]:
        """Every line without its end; bad ones (not UTF-8, NUL, endless) as errors."""
        number = 0
        for block in self._line_blocks():
            if number == 0:
                block = block.removeprefix(codecs.BOM_UTF8)
            try:
                text = block.decode("utf-8")
            except UnicodeDecodeError:
                text = "\0"
            if "\0" in text or len(block) > MAX_LINE:
                for raw in block.removesuffix(b"\n").split(b"\n"):
                    number += 1
                    yield number, self._decode(raw, number)
                continue
            for line in text.removesuffix("\n").split("\n"):
                number += 1
                yield number, line.removesuffix("\r")

    def _line_blocks(self) -> Iterator[bytes]:
        """Bytes that end where a line ends."""
        rest = bytearray()
        for block in self.blocks():
            cut = block.rfind(b"\n") + 1
            if cut:
                yield bytes(rest) + block[:cut]
                rest = bytearray(block[cut:])
            elif len(rest) <= MAX_LINE:
                rest += block
        if rest:
            yield bytes(rest)

    def _decode(self, raw: bytes, number: int) -> str | DataError:
        if len(raw) > MAX_LINE:
            return self.error(f"line too long: over {MAX_LINE:,} bytes", number)
        if b"\0" in raw:
            return self.error("NUL: a NUL byte; is this text, and in UTF-8?", number)
        try:
            return raw.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            place = f"byte {error.start + 1} of the line"
            hint = "convert it, as by: iconv -f GB18030 -t UTF-8"
            return self.error(f"bad encoding: not UTF-8 at {place}; {hint}", number)

    def document(self) -> bytes:
        """All of it at once, for formats that are one JSON value."""
        if self._document is not None:
            return self._document
        whole = b"".join(self.blocks()).removeprefix(codecs.BOM_UTF8)
        if self.path == "-":
            self._document = whole
        return whole

    def error(self, what: str, line: Where | None = None) -> DataError:
        """An error about this file."""
        return DataError(what, self.path, line)


def _some(file: BinaryIO, most: int) -> bytes:
    """What can be had at once: a pipe is not waited for until `most` have come."""
    read = getattr(file, "read1", file.read)
    block: bytes = read(most)
    return block


def say(error: BaseException) -> str:
    """An error in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def decode_json(raw: bytes | str | msgspec.Raw, source: Input, line: Where | None) -> Any:
    """One JSON value.

    Raises:
        DataError: "broken JSON: ...", with the line.
    """
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, UnicodeEncodeError, RecursionError) as error:
        what = say(error)
        if line is None and (at := re.search(r"byte (\d+)", what)):
            data = raw.encode() if isinstance(raw, str) else bytes(raw)
            line = data[: int(at[1])].count(b"\n") + 1
        raise source.error(f"broken JSON: {what}", line) from error


def json_items(source: Input, *keys: str) -> Iterator[Any]:
    """The items of a JSON file that is one list, or an object with a list under one of `keys`.

    Each item is decoded when its turn comes; of the file only the bytes are held.
    """
    raw = source.document()
    items = _raw_items(raw, source, keys)
    for item in items:
        yield decode_json(item, source, None)


def _raw_items(raw: bytes, source: Input, keys: tuple[str, ...]) -> list[msgspec.Raw]:
    try:
        if raw.lstrip()[:1] == b"[":
            return msgspec.json.decode(raw, type=list[msgspec.Raw])
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decode_json(raw, source, None)  # says where
        raise source.error("broken JSON: a list or an object is expected") from None
    for key in keys:
        if key in fields and bytes(fields[key]).lstrip()[:1] == b"[":
            return msgspec.json.decode(fields[key], type=list[msgspec.Raw])
    return [msgspec.Raw(raw)]
