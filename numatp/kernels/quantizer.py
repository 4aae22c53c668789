"""float32 weights to a file's bytes; specialised for each quant format."""

from types import ModuleType

from numatp.kernels.compile import kernel, share
from numatp.kernels.simd import offset

quant: ModuleType = globals()["quant"]  # the format: specialize() has set it


@kernel(x="pointer", rows="int", columns="int", out="pointer", row_bytes="int")
def quantize(args, thread, threads):
    """out (rows, row_bytes) from x (rows, columns), columns being whole blocks; threads share the rows."""
    first, last = share(args.rows, thread, threads)
    for row in range(first, last):
        quant.quantize(offset(args.x, row * args.columns * 4), args.columns, offset(args.out, row * args.row_bytes))
