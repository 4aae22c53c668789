"""Where a token is in the cache."""

from numatp.kernels.compile import device
from numatp.kernels.layout import CACHE_BLOCK
from numatp.kernels.simd import load_i64


@device
def cache_place(tables, table_length, sequence, position):
    """Block of the cache and place in it for a position of a sequence."""
    return load_i64(tables, sequence * table_length + position // CACHE_BLOCK), position % CACHE_BLOCK
