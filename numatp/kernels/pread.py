"""The C library's pread(file, destination, num_bytes, position) for kernels."""

from numatp.kernels.jit import types
from numatp.kernels.simd import pointer

pread = types.ExternalFunction("pread", types.int64(types.int32, pointer, types.int64, types.int64))
