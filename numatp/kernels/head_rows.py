"""The matrices of latent attention's heads as kernels/unabsorbed.py multiplies latent rows by them, made anew for each Step; their
format specialize() sets.

What is made of a head: its rows, each `latent` numbers, in groups of 16. float32: (groups, latent, 16); BF16: (groups, latent / 32,
16, 32), where columns i and i + 16 of 32 are a pair (kernels/pairs.py). attn_v_b is stored so, row by row; attn_k_b, which queries
are multiplied by, has latent rows, and the numbers of a key are its columns.
"""

from types import ModuleType

from numatp.kernels.bf16 import lower_halves, upper_halves
from numatp.kernels.compile import device, kernel, share
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.pairs import store_pair
from numatp.kernels.simd import load_i32x16, load_i64, offset, store_f32x16
from numatp.kernels.transpose import transpose

quant: ModuleType = globals()["quant"]  # the format: specialize() has set it
SCRATCH_BYTES = 4 * PANEL_UNIT_BYTES  # of a thread: units of two tiles, and what is to be transposed

if quant.expand:

    @device
    def open_unit(tile, unit, panel):
        quant.expand(tile, unit, unit + 1, panel)

    @device
    def columns_of(tile, unit, pair, panel):
        words = load_i32x16(panel, pair * 16)
        return lower_halves(words), upper_halves(words)
else:

    @device
    def open_unit(tile, unit, panel):
        """Before columns_of; panel: 1 KB of scratch memory for this tile."""

    @device
    def columns_of(tile, unit, pair, panel):
        """float32 of 16 rows: the columns 2 * pair and 2 * pair + 1 of a unit of 32."""
        return quant.values_at(tile, unit * 32 + 2 * pair), quant.values_at(tile, unit * 32 + 2 * pair + 1)


@device
def store_columns_of(tiles, tile_bytes, unit, tiled, latent, at, out, scratch):
    """Of two tiles, latent rows [at, at + 32) of a head, the 32 columns of a unit: rows of two groups at out."""
    second = offset(tiles, tile_bytes)
    panel, transposed = offset(scratch, PANEL_UNIT_BYTES), offset(scratch, 2 * PANEL_UNIT_BYTES)
    open_unit(tiles, unit, scratch)
    open_unit(second, unit, panel)
    for group in range(2):
        for i in range(8):
            even, odd = columns_of(tiles, unit, group * 8 + i, scratch)
            high_even, high_odd = columns_of(second, unit, group * 8 + i, panel)
            if tiled:
                place = offset(out, (group * latent + at) * 32 + i * 128)
                store_pair(place, even, high_even)
                store_pair(offset(place, 64), odd, high_odd)
            else:
                store_f32x16(transposed, i * 32, even)
                store_f32x16(transposed, i * 32 + 16, odd)
                store_f32x16(transposed, 256 + i * 32, high_even)
                store_f32x16(transposed, 256 + i * 32 + 16, high_odd)
        if not tiled:
            place = offset(out, (group * latent + at) * 64)
            transpose(transposed, 64, place, 64)
            transpose(offset(transposed, PANEL_UNIT_BYTES), 64, offset(place, PANEL_UNIT_BYTES), 64)


@device
def store_rows_of(tile, unit, tiled, out, scratch):
    """The 16 rows of a tile, columns of one unit, at their place in a group."""
    transposed = offset(scratch, 2 * PANEL_UNIT_BYTES)
    open_unit(tile, unit, scratch)
    for i in range(8):
        even, odd = columns_of(tile, unit, i, scratch)
        high_even, high_odd = columns_of(tile, unit, i + 8, scratch)
        if tiled:
            store_pair(offset(transposed, i * 128), even, high_even)
            store_pair(offset(transposed, i * 128 + 64), odd, high_odd)
        else:
            place = unit * 512 + i * 32
            store_f32x16(out, place, even)
            store_f32x16(out, place + 16, odd)
            store_f32x16(out, place + 256, high_even)
            store_f32x16(out, place + 272, high_odd)
    if tiled:
        transpose(transposed, 64, offset(out, unit * PANEL_UNIT_BYTES), 64)


@kernel(
    weights="pointer", tile_bytes="int", heads="int", tiles="int", units="int", by_columns="int", tiled="int", num_made="pointer",
    scratch="pointer", scratch_stride="int", out="pointer",
)  # fmt: skip
def make_rows(args, thread, threads):
    """out: the rows of each head, as BF16 if `tiled`, if the Step has rows to make keys and values for (num_made).

    weights: a matrix of `tiles` tiles and `units` of 32 columns for each head; by_columns: a head's rows are its columns.
    """
    if load_i64(args.num_made, 0) == 0:
        return
    scratch, size = offset(args.scratch, thread * args.scratch_stride), 2 if args.tiled else 4
    step = 2 if args.by_columns else 1
    first, last = share(args.heads * args.tiles // step, thread, threads)
    for item in range(first, last):
        tile = item * step
        weights = offset(args.weights, tile * args.tile_bytes)
        if args.by_columns:
            latent, at = args.tiles * 16, tile % args.tiles * 16
            out = offset(args.out, tile // args.tiles * args.units * 32 * latent * size)
            for unit in range(args.units):
                place = offset(out, unit * 32 * latent * size)
                store_columns_of(weights, args.tile_bytes, unit, args.tiled, latent, at, place, scratch)
        else:
            for unit in range(args.units):
                store_rows_of(weights, unit, args.tiled, offset(args.out, tile * 16 * args.units * 32 * size), scratch)
