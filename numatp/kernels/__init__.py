"""WHAT is computed? Numba kernels on SIMD vector types; see README.md."""
