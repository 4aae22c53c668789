"""Mixture of experts: which rows go to which expert, and the sum of what the experts made of each row.

A row has `used` experts. Pairs (row, slot) are put in order by expert, each expert beginning a new group of `pitch` places, so the
matrix kernels multiply an expert's rows as they multiply the rows of a Step. What lies where, in int64 of one buffer:

counts: [number of places, number of active experts]
active (experts, 4): expert, its first group of places, its rows that go through tile registers, its others in groups behind those
rows_of_places: the row at each place, 0 where there is none
experts_of_places: the expert of each place
many: of each place, 1 if its row goes through tile registers, else 0
places (rows, used): the place of each pair
"""

from math import exp, log1p, sqrt

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.exp import scalar_sigmoid
from numatp.kernels.jit import float32, int64
from numatp.kernels.rows import num_many
from numatp.kernels.score import LOWEST
from numatp.kernels.simd import load_f32, load_f32x16, load_i64, offset, splat_f32, store_f32, store_f32x16, store_i64

SMALLEST_SUM = 1e-20  # is added to a sum of shares before it divides them, as in DeepSeek-V3
SIGMOID, ROOT_OF_SOFTPLUS = 1, 2  # what makes shares of scores; else their softmax


@kernel(
    logits="pointer", logits_stride="int", rows="pointer", experts="int", used="int", normalize="int", chosen="pointer",
    shares="pointer",
)  # fmt: skip
def choose(args, thread, threads):
    """chosen (rows, used) int64: the most probable experts by the softmax of the logits, which are overwritten; shares (rows, used)
    float32: their probabilities, normalize: divided by their sum. Of equals the first expert is taken.
    """
    first, last = share(load_i64(args.rows, 0), thread, threads)
    for row in range(first, last):
        logits = offset(args.logits, row * args.logits_stride)
        highest = load_f32(logits, 0)
        for i in range(args.experts):
            highest = max(highest, load_f32(logits, i))
        total, taken = float32(0), float32(0)
        for i in range(args.experts):
            total += float32(exp(load_f32(logits, i) - highest))
        for slot in range(args.used):
            best = int64(0)
            for i in range(args.experts):
                if load_f32(logits, i) > load_f32(logits, best):
                    best = int64(i)
            probability = float32(exp(load_f32(logits, best) - highest))
            store_i64(args.chosen, row * args.used + slot, best)
            store_f32(args.shares, row * args.used + slot, probability)
            store_f32(logits, best, float32(LOWEST))
            taken += probability
        for slot in range(args.used):
            part = load_f32(args.shares, row * args.used + slot)
            store_f32(args.shares, row * args.used + slot, part / (taken if args.normalize else total))


@device
def probabilities(logits, experts, function):
    """In place: by SIGMOID or ROOT_OF_SOFTPLUS of the logits, or their softmax."""
    if function == SIGMOID:
        for i in range(experts):
            store_f32(logits, i, scalar_sigmoid(load_f32(logits, i)))
        return
    if function == ROOT_OF_SOFTPLUS:
        for i in range(experts):
            x = load_f32(logits, i)
            store_f32(logits, i, float32(sqrt(max(x, float32(0)) + log1p(exp(-abs(x))))))
        return
    highest, total = load_f32(logits, 0), float32(0)
    for i in range(experts):
        highest = max(highest, load_f32(logits, i))
    for i in range(experts):
        probability = float32(exp(load_f32(logits, i) - highest))
        store_f32(logits, i, probability)
        total += probability
    for i in range(experts):
        store_f32(logits, i, load_f32(logits, i) / total)


@device
def wanted(probabilities, bias, biased, i):
    """What an expert is chosen by; the bias has no part in its share."""
    return load_f32(probabilities, i) + load_f32(bias, i) if biased else load_f32(probabilities, i)


