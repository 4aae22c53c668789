"""Keys of an indexer that stand for a run of tokens each (GLM-5.3-Flash): of each channel the mean of its tokens' keys, weighed by
a softmax over gates of their own, to which those of a place in the run are added.

A key lies where that of an entry does (compressed.py), in the block of its last token. Of the last tokens keys and gates stay in
the state, in rows by their positions, so that what comes after them can be taken back (conv_rows in states.py).
"""

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.compressed import entry_place
from numatp.kernels.exp import exp
from numatp.kernels.places import cache_place
from numatp.kernels.simd import (
    fma,
    lane,
    load_f32x16,
    load_i64,
    max_f32x16,
    offset,
    splat_f32,
    store_f16,
    store_f32x16,
)
from numatp.kernels.softmax import LOWEST
from numatp.kernels.sparse import normalize_key
from numatp.kernels.states import ENTRY_TILE


@kernel(x="pointer", x_stride="int", rows="pointer", size="int", weight="pointer", bias="pointer", epsilon="float")
def normalize_keys(args, thread, threads):
    """The first `size` columns of x in place: see normalize_key."""
    first, last = share(load_i64(args.rows, 0), thread, threads)
    for row in range(first, last):
        normalize_key(offset(args.x, row * args.x_stride), args.size, args.weight, args.bias, args.epsilon)


@device
def member(args, x, state, time, position, channel):
    """16 channels of the token `time` rows after a span's first, whose position this is; of earlier ones from the state."""
    if time >= 0:
        return load_f32x16(offset(x, time * args.x_stride), channel)
    return load_f32x16(offset(state, (position + time) % args.kept * 2 * args.size * 4), channel)


@device
def pooled(args, x, state, last, position, d):
    """16 channels of the key of the run that ends `last` rows after a span's first."""
    first, highest = last + 1 - args.every, splat_f32(LOWEST)
    for j in range(args.every):
        gate = member(args, x, state, first + j, position, args.size + d) + load_f32x16(args.places, j * args.size + d)
        highest = max_f32x16(highest, gate)
    weights, total = splat_f32(0), splat_f32(0)
    for j in range(args.every):
        gate = member(args, x, state, first + j, position, args.size + d) + load_f32x16(args.places, j * args.size + d)
        weight = exp(gate - highest)
        weights = weights + weight
        total = fma(weight, member(args, x, state, first + j, position, d), total)
    return total / weights


@kernel(
    x="pointer", x_stride="int", size="int", every="int", places="pointer", kept="int", state="pointer", state_stride="int",
    spans="pointer", num_spans="pointer", tables="pointer", table_length="int", keys="pointer", block_stride="int",
)  # fmt: skip
def pool_keys(args, thread, threads):
    """x (rows, 2 * size): keys beside gates. Of each whole run of `every` tokens its key is kept, float16, those of a block as
    (size, ENTRY_TILE); places (every, size). state (kept, 2 * size), a token at position p in row p % kept. Threads share the
    channels.
    """
    begin, end = share(args.size // 16, thread, threads)
    for number in range(load_i64(args.num_spans, 0)):
        span = offset(args.spans, number * 32)
        sequence, row, rows, position = load_i64(span, 0), load_i64(span, 1), load_i64(span, 2), load_i64(span, 3)
        x, state = offset(args.x, row * args.x_stride), offset(args.state, sequence * args.state_stride)
        for run in range(position // args.every, (position + rows) // args.every):
            t = (run + 1) * args.every - 1 - position  # its last token
            block, _ = cache_place(args.tables, args.table_length, sequence, position + t)
            keys, place = offset(args.keys, block * args.block_stride), entry_place(position + t, args.every)
            for d in range(begin * 16, end * 16, 16):
                values = pooled(args, x, state, t, position, d)
                for i in range(16):
                    store_f16(keys, (d + i) * ENTRY_TILE + place, lane(values, i))
        for t in range(max(rows - args.kept, 0), rows):
            own, left = offset(x, t * args.x_stride), offset(state, (position + t) % args.kept * 2 * args.size * 4)
            for d in range(begin * 16, end * 16, 16):
                store_f32x16(left, d, load_f32x16(own, d))
                store_f32x16(left, args.size + d, load_f32x16(own, args.size + d))
