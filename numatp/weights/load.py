"""From a file's tensors to this rank's matrices in memory that its own threads touched first.

Nothing is mapped: rows are read into a small staging buffer and packed into one arena.
"""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import compress, islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from numatp import quants
from numatp.errors import UserError
from numatp.files.gguf_header import quote
from numatp.files.huggingface import Assembled
from numatp.files.layouts import Layout, Plain, Rows, factor_of
from numatp.files.model_file import TensorInfo
from numatp.files.safetensors import DTYPES, WHOLE, floats, read_bytes, read_whole
from numatp.quants.table import FORMATS, TILE_ROWS, UNIT, Format
from numatp.weights.matrix import Matrix, Vector, of_segments
from numatp.weights.rules import Slice

if TYPE_CHECKING:
    from numatp.kernels.compile import Kernel

    RunEach = Callable[[list[tuple[Kernel, np.ndarray]]], None]

STAGING = 1 << 20  # bytes per thread, or 16 rows of the widest tensor if that is more
READ_AT_ONCE = 1 << 28  # bytes that threads read without waiting for each other, unless one tensor has more
CONVERTED = 1 << 18  # weights that a thread converts at a time (some 12 bytes each), or 16 rows if that is more


class Weights:
    """This rank's tensors by name, at their place in the arena."""

    def __init__(self, slices: list[Slice], arena: int, elsewhere: Iterable[Slice] = ()):
        """elsewhere: what other hosts have and a forward pass may name here too."""
        self._slices = slices
        self.tensors = {piece.name: piece.at(arena) for piece in slices}
        self._elsewhere = {piece.name: piece.at(0) for piece in elsewhere}
        self._segments: dict[str, list[Matrix]] = {}
        for piece in slices:
            if piece.segment is not None:
                self._segments.setdefault(piece.rule.key, []).append(self.matrix(piece.name))

    def matrix(self, name: str) -> Matrix:
        if name in self._segments:
            return of_segments(name, self._segments[name])
        found = self._elsewhere.get(name) or self.tensors[name]
        assert isinstance(found, Matrix), name
        return found

    def vector(self, name: str) -> Vector:
        found = self.tensors[name]
        assert isinstance(found, Vector), name
        return found

    def floats(self, name: str) -> np.ndarray:
        """float32: a whole vector, from its file, because programs are recorded before anything is loaded."""
        piece = next(piece for piece in self._slices if piece.name == name)
        return floats_of(piece.info, piece.format).ravel()

    def load(
        self, threads: int, cpus: Iterable[int], run: "RunEach", progress: Callable[[int, int], None], drop: Iterable[Path] = ()
    ) -> None:
        """Reads and packs everything; run([(kernel, record), ...]) runs on the rank's threads, which `cpus` are for.
        progress(bytes done, bytes in all). drop: files whose pages leave memory on the way, where there is no room for them beside
        the weights.
        """
        done, total = 0, sum(piece.num_bytes for piece in self._slices)
        # The caller is pinned to one cpu, and so would be the threads that it starts.
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(threads, initializer=os.sched_setaffinity, initargs=(0, cpus)))
            dropped = [stack.enter_context(open(path, "rb")) for path in drop]

            def report(pieces: list[Slice]) -> None:
                nonlocal done
                for file in dropped:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                done += sum(piece.num_bytes for piece in pieces)
                progress(done, total)

            as_they_are: list[tuple[TensorInfo, Slice]] = []
            for piece in self._slices:
                info, target = piece.info, self.tensors[piece.name]
                if isinstance(target, Vector):
                    whole = floats_of(info, piece.format)
                    if piece.rule.kind == "vector":  # which files may have with dimensions of 1 around it
                        whole = whole.reshape(1, -1)
                    own = np.concatenate([whole[rows.start : rows.stop] for rows in piece.rows])
                    own = own[:, piece.columns.start : piece.columns.stop]
                    if not np.isfinite(own).all():
                        raise not_finite(info)
                    if piece.below and not ((own >= 0) & (own < piece.below)).all():
                        what = f"tensor {quote(info.name)} holds numbers outside 0 to {piece.below - 1}"
                        raise UserError(f"{info.path}: {what}; download it again")
                    _floats_at(target)[:] = (own.T if piece.rule.by == "columns" else own).ravel()
                elif target.num_bytes and isinstance(info, TensorInfo) and not piece.converted:
                    as_they_are.append((info, piece))
                    continue
                elif target.num_bytes:
                    self._convert(piece, target, run, pool, threads)
                    _multiply_rows(piece, target)
                report([piece])
            widest = max((_row_bytes(info) for info, _ in as_they_are), default=0)
            staging = np.empty((threads, max(STAGING, TILE_ROWS * widest)), np.uint8)
            for batch in _batches(as_they_are):
                self._read(batch, run, staging)
                for _, piece in batch:
                    _multiply_rows(piece, self.matrix(piece.name))
                report([piece for _, piece in batch])

    def _read(self, batch: list[tuple[TensorInfo, Slice]], run: "RunEach", staging: np.ndarray) -> None:
        """The team reads rows as they are into its parts of `staging` (threads, bytes), and packs them."""
        from numatp.kernels.compile import specialize

        calls, failed = [], np.zeros((len(batch), 2), np.int64)
        files: dict[Path, BinaryIO] = {}
        with ExitStack() as stack:
            for i, (info, piece) in enumerate(batch):
                if info.path not in files:
                    files[info.path] = stack.enter_context(_open(info))
                load, target = specialize("matmul", "quant", piece.format.module).load, self.matrix(piece.name)
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
        for info, _ in compress(batch, failed[:, 0]):
            raise UserError(f"{info.path}: tensor '{info.name}' cannot be read: the file changed or its disk fails")
        for info, _ in compress(batch, failed[:, 1]):
            raise not_finite(info)

    def _convert(self, piece: Slice, target: Matrix, run: "RunEach", pool: ThreadPoolExecutor, threads: int) -> None:
        """Python threads make blocks of the format, a bounded number of rows at a time; the team packs them."""
        format, info = piece.format, piece.info
        from numatp.kernels.compile import make_all_ready, specialize

        pack = specialize("pack", "quant", format.module).pack
        make_all_ready([pack, *([specialize("quantizer", "quant", format.module).quantize] if info.type != format.name else [])])
        # Super-blocks are quantised whole, whatever of them this rank keeps.
        columns = piece.columns if format.columns == UNIT else range(info.shape[-1])
        step = max(CONVERTED // len(columns) // TILE_ROWS, 1) * TILE_ROWS
        address, parts, failed = target.address, _parts(piece, columns, step), np.zeros(1, np.int64)
        while batch := list(islice(parts, threads)):
            parts_done = list(pool.map(lambda part: _blocks(part[0], part[1], info, format), batch))
            spare = -sum(map(len, parts_done)) % TILE_ROWS
            raw = np.concatenate([*parts_done, np.zeros((spare, parts_done[0].shape[1]), np.uint8)])
            tiles = len(raw) // TILE_ROWS
            record = pack.record(
                source=raw.ctypes.data, row_bytes=raw.shape[1], tiles=tiles,
                first_unit=(piece.columns.start - columns.start) // UNIT, units=target.units,
                weights=address, tile_bytes=target.tile_bytes, failed=failed.ctypes.data,
            )  # fmt: skip
            run([(pack, record)])
            if failed[0]:
                raise not_finite(info)
            address += tiles * target.tile_bytes


def _multiply_rows(piece: Slice, target: Matrix) -> None:
    """The factors of a matrix's rows go to where its tiles begin (numatp/quants/nvfp4.py)."""
    factors = factors_of(piece.info, piece.rows)
    if factors is None:
        return
    if not np.isfinite(factors).all():
        raise not_finite(piece.info)
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * target.num_bytes).from_address(target.address))
    heads = memory.reshape(target.tiles, target.tile_bytes)[:, : piece.format.head_bytes].view(np.float32)
    padded = np.ones(heads.size, np.float32)
    padded[: len(factors)] = factors
    heads *= padded.reshape(heads.shape)


