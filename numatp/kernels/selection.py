"""The most probable tokens of a row of logits: top-k and top-p. Blocks of 64 logits below what is looked for are passed over."""

import math

from numatp.kernels.compile import device
from numatp.kernels.exp import exp
from numatp.kernels.jit import float32, int16
from numatp.kernels.simd import (
    bits_of,
    keep_bits,
    load_f32,
    load_f32x16,
    load_i64,
    max_f32x16,
    splat_f32,
    store_i64,
    sum_f32x16,
)

LOWEST = -3.4028234663852886e38  # of float32 but for -inf, which a token has that may not be chosen
NEAR, NOWHERE = 8, 128  # below the top's logit: tokens with most of the probability, and those with none of it, are above


@device
def any_above(logits, first, floor):
    """Whether one of the 64 logits from there on is above it: nearly never, where the best so far are looked for."""
    a = max_f32x16(load_f32x16(logits, first), load_f32x16(logits, first + 16))
    b = max_f32x16(load_f32x16(logits, first + 32), load_f32x16(logits, first + 48))
    return bits_of(max_f32x16(a, b) - splat_f32(floor)) != 0


@device
def most_probable(logits, vocab):
    """The first one if there are several."""
    best, highest = 0, load_f32(logits, 0)
    for first in range(0, vocab, 64):
        end = min(first + 64, vocab)
        if end - first < 64 or any_above(logits, first, highest):
            for token in range(first, end):
                if load_f32(logits, token) > highest:
                    best, highest = token, load_f32(logits, token)
    return best


@device
def above(logits, a, b, sign):
    """Whether token a belongs nearer to the root of a heap than b: the more probable one for sign 1, the less for -1."""
    x, y = sign * load_f32(logits, a), sign * load_f32(logits, b)
    return x > y or (x == y and sign * a < sign * b)


@device
def sift(heap, size, at, logits, sign):
    token, child = load_i64(heap, at), 2 * at + 1
    while child < size:
        if child + 1 < size and above(logits, load_i64(heap, child + 1), load_i64(heap, child), sign):
            child += 1
        if not above(logits, load_i64(heap, child), token, sign):
            break
        store_i64(heap, at, load_i64(heap, child))
        at, child = child, 2 * child + 1
    store_i64(heap, at, token)


@device
def heapify(heap, size, logits, sign):
    for i in range(size // 2):
        sift(heap, size, size // 2 - 1 - i, logits, sign)


@device
def keep_top_k(kept, logits, vocab, k):
    """The k most probable tokens, in any order; returns how many."""
    for i in range(k):
        store_i64(kept, i, i)
    if k < vocab:
        heapify(kept, k, logits, -1)
        floor = load_f32(logits, load_i64(kept, 0))
        for first in range(k, vocab, 64):
            end = min(first + 64, vocab)
            if end - first < 64 or any_above(logits, first, floor):
                for token in range(first, end):
                    if load_f32(logits, token) > floor:
                        store_i64(kept, 0, token)
                        sift(kept, k, 0, logits, -1)
                        floor = load_f32(logits, load_i64(kept, 0))
    return k


@device
def mass(logits, first, end, top, per, floor):
    """The sum of exp((logit - top) * per) of at most 64 tokens that are not below the floor, always the same for the same ones."""
    total = float32(0)
    if end - first == 64:
        sums = splat_f32(0)
        for i in range(first, end, 16):
            values = load_f32x16(logits, i)
            powers = exp((values - splat_f32(top)) * splat_f32(per))
            sums = sums + keep_bits(int16(bits_of(splat_f32(floor) - values)), splat_f32(0), powers)
        return sum_f32x16(sums)
    for token in range(first, end):
        if load_f32(logits, token) >= floor:
            total += float32(math.exp((load_f32(logits, token) - top) * per))
    return total


@device
def sum_of(kept, count, logits, top):
    """Of the powers of so many tokens."""
    total = 0.0
    for i in range(count):
        total += math.exp(load_f32(logits, load_i64(kept, i)) - top)
    return total


@device
def keep_near(kept, logits, vocab, top, top_p):
    """The tokens near the top that have `top_p` of the probability of all, and some others, so that few need an order.

    Returns how many, and the sum of the powers of all.
    """
    total = 0.0
    for first in range(0, vocab, 64):
        total += mass(logits, first, min(first + 64, vocab), top, float32(1), float32(LOWEST))
    count, below = 0, float(NEAR)
    while below <= NOWHERE:
        count, floor = 0, float32(top - below)
        for first in range(0, vocab, 64):
            end = min(first + 64, vocab)
            if end - first < 64 or any_above(logits, first, floor):
                for token in range(first, end):
                    if load_f32(logits, token) > floor:
                        store_i64(kept, count, token)
                        count += 1
        if sum_of(kept, count, logits, top) >= top_p * total:
            break
        below *= 1.25
    return count, total


@device
def keep_top_p(kept, count, logits, top, top_p, total):
    """The most probable of `count` tokens that have `top_p` of the total together; returns where in `kept` they begin."""
    heapify(kept, count, logits, 1)
    mass, size = 0.0, count
    while size > 0 and mass < top_p * total:
        token = load_i64(kept, 0)
        size -= 1
        store_i64(kept, 0, load_i64(kept, size))
        sift(kept, size, 0, logits, 1)
        store_i64(kept, size, token)  # the place that the heap has given up
        mass += math.exp(load_f32(logits, token) - top)
    return min(size, count - 1)
