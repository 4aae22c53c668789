"""TQ2_0: super-blocks of 256 weights with one scale; weight = d * (q - 1) with q in 0..2, or 3, which no writer writes.

File block, 66 bytes: for each half of 128 weights 32 bytes with two bits of each of its four units of 32; float16 d.
Tile: as kernels/superblock.py has it; a super-block's rows share 16 d, and a unit is a plane of 2 bits (kernels/planes.py).
"""

import numpy as np

from numatp.kernels.compile import device
from numatp.kernels.finite import supers_finite
from numatp.kernels.planes import plane_loader, store_pair_plane
from numatp.kernels.simd import load_f16x16, offset, widen
from numatp.kernels.superblock import packer, products
from numatp.quants.table import FORMATS

FORMAT = FORMATS["TQ2_0"]
BLOCK_BYTES, TILE_BYTES, SUPER_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.super_bytes
ACTIVATION = "q8"
ZERO = 1  # the q of a zero

load_pairs = plane_loader(2, 0)


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, blocks * 66) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, BLOCK_BYTES)
    d = blocks[..., 64:].copy().view(np.float16).astype(np.float32)
    pairs = blocks[..., :64].reshape(rows, -1, 2, 32)
    q = np.stack([pairs >> 2 * unit & 3 for unit in range(4)], axis=-2).astype(np.float32)
    return (d * (q - ZERO).reshape(rows, -1, 256)).reshape(rows, -1)


@device
def store_unit(weights, block, row_bytes, place):
    store_pair_plane(weights, offset(block, place // 4 * 32), row_bytes, place % 4 * 2)


@device
def load_unit(weights, both, place):
    return load_pairs(weights), widen(load_f16x16(both, 0))


pack = packer(store_unit, BLOCK_BYTES, TILE_BYTES, (32,))
finite = supers_finite(SUPER_BYTES, TILE_BYTES)
dot_tile, expand, element = products(load_unit, ZERO, SUPER_BYTES, TILE_BYTES)
