"""What a barrier of a rank's threads costs, by how they share L3 caches: a prediction for machines that are not here.

`bench/barrier.py` measures the machine that it is run on.
"""

from collections import Counter
from collections.abc import Sequence

MOST_AT_ONE = 8  # threads, or barriers of threads, that share a counter, as in native/runtime.c

# Seconds in which a line that another core has written comes over: cores of a small L3 (AMD's core complex of 8), of a large one
# that a mesh joins (Intel), and of two L3s of a socket. Core-to-core latencies as they are told of EPYC 9004 and Xeon 4: 20 to 25,
# 50 to 60 and 80 to 110 ns. None was measured here.
IN_SMALL_L3, IN_LARGE_L3, BETWEEN_L3S = 25e-9, 55e-9, 95e-9
LARGE = 16  # threads of an L3 from which on it is taken for a mesh


def seconds(groups: Sequence[int]) -> float:
    """groups: the L3 cache of each thread.

    At a counter that k add to, the line is fetched k times, one after the other, and then all who wait fetch what the last one
    wrote: k + 1 transfers for each level of the tree. Nobody is late; what a thread's own instructions take is left out.
    """
    sizes = Counter(groups)
    if len(groups) == 1:
        return 0.0
    within = 0.0
    for size in set(sizes.values()):
        transfer = IN_LARGE_L3 if size > LARGE else IN_SMALL_L3
        within = max(within, _levels(size) * transfer)
    return within + _levels(len(sizes)) * BETWEEN_L3S


def _levels(count: int) -> int:
    """Transfers on the way through a tree over so many."""
    transfers = 0
    while count > 1:
        parents = -(-count // MOST_AT_ONE)
        transfers += -(-count // parents) + 1
        count = parents
    return transfers
