"""Products of 9 to 32 rows with 8-bit weights on tile registers (isa/amx.py): the integers of dot products, and so the same bits.

Integers leave the tile registers through memory, and whoever reads them at once waits for that. So what a format's dot_tile adds
to a Strip waits there: the weights of some columns, their scale, and where their activations are. Once SLOTS of these are there
their integers are made, one after another, and then the floats of all of them; for a second group of rows from the same slots.
"""

from types import ModuleType
from typing import Any

from numatp.kernels.compile import device
from numatp.kernels.dot import isa
from numatp.kernels.jit import int64, intrinsic, ir, models, register_model, types
from numatp.kernels.rows import FEW, GROUP, HALF, add_rows, fused, load_rows, load_splat, store_rows, zero_group
from numatp.kernels.simd import BYTE, FLOAT, INT64, constant, f32x16, i8x64, i32x16, llvm_type, offset, pointer

GROUPS = 2  # of rows, at most
SLOTS = 8  # what is kept of them stays in the first-level cache
# In a slot are up to 8 vectors of weights, the scale d and add_outer's w, and addresses of the first group's activations, of their
# scales and of add_outer's s. These are bytes from its begin on:
D, W = 512, 576
X, SCALES, S = 640, 648, 656
SLOT_BYTES = 704
# In memory are the slots, the integers of each, (16 rows, 16), and the sums of each group, (16 rows, 16).
ROWS_BYTES = 64 * GROUP
INTEGERS = SLOTS * SLOT_BYTES
SUMS = INTEGERS + SLOTS * ROWS_BYTES
BYTES = SUMS + GROUPS * ROWS_BYTES
NOWHERE = ir.Constant(BYTE.as_pointer(), None)


class Strip(types.Type):
    """Sums of one or two groups of rows that products are added to, as to Rows.

    vectors: of weights in each product, 8 for 32 columns or 4 for 16. zero: the format's ZERO, which is added to stored weights.
    """

    def __init__(self, vectors, zero):
        self.vectors, self.zero = vectors, zero
        super().__init__(name=f"Strip({vectors} vectors, zero {zero})")

    def emit_outer(self, builder, strip, w, s):
        """Before the product of the same columns, which the slot is for."""
        memory, used, *_ = parts(builder, strip)
        store(builder, slot_of(builder, memory, used), W, w)
        return builder.insert_value(strip, s, 2)

    def emit_dot(self, builder, strip, weights, d, x, scales, starts, biased):
        memory, used, s, *_ = parts(builder, strip)
        slot = slot_of(builder, memory, used)
        zero = constant(i8x64, self.zero if starts is not None else 0)
        assert weights.type.count == self.vectors
        for j in range(self.vectors):
            store(builder, slot, 64 * j, builder.sub(builder.extract_value(weights, j), zero))
        for place, value in ((D, d), (X, x), (SCALES, scales), (S, s)):
            store(builder, slot, place, value)
        used = builder.add(used, INT64(1))
        full = builder.icmp_signed("==", used, INT64(SLOTS))
        with builder.if_then(full, likely=False):
            self.emit_sums(builder, strip, INT64(SLOTS))
        used = builder.select(full, INT64(0), used)
        return builder.insert_value(builder.insert_value(strip, used, 1), NOWHERE, 2)

    def emit_sums(self, builder, strip, used):
        """Adds what the first `used` slots, at least one, hold to the sums."""
        memory, _, _, groups, apart = parts(builder, strip)

        def integers(slot):
            return at(builder, memory, INTEGERS, builder.mul(slot, INT64(ROWS_BYTES)))

        def add_group(group, _):
            behind = builder.mul(group, apart)
            sums = at(builder, memory, SUMS, builder.mul(group, INT64(ROWS_BYTES)))

            def multiply(slot, _):
                here = slot_of(builder, memory, slot)
                x = builder.gep(load(builder, here, X, BYTE.as_pointer()), [behind])
                isa.multiply_bytes(builder, self.vectors, x, here, integers(slot))
                return []

            def add(slot, totals):
                here, made = slot_of(builder, memory, slot), integers(slot)
                d = load(builder, here, D, llvm_type(f32x16))
                scales = builder.gep(load(builder, here, SCALES, BYTE.as_pointer()), [behind])
                totals = add_waiting_outer(builder, here, behind, totals)
                for m in range(GROUP):
                    whole = builder.sitofp(load(builder, made, 64 * m, llvm_type(i32x16)), d.type)
                    totals[m] = fused(builder, d, builder.fmul(whole, load_splat(builder, scales, FLOAT, m)), totals[m])
                return totals

            repeat(builder, used, [], multiply)
            before = [load(builder, sums, 64 * m, llvm_type(f32x16)) for m in range(GROUP)]
            for m, total in enumerate(repeat(builder, used, before, add)):
                store(builder, sums, 64 * m, total)
            return []

        repeat(builder, groups, [], add_group)


@register_model(Strip)
class StripModel(models.PrimitiveModel):
    """(the memory, slots in use, the address that add_outer was given for the next slot or NOWHERE, groups, bytes between them)."""

    def __init__(self, manager, numba_type):
        kinds = [BYTE.as_pointer(), INT64, BYTE.as_pointer(), INT64, INT64]
        super().__init__(manager, numba_type, ir.LiteralStructType(kinds))


