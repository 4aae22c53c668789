"""Super-blocks: 8 units of 32 columns that share constants, of which a rank may hold a part at both ends of its columns.

A tile of such a format begins with the phase, the units of the first super-block before this rank's columns, in 32 bytes. Then
follow the super-blocks that the columns touch: what the 16 rows share, and the units that are here.
"""

from numatp.kernels.activation import half_starts, scales, starts
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.codebook import weight_at
from numatp.kernels.compile import device
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import first_half, second_half, store_halves
from numatp.kernels.rows import add_dot_biased, add_dot_from
from numatp.kernels.simd import lane, load_i64, offset, splat_f32, store_i64
from numatp.quants.table import HEADER_BYTES
from numatp.quants.table import SUPER_UNITS as UNITS


@device
def store_phase(tile, first_unit):
    store_i64(tile, 0, first_unit % UNITS)


@device
def touched(tile, units):
    """Number of super-blocks that the tile's units touch."""
    return (load_i64(tile, 0) + units + UNITS - 1) // UNITS


@device
def units_of(tile, index, units):
    """The tile's units [first, last) that lie in its index-th super-block."""
    first = index * UNITS - load_i64(tile, 0)
    return max(first, 0), min(first + UNITS, units)


@device
def super_of(tile, unit):
    return (load_i64(tile, 0) + unit) // UNITS


@device
def shared(tile, index, super_bytes, unit_bytes):
    """Address of what the index-th super-block's rows share."""
    return offset(tile, HEADER_BYTES + index * super_bytes + max(index * UNITS - load_i64(tile, 0), 0) * unit_bytes)


@device
def unit_at(tile, unit, super_bytes, unit_bytes):
    """Address of a unit."""
    return offset(tile, HEADER_BYTES + (super_of(tile, unit) + 1) * super_bytes + unit * unit_bytes)


@device
def place_of(tile, unit):
    """Which of its super-block's 8 units it is."""
    return (load_i64(tile, 0) + unit) % UNITS


def packer(store_unit, block_bytes, unit_bytes, halves):
    """The `pack` of a format whose 16 rows share the float16 numbers `halves` of their file blocks.

    store_unit: device function (weights, block, row_bytes, place): the place-th unit of 16 file blocks, row_bytes apart.
    """

    @device
    def store_shared(both, block, row_bytes):
        for i, half in enumerate(halves):
            store_halves(offset(both, i * 32), offset(block, half * 2), row_bytes)

    return sharing_packer(store_unit, store_shared, block_bytes, 32 * len(halves), unit_bytes)


def sharing_packer(store_unit, store_shared, block_bytes, super_bytes, unit_bytes):
    """The same where the 16 rows share what store_shared stores: device function (both, block, row_bytes)."""

    @device
    def pack(source, row_bytes, first_unit, units, tile):
        store_phase(tile, first_unit)
        for index in range(touched(tile, units)):
            block, both = offset(source, (first_unit // UNITS + index) * block_bytes), shared(tile, index, super_bytes, unit_bytes)
            store_shared(both, block, row_bytes)
            first, last = units_of(tile, index, units)
            for unit in range(first, last):
                weights = unit_at(tile, unit, super_bytes, unit_bytes)
                store_unit(weights, block, row_bytes, (first_unit + unit) % UNITS)

    return pack


def unit_products(unit_of, zero, halves):
    """(add, expand, element, starts, starts_bytes): what dot_tile adds of a unit, two functions of a format with activations "q8",
    where activations' starts for units begin and how many bytes each unit has of them.

    unit_of: device function (tile, number): (the weights + zero of 16 rows x 32 columns, in 0..128 or, if zero is 128, in 0..255;
    the rows' scales), or with halves scales of the first and of the second 16 columns.
    """
    add_product = add_dot_biased if zero == 128 else add_dot_from

    @device
    def add_unit(total, unit, x, x_scales, x_starts, pitch):
        return add_product(total, unit[0], unit[1], x, x_scales, x_starts)

    @device
    def add_halves(total, unit, x, x_scales, x_starts, pitch):
        total = add_product(total, first_half(unit[0]), unit[1], x, x_scales, x_starts)
        return add_product(total, second_half(unit[0]), unit[2], offset(x, 16), x_scales, offset(x_starts, pitch * 4))

    @device
    def store_unit_panel(out, unit):
        store_pairs(out, unit[0], unit[1], unit[1] * splat_f32(-zero))

    @device
    def store_half_panels(out, unit):
        store_pairs(out, first_half(unit[0]), unit[1], unit[1] * splat_f32(-zero))
        store_pairs(offset(out, PANEL_UNIT_BYTES // 2), second_half(unit[0]), unit[2], unit[2] * splat_f32(-zero))

    @device
    def row_scale(unit, row, column):
        return lane(unit[1], row)

    @device
    def half_scale(unit, row, column):
        return lane(unit[2] if column >= 16 else unit[1], row)

    store, scale_at = (store_half_panels, half_scale) if halves else (store_unit_panel, row_scale)

    @device
    def expand(tile, first, last, out):
        for number in range(first, last):
            store(out, unit_of(tile, number))
            out = offset(out, PANEL_UNIT_BYTES)

    @device
    def element(tile, units, row, column):
        unit = unit_of(tile, column // 32)
        return scale_at(unit, row, column % 32) * (weight_at(unit[0], row, column % 32) - zero)

    return (add_halves, expand, element, half_starts, 8) if halves else (add_unit, expand, element, starts, 4)


def products(load_unit, zero, super_bytes, unit_bytes, halves=False):
    """(dot_tile, expand, element) of a format with activations "q8".

    load_unit: device function (weights, both, place): of the place-th unit of a super-block, at `weights`, whose rows share what is
    at `both`, what `unit_products` takes.
    """

    @device
    def unit_of(tile, number):
        both = shared(tile, super_of(tile, number), super_bytes, unit_bytes)
        return load_unit(unit_at(tile, number, super_bytes, unit_bytes), both, place_of(tile, number))

    add, expand, element, first_starts, starts_bytes = unit_products(unit_of, zero, halves)

    @device
    def dot_tile(tile, x, first, pitch, units, begin, end, total):
        place, first_super = begin * pitch + first, super_of(tile, begin)
        here = shared(tile, first_super, super_bytes, unit_bytes)
        x_scales = offset(scales(x, units * pitch), place * 4)
        x_starts = offset(first_starts(x, units * pitch), begin * pitch * starts_bytes + first * 4)
        x = offset(x, place * 32)
        for index in range(first_super, touched(tile, end)):
            both = here
            prefetch_unit(here, super_bytes)
            here = offset(here, super_bytes)
            start, stop = units_of(tile, index, end)
            for number in range(start, stop):
                unit = load_unit(here, both, place_of(tile, number))
                prefetch_unit(here, unit_bytes)
                total = add(total, unit, x, x_scales, x_starts, pitch)
                here, x = offset(here, unit_bytes), offset(x, pitch * 32)
                x_scales, x_starts = offset(x_scales, pitch * 4), offset(x_starts, pitch * starts_bytes)
        return total

    return dot_tile, expand, element
