"""Any ISA: bytes widened to 16 bits, multiplied and added in pairs; right everywhere, not tuned anywhere."""

from llvmlite import ir
from numba.extending import intrinsic

from numatp.kernels.simd import INT32, i8x64, i32x16


@intrinsic
def dot_u8s8(typing_context, total, unsigned, signed):
    """total[i] + sum over j < 4 of unsigned[4i + j] * signed[4i + j], exact in int32."""

    def emit(context, builder, signature, args):
        words = ir.VectorType(INT32, 64)
        products = builder.mul(builder.zext(args[1], words), builder.sext(args[2], words))
        result = args[0]
        for j in range(4):
            every_fourth = ir.Constant(ir.VectorType(INT32, 16), list(range(j, 64, 4)))
            result = builder.add(result, builder.shuffle_vector(products, products, every_fourth))
        return result

    return i32x16(i32x16, i8x64, i8x64), emit
