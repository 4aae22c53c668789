"""Prefetch of a weight matrix, which is one stream of bytes: tile after tile, each read from its start to its end.

Into the second-level cache only: requests into the first would hold its few fill buffers until DRAM answers, and the processor's
own prefetcher needs them too.
"""

from numatp.kernels.compile import device
from numatp.kernels.simd import prefetch

AHEAD = 8192  # bytes: more than one core can read while one access to DRAM is under way


@device
def prefetch_unit(unit, num_bytes):
    """Asks for the num_bytes (a constant) that are read AHEAD bytes after those at unit."""
    for line in range((num_bytes + 63) // 64):
        prefetch(unit, AHEAD + line * 64)
