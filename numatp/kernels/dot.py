"""The file of kernels/isa/ for this process's level of instructions."""

import importlib

from numatp.machine.isa import level

isa = importlib.import_module(f"numatp.kernels.isa.{level().name}")
