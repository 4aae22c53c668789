"""Rotary position embedding (https://arxiv.org/abs/2104.09864)."""

from math import cos, sin

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.simd import load_f32, load_f64, load_i64, store_f32


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
