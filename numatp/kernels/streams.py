"""Hyper-connections (https://arxiv.org/abs/2512.24880): the residual is STREAMS rows side by side instead of one.

What a block reads is a weighted sum of a token's streams, and what it makes goes back to all of them, which are mixed with each
other. The weights are made of the streams themselves: `mixes` (rows, what a matrix makes of all streams) are first of the sum
(STREAMS), then of the way back (STREAMS), then of the mixing (STREAMS, STREAMS), from stream to stream.
"""

from math import exp, sqrt

from numatp.kernels.compile import device, kernel, rows_of, share
from numatp.kernels.exp import scalar_sigmoid
from numatp.kernels.jit import float32
from numatp.kernels.norm import inverse_rms
from numatp.kernels.simd import fma, lane, load_f32, load_f32x16, load_i64, offset, splat_f32, store_f32, store_f32x16, sum_f32x16
from numatp.kernels.states import STREAMS

BACK, MIXED = STREAMS, 2 * STREAMS  # where those weights begin


@kernel(x="pointer", rows="pointer", width="int", out="pointer")
def spread_streams(args, thread, threads):
    """out (rows, STREAMS, width): each row STREAMS times; threads share the columns."""
    first, last = share(args.width // 16, thread, threads)
    for row in range(load_i64(args.rows, 0)):
        x, out = offset(args.x, row * args.width * 4), offset(args.out, row * STREAMS * args.width * 4)
        for i in range(first * 16, last * 16, 16):
            for stream in range(STREAMS):
                store_f32x16(out, stream * args.width + i, load_f32x16(x, i))


@device
def scaled(mixes, i, inverse, scale, base):
    return load_f32(mixes, i) * inverse * scale + load_f32(base, i)


@device
def mixing_weights(mixes, inverse, scale, base, rounds, least, weights):
    """weights (STREAMS, STREAMS): the softmax of each row, then columns and rows divided by their sums by turns, so that in the end
    both add up to 1 (Sinkhorn and Knopp).
    """
    for j in range(STREAMS):
        highest, total = float32(-1e30), float32(0)
        for k in range(STREAMS):
            highest = max(highest, scaled(mixes, MIXED + j * STREAMS + k, inverse, scale, base))
        for k in range(STREAMS):
            value = float32(exp(scaled(mixes, MIXED + j * STREAMS + k, inverse, scale, base) - highest))
            store_f32(weights, j * STREAMS + k, value)
            total += value
        for k in range(STREAMS):
            store_f32(weights, j * STREAMS + k, load_f32(weights, j * STREAMS + k) / total + least)
    for turn in range(2 * rounds - 1):
        apart, step = (STREAMS, 1) if turn % 2 == 0 else (1, STREAMS)  # columns, rows
        for line in range(STREAMS):
            total = least
            for i in range(STREAMS):
                total += load_f32(weights, line * step + i * apart)
            for i in range(STREAMS):
                place = line * step + i * apart
                store_f32(weights, place, load_f32(weights, place) / total)


@device
def normalized_sum(streams, shares, width, epsilon, weight, out):
    """out (width,) = the rms_norm of the sum of share k of stream k."""
    squares = splat_f32(0)
    for i in range(0, width, 16):
        total = splat_f32(0)
        for k in range(STREAMS):
            total = fma(splat_f32(load_f32(shares, k)), load_f32x16(streams, k * width + i), total)
        store_f32x16(out, i, total)
        squares = fma(total, total, squares)
    factor = splat_f32(float32(1) / sqrt(sum_f32x16(squares) / float32(width) + epsilon))
    for i in range(0, width, 16):
        store_f32x16(out, i, load_f32x16(out, i) * factor * load_f32x16(weight, i))


@kernel(
    streams="pointer", mixes="pointer", mixes_stride="int", rows="pointer", select="pointer", width="int", scale="pointer",
    base="pointer", last="int", rounds="int", least="float", epsilon="float", weight="pointer", out="pointer",
    out_thread_stride="int", shares="pointer", shares_stride="int", shares_thread_stride="int", private="int",
)  # fmt: skip
def gather_streams(args, thread, threads):
    """out (rows, width): the rms_norm of a row's weighted sum of streams (rows, STREAMS, width); shares (rows, those of the sum, of
    the way back, of the mixing), as merge_streams wants them.

    scale (3,), base: of the mixes, which are of streams that are not yet normalised. least: is added to the weights of the sum and
    to sums that divide. last: there are no weights but those of the sum. select, private: see norm.rms_norm.
    """
    begin, end = rows_of(args, thread, threads)
    least = float32(args.least)
    for row in range(begin, end):
        own = load_i64(args.select, row)
        streams, mixes = offset(args.streams, own * STREAMS * args.width * 4), offset(args.mixes, own * args.mixes_stride)
        out = offset(args.out, row * args.width * 4 + thread * args.out_thread_stride)
        shares = offset(args.shares, row * args.shares_stride + thread * args.shares_thread_stride)
        inverse = lane(inverse_rms(streams, STREAMS * args.width, args.epsilon), 0)
        for k in range(STREAMS):
            store_f32(shares, k, scalar_sigmoid(scaled(mixes, k, inverse, load_f32(args.scale, 0), args.base)) + least)
        if not args.last:
            for k in range(STREAMS):
                value = scalar_sigmoid(scaled(mixes, BACK + k, inverse, load_f32(args.scale, 1), args.base))
                store_f32(shares, BACK + k, float32(2) * value)
            mixing_weights(mixes, inverse, load_f32(args.scale, 2), args.base, args.rounds, least, offset(shares, MIXED * 4))
        normalized_sum(streams, shares, args.width, args.epsilon, args.weight, out)


@kernel(
    streams="pointer", shares="pointer", rows="pointer", select="pointer", width="int", epsilon="float", weight="pointer",
    out="pointer", out_thread_stride="int", private="int",
)  # fmt: skip
def sum_streams(args, thread, threads):
    """out (rows, width): as gather_streams, where the shares (STREAMS,) are the same for all rows."""
    begin, end = rows_of(args, thread, threads)
    for row in range(begin, end):
        streams = offset(args.streams, load_i64(args.select, row) * STREAMS * args.width * 4)
        out = offset(args.out, row * args.width * 4 + thread * args.out_thread_stride)
        normalized_sum(streams, args.shares, args.width, args.epsilon, args.weight, out)


@kernel(
    streams="pointer", made="pointer", rows="pointer", width="int", shares="pointer", shares_stride="int",
    shares_thread_stride="int",
)  # fmt: skip
def merge_streams(args, thread, threads):
    """streams (rows, STREAMS, width) in place: stream k becomes share k of what a block made (rows, width), and the mixture of all
    streams; threads share the columns.
    """
    first, last = share(args.width // 16, thread, threads)
    for row in range(load_i64(args.rows, 0)):
        streams, made = offset(args.streams, row * STREAMS * args.width * 4), offset(args.made, row * args.width * 4)
        shares = offset(args.shares, row * args.shares_stride + thread * args.shares_thread_stride)
        mixed = offset(shares, MIXED * 4)
        for i in range(first * 16, last * 16, 16):
            x, s0, s1 = load_f32x16(made, i), load_f32x16(streams, i), load_f32x16(streams, args.width + i)
            s2, s3 = load_f32x16(streams, 2 * args.width + i), load_f32x16(streams, 3 * args.width + i)
            for k in range(STREAMS):
                total = splat_f32(load_f32(shares, BACK + k)) * x
                total = fma(splat_f32(load_f32(mixed, k)), s0, total)
                total = fma(splat_f32(load_f32(mixed, STREAMS + k)), s1, total)
                total = fma(splat_f32(load_f32(mixed, 2 * STREAMS + k)), s2, total)
                total = fma(splat_f32(load_f32(mixed, 3 * STREAMS + k)), s3, total)
                store_f32x16(streams, k * args.width + i, total)
