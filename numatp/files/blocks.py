"""Whole numbers and their scales as rows in the blocks of GGUF's types, of 32 weights each; numatp/quants says how they lie."""

import numpy as np

BLOCK = 32  # weights


def nibbles(q: np.ndarray) -> np.ndarray:
    """Codes 0..15, uint8 (rows, columns), to bytes (rows, blocks, 16): the low nibbles are a block's first half."""
    halves = q.reshape(len(q), -1, 2, 16)
    packed: np.ndarray = halves[:, :, 0] | halves[:, :, 1] << 4
    return packed


def q4_0(q: np.ndarray, d: np.ndarray) -> np.ndarray:
    """d * (q - 8); d float16 (rows, blocks)."""
    return np.concatenate([_bytes(d), nibbles(q)], axis=-1).reshape(len(q), -1)


def q4_1(q: np.ndarray, d: np.ndarray, m: np.ndarray) -> np.ndarray:
    """d * q + m; d and m float16 (rows, blocks)."""
    return np.concatenate([_bytes(d), _bytes(m), nibbles(q)], axis=-1).reshape(len(q), -1)


def q8_0(q: np.ndarray, d: np.ndarray) -> np.ndarray:
    """d * q; q int8 (rows, columns), d float16 (rows, blocks)."""
    return np.concatenate([_bytes(d), q.view(np.uint8).reshape(len(q), -1, BLOCK)], axis=-1).reshape(len(q), -1)


def mxfp4(q: np.ndarray, e: np.ndarray) -> np.ndarray:
    """e2m1 codes 0..15, and of each 32 the byte of their scale, uint8 (rows, blocks)."""
    return np.concatenate([e[..., None], nibbles(q)], axis=-1).reshape(len(q), -1)


def nvfp4(q: np.ndarray, d: np.ndarray) -> np.ndarray:
    """e2m1 codes 0..15, and of each 16 the byte of their scale, uint8 (rows, columns / 16); columns a multiple of 64."""
    halves = q.reshape(len(q), -1, 4, 2, 8)
    packed = halves[..., 0, :] | halves[..., 1, :] << 4
    blocks = packed.reshape(len(q), -1, 32)
    return np.concatenate([d.reshape(*blocks.shape[:2], 4), blocks], axis=-1).reshape(len(q), -1)


def _bytes(halves: np.ndarray) -> np.ndarray:
    """float16 (rows, blocks) to uint8 (rows, blocks, 2)."""
    return np.ascontiguousarray(halves).view(np.uint8).reshape(*halves.shape, 2)


def groups_of(columns: range, group: int) -> np.ndarray:
    """Which group of `group` columns each block of `columns` lies in, counted from the first one that they touch."""
    return (np.arange(columns.start, columns.stop, BLOCK) // group - columns.start // group).astype(np.int64)


def from_bits(packed: np.ndarray, bits: int) -> np.ndarray:
    """uint8 (..., bytes) to the unsigned numbers of 4 or 8 bits in them, the lowest first."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
