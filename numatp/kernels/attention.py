"""Attention over a float16 cache in blocks, with the online softmax of https://arxiv.org/abs/1805.02867.

Within a block of the cache a layer has keys (kv_heads, head_size, CACHE_BLOCK), so that one vector holds 16 tokens and no score
needs a sum across lanes, and values (kv_heads, CACHE_BLOCK, head_size).
"""

from math import exp as scalar_exp

from numba import float32

from numatp.kernels.compile import kernel, share
from numatp.kernels.exp import exp
from numatp.kernels.simd import (
    fma,
    keep_lanes,
    largest,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i64,
    max_f32x16,
    offset,
    splat_f32,
    store_f32x16,
    sum_f32x16,
    widen,
)

CACHE_BLOCK = 64  # tokens
LOWEST = -1e30  # score of a token that must not be seen; exp(LOWEST - any real score) is 0 to the softmax


@kernel(
    qkv="pointer", rows="pointer", heads="int", kv_heads="int", head_size="int", first_head="int", first_kv_head="int",
    group="int", scale="float", positions="pointer", sequences="pointer", tables="pointer", table_length="int",
    keys="pointer", values="pointer", block_stride="int", scratch="pointer", scratch_stride="int", out="pointer",
)  # fmt: skip
def attention(args, thread, threads):
    """out (rows, heads, head_size) = softmax(scale * q k) v over all positions up to the row's own.

    heads and kv_heads are this rank's; query head h of the model, h = first_head + local index, reads KV head h // group.
    block_stride: bytes from one block of the cache to the next. scratch: CACHE_BLOCK floats per thread, scratch_stride bytes apart.
    """
    first, last = share(load_i64(args.rows, 0) * args.heads, thread, threads)
    weights = offset(args.scratch, thread * args.scratch_stride)
    size = args.head_size
    for item in range(first, last):
        row, head = item // args.heads, item % args.heads
        kv_head = (args.first_head + head) // args.group - args.first_kv_head
        q = offset(args.qkv, (row * (args.heads + 2 * args.kv_heads) + head) * size * 4)
        out = offset(args.out, item * size * 4)
        tokens = load_i64(args.positions, row) + 1
        table = offset(args.tables, load_i64(args.sequences, row) * args.table_length * 8)
        highest, total = float32(LOWEST), float32(0)
        for d in range(0, size, 16):
            store_f32x16(out, d, splat_f32(0))
        for block in range((tokens + CACHE_BLOCK - 1) // CACHE_BLOCK):
            place = load_i64(table, block) * args.block_stride + kv_head * CACHE_BLOCK * size * 2
            keys, values = offset(args.keys, place), offset(args.values, place)
            s0, s1, s2, s3 = splat_f32(0), splat_f32(0), splat_f32(0), splat_f32(0)
            for d in range(size):
                element = splat_f32(load_f32(q, d))
                s0 = fma(element, widen(load_f16x16(keys, d * CACHE_BLOCK)), s0)
                s1 = fma(element, widen(load_f16x16(keys, d * CACHE_BLOCK + 16)), s1)
                s2 = fma(element, widen(load_f16x16(keys, d * CACHE_BLOCK + 32)), s2)
                s3 = fma(element, widen(load_f16x16(keys, d * CACHE_BLOCK + 48)), s3)
            scale, lowest, seen = splat_f32(args.scale), splat_f32(LOWEST), tokens - block * CACHE_BLOCK
            s0, s1 = keep_lanes(seen, s0 * scale, lowest), keep_lanes(seen - 16, s1 * scale, lowest)
            s2, s3 = keep_lanes(seen - 32, s2 * scale, lowest), keep_lanes(seen - 48, s3 * scale, lowest)
            new_highest = max(highest, largest(max_f32x16(max_f32x16(s0, s1), max_f32x16(s2, s3))))
            correction = float32(scalar_exp(highest - new_highest))
            top, zero = splat_f32(new_highest), splat_f32(0)
            s0, s1 = keep_lanes(seen, exp(s0 - top), zero), keep_lanes(seen - 16, exp(s1 - top), zero)
            s2, s3 = keep_lanes(seen - 32, exp(s2 - top), zero), keep_lanes(seen - 48, exp(s3 - top), zero)
            total = total * correction + sum_f32x16((s0 + s1) + (s2 + s3))
            highest = new_highest
            store_f32x16(weights, 0, s0)
            store_f32x16(weights, 16, s1)
            store_f32x16(weights, 32, s2)
            store_f32x16(weights, 48, s3)
            for d in range(0, size, 16):
                sums = load_f32x16(out, d) * splat_f32(correction)
                # Places behind `seen` may hold anything, not-a-number too: they must not be read.
                for token in range(min(seen, CACHE_BLOCK)):
                    sums = fma(splat_f32(load_f32(weights, token)), widen(load_f16x16(values, token * size + d)), sums)
                store_f32x16(out, d, sums)
        inverse = splat_f32(float32(1) / total)
        for d in range(0, size, 16):
            store_f32x16(out, d, load_f32x16(out, d) * inverse)
