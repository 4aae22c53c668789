"""Read the header of a safetensors file: where each tensor's bytes are. Never touches the tensors' data.

The safetensors package maps a whole file and hands out arrays; a rank reads byte ranges of its own into memory of its own.
Format: a u64 length, as many bytes of JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}}, then the data.
"""

import itertools
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from numatp.errors import UserError
from numatp.files.gguf_header import U64, damaged, fail, quote, truncated
from numatp.files.model_file import MAX_COUNT, TensorInfo

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
DTYPES = {
    "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F8_E4M3": np.uint8, "F8_E8M0": np.uint8, "F64": np.float64,
    "I64": np.int64, "I32": np.int32, "I8": np.int8, "U8": np.uint8,
}  # fmt: skip
MAX_HEADER = 100_000_000  # bytes, as the format's own library allows
MAX_TENSORS = 1 << 18  # far above any real model
MAX_DIMS = 8


def read_header(path: Path) -> tuple[dict[str, TensorInfo], int]:
    """(tensors by name, bytes of the file). UserError (one line) for whatever is not sound or not there."""
    fd = open_file(path)
    try:
        size = os.fstat(fd).st_size
        if size < 8:
            fail(path, f"truncated: {size} bytes are no safetensors file; download it again")
        (length,) = U64.unpack(os.pread(fd, 8, 0))
        if length > MAX_HEADER:
            fail(path, f"not a safetensors file: it claims a header of {length} bytes; download it again")
        if 8 + length > size:
            truncated(path, "the header", 8 + length, size)
        raw = os.pread(fd, length, 8)
    except OSError as error:
        fail(path, f"cannot read: {error.strerror}; check the disk, or copy the file again")
    finally:
        os.close(fd)
    entries = parse_json(path, raw)
    entries.pop("__metadata__", None)
    if len(entries) > MAX_TENSORS:
        damaged(path, f"it claims {len(entries)} tensors")
    tensors = {name: _info(path, name, entry, 8 + length, size) for name, entry in entries.items()}
    end, before = 0, "the header"
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.num_bytes)):
        if info.offset < 8 + length + end:
            damaged(path, f"{before} and tensor {quote(info.name)} overlap")
        end, before = info.offset + info.num_bytes - 8 - length, f"tensor {quote(info.name)}"
    return tensors, size


def open_file(path: Path) -> int:
    """A file descriptor for reading; UserError if there is no regular file of that name."""
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        fail(path, f"cannot open: {error.strerror}; download it into the same folder")
    except ValueError as error:
        fail(path, f"cannot open: {error}; check the path")
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        fail(path, "is not a regular file; download it again")
    return fd


def parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    """An object without keys that are there twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            damaged(path, f"{quote(next(name for name in names if names.count(name) > 1))} is there twice")
        return found

    try:
        value = json.loads(raw.decode(), object_pairs_hook=unique)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        damaged(path, f"its JSON cannot be read ({str(error)[:80]})")
    return value if isinstance(value, dict) else damaged(path, "its JSON is no object")


def _info(path: Path, name: str, entry: Any, start: int, size: int) -> TensorInfo:
    def wrong() -> NoReturn:
        damaged(path, f"tensor {quote(name)} is described as {quote(entry)}")

    if not isinstance(entry, dict) or not name.isprintable():
        wrong()
    type_name, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2 or len(shape) > MAX_DIMS:
        wrong()
    if any(type(number) is not int or not number >= 0 for number in (*shape, *offsets)) or max(shape, default=0) > MAX_COUNT:
        wrong()
    if not isinstance(type_name, str) or type_name not in ITEM_BYTES:
        fail(path, f"tensor {quote(name)} has type {quote(type_name)}; numatp knows {', '.join(ITEM_BYTES)}; use another model")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_BYTES[type_name]:
        damaged(path, f"tensor {quote(name)} of {type_name} and shape {quote(tuple(shape))} has {end - begin} bytes")
    if start + end > size:
        truncated(path, f"tensor {quote(name)}", start + end, size)
    return TensorInfo(name, type_name, tuple(shape), start + begin, end - begin, path)


def read_bytes(info: TensorInfo, begin: int, count: int) -> np.ndarray:
    """uint8 (count,) of a tensor's bytes from the begin-th on; UserError if they are not there any more."""
    data, done = np.empty(count, np.uint8), 0
    fd = open_file(info.path)
    try:
        while done < count:
            got = os.preadv(fd, [data[done:].data], info.offset + begin + done)
            if got <= 0:
                fail(info.path, f"tensor {quote(info.name)} cannot be read: the file changed; leave it there while it is loaded")
            done += got
    except OSError as error:
        fail(info.path, f"tensor {quote(info.name)} cannot be read: {error.strerror}; check the disk")
    finally:
        os.close(fd)
    return data


def read_rows(info: TensorInfo, rows: np.ndarray) -> np.ndarray:
    """The rows of those numbers, (rows, columns) in DTYPES; rows that follow each other are read together."""
    width = info.shape[-1]
    row_bytes = width * ITEM_BYTES[info.type]
    edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    runs = [read_bytes(info, int(rows[a]) * row_bytes, (b - a) * row_bytes) for a, b in itertools.pairwise(edges) if b > a]
    return np.concatenate([np.empty(0, np.uint8), *runs]).view(DTYPES[info.type]).reshape(-1, width)


def floats(values: np.ndarray, type_name: str) -> np.ndarray:
    """float32 of what read_rows gives for one of the FLOATS."""
    if type_name == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


FLOATS = ("F32", "F16", "BF16")
WHOLE = ("I32", "I64")


def read_floats(info: TensorInfo) -> np.ndarray:
    """float32 of the tensor's shape."""
    if info.type not in FLOATS:
        fail(info.path, f"tensor {quote(info.name)} has type {info.type}, and should have {' or '.join(FLOATS)}; use another model")
    values = read_bytes(info, 0, info.num_bytes).view(DTYPES[info.type])
    return floats(values, info.type).reshape(info.shape)


def read_whole(info: TensorInfo) -> np.ndarray:
    """One of the WHOLE, of the tensor's shape."""
    return read_bytes(info, 0, info.num_bytes).view(DTYPES[info.type]).reshape(info.shape)


SLAB = 1 << 23  # bytes


def read_box(info: TensorInfo, rows: range, columns: range) -> np.ndarray:
    """A part of a matrix, (rows, columns) in DTYPES; never holds much more than that."""
    row_bytes, item = info.shape[-1] * ITEM_BYTES[info.type], ITEM_BYTES[info.type]
    box = np.empty((len(rows), len(columns)), DTYPES[info.type])
    step = max(SLAB // max(row_bytes, 1), 1)
    for first in range(0, len(rows), step):
        count = min(step, len(rows) - first)
        slab = read_bytes(info, (rows.start + first) * row_bytes, count * row_bytes).reshape(count, row_bytes)
        own = np.ascontiguousarray(slab[:, columns.start * item : columns.stop * item])
        box[first : first + count] = own.view(DTYPES[info.type])
    return box
