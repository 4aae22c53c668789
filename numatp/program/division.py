"""How threads divide the weights of products of one row: arithmetic, for programs that are recorded and for plans.

Of each product every thread takes as many whole tiles of 16 rows as the others, up to one. Where that leaves some of them much more
bytes than others, all tiles of products that need not wait for each other are dealt: laid in one row of bytes, which is cut in
equal parts. A tile in which a part ends is multiplied by two threads, the first of which hands its sums on (kernels/dealt.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from numatp.quants.table import SUPER_UNITS, UNIT
from numatp.weights.matrix import Matrix

# Bytes that the busiest thread reads less. A core reads them from memory in 0.2 to 0.4 microseconds; handing on costs 0.1 to 0.3.
WORTH_DEALING = 2048


@dataclass(frozen=True)
class Tiles:
    """Of a product of one row, what threads divide: tiles of one size."""

    count: int
    num_bytes: int  # of all together
    units: int = 0  # of a tile, if it may be cut between some; 0: it may not
    grain: int = 1  # units from a place where it may be cut to the next
    phase: int = 0  # units that the first grain lacks

    @property
    def tile_bytes(self) -> float:
        return self.num_bytes / max(self.count, 1)


def tiles_of(weight: Matrix, used: int | None = None) -> Tiles:
    """Of a matrix, or of as many as are used of those that are stacked in it."""
    count = weight.tiles if used is None else weight.tiles // weight.stacked * used
    grain = SUPER_UNITS if weight.format.super_bytes else 1
    return Tiles(count, count * weight.tile_bytes, weight.units, grain, weight.first_column // UNIT % grain)


@cache
def deal(together: tuple[Tiles, ...], threads: int) -> tuple[np.ndarray, ...] | None:
    """Of each product where each thread begins and the last one ends, int64 (threads + 1, 2): a tile, and a unit of it.

    None where as many whole tiles of each for all threads are as good. Two threads at most have parts of a tile, so nothing is cut
    where a thread has less than one. The thread with a tile's last unit owns it: of a single product every thread owns the tiles
    that it would have of whole ones.
    """
    num_bytes = sum(tiles.num_bytes for tiles in together)
    may_cut = all(tiles.units and tiles.tile_bytes * threads <= num_bytes for tiles in together if tiles.count)
    if threads == 1 or not together or (len(together) == 1 and not may_cut):
        return None
    dealt, before = [], 0
    for tiles in together:
        size = max(int(tiles.tile_bytes), 1)
        begin = np.clip(num_bytes * np.arange(threads + 1) // threads - before, 0, tiles.num_bytes)
        tile, rest = begin // size, begin % size
        unit = (rest * tiles.units // size + tiles.phase) // tiles.grain * tiles.grain - tiles.phase
        dealt.append(np.stack([tile, np.maximum(unit, 0) if may_cut else np.zeros_like(tile)], axis=1))
        before += tiles.num_bytes
    gained = _whole(together, threads).max() - _dealt(together, dealt).max()
    return tuple(dealt) if gained >= WORTH_DEALING else None


@dataclass(frozen=True)
class Turns:
    """What each thread does of products that are dealt: a part of its last tile before all else, which it hands on; then whole
    tiles; last what is left of its first tile, whose sums are handed to it.
    """

    works: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]  # of each product first, then and last, as in_turn() has them
    goes_on: np.ndarray  # int64 (threads,), not 0 for threads that something is handed to


@cache
def turns(together: tuple[Tiles, ...], threads: int) -> Turns | None:
    """None: as many whole tiles for each, as in deal()."""
    dealt = deal(together, threads)
    if dealt is None:
        return None
    goes_on = np.any([bounds[:-1, 1] > 0 for bounds in dealt], axis=0)
    return Turns(tuple(map(in_turn, together, dealt)), goes_on.astype(np.int64))


def in_turn(tiles: Tiles, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First, then and last, int64 (threads, 4): of each thread tiles [first, last), and of each of these the units [begin, end)."""
    (tile, done), (end_tile, begun) = bounds[:-1].T, bounds[1:].T
    next_tile, nothing, all_units = tile + (done > 0), np.zeros_like(tile), np.full_like(tile, tiles.units)
    first = np.stack([end_tile, end_tile + (begun > 0), nothing, begun], axis=1)
    then = np.stack([next_tile, end_tile, nothing, all_units], axis=1)
    last = np.stack([tile, next_tile, done, all_units], axis=1)
    return first, then, last


def work_bytes(tiles: Tiles, work: np.ndarray) -> int:
    """That all threads read for it."""
    units = int(((work[:, 1] - work[:, 0]) * (work[:, 3] - work[:, 2])).sum())
    return round(tiles.tile_bytes * units / max(tiles.units, 1))


@cache
def shares(together: tuple[Tiles, ...], threads: int) -> np.ndarray:
    """Bytes that each thread reads of products which are dealt together, float64 (threads,)."""
    dealt = deal(together, threads)
    return _whole(together, threads) if dealt is None else _dealt(together, dealt)


def _whole(together: Sequence[Tiles], threads: int) -> np.ndarray:
    """As many tiles of each product for every thread (share() of kernels/compile.py)."""
    read = np.zeros(threads)
    for tiles in together:
        read += np.diff(tiles.count * np.arange(threads + 1) // threads) * tiles.tile_bytes
    return read


def _dealt(together: Sequence[Tiles], dealt: Sequence[np.ndarray]) -> np.ndarray:
    read = np.zeros(len(dealt[0]) - 1)
    for tiles, bounds in zip(together, dealt, strict=True):
        read += np.diff(bounds[:, 0] + bounds[:, 1] / max(tiles.units, 1)) * tiles.tile_bytes
    return read
