"""Rotary position embedding (https://arxiv.org/abs/2104.09864), and the append to the key-value cache that follows it."""

from math import cos, sin

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.layout import CACHE_BLOCK
from numatp.kernels.simd import load_f32, load_f64, load_i64, offset, store_f16, store_f32


@kernel(positions="pointer", rows="pointer", frequencies="pointer", pairs="int", scale="float", out="pointer")
def rotation_angles(args, thread, threads):
    """out (rows, pairs, 2) = scale * cos and sin of position * frequency; frequencies are float64 (pairs,)."""
    first, last = share(load_i64(args.rows, 0), thread, threads)
    for row in range(first, last):
        position = load_i64(args.positions, row)
        for i in range(args.pairs):
            angle = position * load_f64(args.frequencies, i)
            store_f32(args.out, (row * args.pairs + i) * 2, args.scale * cos(angle))
            store_f32(args.out, (row * args.pairs + i) * 2 + 1, args.scale * sin(angle))


@device
def rotate_pairs(head, angles, pairs, step, apart):
    """Rotates the pairs (i * step, i * step + apart) of one head in place."""
    for i in range(pairs):
        c, s = load_f32(angles, 2 * i), load_f32(angles, 2 * i + 1)
        first, second = i * step, i * step + apart
        a, b = load_f32(head, first), load_f32(head, second)
        store_f32(head, first, a * c - b * s)
        store_f32(head, second, a * s + b * c)


@device
def cache_place(tables, table_length, sequence, position):
    """Block of the cache and place in it for a position of a sequence."""
    return load_i64(tables, sequence * table_length + position // CACHE_BLOCK), position % CACHE_BLOCK


@kernel(
    qkv="pointer", rows="pointer", heads="int", kv_heads="int", head_size="int", angles="pointer", pairs="int", step="int",
    apart="int", positions="pointer", sequences="pointer", tables="pointer", table_length="int", keys="pointer", values="pointer",
    block_stride="int",
)  # fmt: skip
def rotate_and_append(args, thread, threads):
    """Rotates the q and k heads of qkv (rows, heads + 2 * kv_heads, head_size) in place; stores k and v in the cache.

    Pair i of a head is (i * step, i * step + apart): neighbours with step 2, halves with step 1 and apart = pairs.
    """
    heads = args.heads + 2 * args.kv_heads
    first, last = share(load_i64(args.rows, 0) * heads, thread, threads)
    for item in range(first, last):
        row, head = item // heads, item % heads
        values = offset(args.qkv, item * args.head_size * 4)
        if head < args.heads + args.kv_heads:
            rotate_pairs(values, offset(args.angles, row * args.pairs * 8), args.pairs, args.step, args.apart)
        if head >= args.heads:
            block, place = cache_place(args.tables, args.table_length, load_i64(args.sequences, row), load_i64(args.positions, row))
            kv_head = (head - args.heads) % args.kv_heads
            start = block * args.block_stride + kv_head * CACHE_BLOCK * args.head_size * 2  # of this head, bytes
            if head < args.heads + args.kv_heads:
                keys = offset(args.keys, start)
                for d in range(args.head_size):
                    store_f16(keys, d * CACHE_BLOCK + place, load_f32(values, d))
            else:
                kept = offset(args.values, start)
                for d in range(args.head_size):
                    store_f16(kept, place * args.head_size + d, load_f32(values, d))
