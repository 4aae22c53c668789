"""Q2_K: super-blocks of 16 x 16 weights; weight = (d * scale) * q - (dmin * minimum) with q in 0..3.

File block, 84 bytes: 16 bytes with a scale in the low and a minimum in the high nibble; for each half of 128 weights 32 bytes with
two bits of each of its four units; float16 d and dmin.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d and 16 dmin, and a unit is a plane of 2 bits
(kernels/planes.py), then 16 of the file's bytes of scale and minimum for its first and 16 for its second half.
"""

import numpy as np

from numatp.kernels.activation import half_sums, scales
from numatp.kernels.ahead import prefetch_unit
from numatp.kernels.bf16 import store_pairs
from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.fit import fit_lines, fit_whole_lines, keep_f16, line_codes, store_bytes, store_nibbles
from numatp.kernels.layout import PANEL_UNIT_BYTES
from numatp.kernels.planes import first_half, plane_element, plane_loader, second_half, store_pair_plane
from numatp.kernels.rows import add_dot, add_outer
from numatp.kernels.simd import (
    high_nibbles,
    lane,
    largest,
    load_f16,
    load_f16x16,
    load_f32x16,
    load_i8x16,
    load_u8,
    low_nibbles,
    negative,
    offset,
    splat_f32,
    store_u8,
    widen,
    widen_u8,
)
from numatp.kernels.superblock import packer, shared, super_of, touched, unit_at, units_of
from numatp.quants.table import FORMATS

FORMAT = FORMATS["Q2_K"]
BLOCK, BLOCK_BYTES = FORMAT.block, FORMAT.block_bytes
TILE_BYTES, SUPER_BYTES = FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION, ZERO = "q8", 0
HALVES = True

load_pairs = plane_loader(2, 0)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 84) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    scale, minimum = ((blocks[..., :16] & 15).astype(np.float32), (blocks[..., :16] >> 4).astype(np.float32))
    d, dmin = (blocks[..., i : i + 2].copy().view(np.float16).astype(np.float32) for i in (80, 82))
    pairs = blocks[..., 16:80].reshape(rows, -1, 2, 32)
    q = np.stack([pairs >> 2 * unit & 3 for unit in range(4)], axis=-2).astype(np.float32).reshape(rows, -1, 16, 16)
    return ((d * scale)[..., None] * q - (dmin * minimum)[..., None]).reshape(rows, -1)


@device
def store_unit(weights, block, row_bytes, place):
    store_pair_plane(weights, offset(block, 16 + place // 4 * 32), row_bytes, place % 4 * 2)
    for row in range(16):
        store_u8(weights, 128 + row, load_u8(block, row * row_bytes + 2 * place))
        store_u8(weights, 144 + row, load_u8(block, row * row_bytes + 2 * place + 1))


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (40, 41))
finite = supers_finite(SUPER_BYTES, TILE_BYTES)


@device
def dot_tile(tile, x, first, pitch, units, begin, end, total):
    place, first_super = begin * pitch + first, super_of(tile, begin)
    here = shared(tile, first_super, SUPER_BYTES, TILE_BYTES)
    x_scales = offset(scales(x, units * pitch), place * 4)
    x_sums = offset(half_sums(x, units * pitch), (place + begin * pitch) * 4)
    x = offset(x, place * 32)
    for index in range(first_super, touched(tile, end)):
        d, minus_dmin = widen(load_f16x16(here, 0)), negative(widen(load_f16x16(here, 16)))
        prefetch_unit(here, SUPER_BYTES)
        here = offset(here, SUPER_BYTES)
        start, stop = units_of(tile, index, end)
        for _ in range(start, stop):
            weights = load_pairs(here)
            prefetch_unit(here, TILE_BYTES)
            constants = offset(here, 128)
            nibbles, second_nibbles = load_i8x16(constants, 0), load_i8x16(constants, 16)
            total = add_outer(total, minus_dmin * widen_u8(high_nibbles(nibbles)), x_sums)
            total = add_dot(total, first_half(weights), d * widen_u8(low_nibbles(nibbles)), x, x_scales)
            total = add_outer(total, minus_dmin * widen_u8(high_nibbles(second_nibbles)), offset(x_sums, pitch * 4))
            total = add_dot(total, second_half(weights), d * widen_u8(low_nibbles(second_nibbles)), offset(x, 16), x_scales)
            here, x = offset(here, TILE_BYTES), offset(x, pitch * 32)
            x_scales, x_sums = offset(x_scales, pitch * 4), offset(x_sums, pitch * 8)
    return total


@device
def expand(tile, first, last, out):
    for unit in range(first, last):
        here, both = unit_at(tile, unit, SUPER_BYTES, TILE_BYTES), shared(tile, super_of(tile, unit), SUPER_BYTES, TILE_BYTES)
        weights, constants = load_pairs(here), offset(here, 128)
        d, minus_dmin = widen(load_f16x16(both, 0)), negative(widen(load_f16x16(both, 16)))
        nibbles, second_nibbles = load_i8x16(constants, 0), load_i8x16(constants, 16)
        store_pairs(
            out, first_half(weights), d * widen_u8(low_nibbles(nibbles)), minus_dmin * widen_u8(high_nibbles(nibbles))
        )  # fmt: skip
        store_pairs(
            offset(out, PANEL_UNIT_BYTES // 2), second_half(weights), d * widen_u8(low_nibbles(second_nibbles)),
            minus_dmin * widen_u8(high_nibbles(second_nibbles)),
        )  # fmt: skip
        out = offset(out, PANEL_UNIT_BYTES)


@device
def element(tile, units, row, column):
    unit, k = column // 32, column % 32
    weights = unit_at(tile, unit, SUPER_BYTES, TILE_BYTES)
    nibbles = load_u8(weights, 128 + k // 16 * 16 + row)
    both = shared(tile, super_of(tile, unit), SUPER_BYTES, TILE_BYTES)
    q = plane_element(weights, 2, row, k)
    return load_f16(both, row) * (nibbles & 15) * q - load_f16(both, 16 + row) * (nibbles >> 4)


@device
def quantize(x, columns, out):
    for _ in range(columns // BLOCK):
        d, m = fit_lines(x, 16, 16, 3, 1.5, 0.125, 17)
        unit, sink = keep_f16(out, 40, largest(d) / 15), keep_f16(out, 41, largest(negative(m)) / 15)
        s, t = fit_whole_lines(x, 16, 16, unit, sink, d, m, 3, 15)
        store_nibbles(out, s, t)
        for i in range(4):  # two halves of the super-block, two of each unit
            byte, power = splat_f32(0), 1.0
            for place in range(4):
                block = i // 2 * 8 + place * 2 + i % 2
                q = line_codes(load_f32x16(x, block * 16), unit * lane(s, block), -sink * lane(t, block), 3)
                byte = byte + splat_f32(power) * q
                power *= 4
            store_bytes(offset(out, 16 + i * 16), byte)
        x, out = offset(x, BLOCK * 4), offset(out, BLOCK_BYTES)
