"""Norms, matrix products, biases and gates."""

from collections.abc import Sequence
from dataclasses import replace

from numatp.kernels import bias, gate, norm
from numatp.kernels.compile import Kernel, specialize
from numatp.kernels.layout import PART_UNITS
from numatp.kernels.simd import LANES
from numatp.program.division import Tiles, tiles_of
from numatp.program.values import ANYHOW, Access, Buffer, Pointer, Value
from numatp.program.words.dealt import ONE_MATRIX, Dealt, Product
from numatp.weights.matrix import Matrix, Vector, joined, neighbours, side_by_side

THIN_TILES = 32  # 512 experts


class Dense(Dealt):
    # ------------------------------------------------------------ norms

    def rms_norm(self, x: Value, weight: Vector, epsilon: float, logits_only: bool = False, scale: float = 1.0) -> Value:
        """scale * the normalised rows, (rows, width); logits_only: just the rows whose logits are wanted."""
        return self._normalize(norm.rms_norm, x, weight, logits_only, epsilon=epsilon, scale=scale)

    def layer_norm(self, x: Value, weight: Vector, epsilon: float, logits_only: bool = False, scale: float = 1.0) -> Value:
        """As rms_norm, with mean subtraction."""
        return self._normalize(norm.layer_norm, x, weight, logits_only, epsilon=epsilon, scale=scale)

    def _normalize(self, kernel: Kernel, x: Value, weight: Vector, logits_only: bool, **numbers: float) -> Value:
        assert x.stride == x.width * 4, f"{x.name}: rows without gaps"
        rows: int = self._rows
        select: int | Pointer = self._every_row(self.max_rows)
        if logits_only:
            rows, select = self._num_logits, self.site.step.logit_rows.ctypes.data
        out, division = self._buffer(shortened(weight), x.width * 4, self.private), self._share_of_rows(rows)
        self._builder.add(
            kernel, x.accesses(), [Access(out, division)],
            x=x.pointer, rows=rows, select=select, weight=weight.address, width=x.width,
            out=out.at(0), out_thread_stride=out.thread_stride, private=self.private, **numbers,
        )  # fmt: skip
        return self._made(out, x.width, rows, division=division)

    # ------------------------------------------------------------ products

    def matmul(self, x: Value, *weights: Matrix, room: int = 0) -> Value:
        """(rows, sum of the matrices' rows + room): the products side by side, and columns that another op writes."""
        made, products = self._side_by_side(x, weights, room)
        self._multiply(*products)
        return made

    def matmuls(self, x: Value, *wanted: Sequence[Matrix]) -> list[Value]:
        """The same for several lists of matrices, each in memory of its own. Threads divide all these products together."""
        made = [self._side_by_side(x, weights) for weights in wanted]
        self._multiply(*(product for _, products in made for product in products))
        return [value for value, _ in made]

    def _side_by_side(self, x: Value, weights: Sequence[Matrix], room: int = 0) -> tuple[Value, list[Product]]:
        """What matmul returns, and those products that are yet to be recorded."""
        # Whole tiles are written: only the last matrix may end inside one.
        assert all(weight.rows % LANES == 0 for weight in (weights if room else weights[:-1])), weights[0].name
        width = sum(weight.rows for weight in weights) + room
        out = self._product_buffer(width, weights)
        parts, products, first = [], list[Product](), 0
        for group in neighbours(weights):
            last = first + 4 * -(-joined(group).rows // LANES) * LANES
            parts.append(range(first, last))
            part = Access(out, self._columns(joined(group).rows), parts[-1])
            # How many rows of a cut matrix a rank has must not choose the order of sums where the bits shall not depend on it.
            if is_thin(joined(group)) and not (self.site.segments and any(weight.cut for weight in group)):
                self._thin_product(x, group, part)
            else:
                products.append(self._product(x, group, part))
            first = last
        if room:
            parts.append(range(first, first + 4 * room))
        return self._made(out, width, x.rows, parts=tuple(parts)), products

    def _product_buffer(self, width: int, weights: Sequence[Matrix], rows: int | None = None) -> Buffer:
        """For products side by side, each in whole tiles."""
        return self._buffer(" + ".join(map(shortened, weights)), -(-width // LANES) * LANES * 4, rows=rows)

    def _product(self, x: Value, weights: Sequence[Matrix], out: Access, add: bool = False) -> Product:
        """out = [out +] weights x; the matrices follow each other in memory."""
        assert not (self.private and x.most), f"{x.name}: one row"
        weight, activation = joined(weights), self._activation(x, weights[0].format)
        tiles, (panels, scratch) = tiles_of(weight), self._panels()

        def record(together: bool) -> None:
            self._builder.add(
                kernel_of(weight, "matmul"), [activation.access, out] if add else [activation.access], [out, *scratch], weights,
                None, tiles, together,
                weights=weight.address, tiles=weight.tiles, tile_bytes=weight.tile_bytes, units=weight.units,
                rows=x.rows, x=activation.pointer, x_group=activation.group_bytes, x_thread_stride=activation.thread_stride,
                pitch=self.pitch, out=out.pointer, out_stride=out.buffer.stride, add=add, **panels,
            )  # fmt: skip

        return Product(
            weights=weights, tiles=tiles, activation=activation, out=out, counted=x.rows, active=self._constant(ONE_MATRIX),
            record=record, add=add,
        )  # fmt: skip

    def _thin_product(self, x: Value, weights: Sequence[Matrix], out: Access) -> None:
        """out = weights x, of a matrix that has too few tiles for many threads (kernels/thin.py)."""
        weight, activation = joined(weights), self._activation(x, weights[0].format)
        kernels = specialize("thin", "quant", weight.format.module)
        shape = {"tiles": weight.tiles, "units": weight.units}
        matrix = {"weights": weight.address, "unit_bytes": weight.format.tile_bytes, **shape}
        if not self.private:
            self._builder.add(
                kernels.multiply_groups, [activation.access], [replace(out, division=ANYHOW)], weights,
                None, Tiles(weight.tiles, weight.num_bytes),
                rows=x.rows, x=activation.pointer, x_group=activation.group_bytes, pitch=self.pitch,
                out=out.pointer, out_stride=out.buffer.stride, **matrix,
            )  # fmt: skip
            return
        parts = -(-weight.units // PART_UNITS)
        sums = self._buffer(f"parts of {out.buffer.name}", weight.tiles * parts * LANES * 4)
        self._builder.add(
            kernels.multiply_parts, [activation.access], [Access(sums)], weights,
            None, Tiles(weight.tiles * parts, weight.num_bytes),
            x=activation.pointer, x_thread_stride=activation.thread_stride, sums=sums.at(0), **matrix,
        )  # fmt: skip
        self._builder.add(kernels.join_parts, [Access(sums)], [out], sums=sums.at(0), out=out.pointer, **shape)

    def add_bias(self, x: Value, *biases: Vector) -> Value:
        """x + the biases side by side, in x's place; x is a product of as many matrices."""
        joined_ = side_by_side(biases)
        assert joined_.length == x.width, "one value per column"
        # A single product is divided in the same way; several may be divided in others.
        mine = x.accesses(self._columns(x.width) if len(x.parts) == 1 else ANYHOW)
        self._builder.add(
            bias.add_bias, mine, mine, x=x.pointer, x_stride=x.stride, rows=x.rows, width=x.width, bias=joined_.address
        )  # fmt: skip
        return self._changed(x, f"{x.name} + bias")

    # ------------------------------------------------------------ gates

    def silu_gate(self, x: Value) -> Value:
        """silu(first half of the columns) * second half."""
        return self._gate(gate.silu_gate, x)

    def gelu_gate(self, x: Value, up: Value | None = None) -> Value:
        """gelu(first half of the columns) * second half, gelu as approximated with tanh; up: gelu(x) * up, both (rows, width)."""
        return self._gate(gate.gelu_gate, x, up)

    def clamped_gate(self, x: Value, alpha: float, limit: float, shift: float = 1.0) -> Value:
        """g * sigmoid(alpha * g) * (second half + shift), g the first half; halves are clamped to `limit` (kernels/gate.py)."""
        return self._gate(gate.clamped_gate, x, alpha=alpha, limit=limit, shift=shift)

    def _gate(self, kernel: Kernel, x: Value, up: Value | None = None, **numbers: float) -> Value:
        width = x.width if up else x.width // 2
        out, division = self._buffer(f"{x.name}.gated", width * 4, self.private, rows=x.most), self._share_of_rows(x.rows)
        self._builder.add(
            kernel, [*x.accesses(), *(up.accesses() if up else [])], [Access(out, division)],
            gate=x.pointer, gate_stride=x.stride, up=up.pointer if up else x.at(width), up_stride=up.stride if up else x.stride,
            rows=x.rows, width=width,
            out=out.at(0), out_thread_stride=out.thread_stride, private=self.private, **numbers,
        )  # fmt: skip
        return self._made(out, width, x.rows, division=division, most=x.most)

    def sigmoid_gate(self, x: Value, gate_: Value) -> Value:
        """x * sigmoid(gate), both (rows, width)."""
        out, division = self._buffer(f"{x.name}.gated", x.width * 4, self.private), self._share_of_rows(x.rows)
        self._builder.add(
            gate.sigmoid_gate, [*x.accesses(), *gate_.accesses()], [Access(out, division)],
            x=x.pointer, x_stride=x.stride, gate=gate_.pointer, gate_stride=gate_.stride, rows=x.rows, width=x.width,
            out=out.at(0), out_thread_stride=out.thread_stride, private=self.private,
        )  # fmt: skip
        return self._made(out, x.width, x.rows, division=division)

    def head_gate(self, x: Value, gate_: Value, heads: range) -> Value:
        """x (rows, heads * size) * sigmoid(gate (rows, all heads)), in x's place: one number per head. heads: this rank's."""
        mine = x.accesses(self._heads(len(heads)))
        self._builder.add(
            gate.head_gate, [*mine, *gate_.accesses()], mine,
            x=x.pointer, rows=x.rows, heads=len(heads), size=x.width // max(len(heads), 1), gate=gate_.at(heads.start),
            gate_stride=gate_.stride,
        )  # fmt: skip
        return self._changed(x, f"{x.name} by heads")

    def dot_gate(self, x: Value, h: Value, weight: Vector) -> Value:
        """x * sigmoid(h . weight), in x's place: one number per row opens and closes all of it. x is gated, h normalised."""
        mine = x.accesses()
        self._builder.add(
            gate.dot_gate, [*mine, *h.accesses()], mine,
            x=x.pointer, x_thread_stride=x.thread_stride, width=x.width, h=h.pointer, h_thread_stride=h.thread_stride,
            h_width=h.width, weight=weight.address, rows=x.rows, private=self.private,
        )  # fmt: skip
        return self._changed(x, f"{x.name} * {shortened(weight)}")


def shortened(weight: Matrix | Vector) -> str:
    """A weight's name, as values made with it are called."""
    return weight.name.removesuffix(".weight")


def is_thin(weight: Matrix) -> bool:
    """Whether its columns are cut for the threads; the rule is the same for all numbers of threads, and so are the bits."""
    return weight.format.block == 1 and weight.tiles <= THIN_TILES and weight.units > PART_UNITS


def kernel_of(weight: Matrix, name: str) -> Kernel:
    """Of kernels/matmul.py, for the weight's format."""
    found: Kernel = getattr(specialize("matmul", "quant", weight.format.module), name)
    return found
