"""AVX-512 VNNI: one instruction multiplies 64 bytes and adds them by fours."""

from numba.extending import intrinsic

from numatp.kernels.simd import call_llvm, i8x64, i32x16, llvm_type


@intrinsic
def dot_u8s8(typing_context, total, unsigned, signed):
    """total[i] + sum over j < 4 of unsigned[4i + j] * signed[4i + j], exact in int32."""

    def emit(context, builder, signature, args):
        words = llvm_type(i32x16)
        # llvmlite's LLVM takes the bytes as 32-bit lanes.
        operands = [builder.bitcast(a, words) for a in args[1:]]
        return call_llvm(builder, "llvm.x86.avx512.vpdpbusd.512", words, args[0], *operands)

    return i32x16(i32x16, i8x64, i8x64), emit
