"""Compressed attention (DeepSeek-V4): a row sees the last tokens as they are, and all text as entries, one for so many tokens each.

Of a token one row is kept, float16 and already rotated, which is key and value at once, for all heads. An entry is a sum of what a
matrix makes of its tokens, each channel weighted by a softmax over these; overlapping, also over the tokens of the entry before, of
which it takes other channels. It is rotated as the first of its tokens would be, and lies in the block of its last one.
"""

from math import cos, sin

from numatp.kernels.caches import f16
from numatp.kernels.compile import device, kernel, share
from numatp.kernels.exp import exp
from numatp.kernels.jit import float32, int64
from numatp.kernels.layout import CACHE_BLOCK
from numatp.kernels.norm import inverse_rms
from numatp.kernels.places import cache_place
from numatp.kernels.rope import rotate_pairs
from numatp.kernels.row_attention import (
    attend_heads,
    attention,
    heads_together,
    join_heads,
    load_heads,
    state_of_heads,
    store_heads,
)
from numatp.kernels.rows import GROUP
from numatp.kernels.simd import (
    fma,
    lane,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_f64,
    load_i16,
    load_i64,
    max_f32x16,
    offset,
    splat_f32,
    store_f16,
    store_f16x16,
    store_f32,
    store_f32x16,
    store_i16,
    widen,
)
from numatp.kernels.softmax import LOWEST
from numatp.kernels.states import ENTRY_TILE, INDEX_HEADS


@device
def normalize(x, size, weight, epsilon):
    inverse = inverse_rms(x, size, epsilon)
    for i in range(0, size, 16):
        store_f32x16(x, i, load_f32x16(x, i) * inverse * load_f32x16(weight, i))


@kernel(
    x="pointer", x_stride="int", rows="pointer", size="int", weight="pointer", epsilon="float", angles="pointer", pairs="int",
    positions="pointer", sequences="pointer", tables="pointer", table_length="int", kept="pointer", block_stride="int",
)  # fmt: skip
def append_row(args, thread, threads):
    """x (rows, size) in place: normalised, its last pairs rotated; kept as float16 (CACHE_BLOCK, size)."""
    first, last = share(load_i64(args.rows, 0), thread, threads)
    for row in range(first, last):
        x = offset(args.x, row * args.x_stride)
        normalize(x, args.size, args.weight, args.epsilon)
        rotate_pairs(offset(x, (args.size - 2 * args.pairs) * 4), offset(args.angles, row * args.pairs * 8), args.pairs, 2, 1)
        block, place = cache_place(args.tables, args.table_length, load_i64(args.sequences, row), load_i64(args.positions, row))
        f16.store_value(offset(args.kept, block * args.block_stride), place, args.size, x)


# ---------------------------------------------------------------- entries


@device
def clear(state, size, d):
    """16 channels of an entry of no tokens."""
    store_f32x16(state, d, splat_f32(LOWEST))
    store_f32x16(state, size + d, splat_f32(0))
    store_f32x16(state, 2 * size + d, splat_f32(0))


@device
def add_token(state, size, d, value, gate):
    """The online softmax over an entry's tokens, of 16 channels."""
    before = load_f32x16(state, d)
    highest = max_f32x16(before, gate)
    kept, own = exp(before - highest), exp(gate - highest)
    store_f32x16(state, d, highest)
    store_f32x16(state, size + d, fma(load_f32x16(state, size + d), kept, own))
    store_f32x16(state, 2 * size + d, fma(load_f32x16(state, 2 * size + d), kept, own * value))


