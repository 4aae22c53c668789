"""GGUF files of ik_llama.cpp whose matrices have four rows in each block (_R4): read as rows of the type without that ending.

The blocks of four rows that follow each other are together: what each row has one of stands four times, and bytes with several
weights of a row are four for each row in turn. IQ1_S_R4 has one scale for a row, which IQ1_S has once for each 256 weights.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from numatp.files.gguf import GGUFFile
from numatp.files.huggingface import Assembled
from numatp.files.layouts import Rows
from numatp.files.model_file import TensorInfo
from numatp.files.safetensors import read_bytes
from numatp.quants.table import TYPES

END, TOGETHER = "_R4", 4


class Interleaved:
    """Rows of a tensor, each by itself."""

    note = ""

    def __init__(self, info: TensorInfo):
        self.info, self.type = info, info.type.removesuffix(END)
        self.shape = int(np.prod(info.shape[:-1])), info.shape[-1]

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        assert columns == range(self.shape[1]), columns  # super-blocks are loaded whole
        group_bytes = TOGETHER * TYPES[self.info.type].bytes_of(self.shape[1])

        def read(some: slice) -> np.ndarray:
            own = rows[some]
            if not len(own):
                return np.empty((0, TYPES[self.type].bytes_of(self.shape[1])), np.uint8)
            groups, places = np.unique(own // TOGETHER, return_inverse=True)
            runs = np.split(groups, np.flatnonzero(np.diff(groups) != 1) + 1)
            raw = [read_bytes(self.info, int(run[0]) * group_bytes, len(run) * group_bytes) for run in runs]
            whole = apart(self.info.type, np.concatenate(raw).reshape(-1, group_bytes))
            return np.ascontiguousarray(whole[TOGETHER * places + own % TOGETHER])

        return read


def take_rows_apart(file: GGUFFile) -> None:
    """From now on the file has such tensors as rows of the type without the ending."""
    tensors: dict[str, Any] = file.tensors
    for name, info in tensors.items():
        if isinstance(info, TensorInfo) and info.type.endswith(END):
            piece = Interleaved(info)
            if len(info.shape) < 2 or info.shape[-2] % TOGETHER or piece.shape[1] % TYPES[piece.type].block:
                file.fail(f"tensor '{name}' has shape {info.shape}, which is not whole blocks of {info.type}; download it again")
            tensors[name] = Assembled(name, piece.type, info.shape, info.path, info.num_bytes, (piece,))


def apart(type: str, groups: np.ndarray) -> np.ndarray:
    """Bytes of rows of the type without the ending, (4 * groups, row_bytes), of four rows each (groups, 4 * row_bytes)."""
    format = TYPES[type]
    before = TOGETHER * format.row_bytes
    blocks = groups[:, before:].reshape(len(groups), -1, TOGETHER * format.block_bytes)
    each = groups[:, :before].reshape(len(groups), 1, TOGETHER, format.row_bytes)  # what a row has before its blocks
    rows = APART[type](blocks, each)  # (groups, blocks, 4, bytes)
    own = rows.transpose(0, 2, 1, 3).reshape(len(groups) * TOGETHER, -1)
    if not TYPES[type.removesuffix(END)].row_bytes:
        return own
    return np.concatenate([each.reshape(len(own), -1), own], axis=1)


def _of_each(packed: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of `bits` bits of each 16 weights of four rows, the lowest bits of all bytes first: uint8 (groups, blocks, 4, 16)."""
    fields = np.concatenate([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], axis=-1)
    return fields.reshape(*packed.shape[:2], 8, 2, TOGETHER).transpose(0, 1, 4, 2, 3).reshape(*packed.shape[:2], TOGETHER, 16)


