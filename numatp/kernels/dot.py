"""The file of kernels/isa/ for the ISA that Numba compiles for."""

from numatp.kernels.compile import has_feature

if has_feature("avx512vnni"):
    from numatp.kernels.isa import avx512vnni as isa
elif has_feature("avx512bw"):
    from numatp.kernels.isa import avx512bw as isa
else:
    from numatp.kernels.isa import avx2 as isa

__all__ = ["isa"]
