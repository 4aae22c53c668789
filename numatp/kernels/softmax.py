"""The online softmax (https://arxiv.org/abs/1805.02867) of one query over a block of tokens, to the base 2."""

from numatp.kernels.compile import device
from numatp.kernels.exp import exp2
from numatp.kernels.layout import CACHE_BLOCK
from numatp.kernels.simd import (
    fma,
    keep_lanes,
    lane,
    largest,
    load_f32,
    load_f32x16,
    max_f32x16,
    splat_f32,
    store_f32,
    store_f32x16,
)

LOWEST = -1e30  # score of a token that must not be seen; 2**(LOWEST - any real score) is nothing beside the highest score's 1


@device
def replace_unseen(scores, unseen, seen, other):
    """Sets what belongs to tokens of a block outside [unseen, seen) to `other`."""
    for part in range(0, CACHE_BLOCK, 16):
        s = keep_lanes(seen - part, load_f32x16(scores, part), splat_f32(other))
        store_f32x16(scores, part, keep_lanes(unseen - part, splat_f32(other), s))


@device
def weigh(scores, unseen, seen, totals, highest_at):
    """Turns the scores over a block into weights, as if this were the last block; those of tokens outside [unseen, seen) are 0.
    Returns what earlier sums are to be multiplied by.

    totals: the sum of the weights in 16 lanes; highest_at: the highest score of all blocks so far.
    """
    whole = unseen <= 0 and seen >= CACHE_BLOCK
    if not whole:
        replace_unseen(scores, unseen, seen, LOWEST)
    highest = load_f32(highest_at, 0)
    s0, s1 = load_f32x16(scores, 0), load_f32x16(scores, 16)
    s2, s3 = load_f32x16(scores, 32), load_f32x16(scores, 48)
    new_highest = max(highest, largest(max_f32x16(max_f32x16(s0, s1), max_f32x16(s2, s3))))
    top = splat_f32(new_highest)
    s0, s1, s2, s3 = exp2(s0 - top), exp2(s1 - top), exp2(s2 - top), exp2(s3 - top)
    store_f32x16(scores, 0, s0)
    store_f32x16(scores, 16, s1)
    store_f32x16(scores, 32, s2)
    store_f32x16(scores, 48, s3)
    correction = splat_f32(1)
    if new_highest > highest:  # seldom after the first blocks
        correction = exp2(splat_f32(highest) - top)
        store_f32(highest_at, 0, new_highest)
    store_f32x16(totals, 0, fma(load_f32x16(totals, 0), correction, (s0 + s1) + (s2 + s3)))
    if not whole:
        replace_unseen(scores, unseen, seen, 0.0)
    return lane(correction, 0)
