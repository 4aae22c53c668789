"""Products with matrices of few rows, as a router is: too few tiles for many threads; specialised for each format of plain numbers.

Their columns are cut in parts of 64, each part's sum is made for itself, and the sums are added in order: an element has the same
bits for any number of threads and of rows. A single row's parts are shared by the threads and joined behind a barrier; of many
rows, threads share tiles and groups of rows, and add the parts up as they go.
"""

from types import ModuleType

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.jit import float32
from numatp.kernels.layout import PART_UNITS
from numatp.kernels.rows import add_rows, store_rows, with_rows, zero_row
from numatp.kernels.simd import load_f32x16, load_i64, offset, splat_f32, store_f32x16

quant: ModuleType = globals()["quant"]  # the format: specialize() has set it


@device
def part_sum(zero, tile, x, pitch, units, part):
    """What one part of a tile's columns gives, for as many rows of the group at x as `zero` has."""
    start = part * PART_UNITS
    return quant.dot_tile(tile, x, 0, pitch, units, start, min(start + PART_UNITS, units), zero)


@kernel(
    weights="pointer", tiles="int", unit_bytes="int", units="int", x="pointer", x_thread_stride="int", sums="pointer",
)  # fmt: skip
def multiply_parts(args, thread, threads):
    """sums (tiles, parts, 16): of each tile and part of the columns, for the one row x; threads share them all."""
    x = offset(args.x, thread * args.x_thread_stride)
    parts = (args.units + PART_UNITS - 1) // PART_UNITS
    first, last = share(args.tiles * parts, thread, threads)
    for item in range(first, last):
        tile = offset(args.weights, item // parts * args.units * args.unit_bytes)
        store_rows(offset(args.sums, item * 64), 64, 0, part_sum(zero_row(), tile, x, 1, args.units, item % parts))


@kernel(sums="pointer", tiles="int", units="int", out="pointer")
def join_parts(args, thread, threads):
    """out (tiles * 16) = the sums of all parts, in order."""
    parts = (args.units + PART_UNITS - 1) // PART_UNITS
    first, last = share(args.tiles, thread, threads)
    for tile in range(first, last):
        total = splat_f32(float32(0))
        for part in range(parts):
            total = total + load_f32x16(args.sums, (tile * parts + part) * 16)
        store_f32x16(args.out, tile * 16, total)


@device
def multiply_rows(zero, tile, x, pitch, units, out, out_stride):
    total = zero
    for part in range((units + PART_UNITS - 1) // PART_UNITS):
        total = add_rows(total, part_sum(zero, tile, x, pitch, units, part))
    store_rows(out, out_stride, 0, total)


@kernel(
    weights="pointer", tiles="int", unit_bytes="int", units="int", rows="pointer", x="pointer", x_group="int", pitch="int",
    out="pointer", out_stride="int",
)  # fmt: skip
def multiply_groups(args, thread, threads):
    """out (rows, tiles * 16) = x (rows, units * 32) times the transposed matrix; rows up to whole groups are written.

    x: groups of `pitch` rows, x_group bytes apart. out_stride: bytes from row to row.
    """
    rows = load_i64(args.rows, 0)
    first, last = share(args.tiles * ((rows + args.pitch - 1) // args.pitch), thread, threads)
    for item in range(first, last):
        group, tile = item // args.tiles, item % args.tiles
        with_rows(
            min(rows - group * args.pitch, args.pitch), multiply_rows,
            offset(args.weights, tile * args.units * args.unit_bytes), offset(args.x, group * args.x_group),
            args.pitch, args.units, offset(args.out, group * args.pitch * args.out_stride + tile * 64), args.out_stride,
        )  # fmt: skip
