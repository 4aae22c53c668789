"""From a file's tensors to this rank's matrices in memory that its own threads touched first.

A model lists its tensors as rules: a name and a shape in words of Sizes. A word that the Split cuts is cut in that dimension,
all else is whole. Nothing is mapped: rows are read into a small staging buffer and packed into one arena.
"""

import ctypes
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import compress, islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from numatp import quants
from numatp.errors import UserError
from numatp.files.gguf_header import quote
from numatp.files.huggingface import Assembled
from numatp.files.layouts import Layout, Plain, Rows
from numatp.files.model_file import ModelFile, TensorInfo
from numatp.files.safetensors import DTYPES, FLOATS, floats, read_bytes
from numatp.quants.table import TILE_ROWS, UNIT, Format
from numatp.weights.splits import Sizes, Split

if TYPE_CHECKING:
    from numatp.kernels.compile import Kernel

    RunEach = Callable[[list[tuple[Kernel, np.ndarray]]], None]

STAGING = 1 << 20  # bytes per thread, or 16 rows of the widest tensor if that is more
READ_AT_ONCE = 1 << 28  # bytes that threads read without waiting for each other, unless one tensor has more
CONVERTED = 1 << 18  # weights that a thread converts at a time (some 12 bytes each), or 16 rows if that is more


# What --quantize makes of matrices of floats: the type for rows of whole super-blocks of 256, and for others.
QUANTIZED = {"none": None, "q8": ("Q8_0", "Q8_0"), "q4": ("Q4_K", "Q4_0")}


