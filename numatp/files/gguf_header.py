"""The cursor that `gguf` reads a header with: no count or length is believed before it is compared with the file.

A GGUF file comes from strangers. Nothing is allocated or looped over that is larger than the bytes left in the file,
and every fault is a UserError of one line.
"""

import os
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from numatp.errors import UserError

Value: TypeAlias = "int | float | str | Sequence[Value]"

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
KINDS = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64")
SCALARS = {kind: struct.Struct("<" + code) for kind, code in enumerate("BbHhIif?..Qqd") if code != "."}
BOOL, STRING, ARRAY = 7, 8, 9
SMALLEST = {**{kind: code.size for kind, code in SCALARS.items()}, STRING: 8, ARRAY: 12}  # bytes an item takes at least

# Far above any real model; without it a sparse file could have a header of terabytes.
MAX_HEADER = 1 << 28
MAX_NESTING = 4
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class LazyArray:
    """An array that was walked over but not decoded; `start` is its first item's place in the header."""

    kind: int
    count: int
    start: int


class Header:
    """A cursor over the start of a file that reads on as needed, never past the end of the file."""

    def __init__(self, fd: int, size: int, path: Path) -> None:
        self.data = bytearray()
        self.pos = 0
        self.size = size
        self.path = path
        self._fd = fd

    def check(self, count: int, what: str) -> None:
        """Can there be `count` bytes from here? Reads nothing."""
        end = self.pos + count
        if end > self.size:
            truncated(self.path, what, end, self.size)
        if end > MAX_HEADER:
            damaged(self.path, f"{what} would make the header larger than {MAX_HEADER >> 20} MiB")

    def need(self, count: int, what: str) -> None:
        """Have `count` bytes from here in `data`, or say that `what` is cut off."""
        self.check(count, what)
        end = self.pos + count
        while end > len(self.data):
            more = os.pread(self._fd, max(CHUNK, end - len(self.data)), len(self.data))
            if not more:  # the file has shrunk meanwhile
                truncated(self.path, what, end, len(self.data))
            self.data += more

    def scalar(self, code: struct.Struct, what: str) -> Any:
        self.need(code.size, what)
        (value,) = code.unpack_from(self.data, self.pos)
        self.pos += code.size
        return value

    def string(self, what: str) -> bytes:
        length = self.scalar(U64, what)
        self.need(length, what)
        self.pos += length
        return bytes(self.data[self.pos - length : self.pos])

    def name(self, what: str) -> str:
        raw = self.string(what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            damaged(self.path, f"{what}, {quote(raw)}, is not UTF-8")

    def array(self, what: str, depth: int = 1) -> LazyArray:
        kind, count = self.scalar(U32, what), self.scalar(U64, what)
        if kind not in SMALLEST:
            damaged(self.path, f"{what} is an array of unknown kind {kind}")
        if depth > MAX_NESTING:
            damaged(self.path, f"{what} nests arrays more than {MAX_NESTING} deep")
        self.check(count * SMALLEST[kind], what)
        start = self.pos
        if kind == STRING:
            self._walk_strings(count, what)
        elif kind == ARRAY:
            for _ in range(count):
                self.array(what, depth + 1)
        else:
            self.need(count * SMALLEST[kind], what)
            self.pos += count * SMALLEST[kind]
        return LazyArray(kind, count, start)

    def _walk_strings(self, count: int, what: str) -> None:
        # The longest loop of a start-up (100,000 tokens and merges), so it does nothing but jump from length to length.
        data, pos, done, unpack = self.data, self.pos, 0, U64.unpack_from
        while done < count:
            try:
                for _ in range(count - done):
                    pos += 8 + unpack(data, pos)[0]
                    done += 1
            except (struct.error, OverflowError):  # past what has been read so far
                self.pos = pos
                self.need(8, what)
        self.pos = pos
        self.need(0, what)


def decode(header: bytes, entry: LazyArray) -> tuple[Sequence[Value], int]:
    """The items of an array that `Header.array` has walked over, and where they end."""
    kind, count, pos = entry.kind, entry.count, entry.start
    if kind == STRING:
        texts = []
        for _ in range(count):
            start = pos + 8
            pos = start + U64.unpack_from(header, pos)[0]
            texts.append(str(header[start:pos], "utf-8", "surrogateescape"))
        return texts, pos
    if kind == ARRAY:
        lists = []
        for _ in range(count):
            inner = LazyArray(U32.unpack_from(header, pos)[0], U64.unpack_from(header, pos + 4)[0], pos + 12)
            items, pos = decode(header, inner)
            lists.append(items)
        return lists, pos
    raw = header[pos : pos + count * SMALLEST[kind]]
    numbers = [byte != 0 for byte in raw] if kind == BOOL else array(SCALARS[kind].format[1:], raw)
    return numbers, pos + len(raw)


def truncated(path: Path, what: str, end: int, size: int) -> NoReturn:
    fail(path, f"truncated or damaged: {what} needs bytes up to {end}, the file has {size}; download it again")


def damaged(path: Path, fault: str) -> NoReturn:
    fail(path, f"damaged: {fault}; download it again")


def fail(path: Path, fault: str) -> NoReturn:
    shown = str(path) if str(path).isprintable() else repr(str(path))
    raise UserError(f"{shown}: {fault}") from None


def quote(value: object) -> str:
    """For messages: on one line, without control characters, cut where it is long."""
    text = repr(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
