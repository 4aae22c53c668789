"""Which query heads of a rank read which of its KV heads, where those are in a cache of blocks, and which tokens a row sees there
(kernels/attention.py).
"""

from numatp.kernels.compile import device
from numatp.kernels.simd import load_i64, offset


@device
def keys_of(args, table, block, kv_head):
    """Those of a KV head in the block-th block of a sequence."""
    return offset(args.keys, load_i64(table, block) * args.block_stride + kv_head * args.head_bytes)


@device
def values_of(args, table, block, kv_head):
    return offset(args.values, load_i64(table, block) * args.block_stride + kv_head * args.value_bytes)


@device
def heads_of(args, piece, pieces, most):
    """(first, number) of this rank's query heads in a piece of up to `most`, one of the `pieces` that the heads of each KV head are
    cut into; the number is not above zero where all are another rank's.
    """
    group_start = (args.first_kv_head + piece // pieces) * args.group - args.first_head + piece % pieces * most
    first = max(group_start, 0)
    end = min(group_start + min(most, args.group - piece % pieces * most), args.heads)
    return first, end - first


@device
def first_seen(args, position):
    """The first position that a row sees."""
    return position - position % args.window if args.chunked else max(position + 1 - args.window, 0)