@dataclass(frozen=True)
class Matrix:
    """This rank's part of a weight matrix, in tiles of 16 rows at `address`."""

    name: str
    format: Format
    address: int
    rows: int  # of all experts, one below the other, where there are some
    columns: int
    experts: int = 1
    first_column: int = 0  # of the whole matrix

    @property
    def tiles(self) -> int:
        return -(-self.rows // TILE_ROWS)

    @property
    def units(self) -> int:
        return self.columns // UNIT

    @property
    def tile_bytes(self) -> int:
        return self.format.bytes_of_tile(self.columns, self.first_column)

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


def neighbours(matrices: Iterable[Matrix]) -> list[list[Matrix]]:
    """Matrices that follow each other in memory, have one format and full tiles, together: one op instead of several."""
    groups: list[list[Matrix]] = []
    for matrix in matrices:
        last = groups[-1][-1] if groups else None
        if (
            last
            and last.format == matrix.format
            and (last.columns, last.first_column) == (matrix.columns, matrix.first_column)
            and last.rows % TILE_ROWS == 0
            and last.address + last.num_bytes == matrix.address
        ):
            groups[-1].append(matrix)
        else:
            groups.append([matrix])
    return groups


def joined(group: Sequence[Matrix]) -> Matrix:
    """Neighbours as one matrix."""
    return replace(group[0], name=" + ".join(matrix.name for matrix in group), rows=sum(matrix.rows for matrix in group))


def side_by_side(vectors: Iterable[Vector]) -> Vector:
    """Vectors that follow each other in memory without gaps, as one."""
    first, *others = vectors
    for vector in others:
        assert first.address + first.length * 4 == vector.address or not vector.length, (first.name, vector.name)
        first = replace(first, name=f"{first.name} + {vector.name}", length=first.length + vector.length)
    return first


@dataclass(frozen=True)
class Rule:
    """A tensor that a model needs: ("heads*head_size", "width") is a matrix whose rows are cut by heads.

    Rows "a*b + c*d" are parts below each other that are cut one by one. part (i, n) takes of each thing that the first word counts
    the i-th of n equal parts. A table is no matrix: kernels read it as floats, row after row or ("columns") column after column.
    Three words are the matrices of all experts; the second word may be cut, the first is not. A number is a word too.
    """

    name: str
    shape: tuple[str, ...]
    part: tuple[int, int] = (0, 1)
    table: Literal["", "rows", "columns"] = ""

    @property
    def key(self) -> str:
        """What the model calls the weight."""
        return self.name if self.part[1] == 1 else f"{self.name}[{self.part[0]}]"


@dataclass(frozen=True)
class Slice:
    """What of one tensor this rank loads, and what it becomes."""

    info: TensorInfo | Assembled
    format: Format
    rows: list[range]  # one below the other
    columns: range
    target: Matrix | Vector
    by_column: bool = False  # of a table

    @property
    def converted(self) -> bool:
        """Whether the rows in the file are not yet in the blocks of the format."""
        return isinstance(self.info, Assembled) or self.info.type != self.format.name


def _extent(words: str, sizes: Sizes, cut: Split | None, part: tuple[int, int] = (0, 1)) -> list[range]:
    """The ranges of one dimension: its cut parts, or all of it without a cut."""
    ranges, start = [], 0
    for term in words.split(" + "):
        first, *others = term.split("*")
        length, *inners = (int(word) if word.isdigit() else getattr(sizes, word) for word in (first, *others))
        inner, whole = prod(inners), range(length)
        own = getattr(cut, first, whole) if cut else whole
        i, parts = part
        if parts == 1:
            ranges.append(range(start + own.start * inner, start + own.stop * inner))
        else:
            size = inner // parts
            ranges += [range(begin, begin + size) for begin in (start + (thing * parts + i) * size for thing in own)]
        start += len(whole) * inner
    return ranges


def _computed_in(info: TensorInfo | Assembled, rule: Rule, quantize: str) -> str:
    """The GGUF type that a tensor becomes in memory."""
    note = info.note if isinstance(info, Assembled) else ""
    router = rule.shape[0] == "experts" and len(rule.shape) == 2  # small, and what it gets wrong nothing mends
    if len(rule.shape) < 2 or rule.table or router or info.type not in FLOATS:
        return info.type
    if (note and quantize == "none") or (rule.shape[0] == "vocab" and quantize == "q4"):
        quantize = "q8"
    types = QUANTIZED[quantize]
    return (types[0] if info.shape[-1] % 256 == 0 else types[1]) if types else info.type


def whole_shape(rule: Rule, sizes: Sizes) -> tuple[int, ...]:
    """What the tensor has in the file."""
    return tuple(sum(map(len, _extent(words, sizes, None))) for words in rule.shape)


def plan(
    file: ModelFile,
    rules: list[Rule],
    sizes: Sizes,
    cut: Split,
    quantize: str = "none",
) -> tuple[list[Slice], int]:
    """Every tensor's slice, at an address counted from 0, and the bytes of all of them. quantize: one of QUANTIZED.

    UserError for a tensor that is missing, has another shape or a type that numatp has no format for, or that the model
    does not use.
    """
    unused = file.tensors.keys() - {rule.name for rule in rules}
    if unused:
        called = file.called(min(unused))
        file.fail(f"tensor {quote(called)} is not part of this architecture as numatp knows it; use another model")
    slices, address = [], 0
    for rule in rules:
        info = file.tensors.get(rule.name)
        if info is None:
            file.fail(f"tensor {quote(file.called(rule.name))} is missing; download the model again")
        expected = whole_shape(rule, sizes)
        # Writers may drop leading dimensions of 1.
        if tuple(size for size in info.shape if size > 1) != tuple(size for size in expected if size > 1):
            raise UserError(f"{info.path}: tensor '{info.name}' has shape {info.shape}, its architecture needs {expected}")
        format = quants.format_of(_computed_in(info, rule, quantize), info.name)
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
            if any(edge % UNIT for edge in (expected[-1], columns.start, columns.stop)):
                raise UserError(f"{info.path}: tensor '{info.name}': its rows cannot be cut at {columns} in {info.type}")
            if any(len(some) % TILE_ROWS for some in rows[:-1]) or (experts > 1 and num_rows // experts % TILE_ROWS):
                raise UserError(f"{info.path}: tensor '{info.name}': its parts have no multiple of {TILE_ROWS} rows")
            target = Matrix(rule.key, format, address, num_rows, len(columns), experts, columns.start)
        else:
            target = Vector(rule.key, address, num_rows * len(columns))
        slices.append(Slice(info, format, rows, columns, target, rule.table == "columns"))
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

    def floats(self, name: str) -> np.ndarray:
        """float32: a whole vector, from its file, because programs are recorded before anything is loaded."""
        piece = next(piece for piece in self._slices if piece.target.name == name)
        return floats_of(piece.info, piece.format).ravel()

    def load(
        self, threads: int, cpus: Iterable[int], run: "RunEach", progress: Callable[[int, int], None], drop: Iterable[Path] = ()
    ) -> None:
        """Reads and packs everything; run([(kernel, record), ...]) runs on the rank's threads, which `cpus` are for.
        progress(bytes done, bytes in all). drop: files whose pages leave memory on the way, where there is no room for them beside
        the weights.
        """
        done, total = 0, sum(s.target.num_bytes for s in self._slices)
        # The caller is pinned to one cpu, and so would be the threads that it starts.
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(threads, initializer=os.sched_setaffinity, initargs=(0, cpus)))
            dropped = [stack.enter_context(open(path, "rb")) for path in drop]

            def report(pieces: list[Slice]) -> None:
                nonlocal done
                for file in dropped:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                done += sum(piece.target.num_bytes for piece in pieces)
                progress(done, total)

            as_they_are: list[tuple[TensorInfo, Slice]] = []
            for piece in self._slices:
                info, target = piece.info, self.tensors[piece.target.name]
                if isinstance(target, Vector):
                    whole = floats_of(info, piece.format)
                    own = np.concatenate([whole[rows.start : rows.stop] for rows in piece.rows])
                    own = own[:, piece.columns.start : piece.columns.stop]
                    _floats_at(target)[:] = (own.T if piece.by_column else own).ravel()
                elif target.num_bytes and isinstance(info, TensorInfo) and not piece.converted:
                    as_they_are.append((info, piece))
                    continue
                elif target.num_bytes:
                    self._convert(piece, target, run, pool, threads)
                report([piece])
            widest = max((_row_bytes(info) for info, _ in as_they_are), default=0)
            staging = np.empty((threads, max(STAGING, TILE_ROWS * widest)), np.uint8)
            for batch in _batches(as_they_are):
                self._read(batch, run, staging)
                report([piece for _, piece in batch])

    def _read(self, batch: list[tuple[TensorInfo, Slice]], run: "RunEach", staging: np.ndarray) -> None:
        """The team reads rows as they are into its parts of `staging` (threads, bytes), and packs them."""
        from numatp.kernels.compile import specialize

        calls, failed, files = [], np.zeros(len(batch), np.int64), dict[Path, BinaryIO]()
        with ExitStack() as stack:
            for i, (info, piece) in enumerate(batch):
                if info.path not in files:
                    files[info.path] = stack.enter_context(_open(info))
                load, target = specialize("matmul", "quant", piece.format.module).load, self.matrix(piece.target.name)
                address, row_bytes = target.address, _row_bytes(info)
                for rows in piece.rows:
                    record = load.record(
                        file=files[info.path].fileno(), position=info.offset + rows.start * row_bytes,
                        row_bytes=row_bytes, rows=len(rows), first_unit=piece.columns.start // UNIT,
                        units=target.units, weights=address, tile_bytes=target.tile_bytes,
                        staging=staging.ctypes.data, staging_bytes=staging.shape[1], failed=failed[i:].ctypes.data,
                    )  # fmt: skip
                    calls.append((load, record))
                    address += -(-len(rows) // TILE_ROWS) * target.tile_bytes
            run(calls)
        for info, _ in compress(batch, failed):
            raise UserError(f"{info.path}: tensor '{info.name}' cannot be read: the file changed or its disk fails")

    def _convert(self, piece: Slice, target: Matrix, run: "RunEach", pool: ThreadPoolExecutor, threads: int) -> None:
        """Python threads make blocks of the format, a bounded number of rows at a time; the team packs them."""
        format, info = piece.format, piece.info
        from numatp.kernels.compile import specialize

        pack = specialize("pack", "quant", format.module).pack
        if info.type != format.name:
            _ = specialize("quantizer", "quant", format.module).quantize.address  # compiled here, not by several threads at once
        # Super-blocks are quantised whole, whatever of them this rank keeps.
        columns = piece.columns if format.columns == UNIT else range(info.shape[-1])
        step = max(CONVERTED // len(columns) // TILE_ROWS, 1) * TILE_ROWS
        address, parts = target.address, _parts(piece, columns, step)
        while batch := list(islice(parts, threads)):
            parts_done = list(pool.map(lambda part: _blocks(part[0], part[1], info, format), batch))
            spare = -sum(map(len, parts_done)) % TILE_ROWS
            raw = np.concatenate([*parts_done, np.zeros((spare, parts_done[0].shape[1]), np.uint8)])
            tiles = len(raw) // TILE_ROWS
            record = pack.record(
                source=raw.ctypes.data, row_bytes=raw.shape[1], tiles=tiles,
                first_unit=(piece.columns.start - columns.start) // UNIT, units=target.units,
                weights=address, tile_bytes=target.tile_bytes,
            )  # fmt: skip
            run([(pack, record)])
            address += tiles * target.tile_bytes


def _blocks(read: Rows, rows: slice, info: TensorInfo | Assembled, format: Format) -> np.ndarray:
    """Rows of a tensor in the file blocks of `format`. UserError for weights that no block holds."""
    raw = read(rows)
    if info.type == format.name:
        return raw
    values = floats(raw.view(DTYPES[info.type]), info.type)
    if not np.isfinite(values).all():
        raise UserError(f"{info.path}: tensor {quote(info.name)} holds weights that are no finite numbers; download it again")
    return quants.quantize(format.name, values)


def notes(slices: list[Slice]) -> list[str]:
    """What is quantised on the way, in sentences worth showing."""
    counts: Counter[tuple[str, str]] = Counter()
    for piece in slices:
        if isinstance(piece.target, Matrix) and piece.info.type != piece.format.name:
            note = piece.info.note if isinstance(piece.info, Assembled) else ""
            counts[note or piece.info.type, piece.format.name] += 1
    return [f"{count} matrices of {source} are quantized to {kept} on load" for (source, kept), count in counts.items()]


def _parts(piece: Slice, columns: range, step: int) -> Iterator[tuple[Rows, slice]]:
    """A matrix's rows in parts of `step` at most; all but the last have whole tiles."""
    for layout, numbers in by_piece(piece.info, piece.rows):
        read = layout.cut(numbers, columns)
        yield from ((read, slice(first, first + step)) for first in range(0, len(numbers), step))


def by_piece(info: TensorInfo | Assembled, ranges: list[range]) -> Iterator[tuple[Layout, np.ndarray]]:
    """The layouts whose rows the ranges are, and the numbers of the rows in them."""
    numbers = np.concatenate([np.arange(rows.start, rows.stop) for rows in ranges])
    if isinstance(info, TensorInfo):
        yield Plain(info), numbers
    elif info.order is not None:
        yield info.pieces[0], info.order[numbers]
    else:
        height = info.pieces[0].shape[0]
        ends = np.flatnonzero(np.diff(numbers // height)) + 1
        for own in np.split(numbers, ends):
            yield info.pieces[own[0] // height], own % height


def floats_of(info: TensorInfo | Assembled, format: Format) -> np.ndarray:
    """float32 (rows, columns) of a whole small tensor; a vector is one row."""
    rows = info.shape[0] if len(info.shape) > 1 else 1
    if isinstance(info, TensorInfo):
        return quants.kernels_of(format.name).unpack(read_bytes(info, 0, info.num_bytes).reshape(rows, -1))
    if info.values:
        return info.values().reshape(rows, -1)
    (piece,) = info.pieces
    raw = piece.cut(np.arange(rows), range(info.shape[-1]))(slice(None))
    return quants.kernels_of(format.name).unpack(raw)


def _batches(pieces: list[tuple[TensorInfo, Slice]]) -> Iterator[list[tuple[TensorInfo, Slice]]]:
    """All pieces in their order, as many at once as READ_AT_ONCE bytes of the file."""
    batch, size = list[tuple[TensorInfo, Slice]](), 0
    for info, piece in pieces:
        num_bytes = _row_bytes(info) * sum(map(len, piece.rows))
        if batch and size + num_bytes > READ_AT_ONCE:
            yield batch
            batch, size = [], 0
        batch.append((info, piece))
        size += num_bytes
    if batch:
        yield batch


def _row_bytes(info: TensorInfo) -> int:
    return info.num_bytes // max(prod(info.shape[:-1]), 1)


def _open(info: TensorInfo) -> BinaryIO:
    try:
        return open(info.path, "rb")
    except OSError as error:
        raise UserError(f"{info.path}: cannot open: {error.strerror}; leave the file there while it is loaded") from None


def _floats_at(vector: Vector) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_float * vector.length).from_address(vector.address))
