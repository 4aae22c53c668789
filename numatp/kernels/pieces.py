"""What all strips of a value head need of a piece of tokens (delta.py): made once, before any of them goes through it."""

from math import exp as scalar_exp
from math import log1p, sqrt

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.exp import scalar_sigmoid
from numatp.kernels.jit import float32
from numatp.kernels.simd import fma, load_f32, load_f32x16, load_i64, offset, splat_f32, store_f32, store_f32x16, sum_f32x16
from numatp.kernels.states import MOST_LINEAR_HEAD, PIECE

# Of a piece and key head, both of length 1: keys of its tokens, then queries.
KEY_PITCH = MOST_LINEAR_HEAD * 4  # bytes from one to the next; a constant, so that addresses cost nothing
QUERIES = PIECE * KEY_PITCH
KEYS_BYTES = 2 * QUERIES

# Of a piece and value head: for each token i, 64 bytes apart, -beta_i e_ij (k_i . k_j) of each j < i, then e_ij (q_i . k_j) of each
# j <= i. Behind them, of each token, what v_i, S k_i and S q_i are multiplied by, e_7j, and d_i.
OF_CHANGES, OF_RESULTS = 0, PIECE * 4
BETAS = PIECE * 64
KEY_FACTORS, QUERY_FACTORS, LEFT, DECAYS = (BETAS + n * PIECE * 4 for n in (1, 2, 3, 4))
WEIGHTS_BYTES = (BETAS + 5 * PIECE * 4 + 63) // 64 * 64


@device
def pieces_of(position, rows):
    """How many pieces a span touches."""
    return (position % PIECE + rows + PIECE - 1) // PIECE


@device
def part_of(position, rows, piece):
    """A span's part of a piece: (first token, end), counted from the piece's beginning, and the first one's row in the span."""
    begin = position % PIECE
    first = begin if piece == 0 else 0
    return first, min(begin + rows - piece * PIECE, PIECE), piece * PIECE + first - begin


@device
def dot(x, y, size):
    total = splat_f32(0)
    for i in range(0, size, 16):
        total = fma(load_f32x16(x, i), load_f32x16(y, i), total)
    return sum_f32x16(total)


@device
def copy_scaled(x, scale, size, out):
    for i in range(0, size, 16):
        store_f32x16(out, i, load_f32x16(x, i) * splat_f32(scale))


@device
def copy_units(args, row, key_head, key, query):
    """A key head's key and query in a row of qkv, 1 long; the query besides 1 / sqrt(head_size)."""
    size = args.head_size
    q = offset(args.qkv, row * args.qkv_stride + key_head * size * 4)
    k = offset(q, args.key_heads * size * 4)
    copy_scaled(k, float32(1) / sqrt(dot(k, k, size) + args.epsilon), size, key)
    copy_scaled(q, float32(1) / (sqrt(dot(q, q, size) + args.epsilon) * sqrt(float32(size))), size, query)


@device
def opened(args, row, gate):
    """The gate-th beta of a row."""
    return scalar_sigmoid(load_f32(offset(args.beta, row * args.beta_stride), gate))


@device
def weigh(args, row, first, end, gate, constant, kept, weights):
    """All that is in `weights` of a value head's tokens but for the dot products; `kept` are the decays of those before `first`."""
    for i in range(first):
        store_f32(offset(weights, DECAYS), i, load_f32(kept, i))
    for i in range(first, end):
        beta = opened(args, row + i - first, gate)
        alpha = load_f32(offset(args.alpha, (row + i - first) * args.alpha_stride), gate) + load_f32(args.bias, constant)
        # softplus without overflow: log(1 + e**x) = max(x, 0) + log(1 + e**-|x|)
        softplus = max(alpha, float32(0)) + float32(log1p(scalar_exp(-abs(alpha))))
        store_f32(offset(weights, DECAYS), i, float32(scalar_exp(load_f32(args.decay, constant) * softplus)))
        own, left = offset(weights, i * 64), float32(1)
        for back in range(i + 1):
            j = i - back
            store_f32(offset(own, OF_CHANGES), j, -beta * left)
            store_f32(offset(own, OF_RESULTS), j, left)
            if i == PIECE - 1:
                store_f32(offset(weights, LEFT), j, left)
            left *= load_f32(offset(weights, DECAYS), j)
        store_f32(offset(weights, BETAS), i, beta)
        store_f32(offset(weights, KEY_FACTORS), i, -beta * left)
        store_f32(offset(weights, QUERY_FACTORS), i, left)


