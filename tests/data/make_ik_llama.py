"""Record what ik_llama.cpp makes of its own types: rows of random bytes and their float32 values, in ik_llama.npz.

python tests/data/make_ik_llama.py LIBGGML, the libggml.so of ik_llama.cpp (that of ik-llama-cpp-python 0.1.5 was used).
"""

import ctypes
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from support.models import tiny  # noqa: E402

from numatp.quants.table import TYPES  # noqa: E402
from numatp.weights.interleaved import APART, TOGETHER  # noqa: E402

ROWS, COLUMNS = 4, 256


class InitParams(ctypes.Structure):
    """ggml_init's: without memory of its own."""

    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def main():
    ggml, recorded = ctypes.CDLL(sys.argv[1]), {}
    ggml.ggml_init.argtypes = [InitParams]
    ggml.ggml_init(InitParams(1 << 20, None, False))  # which fills its table of float16 numbers
    for name in tiny.OF_IK:
        raw = tiny.random_blocks(name, ROWS, COLUMNS, np.random.default_rng(TYPES[name].id))
        values, together = np.empty((ROWS, COLUMNS), np.float32), TOGETHER if name in APART else 1
        unpack = getattr(ggml, f"dequantize_row_{name.lower()}")
        unpack.argtypes, unpack.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
        for row in range(0, ROWS, together):
            unpack(raw[row].ctypes.data, values[row].ctypes.data, together * COLUMNS)
        recorded |= {f"{name} bytes": raw, f"{name} values": values}
    np.savez_compressed(HERE / "ik_llama.npz", **recorded)


main()
