"""One number for the bits of some rows, to compare what ranks computed: FNV-1a over words of 8 bytes."""

from numatp.kernels.compile import kernel
from numatp.kernels.simd import load_i64, offset, store_i64

START, PRIME = 0x4BF29CE484222325, 0x100000001B3


@kernel(x="pointer", stride="int", rows="pointer", words="int", out="pointer")
def digest(args, thread, threads):
    """out int64 (1,): of x (rows, words) int64 `stride` bytes apart. A word that differs changes it for certain."""
    if thread == 0:
        value = START
        for row in range(load_i64(args.rows, 0)):
            for i in range(args.words):
                value = (value ^ load_i64(offset(args.x, row * args.stride), i)) * PRIME
        store_i64(args.out, 0, value)
