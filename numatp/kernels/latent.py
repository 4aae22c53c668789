"""Attention over latent rows (DeepSeek-V2, https://arxiv.org/abs/2405.04434): of each token one row is kept for all heads, and a
part of the key that rotates. A head's own matrix makes a query for latent rows of the query, and another makes values of their sum.
"""

from math import log, sqrt
from types import ModuleType

from numatp.kernels.compile import kernel, share
from numatp.kernels.jit import float32
from numatp.kernels.norm import sum_of_squares
from numatp.kernels.places import cache_place
from numatp.kernels.rope import rotate_pairs
from numatp.kernels.simd import load_f32x16, load_i64, offset, splat_f32, store_f32x16, store_i64

cache: ModuleType = globals()["cache"]  # the cache type: specialize() has set it


@kernel(rows="pointer", heads="int", pitch="int", counts="pointer", active="pointer", rows_of_places="pointer", company="pointer")
def arrange_heads(args, thread, threads):
    """By one thread: what experts.arrange says of experts, of heads that all rows go through; a place has row * heads + head."""
    if thread:
        return
    rows = load_i64(args.rows, 0)
    groups = (rows + args.pitch - 1) // args.pitch
    store_i64(args.counts, 0, args.heads * groups * args.pitch)
    store_i64(args.counts, 1, args.heads)
    for head in range(args.heads):
        store_i64(args.active, head * 3, head)
        store_i64(args.active, head * 3 + 1, head * groups)
        store_i64(args.active, head * 3 + 2, rows)
        for row in range(groups * args.pitch):
            place = head * groups * args.pitch + row
            store_i64(args.rows_of_places, place, row * args.heads + head if row < rows else 0)
            store_i64(args.company, place, rows)


@kernel(
    made="pointer", made_stride="int", width="int", rest="pointer", rest_stride="int", rest_width="int", angles="pointer",
    rows="pointer", heads="int", pitch="int", positions="pointer", heat="float", heat_length="int", out="pointer",
)  # fmt: skip
def by_rows(args, thread, threads):
    """out (rows, heads, width + rest_width) = what was made for each head (places, width), then `rest`, whose neighbours rotate.

    rest: of each row's head in turn rest_width values, rest_stride bytes apart. rest_width may be 0. heat: all is multiplied by
    1 + heat * log(1 + position // heat_length); 0: it is not.
    """
    rows = load_i64(args.rows, 0)
    groups = (rows + args.pitch - 1) // args.pitch
    first, last = share(rows * args.heads, thread, threads)
    for item in range(first, last):
        row, head = item // args.heads, item % args.heads
        out = offset(args.out, item * (args.width + args.rest_width) * 4)
        made = offset(args.made, (head * groups * args.pitch + row) * args.made_stride)
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
    block_stride="int", head_bytes="int", value_bytes="int",
)  # fmt: skip
def append_latent(args, thread, threads):
    """x (rows, latent + rotated) in place: the first part normalised, the rest's neighbours rotated; the whole row is kept as a
    key, the first part as a value.
    """
    first, last = share(load_i64(args.rows, 0), thread, threads)
    for row in range(first, last):
        x = offset(args.x, row * args.x_stride)
        scale = splat_f32(float32(1) / sqrt(sum_of_squares(x, args.latent) / float32(args.latent) + args.epsilon))
        for i in range(0, args.latent, 16):
            store_f32x16(x, i, load_f32x16(x, i) * scale * load_f32x16(args.weight, i))
        rotate_pairs(offset(x, args.latent * 4), offset(args.angles, row * args.rotated * 4), args.rotated // 2, 2, 1)
        block, place = cache_place(args.tables, args.table_length, load_i64(args.sequences, row), load_i64(args.positions, row))
        cache.store_key(offset(args.keys, block * args.block_stride), place, args.latent + args.rotated, x)
        cache.store_value(offset(args.values, block * args.block_stride), place, args.latent, x)
