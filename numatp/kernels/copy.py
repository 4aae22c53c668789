"""Copies of states of sequences, from slot to slot."""

from numatp.kernels.compile import kernel, share
from numatp.kernels.simd import load_f32x16, load_i64, offset, store_f32x16


@kernel(states="pointer", slot_bytes="int", copies="pointer", num_copies="pointer")
def copy_slots(args, thread, threads):
    """Slots of `slot_bytes`, a multiple of 64, one after another; copies: int64 (num_copies, 2), from where to where.

    In their order: every thread copies the same part of each slot.
    """
    first, last = share(args.slot_bytes // 64, thread, threads)
    for i in range(load_i64(args.num_copies, 0)):
        source = offset(args.states, load_i64(args.copies, 2 * i) * args.slot_bytes)
        target = offset(args.states, load_i64(args.copies, 2 * i + 1) * args.slot_bytes)
        for line in range(first * 16, last * 16, 16):
            store_f32x16(target, line, load_f32x16(source, line))
