"""The dot product of bytes of the ISA that Numba compiles for."""

from numatp.kernels.compile import has_feature

if has_feature("avx512vnni"):
    from numatp.kernels.isa.avx512vnni import dot_u8s8
else:
    from numatp.kernels.isa.plain import dot_u8s8

__all__ = ["dot_u8s8"]
