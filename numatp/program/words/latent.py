"""Attention over latent rows: a matrix for each head, rows that all heads share."""

import numpy as np

from numatp.kernels import absorbed
from numatp.kernels.compile import specialize
from numatp.kernels.rows import MANY
from numatp.program.values import PRIVATE, Access, Buffer, HeadRoutes, Heads, LayerCache, Pointer, Value
from numatp.program.words.attention import Attention, by_cache
from numatp.program.words.experts import Experts
from numatp.weights.matrix import Matrix, Vector

# Positions from which on rows of prompts are absorbed too. Each Step makes all keys and values anew, however few rows it has, for a
# row's bits may not depend on that: 100 rows behind 8,192 tokens then cost as much as 280 absorbed ones.
UNABSORBED = 8192


class Latent(Attention, Experts):
    def route_heads(self, heads: int, unabsorbed: bool = False) -> HeadRoutes:
        """Rows through the matrices of all this rank's heads: for head_matmul of all layers. All of them, or without those that
        attend_unabsorbed computes.
        """
        most, spans = heads * self.room, self.site.step.shape.max_spans
        lengths = {
            "counts": 2, "active": 4 * heads, "rows_of_places": most, "many": most, "places": self.room, "own_spans": 4 * spans,
            "num_own_spans": 1, "num_made": 1,
        }  # fmt: skip
        buffer = self._buffer("rows by heads", 8 * sum(lengths.values()), rows=1, indexes=True)
        starts = np.cumsum([0, *lengths.values()]).tolist()
        at = {name: buffer.at(8 * start) for name, start in zip(lengths, starts, strict=False)}
        self._builder.add(
            absorbed.arrange_heads, [], [Access(buffer)], rows=self._rows, spans=self._spans, num_spans=self._num_spans,
            limit=UNABSORBED if unabsorbed else 0, heads=heads, pitch=self.pitch, **at,
        )  # fmt: skip
        unused = dict.fromkeys(("experts_of_places", "chosen", "shares"), buffer.at(0))
        return HeadRoutes(buffer=buffer, used=heads, most=most, **at, **unused)

    def head_matmul(self, x: Value, width: int, routes: HeadRoutes, weight: Matrix) -> Value:
        """(places, a head's rows): the first `width` columns of each head's part of x times its matrix, stacked in weight."""
        return self.expert_matmul(x.by_heads(routes.used, width), routes, weight)

    def latent_queries(
        self, made: Value, q: Value, rotated: int, angles: Value, routes: HeadRoutes, heat: tuple[float, int] = (0.0, 1)
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

    def heads_by_rows(self, made: Value, routes: HeadRoutes) -> Value:
        """(rows, heads * width): what head_matmul made."""
        out = self._buffer(f"{made.name} by rows", routes.used * made.width * 4)
        self._by_rows(made, routes, [], out, {
            "rest": 0, "rest_stride": 0, "rest_width": 0, "angles": 0, "heat": 0.0, "heat_length": 1,
        })  # fmt: skip
        return self._made(out, routes.used * made.width, self._rows)

    def _by_rows(self, made: Value, routes: HeadRoutes, reads: list[Access], out: Buffer, more: dict[str, float | Pointer]) -> None:
        self._builder.add(
            absorbed.by_rows, [*made.accesses(), Access(routes.buffer), *reads], [Access(out)],
            made=made.pointer, made_stride=made.stride, width=made.width, rows=self._rows, heads=routes.used, counts=routes.counts,
            places=routes.places, positions=self._positions, out=out.at(0), **more,
        )  # fmt: skip

    def attend_unabsorbed(
        self, out: Value, q: Value, angles: Value, heads: Heads, scale: float, cache: LayerCache, k_b: Matrix, v_b: Matrix,
        routes: HeadRoutes, heat: tuple[float, int] = (0.0, 1),
    ) -> Value:  # fmt: skip
        """out (rows, heads * value_size), in its place with the rows that routes left out: attention to keys and values that k_b
        and v_b make of latent rows. q (rows, heads * size) as latent_queries wants it, whose angles rotate the end of each head.
        """
        if self.private:  # a row by itself is none of a prompt
            return out
        count, rotated, latent = len(heads.queries), angles.width, v_b.columns
        size, value_size = q.width // max(count, 1), out.width // max(count, 1)
        tiled, number_bytes = self._tiled and MANY > 0, 2 if self._tiled and MANY else 4
        made = []
        for matrix, rows in ((k_b, size - rotated), (v_b, value_size)):
            kernels = specialize("head_rows", "quant", matrix.format.module)
            made.append(self._buffer(f"rows of {matrix.name}", count * rows * latent * number_bytes, rows=1))
            room = self._buffer("rows under way", kernels.SCRATCH_BYTES, per_thread=True, rows=1)
            self._builder.add(
                kernels.make_rows, [Access(routes.buffer)], [Access(made[-1]), Access(room, PRIVATE)],
                weights=matrix.address, tile_bytes=matrix.tile_bytes, heads=count, tiles=matrix.tiles // max(count, 1),
                units=matrix.units, by_columns=matrix is k_b, tiled=tiled, num_made=routes.num_made, scratch=room.at(0),
                scratch_stride=room.thread_stride, out=made[-1].at(0),
            )  # fmt: skip
        kernels, mine = by_cache("unabsorbed", cache), out.accesses()
        scratch = self._buffer("unabsorbed scratch", kernels.scratch_bytes(size, value_size, heads.size), per_thread=True, rows=1)
        panels, more = self._panels()
        self._builder.add(
            kernels.unabsorbed_attention,
            [*mine, *q.accesses(), *angles.accesses(), Access(cache.keys), *(Access(buffer) for buffer in made)],
            [*mine, Access(scratch, PRIVATE), *more],
            q=q.pointer, q_stride=q.stride, heads=count, head_size=size, rotated=rotated, value_size=value_size, latent=latent,
            scale=scale, heat=heat[0], heat_length=heat[1], angles=angles.pointer, limit=UNABSORBED, window=cache.window,
            chunked=cache.chunked, cap=0.0, spans=self._spans, num_spans=self._num_spans, k_b=made[0].at(0), v_b=made[1].at(0),
            scratch=scratch.at(0), scratch_stride=scratch.thread_stride, rows=self._rows, tiled=tiled, out=out.pointer, **panels,
            **self._cache(cache, heads.size, latent),
        )  # fmt: skip
        return self._changed(out, f"{out.name}, and of prompts")

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
