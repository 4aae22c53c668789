"""A square of 16 x 16 words with rows and columns exchanged: of float32, or of pairs of BF16."""

from numatp.kernels.jit import intrinsic, ir, types
from numatp.kernels.simd import INT32, INT64, LANES, i32x16, llvm_type, pointer


@intrinsic
def transpose(typing_context, source, stride, out, out_stride):
    """The 16 words at out + i * out_stride bytes are the i-th words of 16 rows at source, `stride` bytes apart."""

    def emit(context, builder, signature, args):
        source, stride, out, out_stride = args
        vector = llvm_type(i32x16)

        def place(start, apart, i):
            return builder.bitcast(builder.gep(start, [builder.mul(apart, INT64(i))]), vector.as_pointer())

        rows = []
        for i in range(LANES):
            rows.append(builder.load(place(source, stride, i)))
            rows[-1].align = 4
        # Four times the words of rows i and i + 8 are shuffled like cards: then each row is a column.
        masks = [[first + lane // 2 + lane % 2 * LANES for lane in range(LANES)] for first in (0, LANES // 2)]
        shuffles = [ir.Constant(ir.VectorType(INT32, LANES), mask) for mask in masks]
        for _ in range(4):
            rows = [builder.shuffle_vector(rows[i], rows[i + 8], shuffle) for i in range(8) for shuffle in shuffles]
        for i, row in enumerate(rows):
            builder.store(row, place(out, out_stride, i)).align = 4
        return context.get_dummy_value()

    return types.void(pointer, types.int64, pointer, types.int64), emit