@device
def head_of(args, key_head, slot):
    """The number of a key head's slot-th value head."""
    return slot * args.key_heads + key_head if args.tiled else key_head * args.group + slot


@device
def prepare(args, sequence, row, first, end, key_head, piece):
    """Of a piece's tokens [first, end), the first of which is in `row`: keys, queries, and weights in each value head.

    piece: which place in args.keys and args.weights is theirs.
    """
    size = args.head_size
    keys = offset(args.keys, (key_head * args.pieces + piece) * KEYS_BYTES)
    kept = offset(args.kept_keys, sequence * args.state_stride + key_head * PIECE * size * 4)
    for i in range(first):
        copy_scaled(offset(kept, i * size * 4), float32(1), size, offset(keys, i * KEY_PITCH))
    for i in range(first, end):
        copy_units(args, row + i - first, key_head, offset(keys, i * KEY_PITCH), offset(keys, QUERIES + i * KEY_PITCH))
    for slot in range(args.group):
        head = head_of(args, key_head, slot)
        gate, constant = key_head * args.gate_key_step + slot * args.gate_step, key_head * args.key_step + slot * args.step
        weights = offset(args.weights, (head * args.pieces + piece) * WEIGHTS_BYTES)
        kept = offset(args.kept_decays, sequence * args.state_stride + head * PIECE * 4)
        weigh(args, row, first, end, gate, constant, kept, weights)
    for i in range(first, end):
        k, q = offset(keys, i * KEY_PITCH), offset(keys, QUERIES + i * KEY_PITCH)
        for j in range(i + 1):
            earlier = offset(keys, j * KEY_PITCH)
            of_change, of_result = dot(k, earlier, size), dot(q, earlier, size)
            for slot in range(args.group):
                weights = offset(args.weights, (head_of(args, key_head, slot) * args.pieces + piece) * WEIGHTS_BYTES + i * 64)
                change, result = offset(weights, OF_CHANGES), offset(weights, OF_RESULTS)
                store_f32(change, j, load_f32(change, j) * of_change)
                store_f32(result, j, load_f32(result, j) * of_result)


@device
def each_piece(args, thread, threads, prepare):
    """prepare(args, sequence, row, first, end, key_head, piece) of this thread's share of the key heads' pieces."""
    total = 0
    for span in range(load_i64(args.num_spans, 0)):
        span = offset(args.spans, span * 32)
        total += pieces_of(load_i64(span, 3), load_i64(span, 2))
    begin, end = share(total * args.key_heads, thread, threads)
    unit = 0
    for span in range(load_i64(args.num_spans, 0)):
        span = offset(args.spans, span * 32)
        sequence, row, rows, position = load_i64(span, 0), load_i64(span, 1), load_i64(span, 2), load_i64(span, 3)
        for piece in range(pieces_of(position, rows)):
            first, last, done = part_of(position, rows, piece)
            for key_head in range(args.key_heads):
                if begin <= unit < end:
                    prepare(args, sequence, row + done, first, last, key_head, unit // args.key_heads)
                unit += 1


@kernel(
    qkv="pointer", qkv_stride="int", beta="pointer", beta_stride="int", alpha="pointer", alpha_stride="int", gate_key_step="int",
    gate_step="int", decay="pointer", bias="pointer", key_step="int", step="int", key_heads="int", group="int", tiled="int",
    head_size="int", epsilon="float", kept_keys="pointer", kept_decays="pointer", state_stride="int", spans="pointer",
    num_spans="pointer", pieces="int", keys="pointer", weights="pointer",
)  # fmt: skip
def delta_pieces(args, thread, threads):
    """Of each piece that the spans touch, one span after another, what gated_delta needs: keys (key_heads, pieces, KEYS_BYTES) and
    weights (value_heads, pieces, WEIGHTS_BYTES); `pieces` is how many there is room for.

    Of a piece that began in an earlier Step kept_keys and kept_decays, in the state, have the tokens before.

    qkv (rows, 2 * key_heads + value_heads, head_size); q and k become 1 long, q besides 1 / sqrt(head_size). `group` value heads
    share a key head: those that follow each other, or, tiled, those that are key_heads apart. Per row and value head, beta before
    its sigmoid, and alpha, which sets the decay exp(decay * softplus(alpha + bias)); decay (below 0) and bias are per value head.
    The j-th value head of key head i has beta and alpha at i * gate_key_step + j * gate_step, decay and bias at
    i * key_step + j * step.
    """
    each_piece(args, thread, threads, prepare)
