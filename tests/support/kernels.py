"""Kernels called from Python, and all that there are."""

import ctypes
import shutil

import numpy as np
from support.models import tiny

from numatp import quants
from numatp.kernels import (
    absorbed,
    activation,
    bias,
    compressed,
    convolution,
    delta,
    exchange,
    experts,
    gate,
    norm,
    pieces,
    rope,
    sampling,
    score,
    softcap,
    sparse,
    streams,
)
from numatp.kernels.compile import Kernel, kernel_cache, specialize
from numatp.kernels.layout import CACHE_TYPES
from numatp.machine import isa
from numatp.quants.table import FORMATS

# A kernel's threads: address of its record, thread, number of threads.
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


# One function makes the products of these formats (kernels/superblock.py): IQ3_S stands for them in what is made of products, which
# would take minutes to compile for each.
ALIKE = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "TQ1_0", "TQ2_0", *tiny.OF_IK)
# On the levels below a machine's own there is every product of a matrix, and what is made of products for these formats only.
OWN, BELOW = isa.level() == isa.choose({}), ("F16", "Q4_1", "Q6_K", "IQ3_S")
# Of ik_llama.cpp's types each has the instructions of one of these, which stand for them there.
WITH_THEIR_OWN = ("IQ4_KSS", "IQ6_K", "IQ2_KL")
TESTED = [name for name in FORMATS if OWN or name not in tiny.OF_IK or name in WITH_THEIR_OWN]


CACHED = ("attention", "append", "latent", "unabsorbed")  # files that exist once for each type of the cache


def left_out():
    """Names of kernels that are made as others are."""
    formats = ALIKE if OWN else FORMATS.keys() - BELOW
    made = {f"matmul_{name.lower()}.{kernel}" for name in formats for kernel in ("experts", "score")}
    return made | {f"dealt_{name.lower()}.multiply" for name in formats}


def all_kernels():
    """But for those that are made as others are."""
    modules = [absorbed, activation, bias, compressed, convolution, delta, exchange, experts, gate, norm, pieces, rope, sampling]
    modules += [score, softcap, sparse, streams]
    modules += [specialize(file, "quant", FORMATS[name].module) for file in ("matmul", "dealt") for name in TESTED]
    modules += [specialize("thin", "quant", format.module) for format in FORMATS.values() if format.block == 1]
    modules += [specialize("quantizer", "quant", FORMATS[name].module) for name in quants.writable()]
    modules += [specialize(f, "cache", f"numatp.kernels.caches.{name}") for f in CACHED for name in CACHE_TYPES]
    modules += [specialize("head_rows", "quant", FORMATS[name].module) for name in BELOW]  # others are made alike
    found, without = [value for module in modules for value in vars(module).values() if isinstance(value, Kernel)], left_out()
    return [kernel for kernel in found if kernel.name not in without]


def call(kernel, threads=3, **args):
    """Runs all threads of a kernel, one after the other; arrays are passed by address."""
    values = {name: value.ctypes.data if isinstance(value, np.ndarray) else value for name, value in args.items()}
    record = kernel.record(**values)
    for thread in range(threads):
        KERNEL(kernel.address)(record.ctypes.data, thread, threads)


def aligned(num_bytes, fill=0xFF):
    """Memory that begins on a cache line."""
    memory = np.full(num_bytes + 64, fill, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + num_bytes]


def packed_matrix(tmp_path, format_name, raw, first_unit, units):
    """(the tiles of columns [first_unit, first_unit + units) * 32, loaded from a file, bytes of a tile)."""
    tiles, tile_bytes, failed = load_matrix(tmp_path, format_name, raw, first_unit, units)
    assert not failed.any()
    return tiles, tile_bytes


def load_matrix(tmp_path, format_name, raw, first_unit, units):
    """As packed_matrix, and what failed: [reading, weights that are no finite numbers]."""
    format = FORMATS[format_name]
    (tmp_path / "weights").write_bytes(b"head" + raw.tobytes())
    rows, row_bytes = raw.shape
    tile_bytes = format.bytes_of_tile(units * 32, first_unit * 32)
    tiles = aligned(-(-rows // 16) * tile_bytes)
    staging, failed = aligned(3 * 16 * row_bytes), np.zeros(2, np.int64)
    with open(tmp_path / "weights", "rb") as file:
        call(
            specialize("matmul", "quant", format.module).load,
            file=file.fileno(), position=4, row_bytes=row_bytes, rows=rows, first_unit=first_unit, units=units,
            weights=tiles, tile_bytes=tile_bytes, staging=staging, staging_bytes=16 * row_bytes, failed=failed,
        )  # fmt: skip
    return tiles, tile_bytes, failed


def seed(folder, *without):
    """Puts what has been compiled into another cache's folder of kernels, but for the files whose names begin so."""
    usual = kernel_cache()
    shutil.copytree(
        usual, folder / usual.name, ignore=shutil.ignore_patterns("*.lock", "*.part", *(f"{name}*" for name in without))
    )
