"""Attention over latent rows: a matrix for each head, rows that all heads share."""

from numatp.kernels.compile import specialize
from numatp.program.values import Access, Buffer, LayerCache, Pointer, Routes, Value
from numatp.program.words.attention import Attention, by_cache
from numatp.program.words.experts import Experts
from numatp.weights.matrix import Matrix, Vector


class Latent(Attention, Experts):
    def route_heads(self, heads: int) -> Routes:
        """Every row through the matrices of all this rank's heads: for head_matmul of all layers."""
        most = heads * self.room
        buffer = self._buffer("rows by heads", 8 * (2 + 4 * heads + 2 * most), rows=1, indexes=True)
        at = {"counts": buffer.at(0), "active": buffer.at(16), "rows_of_places": buffer.at(16 + 32 * heads)}
        at["many"] = buffer.at(16 + 32 * heads + 8 * most)
        kernels = specialize("latent", "cache", "numatp.kernels.caches.f16")
        self._builder.add(kernels.arrange_heads, [], [Access(buffer)], rows=self._rows, heads=heads, pitch=self.pitch, **at)
        unused = dict.fromkeys(("experts_of_places", "places", "chosen", "shares"), buffer.at(0))
        return Routes(buffer=buffer, used=heads, most=most, **at, **unused)

    def head_matmul(self, x: Value, width: int, routes: Routes, weight: Matrix) -> Value:
        """(places, a head's rows): the first `width` columns of each head's part of x times its matrix, stacked in weight."""
        return self.expert_matmul(x.by_heads(routes.used, width), routes, weight)

    def latent_queries(
        self, made: Value, q: Value, rotated: int, angles: Value, routes: Routes, heat: tuple[float, int] = (0.0, 1)
    ) -> Value:
        """(rows, heads * (latent + rotated)): what head_matmul made, then the last `rotated` values of each head of q, rotated.

        heat (beta, length): all multiplied by 1 + beta * log(1 + position // length).
        """
        heads = routes.used
        own = q.width // max(heads, 1)
        out = self._buffer("latent queries", heads * (made.width + rotated) * 4)
        self._by_rows(made, routes, [*q.accesses(), *angles.accesses()], out, {
            "rest": q.at(own - rotated), "rest_stride": own * 4, "rest_width": rotated, "angles": angles.pointer,
            "heat": heat[0], "heat_length": heat[1],
        })  # fmt: skip
        return self._made(out, heads * (made.width + rotated), self._rows)

    def heads_by_rows(self, made: Value, routes: Routes) -> Value:
        """(rows, heads * width): what head_matmul made."""
        out = self._buffer(f"{made.name} by rows", routes.used * made.width * 4)
        self._by_rows(made, routes, [], out, {
            "rest": 0, "rest_stride": 0, "rest_width": 0, "angles": 0, "heat": 0.0, "heat_length": 1,
        })  # fmt: skip
        return self._made(out, routes.used * made.width, self._rows)

    def _by_rows(self, made: Value, routes: Routes, reads: list[Access], out: Buffer, more: dict[str, float | Pointer]) -> None:
        kernels = specialize("latent", "cache", "numatp.kernels.caches.f16")
        self._builder.add(
            kernels.by_rows, [*made.accesses(), *reads], [Access(out)],
            made=made.pointer, made_stride=made.stride, width=made.width, rows=self._rows, heads=routes.used, pitch=self.pitch,
            positions=self._positions, out=out.at(0), **more,
        )  # fmt: skip

    def append_latent(self, x: Value, norm: Vector, epsilon: float, rotated: int, angles: Value, cache: LayerCache) -> None:
        """x (rows, latent + rotated), which is used up: the latent part normalised, the rest rotated, and all of it kept."""
        mine = x.accesses()
        latent = x.width - rotated
        copy = self._buffer("latent values", latent * 4)
        self._builder.add(
            by_cache("latent", cache).append_latent, [*mine, *angles.accesses()],
            [*mine, Access(cache.keys), Access(cache.values), Access(copy)],
            x=x.pointer, x_stride=x.stride, rows=self._rows, latent=latent, rotated=rotated, weight=norm.address, epsilon=epsilon,
            angles=angles.pointer, positions=self._positions, sequences=self._sequences, copy=copy.at(0),
            **self._cache(cache, x.width, latent),
        )  # fmt: skip
        self._changed(x, f"{x.name}, used up")