def parts(builder, strip):
    return [builder.extract_value(strip, i) for i in range(5)]


def at(builder, p, num_bytes, more=None):
    p = builder.gep(p, [INT64(num_bytes)])
    return builder.gep(p, [more]) if more is not None else p


def slot_of(builder, memory, slot):
    return at(builder, memory, 0, builder.mul(slot, INT64(SLOT_BYTES)))


def store(builder, p, num_bytes, value):
    builder.store(value, builder.bitcast(at(builder, p, num_bytes), value.type.as_pointer())).align = 8


def load(builder, p, num_bytes, kind):
    value = builder.load(builder.bitcast(at(builder, p, num_bytes), kind.as_pointer()))
    value.align = 8
    return value


def repeat(builder, count, values, step):
    """values = step(i, values) for i in range(count), count at least 1."""
    before, body = builder.block, builder.append_basic_block("turn")
    builder.branch(body)
    builder.position_at_end(body)
    index, held = builder.phi(INT64), [builder.phi(value.type) for value in values]
    changed = step(index, [*held])
    following = builder.add(index, INT64(1))
    after, latch = builder.append_basic_block("turned"), builder.block
    builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    for phi, first, next_ in zip([index, *held], [INT64(0), *values], [following, *changed], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(next_, latch)
    builder.position_at_end(after)
    return changed


def add_waiting_outer(builder, slot, behind, sums):
    """sums[m] + w * s[m], if the slot has them."""
    s = load(builder, slot, S, BYTE.as_pointer())
    start, body, after = builder.block, builder.append_basic_block("outer"), builder.append_basic_block("dots")
    builder.cbranch(builder.icmp_unsigned("!=", s, NOWHERE), body, after)
    builder.position_at_end(body)
    w, s = load(builder, slot, W, llvm_type(f32x16)), builder.gep(s, [behind])
    added = [fused(builder, w, load_splat(builder, s, FLOAT, m), total) for m, total in enumerate(sums)]
    builder.branch(after)
    builder.position_at_end(after)
    found = []
    for total, more in zip(sums, added, strict=True):
        found.append(builder.phi(total.type))
        found[-1].add_incoming(total, start)
        found[-1].add_incoming(more, body)
    return found


def strip_of(kind):
    """(begin, sums, finish) of Strips of this type: begin(groups, bytes between their activations); sums(strip) is where they are,
    which finish(strip) adds what still waits to.
    """

    @intrinsic
    def begin(typing_context, groups, apart):
        def emit(context, builder, signature, args):
            with builder.goto_entry_block():  # Numba's alloca_once would store 16,000 zeros, one by one
                memory = builder.alloca(ir.ArrayType(BYTE, BYTES))
            memory.align = 64
            strip = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
            for i, value in enumerate((builder.bitcast(memory, BYTE.as_pointer()), INT64(0), NOWHERE, *args)):
                strip = builder.insert_value(strip, value, i)
            return strip

        return kind(types.int64, types.int64), emit

    @intrinsic
    def sums(typing_context, strip):
        return pointer(strip), lambda context, builder, signature, args: at(builder, parts(builder, args[0])[0], SUMS)

    @intrinsic
    def finish(typing_context, strip):
        def emit(context, builder, signature, args):
            used = parts(builder, args[0])[1]
            with builder.if_then(builder.icmp_signed(">", used, INT64(0))):
                strip.emit_sums(builder, args[0], used)
            return context.get_dummy_value()

        return types.void(strip), emit

    return begin, sums, finish


def in_halves(quant: ModuleType) -> bool:
    """Whether the first and the second 16 columns of a unit have scales of their own, and so products."""
    return bool(getattr(quant, "HALVES", False))


def least_rows(quant: ModuleType) -> int:
    """From which on a Strip is faster than passes without tile registers."""
    return (HALF + FEW if in_halves(quant) else HALF) + 1


def strip_multiplier(quant: ModuleType) -> Any:
    """multiply_strip(weights, units, groups, x, x_group, pitch, out, out_stride, add): out (groups * 16, 16) = [out +] one or two
    whole groups of rows at x, x_group bytes apart, times one tile. Tile registers are configured for bytes.
    """
    begin, sums, finish = strip_of(Strip(4 if in_halves(quant) else 8, quant.ZERO))

    @device
    def multiply_strip(weights, units, groups, x, x_group, pitch, out, out_stride, add):
        strip = begin(groups, x_group)
        made = sums(strip)
        for group in range(groups):
            store_rows(offset(made, group * ROWS_BYTES), 64, 0, zero_group())
        finish(quant.dot_tile(weights, x, 0, pitch, units, int64(0), units, strip))
        for group in range(groups):
            here, total = offset(out, group * pitch * out_stride), load_rows(offset(made, group * ROWS_BYTES), 64, 0, zero_group())
            store_rows(here, out_stride, 0, add_rows(load_rows(here, out_stride, 0, zero_group()), total) if add else total)

    return multiply_strip
