"""What ranks do together: the first rows, and sums of what each has of a product.

Sums cross ranks in `_exchange` alone.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from numatp.kernels import bias, exchange, norm, scale
from numatp.kernels.layout import slice_columns
from numatp.program.recorder import NoLogits, Passage, Passages, Wires
from numatp.program.values import Access, Buffer, Heads, Pointer, Value
from numatp.program.words.dense import Dense, kernel_of
from numatp.quants.table import UNIT
from numatp.weights.matrix import Matrix, Vector
from numatp.weights.splits import SEGMENTS

CacheKind = TypeVar("CacheKind")

LONG_EXCHANGE = 256 * 1024  # bytes; above it reading every peer's whole message costs more than a second meeting


class Together(Dense):
    def embed(self, weight: Matrix, first_token: int, scale: float = 1.0) -> Value:
        """scale * the tokens' rows, (rows, width): the rank that holds a token's row hands it to all.

        On a host that begins with a later layer: the rows that the host before has made.
        """
        assert weight.columns == self.site.width
        self._until_end.append(self._residual)
        if self.site.passages and self.site.passages.before:
            return self._arrive(self.site.passages.before, self.site.passages)
        partial = self._look_up(weight, first_token, range(weight.columns), scale)
        return self._exchange(partial, self._residual, weight.columns, add=False)

    def layers(self, caches: Sequence[CacheKind]) -> Iterator[tuple[int, CacheKind]]:
        """The layers, one after another, each with its part of the cache: those that this host holds.

        Behind them the forward pass ends if the rows go on to the next host, or are the half of a Step that wants no logits.
        """
        passages = self.site.passages
        for layer in passages.layers if passages else range(len(caches)):
            yield layer, caches[layer]
        if passages and passages.after:
            self._leave(passages.after, passages)
        if (passages and passages.after) or self.site.half == 0:
            raise NoLogits

    def embed_columns(self, weight: Matrix, first_token: int, columns: range, scale: float) -> Value:
        """As embed, of a table whose rows are longer than an exchange: scale * some of their columns, in whole units of 32."""
        partial, width = self._look_up(weight, first_token, columns, scale), self.site.width
        whole = self._exchange(partial, self._buffer(f"{weight.name}[{columns.start}:]", width * 4), width, add=False)
        return whole.columns(0, len(columns))

    def _look_up(self, weight: Matrix, first_token: int, columns: range, scale: float) -> Buffer:
        """This rank's part of it, in the buffer of the next exchange; what lies behind the columns there is of no meaning."""
        partial = self._next_partial()
        assert columns.start % UNIT == 0 == len(columns) % UNIT and len(columns) <= self.site.width
        self._builder.add(
            kernel_of(weight, "embed"), [], [Access(partial)],
            weights=weight.address, tile_bytes=weight.tile_bytes, units=weight.units, first=columns.start // UNIT,
            count=len(columns) // UNIT, first_token=first_token, last_token=first_token + weight.rows,
            tokens=self.site.step.tokens.ctypes.data, rows=self._rows, scale=scale, out=partial.at(0), out_stride=partial.stride,
        )  # fmt: skip
        return partial

    def add_scaled(self, x: Value, other: Value, factor: float) -> Value:
        """x + factor * other, both (rows, width), in x's place; x may be some columns of what lies there."""
        mine = Access(x.buffer, self._columns(x.width))
        self._builder.add(
            scale.add_scaled, [*other.accesses(), mine], [mine],
            x=other.pointer, x_stride=other.stride, rows=self._rows, width=x.width, factor=factor,
            out=x.pointer, out_stride=x.stride,
        )  # fmt: skip
        return x

    def add_product(self, x: Value, h: Value, weight: Matrix, bias_: Vector | None = None, factor: float = 1.0) -> Value:
        """x + factor * (weight h [+ bias]), in x's place, where each rank holds its columns of weight and its part of h: one
        exchange.
        """
        return self._add_exchanged(self._sum_of_products([(h, weight)], bias_), x, factor)

    def add_products(self, x: Value, *products: tuple[Value, Matrix]) -> Value:
        """x + the sum of weight h over several (h, weight): what a rank holds of them is added up before the one exchange."""
        return self._add_exchanged(self._sum_of_products(products), x)

    def product(self, h: Value, weight: Matrix) -> Value:
        """weight h, (rows, weight's rows), where each rank holds its columns of weight and its part of h: one exchange."""
        return self._exchanged(self._sum_of_products([(h, weight)]), weight.rows)

    def add_normalized_product(
        self, x: Value, h: Value, weight: Matrix, norm_weight: Vector, epsilon: float, scale: float = 1.0
    ) -> Value:
        """scale * (x + rms_norm(weight h)), in x's place: as add_product, where the whole sum is normalised before it is added."""
        return self.add_normalized(x, self.product(h, weight), norm_weight, epsilon, scale)

    def add_normalized(self, x: Value, made: Value, weight: Vector, epsilon: float, scale: float = 1.0) -> Value:
        """scale * (x + rms_norm(made)), in x's place."""
        self._normalize_into(x.accesses(self._rows_or_columns(x.width)), x.pointer, True, made, weight, epsilon, scale)
        return self._changed(x, f"{x.name} + {made.name}, normalised")

    def normalized(self, made: Value, weight: Vector, epsilon: float) -> Value:
        """rms_norm(made) in memory of its own, to be added to."""
        out = self._buffer(f"{made.name} normalised", made.width * 4)
        self._normalize_into([Access(out, self._rows_or_columns(made.width))], out.at(0), False, made, weight, epsilon, 1.0)
        return self._made(out, made.width, made.rows)

    def _rows_or_columns(self, width: int) -> tuple[str, int, int]:
        """A division: threads share the rows, or of few rows the columns."""
        return ("rows or columns", width, self.site.threads)

    def _normalize_into(
        self, out: list[Access], pointer: Pointer, add: bool, made: Value, weight: Vector, epsilon: float, scale: float
    ) -> None:
        self._builder.add(
            norm.add_rms_norm, [*made.accesses(), *(out if add else [])], out,
            x=made.pointer, rows=self._rows, weight=weight.address, width=made.width, epsilon=epsilon, out=pointer, add=add,
            scale=scale, private=self.private,
        )  # fmt: skip

    def rms_norm_all_heads(
        self, qkv: Value, heads: Heads, all_heads: int, q_weight: Vector, k_weight: Vector, epsilon: float
    ) -> Value:
        """qkv (rows, all heads, size) with a row's queries of all ranks normalised together, and its keys, in its place.

        One exchange. all_heads: queries of the model; weights (this rank's heads * size).
        """
        width = self.site.width
        counts = self._buffer("rows of sums", 8, rows=1, indexes=True)
        shape = {"rows": self._rows, "k_heads": len(heads.keys), "size": heads.size}
        mine = qkv.accesses(self._heads(heads.count))
        parts = self._parts_of_sum(width)
        of_parts = [segment.heads for segment in self.site.segments] or [heads.queries]
        for part, queries in zip(parts, of_parts, strict=True):
            # A key that several parts hold is counted in the one that has the first of its queries.
            first = -(-queries.start // heads.group)
            counted = range(first, max(first, -(-queries.stop // heads.group)))
            behind = heads.queries.stop - queries.stop  # queries that lie between these and the keys
            self._builder.add(
                norm.sums_of_squares, qkv.accesses(), [Access(part.buffer), Access(counts, ("last thread", self.site.threads))],
                x=qkv.at((queries.start - heads.queries.start) * heads.size), x_stride=qkv.stride, **shape, q_heads=len(queries),
                first_key=behind + counted.start - heads.keys.start, counted_keys=len(counted), width=width,
                out=part.buffer.at(0), count=counts.at(0),
            )  # fmt: skip
        partial = self._joined_parts(parts, width, counts.at(0))
        shape["q_heads"] = len(heads.queries)
        sums = self._exchange(partial, self._buffer("sums of squares", width * 4), width, add=False, rows=counts.at(0))
        self._builder.add(
            norm.rms_norm_all_heads, [*mine, *sums.accesses()], mine,
            x=qkv.pointer, **shape, heads=heads.count, sums=sums.pointer, q_values=all_heads * heads.size,
            k_values=all_heads // heads.group * heads.size, q_weight=q_weight.address, k_weight=k_weight.address, epsilon=epsilon,
        )  # fmt: skip
        return self._changed(qkv, f"{qkv.name}, normalised")

    def _next_partial(self) -> Buffer:
        """Where this rank puts what the next exchange sums. Two buffers by turns: a rank may be one exchange ahead."""
        return self._partials[(self._num_exchanges + 1) % 2]

    def _parts_of_sum(self, width: int) -> list[Access]:
        """Where this rank's part of a sum goes: into the buffer of the next exchange, or each segment of it into one of its own."""
        count, division = len(self.site.segments), self._columns(width)
        if count < 2:
            return [Access(self._next_partial(), division)]
        return [Access(self._buffer(f"segment {i}", self.site.width * 4), division) for i in range(count)]

    def _joined_parts(self, parts: list[Access], width: int, rows: Pointer | int) -> Buffer:
        """What they add up to, in the buffer of the next exchange."""
        partial = self._next_partial()
        if len(parts) > 1:
            assert width == self.site.width
            each = {f"s{i}": parts[i].pointer if i < len(parts) else 0 for i in range(SEGMENTS)}
            self._builder.add(
                exchange.join_segments, parts, [Access(partial, self._columns(width))],
                segments=len(parts), **each, rows=rows, width=width, out=partial.at(0),
            )  # fmt: skip
        return partial

    def _sum_of_products(
        self, products: Sequence[tuple[Value, Matrix]], bias_: Vector | None = None, width: int = 0
    ) -> list[Access]:
        """This rank's parts of it, see _parts_of_sum. width: if there are no products."""
        parts = self._parts_of_sum(products[0][1].rows if products else width)
        terms = [in_segments(h, weight) for h, weight in products]
        for term in terms:
            for own, columns in term:
                self._activation(own, columns.format)  # all before the first product: one barrier
        for i, term in enumerate(terms):
            for part, (own, columns) in zip(parts, term, strict=True):
                self._multiply(self._product(own, [columns], part, add=i > 0))
        if bias_ and self.site.rank == 0:  # all parts of all ranks are added up
            first = parts[0]
            self._builder.add(
                bias.add_bias, [first], [first],
                x=first.pointer, x_stride=first.buffer.stride, rows=self._rows, width=bias_.length, bias=bias_.address,
            )  # fmt: skip
        return parts

    def _add_exchanged(self, parts: list[Access], x: Value, factor: float = 1.0) -> Value:
        """x + factor * the sum of all ranks' parts, in x's place."""
        x.check()
        self._scale(parts, x.width, factor)
        return self._exchange(self._joined_parts(parts, x.width, self._rows), x.buffer, x.width, add=True)

    def _scale(self, parts: list[Access], width: int, factor: float) -> None:
        for part in parts if factor != 1 else ():
            self._builder.add(
                scale.scale_columns, [part], [part],
                x=part.pointer, x_stride=part.buffer.stride, rows=self._rows, width=width, factor=factor,
            )  # fmt: skip

    def _exchanged(self, parts: list[Access], width: int) -> Value:
        """The sum of all ranks' parts, in memory of its own."""
        out = self._buffer("product", width * 4)
        return self._exchange(self._joined_parts(parts, width, self._rows), out, width, add=False)

    def _exchange(self, partial: Buffer, out: Buffer, width: int, add: bool, rows: Pointer | None = None) -> Value:
        """out = [out +] the sum of all ranks' partials (kernels/exchange.py). rows: where their number stands, if not the Step's.

        All exchanges of a program have one width, so lane bounds never change and a lane needs no barrier of its own.
        """
        assert partial is self._next_partial()
        self._num_exchanges += 1
        if self.site.wires:
            self._sum_over_hosts(self.site.wires, partial, out, width, add, rows or self._rows)
        else:
            self._sum_over_ranks(partial, out, width, add, rows or self._rows)
        self._digest("the residual", Access(out), out.at(0), out.stride, width * 4 // 8, rows or self._rows)
        return self._made(out, width, rows or self._rows, f"{out.name} after exchange {self._num_exchanges}")

    def _sum_over_ranks(self, partial: Buffer, out: Buffer, width: int, add: bool, rows: int | Pointer) -> None:
        """Of one host."""
        site, lane = self.site, self._lanes(width)
        mine, result = Access(partial, lane), Access(out, lane)
        common = {
            "partials": site.partials[self._num_exchanges % 2].ctypes.data, "ranks": site.seats, "lanes": site.lanes, "rows": rows,
            "width": width,
        }  # fmt: skip
        counted = self._counted(rows)
        if site.seats > 1:
            self._builder.sync(site.team, mine)
        # With two ranks both ways read the same bytes from the peer.
        if site.seats > 2 and self.max_rows * width * 4 > LONG_EXCHANGE:
            self._builder.add(exchange.reduce_scatter, [mine, *counted], [mine], rank=site.seat, **common)
            self._builder.sync(site.team, mine)
            self._builder.add(exchange.gather, [mine, result, *counted], [result], **common, out=out.at(0), add=add)
        else:
            self._builder.add(exchange.sum_partials, [mine, result, *counted], [result], **common, out=out.at(0), add=add)

    def _sum_over_hosts(self, wires: Wires, partial: Buffer, out: Buffer, width: int, add: bool, rows: int | Pointer) -> None:
        """Each host's sum goes to the others in slices; then all are summed.

        Who exchanges a slice reads what all threads of all ranks wrote, so barriers stand beside these syncs.
        """
        site, lane, counted = self.site, self._lanes(width), self._counted(rows)
        arrived, result = self._arrived, Access(out, lane)
        if site.seats > 1:
            self._builder.sync(site.team, Access(partial, lane))
        if site.seat < wires.count:
            outgoing, columns = partial, width
            if wires.outgoing:
                columns = slice_columns(width, site.seat, wires.count)
                outgoing = self._outgoing
                self._builder.add(
                    exchange.sum_slice, [Access(partial), *counted], [Access(outgoing)],
                    partials=site.partials[self._num_exchanges % 2].ctypes.data, ranks=site.seats, rows=rows, width=width,
                    wire=site.seat, wires=wires.count, half=wires.half, out=wires.outgoing,
                )  # fmt: skip
            row_bytes = columns * (2 if wires.half else 4)
            reads, writes = [Access(outgoing), *counted], [Access(arrived)]
            self._builder.cross(site.team, rows, row_bytes, outgoing.at(0).resolved(), wires.incoming, reads, writes, site.half)
        elif site.half is not None:
            self._builder.rest()
        if site.seats > 1:
            self._builder.sync(site.team, Access(arrived, lane))
        self._builder.add(
            exchange.sum_hosts, [Access(partial), Access(self._outgoing), Access(arrived), result, *counted], [result],
            sums=wires.sums[self._num_exchanges % 2].ctypes.data, hosts=wires.hosts, wires=wires.count, lanes=site.lanes, rows=rows,
            width=width, half=wires.half, out=out.at(0), add=add,
        )  # fmt: skip

    def _leave(self, passage: Passage, passages: Passages) -> None:
        """The rows go to the next host, in slices: each of this host's ranks holds all of them."""
        site, rows = self.site, Access(self._passed)
        if site.seat >= passage.count:
            return
        width, residual = passages.width, passages.residual
        columns = slice_columns(width, site.seat, passage.count)
        sent, at = rows, residual
        if passage.count > 1 or passage.half:
            at = int(passage.slices[site.seat])
            sent = Access(Buffer("slice", address=at))
            alone = np.array([residual], np.uint64)  # its sum over one rank
            self._builder.add(
                exchange.sum_slice, [rows], [sent],
                partials=self._constant(alone), ranks=1, rows=self._rows, width=width, wire=site.seat, wires=passage.count,
                half=passage.half, out=at,
            )  # fmt: skip
        row_bytes = columns * (2 if passage.half else 4)
        self._builder.pass_rows(site.team, self._rows, row_bytes, at, passage.host, False, [sent], [])

    def _arrive(self, passage: Passage, passages: Passages) -> Value:
        """The rows of the host before, of which each of this host's ranks takes all slices."""
        site, arrived, residual, width = self.site, self._arrived, self._passed, passages.width
        lane = self._lanes(width)
        if site.seat < passage.count:
            row_bytes = slice_columns(width, site.seat, passage.count) * (2 if passage.half else 4)
            at = int(passage.slices[site.seat])
            self._builder.pass_rows(site.team, self._rows, row_bytes, at, passage.host, True, [], [Access(arrived)])
        if site.seats > 1:
            self._builder.sync(site.team, Access(arrived, lane))
        result = Access(residual, lane)
        self._builder.add(
            exchange.sum_hosts, [Access(arrived), result], [result],
            sums=passage.slices.ctypes.data, hosts=1, wires=passage.count, lanes=site.lanes, rows=self._rows, width=width,
            half=passage.half, out=residual.at(0), add=False,
        )  # fmt: skip
        self._digest("the residual", Access(residual), residual.at(0), residual.stride, width * 4 // 8, self._rows)
        return self._made(residual, width, self._rows, "rows of the host before")

    def _counted(self, rows: int | Pointer) -> list[Access]:
        """The buffer in which the number of rows stands, if it is not the Step's."""
        return [Access(rows.buffer)] if isinstance(rows, Pointer) else []


def in_segments(h: Value, weight: Matrix) -> list[tuple[Value, Matrix]]:
    """(columns of h, the part of the matrix for them) for each product that is summed for itself."""
    if not weight.segments:
        return [(h, weight)]
    first = weight.segments[0].first_column
    return [(h.columns(part.first_column - first, part.columns), part) for part in weight.segments]
