"""AVX-512 VNNI: one instruction multiplies 64 bytes and adds them by fours."""

from numatp.kernels.isa.avx512bw import gather, lookup, times_power
from numatp.kernels.simd import call_llvm

__all__ = ["DOT", "GROUP", "MANY", "dot", "dot_biased", "gather", "lookup", "start", "times_power"]

GROUP = 16
MANY = 0  # no tiles
DOT = ("vpdpbusd",)


def dot(builder, total, weights, x):
    # llvmlite's LLVM takes the bytes as 32-bit lanes.
    operands = [builder.bitcast(v, total.type) for v in (weights, x)]
    return call_llvm(builder, "llvm.x86.avx512.vpdpbusd.512", total.type, total, *operands)


dot_biased = dot  # the instruction takes any unsigned byte


def start(builder, start_of_x):
    return start_of_x
