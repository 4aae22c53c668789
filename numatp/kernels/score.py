"""Adding up what threads, or tiles, say about the softmax over the vocabulary (kernels/matmul.py: score).

The most probable tokens of a row are a record of TOP_BYTES: their logits, float32, from the highest down, and the tokens, int32.
"""

from math import exp

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.jit import float32, int32
from numatp.kernels.layout import MOST_TOP, TOP_BYTES
from numatp.kernels.simd import load_f32, load_i32, load_i64, offset, store_f32, store_i32

LOWEST = -1e30  # a logit that is not there


@device
def clear_parts(parts, rows):
    """Nothing was seen yet."""
    for row in range(rows):
        store_f32(parts, row * 4, float32(LOWEST))
        store_f32(parts, row * 4 + 1, float32(0))
        store_f32(parts, row * 4 + 2, float32(LOWEST))


@device
def clear_top(top, most):
    for i in range(most):
        store_f32(top, i, float32(LOWEST))
        store_i32(top, MOST_TOP + i, int32(-1))


@device
def insert_top(top, most, logit, token):
    """Keeps a token, if it is among the `most` most probable so far; of equals the one that came first."""
    if logit > load_f32(top, most - 1):
        at = most - 1
        while at > 0 and load_f32(top, at - 1) < logit:
            store_f32(top, at, load_f32(top, at - 1))
            store_i32(top, MOST_TOP + at, load_i32(top, MOST_TOP + at - 1))
            at -= 1
        store_f32(top, at, logit)
        store_i32(top, MOST_TOP + at, int32(token))


@device
def join_parts(parts, stride, first, last, out):
    """Of one row the parts [first, last), `stride` bytes apart, in order."""
    highest, total, target = float32(LOWEST), float32(0), float32(LOWEST)
    for other in range(first, last):
        part = offset(parts, other * stride)
        highest = max(highest, load_f32(part, 0))
        target = max(target, load_f32(part, 2))
    for other in range(first, last):
        part = offset(parts, other * stride)
        total += load_f32(part, 1) * float32(exp(load_f32(part, 0) - highest))
    store_f32(out, 0, highest)
    store_f32(out, 1, total)
    store_f32(out, 2, target)


@kernel(
    parts="pointer", parts_stride="int", edges="pointer", segments="int", tops="pointer", tops_thread_stride="int",
    num_top="pointer", rows="pointer", out="pointer", out_stride="int", out_tops="pointer",
)  # fmt: skip
def join_scores(args, thread, threads):
    """out (rows, segments, 4), out_stride bytes from row to row: highest logit, sum of exp(logit - highest), logit of the target or
    LOWEST. The i-th segment of the vocabulary has the parts [edges[i], edges[i + 1]), of threads or of tiles.

    out_tops: for each row the num_top most probable tokens that the threads found.
    """
    most = load_i64(args.num_top, 0)
    first, last = share(load_i64(args.rows, 0), thread, threads)
    for row in range(first, last):
        for segment in range(args.segments):
            join_parts(
                offset(args.parts, row * 16), args.parts_stride, load_i64(args.edges, segment), load_i64(args.edges, segment + 1),
                offset(args.out, row * args.out_stride + segment * 16),
            )  # fmt: skip
        out_top = offset(args.out_tops, row * TOP_BYTES)
        clear_top(out_top, most)
        for other in range(threads if most > 0 else 0):
            top = offset(args.tops, other * args.tops_thread_stride + row * TOP_BYTES)
            for i in range(most):
                insert_top(out_top, most, load_f32(top, i), load_i32(top, MOST_TOP + i))
