"""Super-blocks: 8 units of 32 columns that share constants, of which a rank may hold a part at both ends of its columns.

At the end of a tile of such a format lie the phase, the units of the first super-block before this rank's columns, in 32 bytes,
and then for every super-block that the columns touch what its 16 rows share.
"""

from numatp.kernels.compile import device
from numatp.kernels.layout import HEADER_BYTES
from numatp.kernels.layout import SUPER_UNITS as UNITS
from numatp.kernels.simd import load_i64, offset, store_i64


@device
def store_phase(end, first_unit):
    store_i64(end, 0, first_unit % UNITS)


@device
def touched(end, units):
    """Number of super-blocks that the tile's units touch."""
    return (load_i64(end, 0) + units + UNITS - 1) // UNITS


@device
def shared(end, index, super_bytes):
    """Address of what the index-th super-block's rows share."""
    return offset(end, HEADER_BYTES + index * super_bytes)


@device
def units_of(end, index, units):
    """The tile's units [first, last) that lie in its index-th super-block."""
    first = index * UNITS - load_i64(end, 0)
    return max(first, 0), min(first + UNITS, units)


@device
def super_of(end, unit):
    return (load_i64(end, 0) + unit) // UNITS
