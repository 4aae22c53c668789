"""Weight matrices times activation rows, and the other work on a weight matrix; specialised for each quant format.

A matrix lies in tiles of 16 rows (numatp.quants). Threads take contiguous ranges of tiles, the same for loading and computing,
so each thread first touches the memory that it will read; of one row's products that are dealt (dealt.py), most of it.
"""

from math import exp as scalar_exp
from types import ModuleType

from numatp.kernels.compile import called, device, kernel, share
from numatp.kernels.exp import exp
from numatp.kernels.jit import float32, int64
from numatp.kernels.layout import PANELS, TOP_BYTES
from numatp.kernels.pread import pread
from numatp.kernels.rows import MANY, add_rows, load_rows, num_many, pass_of, store_rows, with_half, with_pass
from numatp.kernels.score import LOWEST, clear_parts, clear_top, insert_top
from numatp.kernels.simd import (
    keep_lanes,
    largest,
    load_f32,
    load_f32x16,
    load_i64,
    offset,
    splat_f32,
    store_f32,
    store_i64,
    store_u8,
    sum_f32x16,
)
from numatp.kernels.softcap import cap_rows

quant: ModuleType = globals()["quant"]  # the format: specialize() has set it
L2_BYTES = 256 * 1024  # of weights; the activation rows need the rest
ON_TILES = MANY > 0 and quant.expand is not None  # whether there are tile registers for products with this format
with_rows_of_pass = with_half if ON_TILES else with_pass  # where there are Strips a pass has half a group of rows at most


@device
def multiply_rows(zero, weights, units, x, first, pitch, out, out_stride, add):
    """As many rows as `zero` has, from the first-th of the group at x on."""
    out, total = offset(out, first * out_stride), quant.dot_tile(weights, x, first, pitch, units, int64(0), units, zero)
    store_rows(out, out_stride, 0, add_rows(load_rows(out, out_stride, 0, zero), total) if add else total)


@device
def multiply_passes(weights, units, rows, x, pitch, out, out_stride, add):
    """The rows at x, in passes of as many as their sums have vector registers for."""
    first = 0
    while first < rows:
        at_once = pass_of(rows - first)
        with_rows_of_pass(at_once, multiply_rows, weights, units, x, first, pitch, out, out_stride, add)
        first += at_once


if ON_TILES:
    from numatp.kernels.isa.amx import configure_bytes, release
    from numatp.kernels.panels import panel_multiplier
    from numatp.kernels.strip import least_rows, strip_multiplier

    multiply_panels, multiply_strip = panel_multiplier(quant), strip_multiplier(quant)
    LEAST = least_rows(quant)

    @device
    def prepare(rows):
        if rows >= LEAST:
            configure_bytes()

    @device
    def at_once_of(left, pitch):
        return min(left, 2 * pitch if left >= pitch + LEAST else pitch)

    @called
    def multiply(weights, units, rows, x, x_group, pitch, out, out_stride, add):
        """As below; LEAST rows and more by a strip."""
        if rows >= LEAST:
            multiply_strip(weights, units, int64(2) if rows > pitch else int64(1), x, x_group, pitch, out, out_stride, add)
        else:
            multiply_passes(weights, units, rows, x, pitch, out, out_stride, add)
else:

    @device
    def prepare(rows):
        """Of the calling thread, before it multiplies so many rows that are not of prompts."""

    @device
    def at_once_of(left, pitch):
        """Rows that the next `multiply` takes, of so many that are left."""
        return min(left, pitch)

    @called
    def multiply(weights, units, rows, x, x_group, pitch, out, out_stride, add):
        """out (rows, 16) = [out +] the at_once_of() rows at x times one tile; rows of out up to whole groups may change."""
        multiply_passes(weights, units, rows, x, pitch, out, out_stride, add)