@device
def drop_group(probabilities, bias, biased, groups, size, pairs):
    """Of the groups that are left, the one whose best expert is least wanted is dropped, of equals the last; pairs: whose two best
    are least wanted together.
    """
    worst, least = int64(0), float32(0)
    found = False
    for group in range(groups):
        first = group * size
        if load_f32(probabilities, first) > float32(LOWEST):
            best, second = float32(LOWEST), float32(LOWEST)
            for i in range(first, first + size):
                value = wanted(probabilities, bias, biased, i)
                second = max(second, min(best, value))
                best = max(best, value)
            score = best + second if pairs and size > 1 else best
            if not found or score <= least:
                worst, least, found = int64(group), score, True
    for i in range(worst * size, worst * size + size):
        store_f32(probabilities, i, float32(LOWEST))


@device
def scale_shares(args, row, taken):
    """The shares of a row, which add up to `taken`."""
    factor = args.factor / taken if args.normalize else args.factor
    for slot in range(args.used):
        store_f32(args.shares, row * args.used + slot, load_f32(args.shares, row * args.used + slot) * factor)


@kernel(
    logits="pointer", logits_stride="int", rows="pointer", experts="int", used="int", normalize="int", function="int",
    bias="pointer", biased="int", groups="int", groups_used="int", pairs="int", factor="float", chosen="pointer", shares="pointer",
)  # fmt: skip
def choose_wanted(args, thread, threads):
    """As choose, for routers in which shares are made by `function` (see probabilities), a bias per expert has a say in the choice
    alone, experts come from the groups_used best of `groups` groups of neighbours, in the end shares are multiplied by `factor`.
    """
    first, last = share(load_i64(args.rows, 0), thread, threads)
    for row in range(first, last):
        logits = offset(args.logits, row * args.logits_stride)
        probabilities(logits, args.experts, args.function)
        for _ in range(args.groups - args.groups_used):
            drop_group(logits, args.bias, args.biased, args.groups, args.experts // args.groups, args.pairs)
        taken = float32(SMALLEST_SUM)
        for slot in range(args.used):
            best = int64(0)
            for i in range(args.experts):
                if wanted(logits, args.bias, args.biased, i) > wanted(logits, args.bias, args.biased, best):
                    best = int64(i)
            probability = load_f32(logits, best)
            store_i64(args.chosen, row * args.used + slot, best)
            store_f32(args.shares, row * args.used + slot, probability)
            store_f32(logits, best, float32(LOWEST))
            taken += probability
        scale_shares(args, row, taken)


@kernel(
    logits="pointer", logits_stride="int", rows="pointer", experts="int", used="int", normalize="int", function="int",
    factor="float", tokens="pointer", table="pointer", chosen="pointer", shares="pointer",
)  # fmt: skip
def choose_listed(args, thread, threads):
    """As choose_wanted, where a row's experts are those that the table (tokens of the vocabulary, used) lists for its token, as
    float32.
    """
    first, last = share(load_i64(args.rows, 0), thread, threads)
    for row in range(first, last):
        logits, listed = offset(args.logits, row * args.logits_stride), load_i64(args.tokens, row) * args.used
        probabilities(logits, args.experts, args.function)
        taken = float32(SMALLEST_SUM)
        for slot in range(args.used):
            expert = int64(load_f32(args.table, listed + slot))
            store_i64(args.chosen, row * args.used + slot, expert)
            store_f32(args.shares, row * args.used + slot, load_f32(logits, expert))
            taken += load_f32(logits, expert)
        scale_shares(args, row, taken)


@kernel(rows="pointer", used="int", chosen="pointer", shares="pointer", factors="pointer")
def weigh(args, thread, threads):
    """shares (rows, used) *= the factor of the expert that each is of; factors (experts,) float32."""
    first, last = share(load_i64(args.rows, 0) * args.used, thread, threads)
    for pair in range(first, last):
        factor = load_f32(args.factors, load_i64(args.chosen, pair))
        store_f32(args.shares, pair, load_f32(args.shares, pair) * factor)


@kernel(x="pointer", x_stride="int", rows="pointer", used="int", places="pointer", shares="pointer", width="int")
def weigh_places(args, thread, threads):
    """The row of x (places, width) at each pair's place times the pair's share; threads share the columns."""
    first, last = share(args.width // 16, thread, threads)
    for pair in range(load_i64(args.rows, 0) * args.used):
        x, factor = offset(args.x, load_i64(args.places, pair) * args.x_stride), splat_f32(load_f32(args.shares, pair))
        for i in range(first * 16, last * 16, 16):
            store_f32x16(x, i, load_f32x16(x, i) * factor)


@kernel(
    rows="pointer", experts="int", used="int", tiled="int", pitch="int", chosen="pointer", counts="pointer", active="pointer",
    rows_of_places="pointer", experts_of_places="pointer", many="pointer", places="pointer", next="pointer",
)  # fmt: skip
def arrange(args, thread, threads):
    """By one thread: the places of all pairs (see above); tiled: whether rows go through tile registers in experts too.

    next (experts, 2) int64 is scratch: of the rows that do, and of the others.
    """
    if thread:
        return
    pairs = load_i64(args.rows, 0) * args.used
    many_pairs = num_many(args.rows) * args.used if args.tiled else int64(0)
    for i in range(args.experts * 2):
        store_i64(args.next, i, 0)
    for pair in range(pairs):
        kind = load_i64(args.chosen, pair) * 2 + (pair >= many_pairs)
        store_i64(args.next, kind, load_i64(args.next, kind) + 1)
    group, found = int64(0), int64(0)
    for expert in range(args.experts):
        many, others = load_i64(args.next, expert * 2), load_i64(args.next, expert * 2 + 1)
        middle = group + (many + args.pitch - 1) // args.pitch
        end = middle + (others + args.pitch - 1) // args.pitch
        store_i64(args.next, expert * 2, group * args.pitch)
        store_i64(args.next, expert * 2 + 1, middle * args.pitch)
        if many + others:
            store_i64(args.active, found * 4, expert)
            store_i64(args.active, found * 4 + 1, group)
            store_i64(args.active, found * 4 + 2, many)
            store_i64(args.active, found * 4 + 3, others)
            for place in range(group * args.pitch, end * args.pitch):
                store_i64(args.experts_of_places, place, expert)
                store_i64(args.many, place, place < middle * args.pitch)
            found += 1
        group = end
    store_i64(args.counts, 0, group * args.pitch)
    store_i64(args.counts, 1, found)
    for place in range(group * args.pitch):
        store_i64(args.rows_of_places, place, 0)
    for pair in range(pairs):
        kind = load_i64(args.chosen, pair) * 2 + (pair >= many_pairs)
        place = load_i64(args.next, kind)
        store_i64(args.next, kind, place + 1)
        store_i64(args.places, pair, place)
        store_i64(args.rows_of_places, place, pair // args.used)


@kernel(
    x="pointer", x_stride="int", rows="pointer", used="int", places="pointer", shares="pointer", width="int", out="pointer",
    out_stride="int", add="int",
)  # fmt: skip
def combine(args, thread, threads):
    """out (rows, width) = [out +] the sum of each row's share * x at its place; threads share the columns."""
    first, last = share(args.width // 16, thread, threads)
    for row in range(load_i64(args.rows, 0)):
        out = offset(args.out, row * args.out_stride)
        for i in range(first * 16, last * 16, 16):
            total = load_f32x16(out, i) if args.add else splat_f32(float32(0))
            for slot in range(args.used):
                pair = row * args.used + slot
                x = offset(args.x, load_i64(args.places, pair) * args.x_stride)
                total = total + splat_f32(load_f32(args.shares, pair)) * load_f32x16(x, i)
            store_f32x16(out, i, total)
