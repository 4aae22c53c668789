"""What all strips of a head need of a piece of tokens (delta.py) where each channel of a key decays by itself, as in Kimi Delta
Attention (https://arxiv.org/abs/2510.26692): made once, before any of them goes through it.

A token's decay d is a vector over the rows of S. With products of vectors, *, in the place of those of numbers

    u_i = beta_i (v_i - S (c_i * k_i) - sum over j < i of (k_i . (e_ij * k_j)) u_j)    c_i = d_0 * ... * d_i
    result_i = S (c_i * q_i) + sum over j <= i of (q_i . (e_ij * k_j)) u_j             e_ij = d_j+1 * ... * d_i
    S after the piece = c_7 * S + sum over j of (e_7j * k_j) u_j

so keys and queries are decayed here, and gated_delta does with them what it does with those of other models.
"""

from numatp.kernels.compile import device, kernel
from numatp.kernels.exp import exp, sigmoid, softplus
from numatp.kernels.jit import float32
from numatp.kernels.pieces import (
    BETAS,
    KEY_FACTORS,
    KEY_PITCH,
    LEFT,
    OF_CHANGES,
    OF_RESULTS,
    QUERIES,
    QUERY_FACTORS,
    WEIGHTS_BYTES,
    copy_scaled,
    copy_units,
    dot,
    each_piece,
    opened,
)
from numatp.kernels.simd import load_f32, load_f32x16, offset, splat_f32, store_f32, store_f32x16
from numatp.kernels.states import PIECE

# Of a piece and head, behind c_i * k_i and c_i * q_i of its tokens: of a whole piece e_7j * k_j, and c_7 in the first of the
# decays' places; of one that is not full k_j and d_j.
LAST = 2 * QUERIES
DECAYS = LAST + PIECE * KEY_PITCH
CHANNEL_KEYS_BYTES = DECAYS + PIECE * KEY_PITCH


@device
def multiply(x, factors, size):
    for i in range(0, size, 16):
        store_f32x16(x, i, load_f32x16(x, i) * load_f32x16(factors, i))


@device
def decay(args, row, head, out):
    """A head's decays in a row."""
    size = args.head_size
    alpha, bias = offset(args.alpha, row * args.alpha_stride + head * size * 4), offset(args.bias, head * size * 4)
    rate, bound = load_f32(args.decay, head), splat_f32(args.bound)  # exp(A_log), or as most files have it -exp(A_log)
    positive, rate = splat_f32(abs(rate)), splat_f32(rate)
    for i in range(0, size, 16):
        x = load_f32x16(alpha, i) + load_f32x16(bias, i)
        logarithm = bound * sigmoid(positive * x) if args.bound < 0 else rate * softplus(x)
        store_f32x16(out, i, exp(logarithm))


@device
def leave(keys, decays, size):
    """Of a whole piece: e_7j * k_j in the places of the keys, c_7 in that of the first decay."""
    for i in range(0, size, 16):
        left = splat_f32(1)
        for back in range(PIECE):
            place = (PIECE - 1 - back) * KEY_PITCH
            store_f32x16(offset(keys, place), i, load_f32x16(offset(keys, place), i) * left)
            left = left * load_f32x16(offset(decays, place), i)
        store_f32x16(decays, i, left)


@device
def prepare(args, sequence, row, first, end, head, piece):
    """Of a piece's tokens [first, end), the first of which is in `row`: keys, queries and weights of a head.

    piece: which place in args.keys and args.weights is theirs.
    """
    size = args.head_size
    decayed = offset(args.keys, (head * args.pieces + piece) * CHANNEL_KEYS_BYTES)
    keys, decays = offset(decayed, LAST), offset(decayed, DECAYS)
    weights = offset(args.weights, (head * args.pieces + piece) * WEIGHTS_BYTES)
    kept = sequence * args.state_stride + head * PIECE * size * 4
    for i in range(first):
        copy_scaled(offset(args.kept_keys, kept + i * size * 4), float32(1), size, offset(keys, i * KEY_PITCH))
        copy_scaled(offset(args.kept_decays, kept + i * size * 4), float32(1), size, offset(decays, i * KEY_PITCH))
    for i in range(first, end):
        key, query = offset(decayed, i * KEY_PITCH), offset(decayed, QUERIES + i * KEY_PITCH)
        copy_units(args, row + i - first, head, key, query)
        copy_scaled(key, float32(1), size, offset(keys, i * KEY_PITCH))
        decay(args, row + i - first, head, offset(decays, i * KEY_PITCH))
        beta, own = opened(args, row + i - first, head), offset(weights, i * 64)
        for back in range(i + 1):  # at first both are not decayed, then by d_i, by d_i * d_i-1, ...
            j = i - back
            earlier = offset(keys, j * KEY_PITCH)
            store_f32(offset(own, OF_CHANGES), j, -beta * dot(key, earlier, size))
            store_f32(offset(own, OF_RESULTS), j, dot(query, earlier, size))
            multiply(key, offset(decays, j * KEY_PITCH), size)
            multiply(query, offset(decays, j * KEY_PITCH), size)
        store_f32(offset(weights, BETAS), i, beta)
        store_f32(offset(weights, KEY_FACTORS), i, -beta)
        store_f32(offset(weights, QUERY_FACTORS), i, float32(1))
    if end == PIECE:
        leave(keys, decays, size)
        for i in range(PIECE):
            store_f32(offset(weights, LEFT), i, float32(1))


@kernel(
    qkv="pointer", qkv_stride="int", beta="pointer", beta_stride="int", alpha="pointer", alpha_stride="int", decay="pointer",
    bias="pointer", bound="float", key_heads="int", head_size="int", epsilon="float", kept_keys="pointer", kept_decays="pointer",
    state_stride="int", spans="pointer", num_spans="pointer", pieces="int", keys="pointer", weights="pointer",
)  # fmt: skip
def channel_pieces(args, thread, threads):
    """As delta_pieces (pieces.py), of heads that have a key, a value and decays of their own: keys (key_heads, pieces,
    CHANNEL_KEYS_BYTES); kept_decays (key_heads, PIECE, head_size).

    alpha (rows, key_heads, head_size) and bias (key_heads, head_size) set the decays exp(decay * softplus(alpha + bias)), or, where
    bound is below 0, exp(bound * sigmoid(decay * (alpha + bias))); beta (rows, key_heads) before its sigmoid; decay (key_heads,).
    """
    each_piece(args, thread, threads, prepare)
