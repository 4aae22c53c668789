"""Rows in a quant format's file blocks, already in memory, to its tiles; specialised for each quant format as kernels/matmul.py."""

from types import ModuleType

from numatp.kernels.compile import kernel, share
from numatp.kernels.simd import offset, store_i64

quant: ModuleType = globals()["quant"]  # the format: specialize() has set it


@kernel(
    source="pointer", row_bytes="int", tiles="int", first_unit="int", units="int", weights="pointer", tile_bytes="int",
    failed="pointer",
)  # fmt: skip
def pack(args, thread, threads):
    """16 rows of `row_bytes` at source for each tile; of each the units from first_unit on.

    failed: int64 (1,), zero before; 1 if weights are no finite numbers.
    """
    first, last = share(args.tiles, thread, threads)
    for tile in range(first, last):
        source, weights = offset(args.source, tile * 16 * args.row_bytes), offset(args.weights, tile * args.tile_bytes)
        quant.pack(source, args.row_bytes, args.first_unit, args.units, weights)
        if not quant.finite(weights, args.units):
            store_i64(args.failed, 0, 1)