def factors_of(info: TensorInfo | Assembled, rows: list[range]) -> np.ndarray | None:
    """float32 of each of these rows: what its weights are multiplied with beside what its blocks hold. None: nothing."""
    if info.type != "NVFP4":
        return None
    if isinstance(info, TensorInfo):
        if info.factors is None:
            return None
        factors, numbers = (
            floats_of(info.factors, FORMATS["F32"]).ravel(),
            np.concatenate([np.arange(r.start, r.stop) for r in rows]),
        )
        return factors[numbers // (prod(info.shape[:-1]) // len(factors))]
    each = [np.full(len(numbers), factor_of(layout), np.float32) for layout, numbers in by_piece(info, rows)]
    return np.concatenate(each)


def not_finite(info: TensorInfo | Assembled) -> UserError:
    return UserError(f"{info.path}: tensor {quote(info.name)} holds weights that are no finite numbers; download it again")


def _blocks(read: Rows, rows: slice, info: TensorInfo | Assembled, format: Format) -> np.ndarray:
    """Rows of a tensor in the file blocks of `format`. UserError for weights that no block holds."""
    raw = read(rows)
    if info.type == format.name:
        return raw
    values = floats(raw.view(DTYPES[info.type]), info.type)
    if not np.isfinite(values).all():
        raise not_finite(info)
    return quants.quantize(format.name, values)


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
    rows = prod(info.shape[:-1])
    factors = factors_of(info, [range(rows)])
    if isinstance(info, TensorInfo) and info.type in WHOLE:
        values = read_whole(info).reshape(rows, -1).astype(np.float32)
    elif isinstance(info, TensorInfo):
        values = quants.unpack(format.name, read_bytes(info, 0, info.num_bytes).reshape(rows, -1))
    elif info.values:
        values = info.values().reshape(rows, -1).astype(np.float32, copy=False)
    else:
        (read,) = (layout.cut(numbers, range(info.shape[-1])) for layout, numbers in by_piece(info, [range(rows)]))
        values = quants.unpack(format.name, read(slice(None)))
    return values if factors is None else values * factors[:, None]


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