@kernel(
    x="pointer", x_stride="int", gates="pointer", size="int", overlapping="int", every="int", places="pointer", state="pointer",
    state_stride="int", spans="pointer", num_spans="pointer", out="pointer",
)  # fmt: skip
def compress(args, thread, threads):
    """out (rows, size): entries, at the rows of their last tokens; threads share the channels.

    x (rows, size): values, and gates as many; overlapping: (rows, 2 * size), those for the next entry before those for this one.
    places (every, channels of x): is added to the gates of a token by its place in the entry. state: of the entries under way,
    see pooled_bytes.
    """
    size = args.size
    first, last = share(size // 16, thread, threads)
    channels = 2 * size if args.overlapping else size
    for number in range(load_i64(args.num_spans, 0)):
        span = offset(args.spans, number * 32)
        sequence, row, rows, position = load_i64(span, 0), load_i64(span, 1), load_i64(span, 2), load_i64(span, 3)
        state = offset(args.state, sequence * args.state_stride)
        following = offset(state, 3 * size * 4)
        for d in range(first * 16, last * 16, 16):
            for t in range(rows):
                x, gates = offset(args.x, (row + t) * args.x_stride), offset(args.gates, (row + t) * args.x_stride)
                place = (position + t) % args.every
                places = offset(args.places, place * channels * 4)
                if position + t == 0:
                    clear(state, size, d)
                    if args.overlapping:
                        clear(following, size, d)
                own = channels - size + d
                add_token(state, size, d, load_f32x16(x, own), load_f32x16(gates, own) + load_f32x16(places, own))
                if args.overlapping:
                    add_token(following, size, d, load_f32x16(x, d), load_f32x16(gates, d) + load_f32x16(places, d))
                if place == args.every - 1:
                    entry = load_f32x16(state, 2 * size + d) / load_f32x16(state, size + d)
                    store_f32x16(offset(args.out, (row + t) * size * 4), d, entry)
                    clear(state, size, d)
                    if args.overlapping:
                        for i in range(3):
                            store_f32x16(state, i * size + d, load_f32x16(following, i * size + d))
                        clear(following, size, d)


@device
def entry_place(position, every):
    """Where in its block the entry is whose last token is at `position`."""
    return position % CACHE_BLOCK // every


@kernel(
    x="pointer", rows="pointer", size="int", every="int", weight="pointer", epsilon="float", frequencies="pointer", pairs="int",
    positions="pointer", sequences="pointer", tables="pointer", table_length="int", kept="pointer", block_stride="int",
    by_columns="int",
)  # fmt: skip
def append_entry(args, thread, threads):
    """Rows of x (rows, size) that are entries, in place: normalised, the last pairs rotated; kept as float16, by_columns: those of
    a block as (size, ENTRY_TILE). frequencies: float64 (pairs,).
    """
    first, last = share(load_i64(args.rows, 0), thread, threads)
    for row in range(first, last):
        position = load_i64(args.positions, row)
        if (position + 1) % args.every == 0:
            x = offset(args.x, row * args.size * 4)
            normalize(x, args.size, args.weight, args.epsilon)
            tail = offset(x, (args.size - 2 * args.pairs) * 4)
            for i in range(args.pairs):
                angle = (position + 1 - args.every) * load_f64(args.frequencies, i)
                c, s = float32(cos(angle)), float32(sin(angle))
                a, b = load_f32(tail, 2 * i), load_f32(tail, 2 * i + 1)
                store_f32(tail, 2 * i, a * c - b * s)
                store_f32(tail, 2 * i + 1, a * s + b * c)
            block, _ = cache_place(args.tables, args.table_length, load_i64(args.sequences, row), position)
            kept, place = offset(args.kept, block * args.block_stride), entry_place(position, args.every)
            if args.by_columns:
                for d in range(args.size):
                    store_f16(kept, d * ENTRY_TILE + place, load_f32(x, d))
            else:
                f16.store_value(kept, place, args.size, x)


@kernel(
    q="pointer", q_stride="int", rows="pointer", heads="int", size="int", weights="pointer", weights_stride="int",
    positions="pointer", sequences="pointer", tables="pointer", table_length="int", keys="pointer", block_stride="int",
    every="int", top="int", pitch="int", scores="pointer",
)  # fmt: skip
def score_entries(args, thread, threads):
    """scores (rows, pitch): of each entry, as sparse.score_tokens has it of tokens, for rows with more than `top` entries; heads
    are a multiple of INDEX_HEADS, a block has ENTRY_TILE entries at most.
    """
    unit = int64(0)
    for row in range(load_i64(args.rows, 0)):
        entries = (load_i64(args.positions, row) + 1) // args.every
        if entries <= args.top:
            continue
        table = offset(args.tables, load_i64(args.sequences, row) * args.table_length * 8)
        q, weights = offset(args.q, row * args.q_stride), offset(args.weights, row * args.weights_stride)
        in_block = CACHE_BLOCK // args.every
        for block in range((entries + in_block - 1) // in_block):
            unit += 1
            if unit % threads != thread:
                continue
            keys, total = offset(args.keys, load_i64(table, block) * args.block_stride), splat_f32(0)
            for head in range(0, args.heads, INDEX_HEADS):
                q0 = offset(q, head * args.size * 4)
                q1, q2, q3 = offset(q0, args.size * 4), offset(q0, 2 * args.size * 4), offset(q0, 3 * args.size * 4)
                s0, s1, s2, s3 = splat_f32(0), splat_f32(0), splat_f32(0), splat_f32(0)
                for d in range(args.size):
                    key = widen(load_f16x16(keys, d * ENTRY_TILE))
                    s0 = fma(splat_f32(load_f32(q0, d)), key, s0)
                    s1 = fma(splat_f32(load_f32(q1, d)), key, s1)
                    s2 = fma(splat_f32(load_f32(q2, d)), key, s2)
                    s3 = fma(splat_f32(load_f32(q3, d)), key, s3)
                total = fma(splat_f32(load_f32(weights, head)), max_f32x16(s0, splat_f32(0)), total)
                total = fma(splat_f32(load_f32(weights, head + 1)), max_f32x16(s1, splat_f32(0)), total)
                total = fma(splat_f32(load_f32(weights, head + 2)), max_f32x16(s2, splat_f32(0)), total)
                total = fma(splat_f32(load_f32(weights, head + 3)), max_f32x16(s3, splat_f32(0)), total)
            out = offset(args.scores, row * args.pitch * 4)
            for i in range(min(in_block, entries - block * in_block)):
                store_f32(out, block * in_block + i, lane(total, i))


# ---------------------------------------------------------------- attention


@device
def row_at(args, sequence, item, tokens, first_token, row):
    """Where the row of an item is that a row sees: its last tokens come first, then entries."""
    if item < tokens:
        block, place = cache_place(args.tables, args.table_length, sequence, first_token + item)
        return offset(args.kept, block * args.block_stride + place * args.size * 2)
    entry = item - tokens
    if args.choosing:
        entry = load_i64(args.chosen, row * args.top + entry)
    last = (entry + 1) * args.every - 1
    block, _ = cache_place(args.entry_tables, args.table_length, sequence, last)
    return offset(args.entries, block * args.entry_stride + entry_place(last, args.every) * args.size * 2)


@device
def gather(args, sequence, begin, count, tokens, first_token, row, keys, values):
    """Of `count` items from `begin` on the rows, as values (CACHE_BLOCK, size) and as keys (size, CACHE_BLOCK)."""
    for i in range(count):
        own = row_at(args, sequence, begin + i, tokens, first_token, row)
        for d in range(0, args.size, 16):
            store_f16x16(offset(values, i * args.size * 2), d, load_f16x16(own, d))
        for d in range(args.size):
            store_i16(keys, d * CACHE_BLOCK + i, load_i16(own, d))


@device
def attend_items(args, scratch, room, sequence, row, position, parts, split, num_splits, blocks, tokens, items):
    """One of num_splits parts of what one row sees, for all heads."""
    size = args.size
    first, last = share(blocks, split, num_splits)
    keys, values = room, offset(room, size * CACHE_BLOCK * 2)
    together = heads_together(args.heads)
    for begin in range(0, args.heads, together):
        end = min(begin + together, args.heads)
        load_heads(args, scratch, row, begin, end, size, size)
        if split == 0:
            for head in range(begin, end, GROUP):
                state, count = state_of_heads(args, scratch, begin, head, end)
                attention.add_sinks(state, offset(args.sinks, head * 4), count, 1)
        for block in range(first, last):
            seen = min(items - block * CACHE_BLOCK, CACHE_BLOCK)
            gather(args, sequence, block * CACHE_BLOCK, seen, tokens, position + 1 - tokens, row, keys, values)
            attend_heads(args, scratch, begin, end, keys, values, size, size, seen)
        store_heads(args, scratch, row, begin, end, size, parts, split, num_splits)


@kernel(
    q="pointer", q_stride="int", heads="int", size="int", scale="float", sinks="pointer", spans="pointer", num_spans="pointer",
    table_length="int", tables="pointer", kept="pointer", block_stride="int", window="int", entry_tables="pointer",
    entries="pointer", entry_stride="int", every="int", choosing="int", chosen="pointer", top="int", scratch="pointer",
    scratch_stride="int", room="pointer", room_stride="int", parts="pointer", finished="pointer", out="pointer",
)  # fmt: skip
def compressed_attention(args, thread, threads):
    """out (rows, heads, size) = softmax(scale * q k) k, where all heads see the rows of the last `window` tokens and the entries of
    all whole runs of `every` tokens (0: none); choosing: those of a row that `chosen` (rows, top) lists, if it has more than `top`.

    sinks: of each head the score of one more, whose value is zero. Parts of a row that decodes and their order are as in
    attention.attention. room: for a block of keys and values of each thread.
    """
    scratch, room = offset(args.scratch, thread * args.scratch_stride), offset(args.room, thread * args.room_stride)
    part_size, unit = (attention.PART_HEAD + args.size) * 4, int64(0)
    for number in range(load_i64(args.num_spans, 0)):
        span = offset(args.spans, number * 32)
        sequence, first_row, rows, first = load_i64(span, 0), load_i64(span, 1), load_i64(span, 2), load_i64(span, 3)
        parts = offset(args.parts, number * args.heads * attention.SPLITS * part_size)
        for row in range(rows):
            position = first + row
            tokens = min(position + 1, args.window)
            items = tokens
            if args.every > 0:
                entries = (position + 1) // args.every
                items += min(entries, args.top) if args.choosing else entries
            blocks = (items + CACHE_BLOCK - 1) // CACHE_BLOCK
            num_splits = min(blocks, attention.SPLITS) if rows == 1 else 1
            for split in range(num_splits):
                unit += 1
                if unit % threads != thread:
                    continue
                attend_items(
                    args, scratch, room, sequence, first_row + row, position, parts, split, num_splits, blocks, tokens, items,
                )  # fmt: skip
                join_heads(args, number, first_row, args.size, parts, num_splits)
