"""Choosing the next token from the logits, in the order of llama.cpp: biases, penalties, top-k, top-p, min-p, temperature, draw."""

import math

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.exp import exp
from numatp.kernels.jit import float32
from numatp.kernels.layout import MOST_TOP
from numatp.kernels.selection import LOWEST, any_above, keep_near, keep_top_k, keep_top_p, mass, most_probable, sum_of
from numatp.kernels.simd import (
    keep_bits,
    load_f32,
    load_f32x16,
    load_f64,
    load_i16,
    load_i64,
    load_pointer,
    offset,
    splat_f32,
    store_f32,
    store_f32x16,
    store_f64,
    store_i64,
    sum_f32x16,
)

NO_NUMBERS = -1  # instead of a token, where a logit is infinite or not a number
NO_TOKEN = -2  # instead of a token, where none may be chosen
RECENT = 64  # tokens that the repeat penalty looks back on
# One choice is a row of 8-byte fields (engine/sampler.py: CHOICE). A pair is a token, int64, and a number, float64.
ROW, VOCAB, TEMPERATURE, TOP_K, TOP_P, MIN_P, UNIFORM, REPEAT, FREQUENCY, PRESENCE = range(10)
RECENT_TOKENS, NUM_RECENT, PAIRS_BIAS, NUM_BIASES, PAIRS_COUNT, NUM_COUNTS, NUM_TOP, MASK, FIELDS = range(10, 19)
PAIR_BYTES = 16
# What comes of a choice (engine/sampler.py: CHOSEN): the token, its log-probability, the most probable tokens and theirs.
TOKEN, LOGPROB, TOP_TOKENS, TOP_LOGPROBS, CHOSEN_FIELDS = 0, 1, 2, 2 + MOST_TOP, 2 + 2 * MOST_TOP


@device
def copy_row(source, logits, vocab):
    """From the window, so that what is there stays the model's own."""
    whole = vocab // 16 * 16
    for i in range(0, whole, 16):
        store_f32x16(logits, i, load_f32x16(source, i))
    for i in range(whole, vocab):
        store_f32(logits, i, load_f32(source, i))


@device
def add_biases(logits, vocab, biases, count):
    """-inf for what may not be chosen."""
    for i in range(count):
        pair = offset(biases, i * PAIR_BYTES)
        token = load_i64(pair, 0)
        if token < vocab:
            store_f32(logits, token, load_f32(logits, token) + load_f64(pair, 1))


