"""Attention over latent rows (DeepSeek-V2, https://arxiv.org/abs/2405.04434): of each token one row is kept for all heads, and a
part of the key that rotates. A head's own matrix makes a query for latent rows of the query, and another makes values of their sum.
"""

from math import log, sqrt
from types import ModuleType

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.jit import float32
from numatp.kernels.norm import sum_of_squares
from numatp.kernels.places import cache_place
from numatp.kernels.rope import rotate_pairs
from numatp.kernels.rows import num_many
from numatp.kernels.simd import load_f32x16, load_i64, offset, splat_f32, store_f32x16, store_i64

cache: ModuleType = globals()["cache"]  # the cache type: specialize() has set it


@device
def place_of_row(rows, pitch, row):
    """Among those of a head: rows that go through tile registers, then in a group of their own the others."""
    many = num_many(rows)
    return row if row < many else (many + pitch - 1) // pitch * pitch + row - many


@device
def places_of_head(rows, pitch):
    """In whole groups."""
    return (place_of_row(rows, pitch, load_i64(rows, 0)) + pitch - 1) // pitch * pitch


@kernel(rows="pointer", heads="int", pitch="int", counts="pointer", active="pointer", rows_of_places="pointer", many="pointer")
def arrange_heads(args, thread, threads):
    """By one thread: what experts.arrange says of experts, of heads that all rows go through; a place has row * heads + head."""
    if thread:
        return
    rows, many = load_i64(args.rows, 0), num_many(args.rows)
    places = places_of_head(args.rows, args.pitch)
    store_i64(args.counts, 0, args.heads * places)
    store_i64(args.counts, 1, args.heads)
    for head in range(args.heads):
        store_i64(args.active, head * 4, head)
        store_i64(args.active, head * 4 + 1, head * places // args.pitch)
        store_i64(args.active, head * 4 + 2, many)
        store_i64(args.active, head * 4 + 3, rows - many)
        others = head * places + place_of_row(args.rows, args.pitch, many)
        for place in range(head * places, (head + 1) * places):
            store_i64(args.rows_of_places, place, 0)
            store_i64(args.many, place, place < others)
        for row in range(rows):
            store_i64(args.rows_of_places, head * places + place_of_row(args.rows, args.pitch, row), row * args.heads + head)


@kernel(
    made="pointer", made_stride="int", width="int", rest="pointer", rest_stride="int", rest_width="int", angles="pointer",
    rows="pointer", heads="int", pitch="int", positions="pointer", heat="float", heat_length="int", out="pointer",
)  # fmt: skip
def by_rows(args, thread, threads):
    """out (rows, heads, width + rest_width) = what was made for each head (places, width), then `rest`, whose neighbours rotate.

    rest: of each row's head in turn rest_width values, rest_stride bytes apart. rest_width may be 0. heat: all is multiplied by
    1 + heat * log(1 + position // heat_length); 0: it is not.
    """
    places = places_of_head(args.rows, args.pitch)
    first, last = share(load_i64(args.rows, 0) * args.heads, thread, threads)
    for item in range(first, last):
        row, head = item // args.heads, item % args.heads
        out = offset(args.out, item * (args.width + args.rest_width) * 4)
        made = offset(args.made, (head * places + place_of_row(args.rows, args.pitch, row)) * args.made_stride)
        for i in range(0, args.width, 16):
            store_f32x16(out, i, load_f32x16(made, i))
        for i in range(0, args.rest_width, 16):
            store_f32x16(out, args.width + i, load_f32x16(offset(args.rest, item * args.rest_stride), i))
        rotated = offset(out, args.width * 4)
        rotate_pairs(rotated, offset(args.angles, row * args.rest_width * 4), args.rest_width // 2, 2, 1)
        if args.heat != 0:
            factor = splat_f32(float32(1 + args.heat * log(1 + load_i64(args.positions, row) // args.heat_length)))
            for i in range(0, args.width + args.rest_width, 16):
                store_f32x16(out, i, load_f32x16(out, i) * factor)


@kernel(
    x="pointer", x_stride="int", rows="pointer", latent="int", rotated="int", weight="pointer", epsilon="float", angles="pointer",
    positions="pointer", sequences="pointer", tables="pointer", table_length="int", keys="pointer", values="pointer",
    block_stride="int", head_bytes="int", value_bytes="int", copy="pointer",
)  # fmt: skip
def append_latent(args, thread, threads):
    """x (rows, latent + rotated) in place: the first part normalised, the rest's neighbours rotated; the whole row is kept as a
    key, the first part as a value. What a cache keeps it may overwrite: copy (rows, latent) is for the value.
    """
    first, last = share(load_i64(args.rows, 0), thread, threads)
    for row in range(first, last):
        x = offset(args.x, row * args.x_stride)
        scale = splat_f32(float32(1) / sqrt(sum_of_squares(x, args.latent) / float32(args.latent) + args.epsilon))
        copy = offset(args.copy, row * args.latent * 4)
        for i in range(0, args.latent, 16):
            value = load_f32x16(x, i) * scale * load_f32x16(args.weight, i)
            store_f32x16(x, i, value)
            store_f32x16(copy, i, value)
        rotate_pairs(offset(x, args.latent * 4), offset(args.angles, row * args.rotated * 4), args.rotated // 2, 2, 1)
        block, place = cache_place(args.tables, args.table_length, load_i64(args.sequences, row), load_i64(args.positions, row))
        cache.store_key(offset(args.keys, block * args.block_stride), place, args.latent + args.rotated, x)
        cache.store_value(offset(args.values, block * args.block_stride), place, args.latent, copy)
