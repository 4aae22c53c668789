"""The gated delta rule (https://arxiv.org/abs/2412.06464), as Qwen3-Next, Qwen3.5 and Kimi Linear have it, PIECE tokens at a time.

A value head's state is a matrix S, head_size keys by head_size values. A token with decay d, key k, value v and beta makes it
S = d S + k u with u = beta (v - (d S) k), and its result is S q. So after the tokens 0..i of a piece, which begins with S,

    u_i = beta_i (v_i - c_i S k_i - sum over j < i of e_ij (k_i . k_j) u_j)    c_i = d_0 ... d_i
    result_i = c_i S q_i + sum over j <= i of e_ij (q_i . k_j) u_j             e_ij = d_j+1 ... d_i
    S after the piece = c_7 S + sum over j of e_7j k_j u_j

(the WY form, https://arxiv.org/abs/2406.06484): S is read for all tokens of a piece at once and written once. Products of decays
are made as they are, not as exponentials of differences: they may become 0, never large.

Pieces begin at multiples of PIECE in the sequence. Of one that is not full the state keeps S as it was before, and each token's
key, decay and u. So a token's bits do not depend on how many others came in the same Step.

The columns of S do not see each other, so S lies in strips of 16 columns, (value_heads, head_size / 16, head_size, 16) float32, and
a strip is one thread's piece of work. What all strips of a head need of a piece is made before: pieces.py, or channels.py where
every row of S has a decay of its own.
"""

from numatp.kernels import channels
from numatp.kernels.compile import device, kernel, share
from numatp.kernels.jit import float32
from numatp.kernels.pieces import (
    BETAS,
    DECAYS,
    KEY_FACTORS,
    KEY_PITCH,
    LEFT,
    OF_CHANGES,
    OF_RESULTS,
    QUERIES,
    QUERY_FACTORS,
    WEIGHTS_BYTES,
    copy_scaled,
    part_of,
    pieces_of,
)
from numatp.kernels.rows import GROUP, add_outer, add_outer_apart, add_rows, load_rows, scale_rows, store_rows, zero_group, zeros
from numatp.kernels.simd import fma, load_f32, load_f32x16, load_i64, offset, splat_f32, store_f32, store_f32x16
from numatp.kernels.states import PIECE
from numatp.kernels.triangle import add_triangle, solve_triangle, times_vector

# Of a thread: S times a piece's keys and queries, and what is added to S in the end.
CHANGES = 2 * PIECE * 64
SCRATCH_BYTES = CHANGES + PIECE * 64

zero_pair, zero_piece = zeros(2), zeros(PIECE)


@device
def products(s, keys, size, out):
    """16 columns of S times all keys and queries of a piece."""
    for m in range(0, 2 * PIECE, GROUP):
        total = zero_group()
        for i in range(size):
            total = add_outer_apart(total, load_f32x16(s, i * 16), offset(keys, m * KEY_PITCH + i * 4), KEY_PITCH)
        store_rows(offset(out, m * 64), 64, 0, total)


@device
def whole_piece(s, keys, weights, v, v_stride, size, out, out_stride, scratch):
    """All tokens of a piece on 16 columns: the rows of `out`, and in `scratch` what each adds to S."""
    products(s, keys, size, scratch)
    known = scale_rows(load_rows(scratch, 64, 0, zero_piece()), offset(weights, KEY_FACTORS))
    values = scale_rows(load_rows(v, v_stride, 0, zero_piece()), offset(weights, BETAS))
    changes = solve_triangle(add_rows(values, known), offset(weights, OF_CHANGES))
    results = scale_rows(load_rows(offset(scratch, PIECE * 64), 64, 0, zero_piece()), offset(weights, QUERY_FACTORS))
    store_rows(out, out_stride, 0, add_triangle(results, changes, offset(weights, OF_RESULTS)))
    store_rows(offset(scratch, CHANGES), 64, 0, scale_rows(changes, offset(weights, LEFT)))


@device
def one_token(s, keys, weights, changes, i, v, size, out, scratch):
    """The i-th token of a piece, with the bits of whole_piece; `changes` are those of the tokens before, and then its own too."""
    total = zero_pair()
    for n in range(size):
        total = add_outer_apart(total, load_f32x16(s, n * 16), offset(keys, i * KEY_PITCH + n * 4), QUERIES)
    store_rows(scratch, 64, 0, total)
    own = offset(weights, i * 64)
    known = load_f32x16(scratch, 0) * splat_f32(load_f32(offset(weights, KEY_FACTORS), i))
    change = load_f32x16(v, 0) * splat_f32(load_f32(offset(weights, BETAS), i)) + known
    result = load_f32x16(scratch, 16) * splat_f32(load_f32(offset(weights, QUERY_FACTORS), i))
    for j in range(i):
        earlier = load_f32x16(changes, j * 16)
        change = fma(splat_f32(load_f32(offset(own, OF_CHANGES), j)), earlier, change)
        result = fma(splat_f32(load_f32(offset(own, OF_RESULTS), j)), earlier, result)
    store_f32x16(changes, i * 16, change)
    store_f32x16(out, 0, fma(splat_f32(load_f32(offset(own, OF_RESULTS), i)), change, result))


@device
def finish_piece(s, keys, weights, size, changes):
    """S after a piece: decayed, and each token's key times what it adds."""
    decay = splat_f32(load_f32(offset(weights, QUERY_FACTORS), PIECE - 1))
    for i in range(0, size, GROUP):
        rows = times_vector(load_rows(s, 64, i * 16, zero_group()), decay)
        for token in range(PIECE):
            rows = add_outer(rows, load_f32x16(changes, token * 16), offset(keys, token * KEY_PITCH + i * 4))
        store_rows(s, 64, i * 16, rows)


