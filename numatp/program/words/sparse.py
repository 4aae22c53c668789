"""Attention to the tokens that an indexer chooses."""

from numatp.kernels import pools, sparse
from numatp.kernels.layout import CACHE_BLOCK
from numatp.kernels.scratch import SCRATCH_BYTES
from numatp.kernels.states import conv_rows, pool_bytes
from numatp.program.values import PRIVATE, Access, Buffer, Heads, LayerCache, LayerRows, LayerState, Pointer, Value
from numatp.program.words.latent import Latent
from numatp.weights.matrix import Vector


class Sparse(Latent):
    @property
    def longest(self) -> int:
        """Tokens that a sequence can have."""
        return self.site.step.shape.table_length * CACHE_BLOCK

    def append_index(
        self, x: Value, norm: Vector, bias: Vector, epsilon: float, angles: Value, neighbours: bool, cache: LayerCache
    ) -> Value:
        """x (rows, size), in its place: normalised as by layer_norm, the first pairs rotated (see rotate_and_append), and kept."""
        assert cache.index, "this layer has an indexer"
        mine = x.accesses()
        self._builder.add(
            sparse.append_index, [*mine, *angles.accesses()], [*mine, Access(cache.index)],
            x=x.pointer, x_stride=x.stride, rows=self._rows, size=x.width, weight=norm.address, bias=bias.address, epsilon=epsilon,
            positions=self._positions, sequences=self._sequences, **self._pairs(angles, neighbours), **self._index(cache),
        )  # fmt: skip
        return self._changed(x, f"{x.name}, normalised and rotated")

    def pool_index(
        self, both: Value, norm: Vector, bias: Vector, epsilon: float, places: Vector, state: LayerState, cache: LayerCache
    ) -> None:  # fmt: skip
        """both (rows, keys beside gates), which is used up: keys are normalised as by layer_norm, and of each whole run of tokens
        one is kept (kernels/pools.py). places (tokens of a run, size): is added to the gates.
        """
        mine, size = both.accesses(), both.width // 2
        self._builder.add(
            pools.normalize_keys, mine, mine, x=both.pointer, x_stride=both.stride, rows=self._rows, size=size, weight=norm.address,
            bias=bias.address, epsilon=epsilon,
        )  # fmt: skip
        both = self._changed(both, f"{both.name}, normalised")
        left = Access(state.state, ("pools", size, self.site.threads), range(pool_bytes(size, cache.every)))
        assert cache.index, "this layer has an indexer"
        self._builder.add(
            pools.pool_keys, [*both.accesses(), left], [left, Access(cache.index)],
            x=both.pointer, x_stride=both.stride, size=size, every=cache.every, places=places.address, kept=conv_rows(cache.every),
            state=state.state.at(0), state_stride=state.state.stride, spans=self._joined, num_spans=self._num_joined,
            **self._index(cache),
        )  # fmt: skip

    def choose_tokens(
        self, q: Value, weights: Value, angles: Value, neighbours: bool, cache: LayerCache, top: int
    ) -> Value:  # fmt: skip
        """(rows, top) int64, ascending: of each row that has more than `top` tokens those of the highest scores: sums over
        heads of weight * max(q k, 0). q (rows, heads * size) is rotated in its place; weights (rows, heads).
        """
        heads = weights.width
        size, mine = q.width // heads, q.accesses()
        assert cache.index, "this layer has an indexer"
        queries: dict[str, int | Pointer] = {"q": q.pointer, "q_stride": q.stride, "rows": self._rows, "heads": heads, "size": size}
        self._builder.add(sparse.rotate_heads, [*mine, *angles.accesses()], mine, **queries, **self._pairs(angles, neighbours))
        q = self._changed(q, f"{q.name}, rotated")
        scratch = self._buffer("indexer scratch", SCRATCH_BYTES, per_thread=True, rows=1)
        scores = self._buffer("scores of tokens", self.longest * 4)
        self._builder.add(
            sparse.score_tokens, [*q.accesses(), *weights.accesses(), Access(cache.index)],
            [Access(scores), Access(scratch, PRIVATE)],
            weights=weights.pointer, weights_stride=weights.stride, positions=self._positions, sequences=self._sequences, top=top,
            scratch=scratch.at(0), scratch_stride=scratch.thread_stride, scores=scores.at(0), **queries, **self._index(cache),
        )  # fmt: skip
        return self._choose(scores, self.longest, 1, top)

    def _choose(self, scores: Buffer, most: int, every: int, top: int) -> Value:
        """scores (rows, most), of which a row has one for every so many tokens up to its own."""
        bins = self._buffer("bins", (sparse.BINS + most) * 8, per_thread=True, rows=1)
        chosen = self._buffer("chosen tokens", top * 8, indexes=True)
        self._builder.add(
            sparse.choose_tokens, [Access(scores)], [Access(chosen), Access(bins, PRIVATE)],
            scores=scores.at(0), pitch=most, rows=self._rows, positions=self._positions, every=every,
            top=top, bins=bins.at(0), bins_stride=bins.thread_stride, chosen=chosen.at(0),
        )  # fmt: skip
        self._digest("the choice of tokens", Access(chosen), chosen.at(0), top * 8, top, self._rows)
        return self._made(chosen, 2 * top, self._rows)

    def sparse_attention(self, q: Value, heads: Heads, scale: float, cache: LayerCache, chosen: Value, value_size: int) -> Value:
        """(rows, queries * value_size): attention to the tokens that choose_tokens or choose_entries gave, over latent rows."""
        spans, count, top = self.site.step.shape.max_spans, len(heads.queries), chosen.width // 2
        scratch = self._buffer("attention scratch", SCRATCH_BYTES, per_thread=True, rows=1)
        room = self._buffer("chosen rows", CACHE_BLOCK * (heads.size + value_size) * 2, per_thread=True, rows=1)
        parts = self._buffer("parts", count * sparse.attention.SPLITS * sparse.attention.part_bytes(value_size), rows=spans)
        out = self._buffer("attention", count * value_size * 4)
        places = self._cache(cache, heads.size, value_size)
        del places["head_bytes"], places["value_bytes"]  # of one head that all share
        self._builder.add(
            sparse.sparse_attention, [*q.accesses(), *chosen.accesses(), Access(cache.keys), Access(cache.values)],
            [Access(out), Access(parts), Access(scratch, PRIVATE), Access(room, PRIVATE)],
            q=q.pointer, q_stride=q.stride, heads=count, head_size=heads.size, value_size=value_size, scale=scale,
            spans=self._spans, num_spans=self._num_spans, chosen=chosen.pointer, top=top, every=cache.every,
            scratch=scratch.at(0), scratch_stride=scratch.thread_stride, room=room.at(0), room_stride=room.thread_stride,
            parts=parts.at(0), finished=self._counters(spans), out=out.at(0), **places,
        )  # fmt: skip
        return self._made(out, count * value_size, self._rows)

    def _pairs(self, angles: Value, neighbours: bool) -> dict[str, int | Pointer]:
        pairs = angles.width // 2
        step, apart = (2, 1) if neighbours else (1, pairs)
        return {"angles": angles.pointer, "pairs": pairs, "step": step, "apart": apart}

    def _index(self, cache: LayerCache | LayerRows) -> dict[str, int | Pointer]:
        assert cache.index, "this layer has an indexer"
        step = self.site.step
        return {
            "tables": step.tables[cache.table].ctypes.data, "table_length": step.shape.table_length,
            "keys": cache.index.at(0), "block_stride": cache.index.stride,
        }  # fmt: skip
