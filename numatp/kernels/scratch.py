"""What a thread keeps while it attends: the work on one block of the cache, then the states of groups of queries under way.

A state's rows, QUERY_PITCH bytes apart, are queries: each with its sum of values, the sum of the softmax's weights in 16 lanes and
the highest score. Behind the rows are the queries as the cache's type wants them.
"""

from numatp.kernels.activation import group_bytes
from numatp.kernels.compile import device
from numatp.kernels.layout import CACHE_BLOCK, MAX_HEAD_SIZE, QUERY_PITCH, SCORES_PITCH
from numatp.kernels.rows import GROUP, MANY
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

# Where rows of a prompt go through tile registers instead (kernels/tiled_attention.py): 32 rows' scores over a block; the softmax's
# weights as BF16; a state for each of up to TILED_HEADS heads. A state is the queries as BF16, then rows of sums of values, each
# with the sum of the weights in 16 lanes and the highest score behind it, in TILED_TAIL bytes.
TILED_ROWS, TILED_HEADS, TILED_TAIL = 32, 4, 128
TILED_FACTORS = TILED_ROWS * SCORES_PITCH
TILED_STATES = TILED_FACTORS + TILED_ROWS * CACHE_BLOCK * 2
SCRATCH_BYTES = WORK_BYTES + STATE_ROWS * ROW_BYTES
assert HIGHEST + 4 <= QUERY_PITCH and GROUP <= STATE_ROWS


def scratch_bytes(head_size: int, value_size: int) -> int:
    """Of a thread that attends to heads of these sizes."""
    tiled_state = TILED_ROWS * ((head_size + 31) // 32 * 64 + value_size * 4 + TILED_TAIL)
    return max(SCRATCH_BYTES, TILED_STATES + TILED_HEADS * tiled_state if MANY else 0)


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
