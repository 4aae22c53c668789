"""Weight matrices times activation rows, and the other work on a weight matrix; specialised for each quant format.

A matrix lies in tiles of 16 rows (numatp.quants). Threads take contiguous ranges of tiles, the same for loading and computing,
so each thread first touches the memory that it will read.
"""

from types import ModuleType

from numba import float32

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.exp import silu
from numatp.kernels.pread import pread
from numatp.kernels.simd import load_i64, offset, store_f32, store_f32x16, store_i64

quant: ModuleType = globals()["quant"]  # the format: specialize() has set it


@kernel(
    weights="pointer", tiles="int", tile_bytes="int", units="int", rows="pointer",
    x="pointer", x_stride="int", x_thread_stride="int", out="pointer", out_stride="int",
)  # fmt: skip
def matmul(args, thread, threads):
    """out (rows, tiles * 16) = x (rows, units * 32) times the transposed matrix. Strides are bytes from row to row."""
    rows = load_i64(args.rows, 0)
    x = offset(args.x, thread * args.x_thread_stride)
    first, last = share(args.tiles, thread, threads)
    for tile in range(first, last):
        weights = offset(args.weights, tile * args.tile_bytes)
        for row in range(rows):
            result = quant.dot_tile(weights, offset(x, row * args.x_stride), args.units)
            store_f32x16(offset(args.out, row * args.out_stride), tile * 16, result)


@kernel(
    gate="pointer", up="pointer", tiles="int", tile_bytes="int", units="int", rows="pointer",
    x="pointer", x_stride="int", x_thread_stride="int", out="pointer", out_stride="int",
)  # fmt: skip
def gated_matmul(args, thread, threads):
    """out (rows, tiles * 16) = silu(gate x) * (up x), both matrices of one shape and format."""
    rows = load_i64(args.rows, 0)
    x = offset(args.x, thread * args.x_thread_stride)
    first, last = share(args.tiles, thread, threads)
    for tile in range(first, last):
        at = tile * args.tile_bytes
        for row in range(rows):
            values = offset(x, row * args.x_stride)
            gate = quant.dot_tile(offset(args.gate, at), values, args.units)
            up = quant.dot_tile(offset(args.up, at), values, args.units)
            store_f32x16(offset(args.out, row * args.out_stride), tile * 16, silu(gate) * up)


@kernel(
    weights="pointer", tile_bytes="int", units="int", first_token="int", last_token="int", tokens="pointer", rows="pointer",
    out="pointer", out_stride="int",
)  # fmt: skip
def embed(args, thread, threads):
    """out (rows, units * 32): the matrix row of each token in [first_token, last_token), zeros for all others."""
    first, last = share(args.units, thread, threads)
    for row in range(load_i64(args.rows, 0)):
        token = load_i64(args.tokens, row)
        out = offset(args.out, row * args.out_stride)
        mine = args.first_token <= token and token < args.last_token
        local = token - args.first_token
        tile = offset(args.weights, local // 16 * args.tile_bytes)
        for column in range(first * 32, last * 32):
            store_f32(out, column, quant.element(tile, args.units, local % 16, column) if mine else float32(0))


@device
def read_fully(file, destination, num_bytes, position):
    """pread until num_bytes are there; False at an error or the end of the file."""
    done = 0
    while done < num_bytes:
        count = pread(file, offset(destination, done), num_bytes - done, position + done)
        if count <= 0:
            return False
        done += count
    return True


@kernel(
    file="int", position="int", row_bytes="int", rows="int", first_unit="int", units="int",
    weights="pointer", tile_bytes="int", staging="pointer", staging_bytes="int", failed="pointer",
)  # fmt: skip
def load(args, thread, threads):
    """Reads `rows` rows from the file and packs this rank's columns of them; staging_bytes is each thread's buffer."""
    tiles = (args.rows + 15) // 16
    first, last = share(tiles, thread, threads)
    staging = offset(args.staging, thread * args.staging_bytes)
    batch = args.staging_bytes // (16 * args.row_bytes)  # tiles of one read
    for read in range((last - first + batch - 1) // batch):
        start = first + read * batch
        stop = min(start + batch, last)
        rows = min(stop * 16, args.rows) - start * 16
        if not read_fully(args.file, staging, rows * args.row_bytes, args.position + start * 16 * args.row_bytes):
            store_i64(args.failed, 0, 1)
            return
        for tile in range(start, stop):
            source = offset(staging, (tile - start) * 16 * args.row_bytes)
            destination = offset(args.weights, tile * args.tile_bytes)
            quant.pack(source, args.row_bytes, min(args.rows - tile * 16, 16), args.first_unit, args.units, destination)
