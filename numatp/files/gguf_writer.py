"""Write a GGUF file: its header, and after it room for the tensors, whose bytes may then come in any order."""

import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from numatp.errors import MachineError, UserError
from numatp.files.gguf_header import ARRAY, BOOL, SCALARS, STRING, U32, U64
from numatp.files.unfinished import unfinished_file
from numatp.quants.table import TYPES

ALIGNMENT = 32  # bytes; what readers take it for where the metadata say nothing
VERSION = 3
INT, INT_OF_LIST, FLOAT = 4, 5, 6  # kinds: uint32, int32, float32


def encoded(value: bool | int | float | str | Sequence[bool | int | float | str]) -> bytes:
    """One value of the metadata with its kind; numbers as uint32 and float32, in lists as int32 and float32.

    ValueError for what GGUF cannot hold.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        kind, raw = _item(value, INT)
        return U32.pack(kind) + raw
    items = [_item(item, INT_OF_LIST) for item in value]
    kinds = {kind for kind, _ in items}
    if len(kinds) != 1:
        raise ValueError("a list of values of one kind is needed")
    return U32.pack(ARRAY) + U32.pack(*kinds) + U64.pack(len(items)) + b"".join(raw for _, raw in items)


def _item(value: object, int_kind: int) -> tuple[int, bytes]:
    if isinstance(value, str):
        return STRING, _string(value)
    kind = BOOL if isinstance(value, bool) else int_kind if isinstance(value, int) else FLOAT
    try:
        return kind, SCALARS[kind].pack(value)
    except (struct.error, OverflowError) as error:
        raise ValueError(str(error)) from None


def _string(text: str) -> bytes:
    raw = text.encode(errors="surrogateescape")
    return U64.pack(len(raw)) + raw


def num_bytes(type: str, shape: tuple[int, ...]) -> int:
    return TYPES[type].bytes_of(shape[-1], math.prod(shape[:-1]))


class GGUFWriter:
    """A GGUF file in the making; `offsets` says where the bytes of each tensor go."""

    def __init__(self, fd: int, metadata: Mapping[str, bytes], tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> None:
        """metadata: values as `encoded` makes them; tensors: (name, type, shape with rows first)."""
        self._fd = fd
        self.offsets: dict[str, int] = {}
        table, end = [], 0
        for name, type, shape in tensors:
            self.offsets[name] = end
            dims = [U64.pack(size) for size in reversed(shape)]
            table += [_string(name), U32.pack(len(dims)), *dims, U32.pack(TYPES[type].id), U64.pack(end)]
            end += -(-num_bytes(type, shape) // ALIGNMENT) * ALIGNMENT
        entries = [_string(key) + value for key, value in metadata.items()]
        counts = U64.pack(len(self.offsets)) + U64.pack(len(entries))
        header = b"".join([b"GGUF", U32.pack(VERSION), counts, *entries, *table])
        start = -(-len(header) // ALIGNMENT) * ALIGNMENT
        self.offsets = {name: start + offset for name, offset in self.offsets.items()}
        os.posix_fallocate(fd, 0, start + end)  # a full disk says so now
        self.write(header, 0)

    def write(self, data: bytes | memoryview, position: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, position)
            view, position = view[done:], position + done


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    """A descriptor of what becomes the file `path` when all went well; nothing of it stays otherwise.

    UserError if `path` is there already, MachineError for a folder or disk that does not take it.
    """
    if os.path.lexists(path):
        raise UserError(f"{path}: is there already; remove it, or give another name")
    try:
        with unfinished_file(path) as partial:
            fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                yield fd
                os.fsync(fd)
            finally:
                os.close(fd)
    except OSError as error:
        raise MachineError(f"{path}: cannot be written: {error.strerror or error}; make room, or give another place") from None
