"""Normalisation of activation rows."""

from math import sqrt

from numba import float32

from numatp.kernels.compile import kernel, share
from numatp.kernels.simd import (
    fma,
    load_f32x16,
    load_i64,
    offset,
    splat_f32,
    store_f32x16,
    sum_f32x16,
)


@kernel(
    x="pointer", rows="pointer", select="pointer", weight="pointer", width="int", epsilon="float",
    out="pointer", out_thread_stride="int", private="int",
)  # fmt: skip
def rms_norm(args, thread, threads):
    """out[i] = x[select[i]] / sqrt(mean(x**2) + epsilon) * weight, for rows of `width` floats, a multiple of 16.

    select: int64 per output row. private: every thread makes all rows for itself; else the threads share the rows. One row is
    always summed by one thread in one order, so that all threads and ranks get the same bits.
    """
    rows = load_i64(args.rows, 0)
    first, last = share(rows, thread, threads)
    if args.private:
        first, last = 0, rows
    for row in range(first, last):
        x = offset(args.x, load_i64(args.select, row) * args.width * 4)
        out = offset(args.out, row * args.width * 4 + thread * args.out_thread_stride)
        squares = splat_f32(0)
        for i in range(0, args.width, 16):
            squares = fma(load_f32x16(x, i), load_f32x16(x, i), squares)
        scale = splat_f32(float32(1) / sqrt(sum_f32x16(squares) / float32(args.width) + args.epsilon))
        for i in range(0, args.width, 16):
            store_f32x16(out, i, load_f32x16(x, i) * scale * load_f32x16(args.weight, i))


@kernel(
    x="pointer", rows="pointer", select="pointer", weight="pointer", width="int", epsilon="float", scale="float",
    out="pointer", out_thread_stride="int", private="int",
)  # fmt: skip
def layer_norm(args, thread, threads):
    """out[i] = (x - mean(x)) / sqrt(variance(x) + epsilon) * weight * scale of x[select[i]]; otherwise as rms_norm."""
    rows = load_i64(args.rows, 0)
    first, last = share(rows, thread, threads)
    if args.private:
        first, last = 0, rows
    for row in range(first, last):
        x = offset(args.x, load_i64(args.select, row) * args.width * 4)
        out = offset(args.out, row * args.width * 4 + thread * args.out_thread_stride)
        sums = splat_f32(0)
        for i in range(0, args.width, 16):
            sums = sums + load_f32x16(x, i)
        mean = splat_f32(sum_f32x16(sums) / float32(args.width))
        squares = splat_f32(0)
        for i in range(0, args.width, 16):
            apart = load_f32x16(x, i) - mean
            squares = fma(apart, apart, squares)
        scale = splat_f32(args.scale / sqrt(sum_f32x16(squares) / float32(args.width) + args.epsilon))
        for i in range(0, args.width, 16):
            store_f32x16(out, i, (load_f32x16(x, i) - mean) * scale * load_f32x16(args.weight, i))
