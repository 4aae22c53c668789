"""Choosing the next token from the logits."""

from numatp.kernels.compile import kernel
from numatp.kernels.simd import load_f32, load_i64, offset, store_i64


@kernel(logits="pointer", stride="int", rows="pointer", vocab="int", out="pointer")
def greedy(args, thread, threads):
    """out[i], int64 = the index of the largest of logits[i, :vocab], the first one if there are several; one thread does it."""
    if thread == 0:
        for row in range(load_i64(args.rows, 0)):
            logits = offset(args.logits, row * args.stride)
            best = 0
            for i in range(1, args.vocab):
                if load_f32(logits, i) > load_f32(logits, best):
                    best = i
            store_i64(args.out, row, best)
