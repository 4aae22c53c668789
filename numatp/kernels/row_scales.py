"""Rows with one scale each, which in the file stands before a row's first block: every rank that has columns of a row has it.

A tile of such a format begins with the scales of its 16 rows, float32 or float16 as in the file. Then follow its units.
"""

from numatp.kernels.activation import scales
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.compile import device
from numatp.kernels.finite import add_zeros, are_zeros
from numatp.kernels.planes import store_halves
from numatp.kernels.simd import load_f16x16, load_f32x16, load_u32, offset, splat_f32, store_u32, widen
from numatp.kernels.superblock import unit_products
from numatp.quants.table import SUPER_UNITS as UNITS
from numatp.quants.table import TILE_ROWS


@device
def _store_floats(tile, source, row_bytes):
    for row in range(16):
        store_u32(tile, row, load_u32(offset(source, row * row_bytes), 0))


@device
def _load_floats(tile):
    return load_f32x16(tile, 0)


@device
def _load_halves(tile):
    return widen(load_f16x16(tile, 0))


def packer(store_unit, head_bytes, block_bytes, unit_bytes):
    """The `pack` of a format of blocks of 8 units whose tiles begin with `head_bytes` of scales.

    store_unit: device function (weights, block, row_bytes, place): the place-th unit of 16 file blocks, row_bytes apart.
    """
    before, store_scales = head_bytes // TILE_ROWS, store_halves if head_bytes == 2 * TILE_ROWS else _store_floats

    @device
    def pack(source, row_bytes, first_unit, units, tile):
        store_scales(tile, source, row_bytes)
        for number in range(units):
            unit = first_unit + number
            block = offset(source, before + unit // UNITS * block_bytes)
            store_unit(offset(tile, head_bytes + number * unit_bytes), block, row_bytes, unit % UNITS)

    return pack


def scales_finite(head_bytes, most):
    """The `finite` of a format whose weights are up to `most` times their row's scale."""
    load_scales = _load_halves if head_bytes == 2 * TILE_ROWS else _load_floats

    @device
    def finite(tile, units):
        return are_zeros(add_zeros(splat_f32(0), load_scales(tile) * splat_f32(most)))

    return finite


def products(load_unit, zero, head_bytes, unit_bytes, halves=False):
    """(dot_tile, expand, element) of a format with activations "q8".

    load_unit: device function (weights, d): of a unit at `weights`, d being the rows' scales, what `unit_products` takes.
    """
    load_scales = _load_halves if head_bytes == 2 * TILE_ROWS else _load_floats

    @device
    def unit_of(tile, number):
        return load_unit(offset(tile, head_bytes + number * unit_bytes), load_scales(tile))

    add, expand, element, first_starts, starts_bytes = unit_products(unit_of, zero, halves)

    @device
    def dot_tile(tile, x, first, pitch, units, begin, end, total):
        place, d = begin * pitch + first, load_scales(tile)
        x_scales = offset(scales(x, units * pitch), place * 4)
        x_starts = offset(first_starts(x, units * pitch), begin * pitch * starts_bytes + first * 4)
        tile, x = offset(tile, head_bytes + begin * unit_bytes), offset(x, place * 32)
        for _ in range(begin, end):
            unit = load_unit(tile, d)
            prefetch_unit(tile, unit_bytes)
            total = add(total, unit, x, x_scales, x_starts, pitch)
            tile, x = offset(tile, unit_bytes), offset(x, pitch * 32)
            x_scales, x_starts = offset(x_scales, pitch * 4), offset(x_starts, pitch * starts_bytes)
        return total

    return dot_tile, expand, element