@device
def forbid(logits, vocab, mask):
    """-inf for each token whose bit in the mask is not set."""
    for i in range((vocab + 15) // 16):
        bits = load_i16(mask, i)
        if (i + 1) * 16 <= vocab:
            store_f32x16(logits, i * 16, keep_bits(bits, load_f32x16(logits, i * 16), splat_f32(-math.inf)))
        else:
            for token in range(i * 16, vocab):
                if not bits >> (token - i * 16) & 1:
                    store_f32(logits, token, float32(-math.inf))


@device
def penalize_counts(logits, counts, count, frequency, presence):
    """Takes from the logit of each generated token as OpenAI says: `presence` once, `frequency` as often as it came."""
    for i in range(count):
        pair = offset(counts, i * PAIR_BYTES)
        token = load_i64(pair, 0)
        store_f32(logits, token, load_f32(logits, token) - (load_f64(pair, 1) * frequency + presence))


@device
def penalize(logits, vocab, recent, count, penalty):
    """Makes each of the recent tokens less probable, once (Keskar et al. 2019, CTRL, section 4.1)."""
    for i in range(count):
        token, seen = load_i64(recent, i), False
        for j in range(i):
            seen = seen or load_i64(recent, j) == token
        if not seen and token < vocab:
            logit = load_f32(logits, token)
            store_f32(logits, token, logit / penalty if logit > 0 else logit * penalty)


@device
def are_numbers(logits, vocab):
    """Whether all of them are finite: of what is not, the difference to itself is not 0."""
    odd, whole = splat_f32(0), vocab // 64 * 64
    for i in range(0, whole, 64):  # four at a time, because one sum after another would be waited for
        a, b = load_f32x16(logits, i), load_f32x16(logits, i + 16)
        c, d = load_f32x16(logits, i + 32), load_f32x16(logits, i + 48)
        odd = odd + (((a - a) + (b - b)) + ((c - c) + (d - d)))
    rest = sum_f32x16(odd)
    for i in range(whole, vocab):
        rest += load_f32(logits, i) - load_f32(logits, i)
    return rest == 0


@device
def log_total(logits, vocab, highest):
    """log(sum(exp(logits))), of which the highest is known."""
    top, total, rest = splat_f32(highest), splat_f32(0), splat_f32(0)
    whole = vocab // 32 * 32
    for i in range(0, whole, 32):
        total = total + exp(load_f32x16(logits, i) - top)
        rest = rest + exp(load_f32x16(logits, i + 16) - top)
    last = 0.0
    for i in range(whole, vocab):
        last += math.exp(load_f32(logits, i) - highest)
    return highest + math.log(sum_f32x16(total + rest) + last)


@device
def keep_top(logits, vocab, tokens, values, most):
    """The `most` most probable tokens in order, int64, and their logits, float64; of equals the first. Returns how many."""
    count, floor = 0, load_f32(logits, 0)
    for first in range(0, vocab if most > 0 else 0, 64):
        end = min(first + 64, vocab)
        if count < most or end - first < 64 or any_above(logits, first, floor):
            for token in range(first, end):
                value = load_f32(logits, token)
                if count < most or value > floor:
                    at = min(count, most - 1)
                    while at > 0 and load_f64(values, at - 1) < value:
                        store_f64(values, at, load_f64(values, at - 1))
                        store_i64(tokens, at, load_i64(tokens, at - 1))
                        at -= 1
                    store_f64(values, at, value)
                    store_i64(tokens, at, token)
                    count = min(count + 1, most)
                    floor = float32(load_f64(values, count - 1))
    return count


@device
def tell(logits, width, vocab, most, out):
    """Log-probabilities of the `most` most probable tokens and of the one that was chosen, by the model's own distribution.

    As in scores, that is over all `width` rows of its matrix, more than there are tokens; unless the others are no numbers.
    """
    size = width if are_numbers(logits, width) else vocab
    total = log_total(logits, size, load_f32(logits, most_probable(logits, size)))
    store_f64(out, LOGPROB, load_f32(logits, load_i64(out, TOKEN)) - total)
    values = offset(out, TOP_LOGPROBS * 8)
    for i in range(keep_top(logits, vocab, offset(out, TOP_TOKENS * 8), values, most)):
        store_f64(values, i, load_f64(values, i) - total)


@device
def draw_of_all(logits, vocab, best, choice):
    """Without top-k and top-p the order of the tokens makes no difference, and the sum over blocks of them finds the one."""
    top, min_p = load_f32(logits, best), load_f64(choice, MIN_P)
    floor = float32(max(top + math.log(min_p), LOWEST) if min_p > 0 else LOWEST)
    per = float32(min(1 / load_f64(choice, TEMPERATURE), 1e30))
    total = 0.0
    for first in range(0, vocab, 64):
        total += mass(logits, first, min(first + 64, vocab), top, per, floor)
    left, last = load_f64(choice, UNIFORM) * total, best
    for first in range(0, vocab, 64):
        end = min(first + 64, vocab)
        part = mass(logits, first, end, top, per, floor)
        if left < part:
            for token in range(first, end):
                if left >= 0 and load_f32(logits, token) >= floor:
                    left -= math.exp((load_f32(logits, token) - top) * per)
                    last = token
            break
        left -= part
    return last


@device
def draw(logits, vocab, best, choice, kept):
    top, k = float(load_f32(logits, best)), load_i64(choice, TOP_K)
    top_p, min_p, temperature = load_f64(choice, TOP_P), load_f64(choice, MIN_P), load_f64(choice, TEMPERATURE)
    if top_p >= 1 and not 0 < k < vocab:
        return draw_of_all(logits, vocab, best, choice)
    first = 0
    if 0 < k < vocab:
        end = keep_top_k(kept, logits, vocab, k)
        total = sum_of(kept, end, logits, top)
    else:
        end, total = keep_near(kept, logits, vocab, top, top_p)
    if top_p < 1:
        first = keep_top_p(kept, end, logits, top, top_p, total)
    floor = max(top + math.log(min_p), LOWEST) if min_p > 0 else LOWEST
    total = 0.0
    for i in range(first, end):
        logit = load_f32(logits, load_i64(kept, i))
        if logit >= floor:
            total += math.exp((logit - top) / temperature)
    left, last = load_f64(choice, UNIFORM) * total, best
    for i in range(first, end):
        token = load_i64(kept, i)
        logit = load_f32(logits, token)
        if logit >= floor:
            left -= math.exp((logit - top) / temperature)
            last = token
            if left < 0:
                break
    return last


@device
def change(logits, choice):
    """Makes tokens more or less probable, as the choice says; `logits` are its own."""
    vocab, repeat = load_i64(choice, VOCAB), load_f64(choice, REPEAT)
    add_biases(logits, vocab, load_pointer(choice, PAIRS_BIAS), load_i64(choice, NUM_BIASES))
    if repeat != 1:
        penalize(logits, vocab, load_pointer(choice, RECENT_TOKENS), load_i64(choice, NUM_RECENT), repeat)
    penalize_counts(
        logits,
        load_pointer(choice, PAIRS_COUNT),
        load_i64(choice, NUM_COUNTS),
        load_f64(choice, FREQUENCY),
        load_f64(choice, PRESENCE),
    )
    if load_i64(choice, MASK) != 0:
        forbid(logits, vocab, load_pointer(choice, MASK))


@device
def changes(choice):
    penalized = load_f64(choice, REPEAT) != 1 or load_i64(choice, NUM_COUNTS) > 0
    return penalized or load_i64(choice, NUM_BIASES) > 0 or load_i64(choice, MASK) != 0


@device
def choose(logits, choice, kept):
    vocab = load_i64(choice, VOCAB)
    best = most_probable(logits, vocab)
    if load_f32(logits, best) < LOWEST:
        return NO_TOKEN
    return draw(logits, vocab, best, choice, kept) if load_f64(choice, TEMPERATURE) > 0 else best


@kernel(
    logits="pointer", stride="int", width="int", count="int", choices="pointer", kept="pointer", kept_stride="int",
    changed="pointer", changed_stride="int", out="pointer",
)  # fmt: skip
def sample(args, thread, threads):
    """out[i] = what comes of choices[i]: a token of its row of logits, NO_NUMBERS or NO_TOKEN. Threads share the choices.

    choices (count, FIELDS): the row and how many of its tokens there are; temperature (0: the most probable token), top-k (0: all),
    top-p, min-p, a number from [0, 1) that decides; repeat penalty, and the address and number of the tokens it is for, int64; what
    is added to logits, pairs; the generated tokens with their counts, pairs, and what is taken for them; of how many most probable
    tokens the log-probabilities are told, beside that of the chosen one, or -1; the address of a mask, one bit for each token that
    may be chosen, or 0. out (count, CHOSEN_FIELDS). Per thread: `kept`,
    int64, and `changed`, float32, hold vocab.
    """
    first, last = share(args.count, thread, threads)
    kept, changed = offset(args.kept, thread * args.kept_stride), offset(args.changed, thread * args.changed_stride)
    for i in range(first, last):
        choice, out = offset(args.choices, i * FIELDS * 8), offset(args.out, i * CHOSEN_FIELDS * 8)
        logits, vocab = offset(args.logits, load_i64(choice, ROW) * args.stride), load_i64(choice, VOCAB)
        token = NO_NUMBERS
        if are_numbers(logits, vocab):
            if changes(choice):
                copy_row(logits, changed, vocab)
                change(changed, choice)
                token = choose(changed, choice, kept)
            else:
                token = choose(logits, choice, kept)
        store_i64(out, TOKEN, token)
        if token >= 0 and load_i64(choice, NUM_TOP) >= 0:
            tell(logits, args.width, vocab, load_i64(choice, NUM_TOP), out)
