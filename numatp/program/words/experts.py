"""Experts: which rows go through which, and their products."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from numatp.kernels import bias, experts
from numatp.kernels.compile import Kernel
from numatp.kernels.rows import MANY
from numatp.program.division import tiles_of
from numatp.program.values import Access, Buffer, Pointer, Router, Routes, Value
from numatp.program.words.dealt import Product
from numatp.program.words.dense import kernel_of
from numatp.program.words.together import Together, in_segments
from numatp.weights.matrix import Matrix, Vector

EXPERT_ROWS = 32  # rows of an expert, on average over a full Step, from which on prompts go through tile registers there too

FUNCTIONS = {"softmax": 0, "sigmoid": experts.SIGMOID, "root of softplus": experts.ROOT_OF_SOFTPLUS}  # as kernels have them


class Experts(Together):
    def route(self, scores: Value, used: int, normalize: bool) -> Routes:
        """The `used` best experts of each row by the softmax of the scores; normalize: their shares are made to add up to 1.

        scores (rows, experts), which all ranks have made from the same bits, are used up.
        """
        return self._route(experts.choose, scores, used, normalize=normalize)

    def route_wanted(self, scores: Value, router: Router, bias: Vector | None) -> Routes:
        """As route, where the router has more to say; bias (experts,): of the choice alone."""
        assert scores.width % router.groups == 0, "groups of one size"
        return self._route(
            experts.choose_wanted, scores, router.used, normalize=router.normalize, function=FUNCTIONS[router.function],
            bias=bias.address if bias else 0, biased=bias is not None, groups=router.groups, groups_used=router.groups_used,
            pairs=router.pairs, factor=router.factor,
        )  # fmt: skip

    def route_listed(self, scores: Value, router: Router, table: Vector) -> Routes:
        """As route_wanted, where the table (tokens of the vocabulary, used) lists each token's experts."""
        return self._route(
            experts.choose_listed, scores, router.used, normalize=router.normalize, function=FUNCTIONS[router.function],
            factor=router.factor, tokens=self.site.step.tokens.ctypes.data, table=table.address,
        )  # fmt: skip

    def weigh_routes(self, routes: Routes, factors: Vector) -> Routes:
        """Each share times the factor of its expert; factors (experts,)."""
        self._builder.add(
            experts.weigh, [Access(routes.buffer)], [Access(routes.buffer)],
            rows=self._rows, used=routes.used, chosen=routes.chosen, shares=routes.shares, factors=factors.address,
        )  # fmt: skip
        return routes

    def weigh_places(self, x: Value, routes: Routes) -> tuple[Value, Routes]:
        """x (places, width) times the share of each place, in x's place, and routes in which every share is 1."""
        mine = x.accesses(self._columns(x.width))
        self._builder.add(
            experts.weigh_places, [*mine, Access(routes.buffer)], mine,
            x=x.pointer, x_stride=x.stride, rows=self._rows, used=routes.used, places=routes.places, shares=routes.shares,
            width=x.width,
        )  # fmt: skip
        ones = Pointer(Buffer("ones", address=self._ones(self.max_rows * routes.used)))
        return self._changed(x, f"{x.name}, weighed"), replace(routes, shares=ones)

    def _route(self, kernel: Kernel, scores: Value, used: int, **args: float) -> Routes:
        count = scores.width
        pairs = self.max_rows * used
        # By what a full Step gives an expert on average, so that a row's bits do not depend on who else runs.
        tiled = not self.private and MANY > 0 and pairs >= EXPERT_ROWS * count
        spare = (2 if tiled else 1) * (self.pitch - 1)  # places of an expert
        most = -(-(pairs + min(count, pairs) * spare) // self.pitch) * self.pitch
        lengths = {
            "counts": 2, "active": 4 * count, "rows_of_places": most, "experts_of_places": most, "many": most,
            "places": pairs, "chosen": pairs, "shares": pairs, "next": 2 * count,
        }  # fmt: skip
        buffer = self._buffer(f"routes by {scores.name}", 8 * sum(lengths.values()), rows=1, indexes=True)
        starts = np.cumsum([0, *lengths.values()]).tolist()
        at = {name: buffer.at(8 * start) for name, start in zip(lengths, starts, strict=False)}
        following = at.pop("next")
        routes = Routes(buffer=buffer, used=used, most=most, **at)
        self._builder.add(
            kernel, scores.accesses(), [Access(buffer), *scores.accesses()],
            logits=scores.pointer, logits_stride=scores.stride, rows=scores.rows, experts=count, used=used, chosen=routes.chosen,
            shares=routes.shares, **args,
        )  # fmt: skip
        self._changed(scores, f"{scores.name}, used up")
        self._digest("the choice of experts", Access(buffer), routes.chosen, used * 8, used, scores.rows)
        self._builder.add(
            experts.arrange, [Access(buffer)], [Access(buffer)],
            rows=scores.rows, experts=count, used=used, tiled=tiled, pitch=self.pitch, chosen=routes.chosen, counts=routes.counts,
            active=routes.active, rows_of_places=routes.rows_of_places, experts_of_places=routes.experts_of_places,
            many=routes.many, places=routes.places, next=following,
        )  # fmt: skip
        return routes

    def expert_matmul(self, x: Value, routes: Routes, *weights: Matrix) -> Value:
        """(places, sum of an expert's rows): the products side by side; x has a row for each row of the Step, or for each place."""
        made, products = self._expert_products(x, routes, weights)
        self._multiply(*products)
        return made

    def expert_and_shared_matmul(
        self, x: Value, routes: Routes, weights: Sequence[Matrix], shared: Sequence[Matrix]
    ) -> tuple[Value, Value]:
        """expert_matmul(x, routes, *weights) and matmul(x, *shared). Threads divide all these products together."""
        made, products = self._expert_products(x, routes, weights)
        beside, more = self._side_by_side(x, shared)
        self._multiply(*products, *more)
        return made, beside

    def _expert_products(self, x: Value, routes: Routes, weights: Sequence[Matrix]) -> tuple[Value, list[Product]]:
        """What expert_matmul returns, and the products, which are yet to be recorded."""
        width = sum(weight.rows // weight.stacked for weight in weights)
        out = self._product_buffer(width, weights, rows=routes.most)
        parts, products, first = [], list[Product](), 0
        for weight in weights:
            last = first + 4 * (weight.rows // weight.stacked)
            parts.append(range(first, last))
            products.append(self._expert_product(x, routes, weight, Access(out, columns=parts[-1])))
            first = last
        return self._made(out, width, routes.counts, most=routes.most, parts=tuple(parts)), products

    def _expert_product(self, x: Value, routes: Routes, weight: Matrix, out: Access) -> Product:
        activation, (panels, scratch) = self._activation(x, weight.format, routes), self._panels()
        tiles = tiles_of(weight, routes.used)

        def record(together: bool) -> None:
            self._builder.add(
                kernel_of(weight, "experts"), [activation.access, Access(routes.buffer)], [out, *scratch], [weight],
                tiles.num_bytes, tiles, together,
                weights=weight.address, tiles=weight.tiles // weight.stacked, tile_bytes=weight.tile_bytes, units=weight.units,
                counts=routes.counts, active=routes.active, x=activation.pointer, x_group=activation.group_bytes,
                x_thread_stride=activation.thread_stride, pitch=self.pitch, out=out.pointer, out_stride=out.buffer.stride, **panels,
            )  # fmt: skip

        return Product(
            weights=[weight], tiles=tiles, activation=activation, out=out, counted=routes.num_active, active=routes.active,
            record=record, reads=[Access(routes.buffer)],
        )  # fmt: skip

    def add_expert_bias(self, x: Value, routes: Routes, *biases: Vector) -> Value:
        """x + the bias of each place's expert, in x's place; x is an expert_matmul of as many matrices; biases (experts, rows)."""
        for part, bias_ in zip(x.accesses(("places", x.width, self.site.threads)), biases, strict=True):
            self._builder.add(
                bias.add_selected_bias, [part, Access(routes.buffer)], [part],
                x=part.pointer, x_stride=x.stride, rows=x.rows, width=x.width // len(biases),
                select=routes.experts_of_places, bias=bias_.address, private=self.private,
            )  # fmt: skip
        return self._changed(x, f"{x.name} + bias")

    def add_experts(
        self, x: Value, h: Value, routes: Routes, weight: Matrix, *products: tuple[Value, Matrix], bias_: Vector | None = None,
        factor: float = 1.0, beside: tuple[Value, Matrix] | None = None,
    ) -> Value:  # fmt: skip
        """x + factor * (each row's sum of share * (expert's weight h) + further products as in add_products): one exchange.

        bias_: (experts, width), each expert's added to its product. beside: a product that is added without the factor.
        """
        parts = self._sum_of_experts(h, routes, weight, products)
        if bias_ and self.site.rank == 0:  # all parts of all ranks are added up
            self._combine(bias_.address, x.width * 4, [], routes, routes.chosen, parts[0], x.width, add=True)
        if beside:
            self._scale(parts, x.width, factor)
            for part, (own, columns) in zip(parts, in_segments(*beside), strict=True):
                self._multiply(self._product(own, [columns], part, add=True))
            factor = 1.0
        return self._add_exchanged(parts, x, factor)

    def experts_product(self, h: Value, routes: Routes, weight: Matrix, *products: tuple[Value, Matrix]) -> Value:
        """Each row's sum of share * (expert's weight h) + further products as in add_products, (rows, width): one exchange."""
        return self._exchanged(self._sum_of_experts(h, routes, weight, products), weight.rows // weight.stacked)

    def _sum_of_experts(
        self, h: Value, routes: Routes, weight: Matrix, products: Sequence[tuple[Value, Matrix]] = ()
    ) -> list[Access]:
        """This rank's parts of it and of the products, see _parts_of_sum."""
        width = weight.rows // weight.stacked
        made: Iterable[Value] = (self.expert_matmul(own, routes, columns) for own, columns in in_segments(h, weight))
        if self.private:
            made = list(made)  # one barrier for all of them; of many rows, memory for one after another
        parts = self._sum_of_products(products, width=width)
        for part, rows in zip(parts, made, strict=True):
            self._combine(rows.pointer, rows.stride, rows.accesses(), routes, routes.places, part, width, add=bool(products))
        return parts

    def _combine(
        self, rows: Pointer | int, stride: int, reads: list[Access], routes: Routes, places: Pointer, out: Access, width: int,
        add: bool,
    ) -> None:  # fmt: skip
        """out = [out +] each row's sum of share * the row at its place in `rows`."""
        self._builder.add(
            experts.combine, [*reads, Access(routes.buffer), *([out] if add else [])], [out],
            x=rows, x_stride=stride, rows=self._rows, used=routes.used, places=places, shares=routes.shares,
            width=width, out=out.pointer, out_stride=out.buffer.stride, add=add,
        )  # fmt: skip
