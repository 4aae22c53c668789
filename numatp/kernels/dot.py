"""The file of kernels/isa/ for the level that Numba compiles for."""

import importlib

from numatp.kernels.compile import target
from numatp.machine.isa import level_of

isa = importlib.import_module(f"numatp.kernels.isa.{level_of(target()[2]).name}")
