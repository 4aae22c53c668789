"""From a file's tensors to this rank's matrices in memory that its own threads touched first.

A model lists its tensors as rules: a name and a shape in words of Sizes. A word that the Split cuts is cut in that dimension,
all else is whole. Nothing is mapped: rows are read into a small staging buffer and packed into one arena.
"""

import ctypes
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from numatp import quants
from numatp.errors import UserError
from numatp.files.gguf import GGUFFile, TensorInfo
from numatp.files.gguf_header import quote
from numatp.weights.splits import Sizes, Split

if TYPE_CHECKING:
    from numatp.kernels.compile import Kernel

STAGING = 1 << 20  # bytes per thread, or 16 rows of the widest tensor if that is more


@dataclass(frozen=True)
class Matrix:
    """This rank's part of a weight matrix, in tiles of 16 rows at `address`."""

    name: str
    format: ModuleType
    address: int
    rows: int  # of all experts, one below the other, where there are some
    columns: int
    experts: int = 1

    @property
    def tiles(self) -> int:
        return -(-self.rows // quants.TILE_ROWS)

    @property
    def units(self) -> int:
        return self.columns // quants.UNIT

    @property
    def tile_bytes(self) -> int:
        return quants.tile_bytes(self.format, self.columns)

    @property
    def num_bytes(self) -> int:
        return self.tiles * self.tile_bytes


@dataclass(frozen=True)
class Vector:
    """A whole vector as float32 at `address`."""

    name: str
    address: int
    length: int

    @property
    def num_bytes(self) -> int:
        return (self.length * 4 + 63) // 64 * 64


def neighbours_joined(matrices: Iterable[Matrix]) -> list[Matrix]:
    """Matrices that follow each other in memory, have one format and full tiles, as one: one op instead of several."""
    joined: list[Matrix] = []
    for matrix in matrices:
        last = joined[-1] if joined else None
        if (
            last
            and last.format is matrix.format
            and last.columns == matrix.columns
            and last.rows % quants.TILE_ROWS == 0
            and last.address + last.num_bytes == matrix.address
        ):
            joined[-1] = replace(last, name=f"{last.name} + {matrix.name}", rows=last.rows + matrix.rows)
        else:
            joined.append(matrix)
    return joined


@dataclass(frozen=True)
class Rule:
    """A tensor that a model needs: ("heads*head_size", "width") is a matrix whose rows are cut by heads.

    Rows "a*b + c*d" are parts below each other that are cut one by one. part (i, n) takes of each thing that the first word counts
    the i-th of n equal parts. A table is no matrix: kernels read it as floats, column after column. Three words are the matrices of
    all experts; the second word may be cut, the first is not.
    """

    name: str
    shape: tuple[str, ...]
    part: tuple[int, int] = (0, 1)
    table: bool = False

    @property
    def key(self) -> str:
        """What the model calls the weight."""
        return self.name if self.part[1] == 1 else f"{self.name}[{self.part[0]}]"


@dataclass(frozen=True)
class Slice:
    """What of one tensor this rank loads, and what it becomes."""

    info: TensorInfo
    format: ModuleType
    rows: list[range]  # one below the other
    columns: range
    target: Matrix | Vector


def _extent(words: str, sizes: Sizes, cut: Split | None, part: tuple[int, int] = (0, 1)) -> list[range]:
    """The ranges of one dimension: its cut parts, or all of it without a cut."""
    ranges, start = [], 0
    for term in words.split(" + "):
        first, *others = term.split("*")
        inner = prod(int(word) if word.isdigit() else getattr(sizes, word) for word in others)
        whole = range(getattr(sizes, first))
        own = getattr(cut, first, whole) if cut else whole
        i, parts = part
        if parts == 1:
            ranges.append(range(start + own.start * inner, start + own.stop * inner))
        else:
            size = inner // parts
            ranges += [range(begin, begin + size) for begin in (start + (thing * parts + i) * size for thing in own)]
        start += len(whole) * inner
    return ranges


def whole_shape(rule: Rule, sizes: Sizes) -> tuple[int, ...]:
    """What the tensor has in the file."""
    return tuple(sum(map(len, _extent(words, sizes, None))) for words in rule.shape)


def plan(
    file: GGUFFile, rules: list[Rule], sizes: Sizes, cut: Split, find: Callable[[str, str], ModuleType] = quants.find
) -> tuple[list[Slice], int]:
    """Every tensor's slice, at an address counted from 0, and the bytes of all of them; find=quants.sizes counts only.

    UserError for a tensor that is missing, has another shape or a type that numatp has no format for, or that the model
    does not use.
    """
    unused = file.tensors.keys() - {rule.name for rule in rules}
    if unused:
        file.fail(f"tensor {quote(min(unused))} is not part of this architecture as numatp knows it; use another model")
    slices, address = [], 0
    for rule in rules:
        info = file.tensors.get(rule.name)
        if info is None:
            raise UserError(f"{file.path}: tensor '{rule.name}' is missing")
        expected = whole_shape(rule, sizes)
        if info.shape != expected:
            raise UserError(f"{file.path}: tensor '{rule.name}' has shape {info.shape}, its architecture needs {expected}")
        format = find(info.type, rule.name)
        (columns,) = _extent(rule.shape[-1], sizes, cut)
        outer = rule.shape[:-1]
        rows = _extent(outer[-1], sizes, cut, rule.part) if outer else [range(1)]
        experts = expected[0] if len(outer) == 2 else 1
        if experts > 1:
            (own,), height = rows, expected[1]
            rows = [range(i * height + own.start, i * height + own.stop) for i in range(experts)]
            if len(own) == height:
                rows = [range(experts * height)]
        num_rows = sum(map(len, rows))
        target: Matrix | Vector
        if outer and not rule.table:
            if any(edge % quants.UNIT for edge in (expected[-1], columns.start, columns.stop)):
                raise UserError(f"{file.path}: tensor '{rule.name}': its rows cannot be cut at {columns} in {info.type}")
            if any(len(some) % quants.TILE_ROWS for some in rows[:-1]) or (experts > 1 and num_rows // experts % quants.TILE_ROWS):
                raise UserError(f"{file.path}: tensor '{rule.name}': its parts have no multiple of {quants.TILE_ROWS} rows")
            target = Matrix(rule.key, format, address, num_rows, len(columns), experts)
        else:
            target = Vector(rule.key, address, num_rows * len(columns))
        slices.append(Slice(info, format, rows, columns, target))
        address += target.num_bytes
    return slices, address


class Weights:
    """This rank's tensors by name, at their place in the arena."""

    def __init__(self, slices: list[Slice], arena: int):
        self._slices = slices
        self.tensors = {s.target.name: replace(s.target, address=s.target.address + arena) for s in slices}

    def matrix(self, name: str) -> Matrix:
        found = self.tensors[name]
        assert isinstance(found, Matrix), name
        return found

    def vector(self, name: str) -> Vector:
        found = self.tensors[name]
        assert isinstance(found, Vector), name
        return found

    def load(self, threads: int, run: "Callable[[Kernel, np.ndarray], None]", progress: Callable[[int, int], None]) -> None:
        """Reads and packs everything; run(kernel, record) runs on the rank's threads. progress(bytes done, bytes in all)."""
        from numatp.kernels.compile import specialize

        widest = max(s.info.num_bytes // max(prod(s.info.shape[:-1]), 1) for s in self._slices if len(s.info.shape) > 1)
        staging_bytes = max(STAGING, quants.TILE_ROWS * widest)
        staging = np.empty(staging_bytes * threads, np.uint8)
        failed = np.zeros(1, np.int64)
        done, total = 0, sum(s.target.num_bytes for s in self._slices)
        for piece in self._slices:
            target = self.tensors[piece.target.name]
            with _open(piece.info) as source:
                if isinstance(target, Vector):
                    raw = np.frombuffer(os.pread(source.fileno(), piece.info.num_bytes, piece.info.offset), np.uint8)
                    if len(raw) == piece.info.num_bytes:
                        whole = piece.format.unpack(raw.reshape(piece.info.shape[0] if len(piece.info.shape) > 1 else 1, -1))
                        own = np.concatenate([whole[rows.start : rows.stop] for rows in piece.rows])
                        _floats_at(target)[:] = own[:, piece.columns.start : piece.columns.stop].T.ravel()
                    else:
                        failed[0] = 1
                elif target.num_bytes:
                    row_bytes = piece.info.num_bytes // prod(piece.info.shape[:-1])
                    load = specialize("matmul", "quant", piece.format.__name__).load
                    address = target.address
                    for rows in piece.rows:
                        record = load.record(
                            file=source.fileno(), position=piece.info.offset + rows.start * row_bytes,
                            row_bytes=row_bytes, rows=len(rows), first_unit=piece.columns.start // quants.UNIT,
                            units=target.units, weights=address, tile_bytes=target.tile_bytes,
                            staging=staging.ctypes.data, staging_bytes=staging_bytes, failed=failed.ctypes.data,
                        )  # fmt: skip
                        run(load, record)
                        address += -(-len(rows) // quants.TILE_ROWS) * target.tile_bytes
            if failed[0]:
                raise UserError(f"{piece.info.path}: tensor '{target.name}' cannot be read: the file changed or its disk fails")
            done += target.num_bytes
            progress(done, total)


def _open(info: TensorInfo) -> BinaryIO:
    try:
        return open(info.path, "rb")
    except OSError as error:
        raise UserError(f"{info.path}: cannot open: {error.strerror}; leave the file there while it is loaded") from None


def _floats_at(vector: Vector) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_float * vector.length).from_address(vector.address))
