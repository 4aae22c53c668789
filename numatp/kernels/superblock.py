"""Super-blocks: 8 units of 32 columns that share constants, of which a rank may hold a part at both ends of its columns.

A tile of such a format begins with the phase, the units of the first super-block before this rank's columns, in 32 bytes. Then
follow the super-blocks that the columns touch: what the 16 rows share, and the units that are here.
"""

from numatp.kernels.compile import device
from numatp.kernels.planes import store_halves
from numatp.kernels.simd import load_i64, offset, store_i64
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


def packer(store_unit, block_bytes, unit_bytes, halves):
    """The `pack` of a format whose 16 rows share the float16 numbers `halves` of their file blocks.

    store_unit: device function (weights, block, row_bytes, place): the place-th unit of 16 file blocks, row_bytes apart.
    """
    super_bytes = 32 * len(halves)

    @device
    def pack(source, row_bytes, first_unit, units, tile):
        store_phase(tile, first_unit)
        for index in range(touched(tile, units)):
            block, both = offset(source, (first_unit // UNITS + index) * block_bytes), shared(tile, index, super_bytes, unit_bytes)
            for i, half in enumerate(halves):
                store_halves(offset(both, i * 32), offset(block, half * 2), row_bytes)
            first, last = units_of(tile, index, units)
            for unit in range(first, last):
                weights = unit_at(tile, unit, super_bytes, unit_bytes)
                store_unit(weights, block, row_bytes, (first_unit + unit) % UNITS)

    return pack
