"""Kernels called from Python."""

import ctypes

# A kernel's threads: address of its record, thread, number of threads.
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
