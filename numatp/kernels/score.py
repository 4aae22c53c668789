"""Adding up what threads found out about the softmax over the vocabulary (kernels/matmul.py: score)."""

from math import exp

from numba import float32

from numatp.kernels.compile import kernel, share
from numatp.kernels.simd import load_f32, load_i64, offset, store_f32

LOWEST = -1e30  # a logit that is not there


@kernel(parts="pointer", parts_thread_stride="int", rows="pointer", out="pointer")
def join_scores(args, thread, threads):
    """out (rows, 4) = highest logit, sum of exp(logit - highest), logit of the target or LOWEST, from the parts of all threads."""
    first, last = share(load_i64(args.rows, 0), thread, threads)
    for row in range(first, last):
        highest, total, target = float32(LOWEST), float32(0), float32(LOWEST)
        for other in range(threads):
            part = offset(args.parts, other * args.parts_thread_stride + row * 16)
            highest = max(highest, load_f32(part, 0))
            target = max(target, load_f32(part, 2))
        for other in range(threads):
            part = offset(args.parts, other * args.parts_thread_stride + row * 16)
            total += load_f32(part, 1) * float32(exp(load_f32(part, 0) - highest))
        store_f32(args.out, row * 4, highest)
        store_f32(args.out, row * 4 + 1, total)
        store_f32(args.out, row * 4 + 2, target)
