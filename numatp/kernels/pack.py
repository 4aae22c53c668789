"""Rows in a quant format's file blocks, already in memory, to its tiles; specialised for each quant format as kernels/matmul.py."""

from types import ModuleType

from numatp.kernels.compile import kernel, share
from numatp.kernels.simd import offset

quant: ModuleType = globals()["quant"]  # the format: specialize() has set it


@kernel(source="pointer", row_bytes="int", rows="int", first_unit="int", units="int", weights="pointer", tile_bytes="int")
def pack(args, thread, threads):
    """Rows of `row_bytes` at source; of each the units from first_unit on."""
    first, last = share((args.rows + 15) // 16, thread, threads)
    for tile in range(first, last):
        quant.pack(
            offset(args.source, tile * 16 * args.row_bytes), args.row_bytes, min(args.rows - tile * 16, 16), args.first_unit,
            args.units, offset(args.weights, tile * args.tile_bytes),
        )  # fmt: skip
