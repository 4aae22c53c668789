"""Attention of one row whose heads all read the same keys and values, float16, a block after the other.

More heads than have room in the states go through all blocks after those. Parts of a row and their order are as in attention.py.
"""

from typing import TYPE_CHECKING

from numatp.kernels.caches import f16
from numatp.kernels.compile import device, specialize
from numatp.kernels.rows import GROUP, room_for, with_rows
from numatp.kernels.scratch import STATE_ROWS, state_of
from numatp.kernels.simd import fetch_add, offset, store_i64

if TYPE_CHECKING:  # kernels/sources.py reads this import: an edit there has these kernels compiled anew
    from numatp.kernels import attention
else:
    attention = specialize("attention", "cache", f16.__name__)


@device
def heads_together(heads):
    """How many go through a block before the next block."""
    return STATE_ROWS // room_for(min(heads, GROUP)) * GROUP


@device
def state_of_heads(args, scratch, begin, head, end):
    """(that of the heads from `head` on, how many they are), among the heads [begin, end) that go together."""
    return state_of(scratch, (head - begin) // GROUP, room_for(min(args.heads, GROUP))), min(end - head, GROUP)


@device
def load_heads(args, scratch, row, begin, end, size, value_size):
    for head in range(begin, end, GROUP):
        state, count = state_of_heads(args, scratch, begin, head, end)
        q = offset(args.q, row * args.q_stride + head * size * 4)
        attention.load_queries(state, q, size * 4, count, size, value_size, args.scale)


@device
def attend_heads(args, scratch, begin, end, keys, values, size, value_size, seen):
    """Online softmax over the first `seen` tokens of a block: keys (size, CACHE_BLOCK), values (CACHE_BLOCK, value_size)."""
    for head in range(begin, end, GROUP):
        state, count = state_of_heads(args, scratch, begin, head, end)
        with_rows(count, f16.score, scratch, state, keys, size, keys)
        for m in range(count):
            attention.softmax(scratch, state, m, 0, seen)
        with_rows(count, f16.add_values, scratch, state, values, value_size, count, seen, values)


@device
def store_heads(args, scratch, row, begin, end, value_size, parts, split, num_splits):
    """To args.out (rows, heads, value_size), or as one of several parts."""
    part_size = (attention.PART_HEAD + value_size) * 4
    for head in range(begin, end, GROUP):
        state, count = state_of_heads(args, scratch, begin, head, end)
        for m in range(count):
            if num_splits == 1:
                out = offset(args.out, (row * args.heads + head + m) * value_size * 4)
                attention.store_result(state, m, value_size, out)
            else:
                part = offset(parts, ((head + m) * attention.SPLITS + split) * part_size)
                attention.store_part(state, m, value_size, part)


@device
def join_heads(args, number, row, value_size, parts, num_splits):
    """After a part of a row, the only one of span `number`: whoever made the last part joins all."""
    part_size = (attention.PART_HEAD + value_size) * 4
    if num_splits > 1 and fetch_add(offset(args.finished, number * 8), 1) == num_splits - 1:
        store_i64(args.finished, number, 0)
        for head in range(args.heads):
            own = offset(parts, head * attention.SPLITS * part_size)
            result = offset(args.out, (row * args.heads + head) * value_size * 4)
            attention.join_parts(own, num_splits, part_size, value_size, result)
