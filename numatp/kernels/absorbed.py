"""Latent attention in which queries become queries for latent rows, and sums of latent rows become values: which rows of a Step are
absorbed so, and their way through the matrices of the heads. The others are kernels/unabsorbed.py's.
"""

from math import log

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.jit import float32, int64
from numatp.kernels.rope import rotate_pairs
from numatp.kernels.rows import num_long, num_many
from numatp.kernels.simd import load_f32x16, load_i64, offset, splat_f32, store_f32x16, store_i64


@device
def made_rows(rows, row, count, position, limit):
    """How many of a span's rows, the first ones, attend to keys and values made of latent rows: those of long prompts at positions
    below the limit. All others are absorbed.
    """
    return max(min(limit - position, count), 0) if row < num_long(rows) else int64(0)


@kernel(
    rows="pointer", spans="pointer", num_spans="pointer", limit="int", heads="int", pitch="int", counts="pointer", active="pointer",
    rows_of_places="pointer", many="pointer", places="pointer", own_spans="pointer", num_own_spans="pointer", num_made="pointer",
)  # fmt: skip
def arrange_heads(args, thread, threads):
    """By one thread: what experts.arrange says of experts, of heads that all absorbed rows go through; a place has row * heads +
    head. A head's places are rows that go through tile registers, then in a group of their own the others, in whole groups.

    places (rows,): those in the first head, -1 of rows that are not absorbed, num_made in all. own_spans: of the absorbed ones.
    """
    if thread:
        return
    num_tiled, all_rows, all_spans = num_many(args.rows), load_i64(args.rows, 0), load_i64(args.num_spans, 0)
    own_spans, many, others = int64(0), int64(0), int64(0)
    for number in range(all_spans):
        span = offset(args.spans, number * 32)
        row, count, position = load_i64(span, 1), load_i64(span, 2), load_i64(span, 3)
        made = made_rows(args.rows, row, count, position, args.limit)
        if made < count:
            own = offset(args.own_spans, own_spans * 32)
            store_i64(own, 0, load_i64(span, 0))
            store_i64(own, 1, row + made)
            store_i64(own, 2, count - made)
            store_i64(own, 3, position + made)
            own_spans += 1
        for i in range(row, row + count):
            store_i64(args.places, i, -1)
        for i in range(row + made, row + count):
            if i < num_tiled:
                store_i64(args.places, i, many)
                many += 1
            else:
                store_i64(args.places, i, others)
                others += 1
    start = (many + args.pitch - 1) // args.pitch * args.pitch
    places = start + (others + args.pitch - 1) // args.pitch * args.pitch
    store_i64(args.num_own_spans, 0, own_spans)
    store_i64(args.num_made, 0, all_rows - many - others)
    store_i64(args.counts, 0, args.heads * places)
    store_i64(args.counts, 1, args.heads if places > 0 else 0)
    for head in range(args.heads):
        store_i64(args.active, head * 4, head)
        store_i64(args.active, head * 4 + 1, head * places // args.pitch)
        store_i64(args.active, head * 4 + 2, many)
        store_i64(args.active, head * 4 + 3, others)
        for place in range(head * places, (head + 1) * places):
            store_i64(args.rows_of_places, place, 0)
            store_i64(args.many, place, place < head * places + start)
    for row in range(all_rows):
        place = load_i64(args.places, row)
        if place >= 0:
            place += start if row >= num_tiled else 0
            store_i64(args.places, row, place)
            for head in range(args.heads):
                store_i64(args.rows_of_places, head * places + place, row * args.heads + head)


@device
def heat_of(heat, length, position):
    """What a row's queries are multiplied by, 1 where heat is 0."""
    return float32(1 + heat * log(1 + position // length)) if heat != 0 else float32(1)


@kernel(
    made="pointer", made_stride="int", width="int", rest="pointer", rest_stride="int", rest_width="int", angles="pointer",
    rows="pointer", heads="int", counts="pointer", places="pointer", positions="pointer", heat="float", heat_length="int",
    out="pointer",
)  # fmt: skip
def by_rows(args, thread, threads):
    """out (rows, heads, width + rest_width) = what was made for each head (places, width), then `rest`, whose neighbours rotate.

    rest: of each row's head in turn rest_width values, rest_stride bytes apart. rest_width may be 0. heat: see heat_of. Of rows
    without a place nothing is written.
    """
    in_head = load_i64(args.counts, 0) // max(args.heads, 1)
    first, last = share(load_i64(args.rows, 0) * args.heads, thread, threads)
    for item in range(first, last):
        row, head = item // args.heads, item % args.heads
        place = load_i64(args.places, row)
        if place < 0:
            continue
        out = offset(args.out, item * (args.width + args.rest_width) * 4)
        made = offset(args.made, (head * in_head + place) * args.made_stride)
        for i in range(0, args.width, 16):
            store_f32x16(out, i, load_f32x16(made, i))
        for i in range(0, args.rest_width, 16):
            store_f32x16(out, args.width + i, load_f32x16(offset(args.rest, item * args.rest_stride), i))
        rotated = offset(out, args.width * 4)
        rotate_pairs(rotated, offset(args.angles, row * args.rest_width * 4), args.rest_width // 2, 2, 1)
        if args.heat != 0:
            factor = splat_f32(heat_of(args.heat, args.heat_length, load_i64(args.positions, row)))
            for i in range(0, args.width + args.rest_width, 16):
                store_f32x16(out, i, load_f32x16(out, i) * factor)
