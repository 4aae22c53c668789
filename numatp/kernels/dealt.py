"""Products of one row whose tiles are dealt to the threads by bytes, where whole tiles would leave some with much more than others
(program/division.py); specialised for each quant format.

A thread whose part ends inside a tile multiplies its columns of that tile before all else, and hands their sums on. The next thread
goes on from these with the tile's other columns after all else, when they have long been there. So the products of a tile are added
in their usual order, and give the bits that they give on one thread.
"""

from types import ModuleType

from numatp.kernels.compile import device, kernel
from numatp.kernels.layout import HANDED_BYTES
from numatp.kernels.rows import add_rows, load_rows, store_rows, zero_row
from numatp.kernels.simd import load_i64, offset

quant: ModuleType = globals()["quant"]  # the format: specialize() has set it


@device
def handed_by(args, thread):
    return offset(args.handed, thread * HANDED_BYTES)


@kernel(
    weights="pointer", tiles="int", tile_bytes="int", units="int", counted="pointer", active="pointer", work="pointer",
    x="pointer", x_group="int", x_thread_stride="int", out="pointer", out_stride="int", add="int", handed="pointer",
)  # fmt: skip
def multiply(args, thread, threads):
    """Each thread's work of out (rows, tiles * 16) = [out +] x times each active matrix transposed.

    weights: matrices of `tiles` tiles one after another. active: which of them, and which rows of x and out each has, as in
    kernels/experts.py; these rows of x are equal. counted: how many. work (threads, 4), int64: a thread's tiles [first, last) among
    those of all active matrices, and of each of these the units [begin, end). If begin is not 0 sums go on from what the thread
    before has handed on; if end is not `units` they are handed on. handed: HANDED_BYTES of each thread.
    """
    work, x = offset(args.work, thread * 32), offset(args.x, thread * args.x_thread_stride)
    first, last = load_i64(work, 0), min(load_i64(work, 1), load_i64(args.counted, 0) * args.tiles)
    begin, end = load_i64(work, 2), load_i64(work, 3)
    for item in range(first, last):
        active, tile = offset(args.active, item // args.tiles * 32), item % args.tiles
        matrix, row = load_i64(active, 0), load_i64(active, 1)
        weights = offset(args.weights, (matrix * args.tiles + tile) * args.tile_bytes)
        before = load_rows(handed_by(args, thread - 1), 0, 0, zero_row()) if begin > 0 else zero_row()
        total = quant.dot_tile(weights, offset(x, row * args.x_group), 0, 1, args.units, begin, end, before)
        if end < args.units:
            store_rows(handed_by(args, thread), 0, 0, total)
        else:
            for place in range(row, row + load_i64(active, 3)):  # several where a row has an expert more than once
                out = offset(args.out, place * args.out_stride + tile * 64)
                store_rows(out, 0, 0, add_rows(load_rows(out, 0, 0, zero_row()), total) if args.add else total)
