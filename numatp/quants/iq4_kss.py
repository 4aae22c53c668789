"""IQ4_KSS: IQ4_KS in exactly 4 bits: s and b lie in bits that the weights' codes do without.

File: before a row's blocks float32 d. Block, 128 bytes: of each 32 weights 8 numbers of 16 bits, each with a bit of IQ4_KS's
byte at the bottom, the lowest first, and 15 others. These and a zero at the bottom, combined with themselves one bit further
down by exclusive or, are the 16 bytes whose low nibbles are weights 0-15 and high nibbles weights 16-31.
Tile: as kernels/row_scales.py has it. A unit is four vectors, vector j holding the j-th word of 32 bits of each of 16 rows.
"""

import numpy as np

from numatp.kernels.compile import device
from numatp.kernels.dot import isa
from numatp.kernels.jit import intrinsic, ir, types
from numatp.kernels.planes import store_words
from numatp.kernels.row_scales import packer, products, scales_finite
from numatp.kernels.rows import Vectors
from numatp.kernels.simd import INT64, constant, i8x64, i32x16, llvm_type, offset, pointer
from numatp.quants.iq4_k import STEP
from numatp.quants.iq4_ks import ZERO, moved, whole_scale, with_steps
from numatp.quants.iq4_nl import VALUES
from numatp.quants.table import FORMATS

FORMAT = FORMATS["IQ4_KSS"]
BLOCK_BYTES, TILE_BYTES, HEAD_BYTES = FORMAT.block_bytes, FORMAT.tile_bytes, FORMAT.head_bytes
ACTIVATION = "q8"


def unpack(raw: np.ndarray) -> np.ndarray:
    """Bytes (rows, 4 + blocks * 128) to float32 (rows, blocks * 256)."""
    rows = raw.shape[0]
    halves = raw[:, 4:].copy().view(np.uint16).reshape(rows, -1, 8, 8)
    codes = np.packbits((halves & 1).astype(np.uint8), axis=-1, bitorder="little")[..., 0]
    others = halves & 0xFFFE
    bytes16 = (others ^ others >> 1).view(np.uint8)
    return moved(raw[:, :4], codes, VALUES[np.concatenate([bytes16 & 15, bytes16 >> 4], axis=-1)], STEP)


@device
def store_unit(weights, block, row_bytes, place):
    store_words(weights, offset(block, place * 16), row_bytes, 0)


@intrinsic
def load_both(typing_context, p):
    """(the 8 weight vectors without steps, the words of s and b) of a unit."""

    def emit(context, builder, signature, args):
        sixteens = ir.VectorType(ir.IntType(16), 32)
        weights, codes = ir.Constant(context.get_value_type(signature.return_type[0]), ir.Undefined), constant(i32x16, 0)
        for j in range(4):
            words = builder.load(builder.bitcast(builder.gep(args[0], [INT64(64 * j)]), codes.type.as_pointer()))
            words.align = 1
            lowest = builder.and_(words, constant(i32x16, 0x00010001))
            codes = builder.or_(codes, builder.shl(lowest, constant(i32x16, 2 * j)))
            others = builder.and_(builder.bitcast(words, sixteens), ir.Constant(sixteens, [0xFFFE] * 32))
            plain = builder.xor(others, builder.lshr(others, ir.Constant(sixteens, [1] * 32)))
            for number, four in ((j, plain), (j + 4, builder.lshr(plain, ir.Constant(sixteens, [4] * 32)))):
                q = builder.and_(builder.bitcast(four, llvm_type(i8x64)), constant(i8x64, 15))
                table = [int(value) + ZERO for value in VALUES]
                weights = builder.insert_value(weights, isa.lookup(builder, table, q), number)
        # The lowest bits of upper halves, 16 further up, belong between those of lower halves.
        codes = builder.and_(builder.or_(codes, builder.lshr(codes, constant(i32x16, 15))), constant(i32x16, 255))
        return context.make_tuple(builder, signature.return_type, [weights, codes])

    return types.Tuple((Vectors(i8x64, 8), i32x16))(pointer), emit


@device
def load_unit(weights, d):
    values, codes = load_both(weights)
    return with_steps(values, codes), d * whole_scale(codes)


pack = packer(store_unit, HEAD_BYTES, BLOCK_BYTES, TILE_BYTES)
finite = scales_finite(HEAD_BYTES, 127 * 127)
dot_tile, expand, element = products(load_unit, ZERO, HEAD_BYTES, TILE_BYTES)
