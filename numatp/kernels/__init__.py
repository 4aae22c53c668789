"""WHAT is computed? Numba kernels on SIMD vector types."""
