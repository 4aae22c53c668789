"""What a thread keeps while it attends: the work on one block of the cache, then the states of groups of queries under way.

A state's rows, QUERY_PITCH bytes apart, are queries: each with its sum of values, the sum of the softmax's weights in 16 lanes and
the highest score. Behind the rows are the queries as the cache's type wants them.
"""

from numatp.kernels.activation import group_bytes
from numatp.kernels.compile import device
from numatp.kernels.layout import MAX_HEAD_SIZE, QUERY_PITCH, SCORES_PITCH
from numatp.kernels.rows import GROUP
from numatp.kernels.simd import offset

# The scores of each query over the block, which become the softmax's weights; room for these in another form; and what the block
# changed the earlier sums by, a float for each query.
FACTORS = GROUP * SCORES_PITCH
CORRECTIONS = 2 * GROUP * SCORES_PITCH
WORK_BYTES = CORRECTIONS + (GROUP * 4 + 63) // 64 * 64

# Of a state's row.
SUMS = MAX_HEAD_SIZE * 4
TOTAL = 2 * SUMS
HIGHEST = TOTAL + 64
ROW_BYTES = QUERY_PITCH + (group_bytes("q8", MAX_HEAD_SIZE, 1) + 63) // 64 * 64
STATE_ROWS = 32  # of all states together
SCRATCH_BYTES = WORK_BYTES + STATE_ROWS * ROW_BYTES
assert HIGHEST + 4 <= QUERY_PITCH and GROUP <= STATE_ROWS


@device
def factors_of(scratch):
    return offset(scratch, FACTORS)


@device
def corrections_of(scratch):
    return offset(scratch, CORRECTIONS)


@device
def state_of(scratch, index, room):
    """The index-th state of `room` rows."""
    return offset(scratch, WORK_BYTES + index * room * ROW_BYTES)


@device
def sums_of(state):
    return offset(state, SUMS)


@device
def prepared_of(state, room):
    return offset(state, room * QUERY_PITCH)
