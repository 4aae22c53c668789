"""The file of kernels/isa/ for the ISA that Numba compiles for."""

import importlib

from numatp.kernels.compile import has_feature

LEVELS = ("avx512vnni", "avx512bw", "avx2")  # strongest first

isa = importlib.import_module(f"numatp.kernels.isa.{next(level for level in LEVELS if has_feature(level))}")