def _together(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers that follow each other, as many as fit in a byte, the first one lowest."""
    fields = numbers.reshape(*numbers.shape[:-1], -1, 8 // bits)
    return np.bitwise_or.reduce(fields << np.arange(0, 8, bits, dtype=np.uint8), axis=-1)


def _steps(packed: np.ndarray) -> np.ndarray:
    """16 bits of each of four rows, of 8 bytes with those of the first and 8 with those of the second halves of units."""
    halves = np.unpackbits(packed.reshape(*packed.shape[:2], 2, TOGETHER, 1), axis=-1, bitorder="little")
    return _together(halves.transpose(0, 1, 3, 4, 2).reshape(*packed.shape[:2], TOGETHER, 16), 1)


def _fields(packed: np.ndarray, bits: int, order: str) -> np.ndarray:
    """The weights of 8 units of four rows, a byte for each, as words of four columns: uint32 (groups, blocks, 4, 8, 8).

    order: what a unit's words, and then the fields of their bytes, count, the slowest first: r rows up to 4, and of columns h
    halves of 16, e halves of these, and o halves of those.
    """
    in_words, in_fields = order.split()
    words = np.ascontiguousarray(packed).view("<u4")
    fields = np.stack([words >> shift & ((1 << bits) - 1) * 0x01010101 for shift in range(0, 8, bits)], axis=-1)
    sizes = [TOGETHER if part == "r" else 2 for part in in_words + in_fields]
    parts = fields.reshape(*packed.shape[:2], 8, *sizes)
    axes = [3 + (in_words + in_fields).index(part) for part in "rheo"]
    return parts.transpose(0, 1, axes[0], 2, *axes[1:]).reshape(*packed.shape[:2], TOGETHER, 8, 8)


def _bytes(words: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(words).reshape(*words.shape[:3], -1).view(np.uint8)


def _pairs(q: np.ndarray) -> np.ndarray:
    """Two bits of 8 units of 32 weights, as 64 bytes: of each half of 128 weights 32 with its four units."""
    halves = q.reshape(*q.shape[:-2], 2, 4, 8)
    return _bytes(halves[..., 0, :] | halves[..., 1, :] << 2 | halves[..., 2, :] << 4 | halves[..., 3, :] << 6)


def _bits(q: np.ndarray) -> np.ndarray:
    """One bit of 8 units of 32 weights, as 32 bytes whose bit i belongs to unit i."""
    found = q[..., 0, :].copy()
    for unit in range(1, 8):
        found |= q[..., unit, :] << unit
    return _bytes(found)


def _halves(q: np.ndarray) -> np.ndarray:
    """Four bits of 8 units of 32 weights, as 16 bytes for each: the low nibbles are its first half."""
    return _bytes(q[..., :4] | q[..., 4:] << 4)


def _two_units(q: np.ndarray) -> np.ndarray:
    """The same, as 32 bytes for each two units: the low nibbles are the first one."""
    return _bytes(q[..., ::2, :] | q[..., 1::2, :] << 4)


def _d(blocks: np.ndarray) -> np.ndarray:
    return blocks[..., :8].reshape(*blocks.shape[:2], TOGETHER, 2)


def _iq2_k(blocks: np.ndarray, before: np.ndarray) -> np.ndarray:
    scales, q = _of_each(blocks[..., 16:48], 4), _fields(blocks[..., 48:], 2, "hr eo")
    return np.concatenate([_d(blocks), _steps(blocks[..., 8:16]), _together(scales, 4), _pairs(q)], axis=-1)


def _iq3_k(blocks: np.ndarray, before: np.ndarray) -> np.ndarray:
    signs, scales = _together(_of_each(blocks[..., 16:24], 1), 1), _together(_of_each(blocks[..., 24:56], 4), 4)
    low, high = _fields(blocks[..., 56:312], 2, "hr eo"), _fields(blocks[..., 312:], 1, "r heo")
    return np.concatenate([_d(blocks), _steps(blocks[..., 8:16]), signs, scales, _pairs(low), _bits(high)], axis=-1)


def _of_iq4_k(blocks: np.ndarray) -> list[np.ndarray]:
    """d, steps and scales."""
    high, low = _together(_of_each(blocks[..., 16:32], 2), 2), _together(_of_each(blocks[..., 32:64], 4), 4)
    return [_d(blocks), _steps(blocks[..., 8:16]), high, low]


def _iq4_k(blocks: np.ndarray, before: np.ndarray) -> np.ndarray:
    return np.concatenate([*_of_iq4_k(blocks), _halves(_fields(blocks[..., 64:], 4, "ohr e"))], axis=-1)


def _iq5_k(blocks: np.ndarray, before: np.ndarray) -> np.ndarray:
    low, high = _fields(blocks[..., 64:576], 4, "ohr e"), _fields(blocks[..., 576:], 1, "r ohe")
    return np.concatenate([*_of_iq4_k(blocks), _two_units(low), _bits(high)], axis=-1)


def _codes(blocks: np.ndarray) -> np.ndarray:
    return blocks[..., :32].reshape(*blocks.shape[:2], 8, TOGETHER).swapaxes(2, 3)


def _iq4_ks(blocks: np.ndarray, before: np.ndarray) -> np.ndarray:
    return np.concatenate([_codes(blocks), _halves(_fields(blocks[..., 32:], 4, "ohr e"))], axis=-1)


def _iq5_ks(blocks: np.ndarray, before: np.ndarray) -> np.ndarray:
    low, high = _fields(blocks[..., 32:544], 4, "ohr e"), _fields(blocks[..., 544:], 1, "r ohe")
    return np.concatenate([_codes(blocks), _two_units(low), _bits(high)], axis=-1)


def _iq1_s(blocks: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Its blocks are of 32 weights; those of IQ1_S of 256."""
    supers = blocks.reshape(len(blocks), -1, 8, 24)
    low = supers[..., :16].reshape(*supers.shape[:3], 4, TOGETHER).transpose(0, 1, 4, 2, 3)
    high = supers[..., 16:].reshape(*supers.shape[:3], TOGETHER, 2).transpose(0, 1, 3, 2, 4)
    shape = (*supers.shape[:2], TOGETHER, -1)
    return np.concatenate([np.broadcast_to(before, (*shape[:3], 2)), low.reshape(shape), high.reshape(shape)], axis=-1)


APART: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "IQ1_S_R4": _iq1_s, "IQ2_K_R4": _iq2_k, "IQ3_K_R4": _iq3_k, "IQ4_K_R4": _iq4_k, "IQ5_K_R4": _iq5_k, "IQ4_KS_R4": _iq4_ks,
    "IQ5_KS_R4": _iq5_ks,
}  # fmt: skip
