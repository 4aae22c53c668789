"""What tokens of a piece do to each other (kernels/delta.py): sums over the tokens before a token, all results in registers.

A row holds 16 columns of one token. Coefficients are float32 in memory: of each token, PITCH bytes apart, one for each before it.
"""

from numatp.kernels.jit import intrinsic
from numatp.kernels.rows import fused, map_rows
from numatp.kernels.simd import FLOAT, INT64, LANES, f32x16, pointer, splat

PITCH = 64  # bytes from a token's coefficients to the next token's


def _coefficient(builder, p, row, column):
    """That of `row` for `column`, in all lanes."""
    address = builder.bitcast(builder.gep(p, [INT64(row * PITCH + column * 4)]), FLOAT.as_pointer())
    value = builder.load(address)
    value.align = 4
    return splat(builder, value, LANES)


@intrinsic
def solve_triangle(typing_context, rows, coefficients):
    """x[i] = rows[i] + sum over j < i of coefficients[i, j] * x[j], the j in rising order."""

    def emit(context, builder, signature, args):
        rows, coefficients = args
        found = [builder.extract_value(rows, i) for i in range(rows.type.count)]
        for j in range(len(found)):
            for i in range(j + 1, len(found)):  # so that no sum waits for its own last term
                found[i] = fused(builder, _coefficient(builder, coefficients, i, j), found[j], found[i])
        return map_rows(builder, rows, lambda i, _: found[i])

    return rows(rows, pointer), emit


@intrinsic
def add_triangle(typing_context, total, rows, coefficients):
    """total[i] + sum over j <= i of coefficients[i, j] * rows[j], the j in rising order."""

    def emit(context, builder, signature, args):
        total, rows, coefficients = args
        found = [builder.extract_value(total, i) for i in range(total.type.count)]
        for j in range(len(found)):
            row = builder.extract_value(rows, j)
            for i in range(j, len(found)):
                found[i] = fused(builder, _coefficient(builder, coefficients, i, j), row, found[i])
        return map_rows(builder, total, lambda i, _: found[i])

    return total(total, total, pointer), emit


@intrinsic
def times_vector(typing_context, rows, w):
    """rows[m] * w."""

    def emit(context, builder, signature, args):
        rows, w = args
        return map_rows(builder, rows, lambda m, row: builder.fmul(row, w))

    return rows(rows, f32x16), emit