@device
def finish_channels(s, keys, size, changes):
    """The same where each row of S has its own decay, and keys are decayed already."""
    for i in range(0, size, GROUP):
        rows = scale_rows(load_rows(s, 64, i * 16, zero_group()), offset(keys, channels.DECAYS + i * 4))
        for token in range(PIECE):
            rows = add_outer(rows, load_f32x16(changes, token * 16), offset(keys, channels.LAST + token * KEY_PITCH + i * 4))
        store_rows(s, 64, i * 16, rows)


@device
def keep(args, kept, keys, weights, begin, end, key_head, head, is_first):
    """Keys and decays of the tokens [begin, end) of a piece that is not full; is_first: of the value heads of its key head."""
    size = args.head_size
    for i in range(begin, end):
        place = kept + (key_head * PIECE + i) * size * 4
        if args.by_channel:
            copy_scaled(offset(keys, channels.LAST + i * KEY_PITCH), float32(1), size, offset(args.kept_keys, place))
            copy_scaled(offset(keys, channels.DECAYS + i * KEY_PITCH), float32(1), size, offset(args.kept_decays, place))
            continue
        store_f32(offset(args.kept_decays, kept + head * PIECE * 4), i, load_f32(offset(weights, DECAYS), i))
        if is_first:
            copy_scaled(offset(keys, i * KEY_PITCH), float32(1), size, offset(args.kept_keys, place))


@device
def advance(args, kept, row, part, head, first_strip, last_strip, piece, scratch):
    """A span's part of a piece (part_of) on some strips of a value head. kept: where its sequence's state is, in bytes."""
    size = args.head_size
    key_head, slot = head // args.group, head % args.group
    if args.tiled:
        key_head, slot = head % args.key_heads, head // args.key_heads
    begin, end, done = part
    keys = offset(args.keys, (key_head * args.pieces + piece) * args.keys_bytes)
    weights = offset(args.weights, (head * args.pieces + piece) * WEIGHTS_BYTES)
    changes = offset(scratch, CHANGES)
    for strip in range(first_strip, last_strip):
        unit, place = head * (size // 16) + strip, (head * size + strip * 16) * 4
        s = offset(args.state, kept + unit * size * 64)
        v = offset(args.values, (row + done) * args.values_stride + place)
        out = offset(args.out, (row + done) * args.out_stride + place)
        if end - begin == PIECE:
            whole_piece(s, keys, weights, v, args.values_stride, size, out, args.out_stride, scratch)
        else:
            kept_changes = offset(args.kept_changes, kept + unit * PIECE * 64)
            for i in range(begin, end):
                own_v, own_out = offset(v, (i - begin) * args.values_stride), offset(out, (i - begin) * args.out_stride)
                one_token(s, keys, weights, kept_changes, i, own_v, size, own_out, scratch)
            if end == PIECE:
                for i in range(PIECE):
                    left = splat_f32(load_f32(offset(weights, LEFT), i))
                    store_f32x16(changes, i * 16, load_f32x16(kept_changes, i * 16) * left)
        if end == PIECE and args.by_channel:
            finish_channels(s, keys, size, changes)
        elif end == PIECE:
            finish_piece(s, keys, weights, size, changes)
        elif strip == 0:
            keep(args, kept, keys, weights, begin, end, key_head, head, slot == 0)


@kernel(
    values="pointer", values_stride="int", keys="pointer", keys_bytes="int", weights="pointer", pieces="int", key_heads="int",
    group="int", tiled="int", by_channel="int", head_size="int", state="pointer", kept_changes="pointer", kept_keys="pointer",
    kept_decays="pointer", state_stride="int", spans="pointer", num_spans="pointer", scratch="pointer", scratch_stride="int",
    out="pointer", out_stride="int",
)  # fmt: skip
def gated_delta(args, thread, threads):
    """out (rows, value_heads, head_size), as values are; a span that begins at position 0 has a zero state.

    A sequence has one span. keys, weights: what delta_pieces made, or channel_pieces (by_channel); keys_bytes: of a piece and key
    head. The state has, beside S, kept_changes (value_heads, head_size / 16, PIECE, 16), kept_keys (key_heads, PIECE, head_size)
    and kept_decays (value_heads, PIECE), or (key_heads, PIECE, head_size), of a piece that is not full. scratch: SCRATCH_BYTES of
    a thread.
    """
    size, strips = args.head_size, args.head_size // 16
    first, last = share(args.key_heads * args.group * strips, thread, threads)
    scratch = offset(args.scratch, thread * args.scratch_stride)
    number = 0  # of the span's first piece
    for span in range(load_i64(args.num_spans, 0)):
        span = offset(args.spans, span * 32)
        sequence, row, rows, position = load_i64(span, 0), load_i64(span, 1), load_i64(span, 2), load_i64(span, 3)
        kept, pieces = sequence * args.state_stride, pieces_of(position, rows)
        if position == 0:
            for unit in range(first, last):
                for i in range(size):
                    store_f32x16(offset(args.state, kept + unit * size * 64), i * 16, splat_f32(0))
        # Head by head, so that of a head's values whole rows are read; its part of S stays in the second cache.
        for head in range(first // strips, (last + strips - 1) // strips):
            begin, end = max(first - head * strips, 0), min(last - head * strips, strips)
            for piece in range(pieces):
                advance(args, kept, row, part_of(position, rows, piece), head, begin, end, number + piece, scratch)
        number += pieces