@device
def multiply_groups(weights, tile_bytes, first, last, units, rows, x, x_group, pitch, out, out_stride, add):
    """multiply_tiles, a group or two of rows after the other."""
    prepare(rows)
    # As many tiles as stay in the L2 cache while all groups of rows pass by.
    batch = max(L2_BYTES // max(tile_bytes, 1), 1)
    for nth in range((last - first + batch - 1) // batch):
        start = first + nth * batch
        group = int64(0)
        while group * pitch < rows:
            at_once = at_once_of(rows - group * pitch, pitch)
            for tile in range(start, min(start + batch, last)):
                multiply(
                    offset(weights, tile * tile_bytes), units, at_once, offset(x, group * x_group), x_group, pitch,
                    offset(out, group * pitch * out_stride + tile * 64), out_stride, add,
                )  # fmt: skip
            group += (at_once + pitch - 1) // pitch


if ON_TILES:

    @device
    def many_of(rows):
        return num_many(rows)

    @device
    def multiply_tiles(
        weights, tile_bytes, first, last, units, many, start, others, x, x_group, pitch, out, out_stride, add, panels
    ):
        if many == 0:
            multiply_groups(weights, tile_bytes, first, last, units, others, x, x_group, pitch, out, out_stride, add)
            if others >= LEAST:
                release()
            return
        others_x, others_out = offset(x, (many + pitch - 1) // pitch * x_group), offset(out, start * out_stride)
        # The others' rows find the weights in the cache.
        for begin in range(first, last, PANELS):
            end = min(begin + PANELS, last)
            multiply_panels(weights, tile_bytes, begin, end, units, many, x, x_group, out, out_stride, add, panels)
            multiply_groups(weights, tile_bytes, begin, end, units, others, others_x, x_group, pitch, others_out, out_stride, add)
        release()
else:

    @device
    def many_of(rows):
        return int64(0)

    @device
    def multiply_tiles(
        weights, tile_bytes, first, last, units, many, start, others, x, x_group, pitch, out, out_stride, add, panels
    ):
        """out (rows, 16 columns of each tile) = [out +] x times the tiles [first, last) of a matrix.

        The first `many` rows go through tile registers (kernels/panels.py), where the format has panels; panels: this thread's
        scratch memory for them. `others` more begin with a group of their own at x, and are the rows from the start-th on of out.
        """
        multiply_groups(weights, tile_bytes, first, last, units, start + others, x, x_group, pitch, out, out_stride, add)


@kernel(
    weights="pointer", tiles="int", tile_bytes="int", units="int", rows="pointer",
    x="pointer", x_group="int", x_thread_stride="int", pitch="int", out="pointer", out_stride="int", add="int",
    panels="pointer", panels_thread_stride="int",
)  # fmt: skip
def matmul(args, thread, threads):
    """out (rows, tiles * 16) = [out +] x (rows, units * 32) times the transposed matrix.

    rows: int64 (2,): how many, and how many of them, the first ones, go through tile registers. x: groups of `pitch` rows, x_group
    bytes apart (kernels/activation.py). out_stride: bytes from row to row; the last group's spare rows are written too.
    panels: scratch memory of each thread, if some may go through tile registers.
    """
    x, panels = offset(args.x, thread * args.x_thread_stride), offset(args.panels, thread * args.panels_thread_stride)
    first, last = share(args.tiles, thread, threads)
    many = many_of(args.rows)
    multiply_tiles(
        args.weights, args.tile_bytes, first, last, args.units, many, many, load_i64(args.rows, 0) - many, x, args.x_group,
        args.pitch, args.out, args.out_stride, args.add, panels,
    )  # fmt: skip


@kernel(
    weights="pointer", tiles="int", tile_bytes="int", units="int", counts="pointer", active="pointer",
    x="pointer", x_group="int", x_thread_stride="int", pitch="int", out="pointer", out_stride="int",
    panels="pointer", panels_thread_stride="int",
)  # fmt: skip
def experts(args, thread, threads):
    """out (places, tiles * 16) = x (places, units * 32) times the transposed matrix of each place's expert (kernels/experts.py).

    weights: the experts' matrices of `tiles` tiles one after another. Threads share the tiles of all active experts.
    """
    x, panels = offset(args.x, thread * args.x_thread_stride), offset(args.panels, thread * args.panels_thread_stride)
    item, last = share(load_i64(args.counts, 1) * args.tiles, thread, threads)
    while item < last:
        found, tile = item // args.tiles, item % args.tiles
        stop = min(tile + last - item, args.tiles)
        active = offset(args.active, found * 32)
        expert, group, many, others = load_i64(active, 0), load_i64(active, 1), load_i64(active, 2), load_i64(active, 3)
        multiply_tiles(
            offset(args.weights, expert * args.tiles * args.tile_bytes), args.tile_bytes, tile, stop, args.units, many,
            (many + args.pitch - 1) // args.pitch * args.pitch, others, offset(x, group * args.x_group), args.x_group, args.pitch,
            offset(args.out, group * args.pitch * args.out_stride), args.out_stride, int64(0), panels,
        )  # fmt: skip
        item += stop - tile


@kernel(
    weights="pointer", tiles="int", tile_bytes="int", units="int", vocab="int", first_token="int", targets="pointer",
    rows="pointer", x="pointer", x_group="int", pitch="int", scratch="pointer", scratch_thread_stride="int", cap="float",
    by_tile="int", out="pointer", out_stride="int", tops="pointer", tops_thread_stride="int", num_top="pointer",
    panels="pointer", panels_thread_stride="int",
)  # fmt: skip
def score(args, thread, threads):
    """What each row's log-softmax over the tokens [first_token, first_token + vocab) needs of this thread's tiles.

    out (rows, 4) per thread, or by_tile per tile, so that no bit depends on how threads share them: the highest logit h, the sum of
    exp(logit - h), which is not-a-number if a logit is infinite or no number, and the logit of the row's target if it is here, else
    LOWEST. The logits themselves are never stored; scratch: 16 floats per thread for each row, whole groups of them. cap: of the
    logits (kernels/softcap.py), 0 for none. tops: likewise per thread the num_top most probable tokens of each row
    (kernels/score.py).
    """
    tops, most = offset(args.tops, thread * args.tops_thread_stride), load_i64(args.num_top, 0)
    rows, pitch = load_i64(args.rows, 0), args.pitch
    logits, out = offset(args.scratch, thread * args.scratch_thread_stride), offset(args.out, thread * args.out_stride)
    panels, many = offset(args.panels, thread * args.panels_thread_stride), many_of(args.rows)
    first, last = share(args.tiles, thread, threads)
    for row in range(rows):
        clear_top(offset(tops, row * TOP_BYTES), most)
    if not args.by_tile:
        clear_parts(out, rows)
    for tile in range(first, last):
        if args.by_tile:
            out = offset(args.out, tile * args.out_stride)
            clear_parts(out, rows)
        here = args.vocab - tile * 16  # logits of this tile, if less than 16
        multiply_tiles(
            offset(args.weights, tile * args.tile_bytes), args.tile_bytes, int64(0), int64(1), args.units, many, many,
            rows - many, args.x, args.x_group, pitch, logits, int64(64), int64(0), panels,
        )  # fmt: skip
        if args.cap > 0:
            cap_rows(logits, 64, rows, 16, args.cap)
        for row in range(rows):
            values = keep_lanes(here, load_f32x16(logits, row * 16), splat_f32(LOWEST))
            highest, total = load_f32(out, row * 4), load_f32(out, row * 4 + 1)
            top = largest(values)
            if top > highest:
                total *= float32(scalar_exp(highest - top))
                highest = top
            store_f32(out, row * 4, highest)
            powers = keep_lanes(here, exp(values - splat_f32(highest)), splat_f32(0))
            # Of what is infinite or not a number, the difference to itself is not a number: the sum then is none either.
            store_f32(out, row * 4 + 1, total + sum_f32x16(powers + (values - values)))
            target = load_i64(args.targets, row) - args.first_token - tile * 16
            if target >= 0 and target < min(here, 16):
                store_f32(out, row * 4 + 2, load_f32(logits, row * 16 + target))
            if most > 0 and top > load_f32(offset(tops, row * TOP_BYTES), most - 1):
                for i in range(min(here, 16)):
                    token = args.first_token + tile * 16 + i
                    insert_top(offset(tops, row * TOP_BYTES), most, load_f32(logits, row * 16 + i), token)


@kernel(
    weights="pointer", tile_bytes="int", units="int", first="int", count="int", first_token="int", last_token="int",
    tokens="pointer", rows="pointer", scale="float", out="pointer", out_stride="int",
)  # fmt: skip
def embed(args, thread, threads):
    """out (rows, count * 32): scale * the matrix row of each token in [first_token, last_token), zeros for all others; of a row the
    units of 32 from the first-th on.
    """
    first, last = share(args.count, thread, threads)
    before = args.first * 32
    for row in range(load_i64(args.rows, 0)):
        token = load_i64(args.tokens, row)
        out = offset(args.out, row * args.out_stride)
        mine = args.first_token <= token and token < args.last_token
        local = token - args.first_token
        tile = offset(args.weights, local // 16 * args.tile_bytes)
        for column in range(first * 32, last * 32):
            store_f32(
                out, column, args.scale * quant.element(tile, args.units, local % 16, before + column) if mine else float32(0)
            )


@device
def read_fully(file, destination, num_bytes, position):
    """pread until num_bytes are there; False at an error or the end of the file."""
    done = 0
    while done < num_bytes:
        count = pread(file, offset(destination, done), num_bytes - done, position + done)
        if count <= 0:
            return False
        done += count
    return True


@kernel(
    file="int", position="int", row_bytes="int", rows="int", first_unit="int", units="int",
    weights="pointer", tile_bytes="int", staging="pointer", staging_bytes="int", failed="pointer",
)  # fmt: skip
def load(args, thread, threads):
    """Reads `rows` rows from the file and packs this rank's columns of them; staging_bytes is each thread's buffer.

    Rows that the last tile lacks are zeros. failed: int64 (2,), zeros before; the first becomes 1 if the rows cannot be read, the
    second if weights are no finite numbers.
    """
    tiles = (args.rows + 15) // 16
    first, last = share(tiles, thread, threads)
    staging = offset(args.staging, thread * args.staging_bytes)
    batch = args.staging_bytes // (16 * args.row_bytes)  # tiles of one read
    for read in range((last - first + batch - 1) // batch):
        start = first + read * batch
        stop = min(start + batch, last)
        rows = min(stop * 16, args.rows) - start * 16
        if not read_fully(args.file, staging, rows * args.row_bytes, args.position + start * 16 * args.row_bytes):
            store_i64(args.failed, 0, 1)
            return
        for spare in range(rows * args.row_bytes, (stop - start) * 16 * args.row_bytes):
            store_u8(staging, spare, 0)
        for tile in range(start, stop):
            source, weights = offset(staging, (tile - start) * 16 * args.row_bytes), offset(args.weights, tile * args.tile_bytes)
            quant.pack(source, args.row_bytes, args.first_unit, args.units, weights)
            if not quant.finite(weights, args.units):
                store_i64(args.failed, 1, 1)
