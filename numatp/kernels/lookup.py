"""Weights that are numbers of a table of 16, 32 or 64: a code of 4, 5 or 6 bits is looked up in registers."""

from numatp.kernels.dot import isa
from numatp.kernels.jit import intrinsic
from numatp.kernels.rows import map_rows
from numatp.kernels.simd import constant, i8x64


def padded(values, zero):
    """Up to 16 numbers + zero as a table of 16 bytes."""
    table = [int(value) + zero for value in values]
    return table + [0] * (16 - len(table))


def looker(values, zero):
    """Intrinsic look_up(codes): of codes in 0..len(values) - 1 their number + zero, which is a byte."""
    table = padded(values, zero)

    def emit(context, builder, signature, args):
        def looked_up(_, codes):
            # An instruction looks up the lowest four bits of a code; each other bit chooses between two that were found.
            found = [isa.lookup(builder, table[first : first + 16], codes) for first in range(0, len(table), 16)]
            for bit in {1: (), 2: (16,), 4: (32, 16)}[len(found)]:
                half = len(found) // 2
                is_set = builder.icmp_signed("!=", builder.and_(codes, constant(i8x64, bit)), constant(i8x64, 0))
                found = [builder.select(is_set, found[half + i], found[i]) for i in range(half)]
            return found[0]

        return map_rows(builder, args[0], looked_up)

    @intrinsic
    def look_up(typing_context, codes):
        return codes(codes), emit

    return look_up
