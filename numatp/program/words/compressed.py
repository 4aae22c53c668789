"""Attention to the last tokens, and to all text in entries of several tokens each (kernels/compressed.py)."""

import numpy as np

from numatp.kernels import compressed, sparse
from numatp.kernels.layout import CACHE_BLOCK
from numatp.kernels.scratch import SCRATCH_BYTES
from numatp.program.values import PRIVATE, Access, LayerCache, LayerRows, LayerState, Pointer, Value
from numatp.program.words.sparse import Sparse
from numatp.weights.matrix import Vector


class Compressed(Sparse):
    def rotate_tails(self, x: Value, heads: int, angles: Value) -> Value:
        """x (rows, heads * size) with the last pairs of each head rotated, in its place; pairs are neighbours."""
        mine, pairs = x.accesses(), angles.width // 2
        size = x.width // max(heads, 1)
        self._builder.add(
            sparse.rotate_heads, [*mine, *angles.accesses()], mine,
            q=x.at(size - 2 * pairs) if heads else x.pointer, q_stride=x.stride, rows=self._rows, heads=heads, size=size,
            **self._pairs(angles, neighbours=True),
        )  # fmt: skip
        return self._changed(x, f"{x.name}, rotated")

    def append_row(self, x: Value, norm: Vector, epsilon: float, angles: Value, cache: LayerRows) -> None:
        """x (rows, size), which is used up: normalised, the last pairs rotated, and kept."""
        mine = x.accesses()
        self._builder.add(
            compressed.append_row, [*mine, *angles.accesses()], [*mine, Access(cache.rows)],
            x=x.pointer, x_stride=x.stride, rows=self._rows, size=x.width, weight=norm.address, epsilon=epsilon,
            angles=angles.pointer, pairs=angles.width // 2, positions=self._positions, sequences=self._sequences,
            kept=cache.rows.at(0), **self._blocks(cache),
        )  # fmt: skip
        self._changed(x, f"{x.name}, used up")

    def append_entries(
        self, both: Value, places: Vector, norm: Vector, epsilon: float, frequencies: np.ndarray, state: LayerState,
        cache: LayerRows, begin: int = 0, index: bool = False,
    ) -> None:  # fmt: skip
        """Keeps the entries of which these are the last tokens. both: values beside gates, (rows, 2 * channels); they overlap if
        there are twice as many channels as the norm has. begin: of their part of the state, in bytes; index: they are an indexer's.
        """
        size, channels = norm.length, both.width // 2
        state_access = Access(state.state, ("entries", size, self.site.threads), range(begin, begin + 6 * size * 4))
        entries = self._buffer("entries", size * 4)
        self._builder.add(
            compressed.compress, [*both.accesses(), state_access], [Access(entries), state_access],
            x=both.pointer, x_stride=both.stride, gates=both.at(channels), size=size, overlapping=channels == 2 * size,
            every=cache.every, places=places.address, state=state.state.at(begin), state_stride=state.state.stride,
            spans=self._spans, num_spans=self._num_spans, out=entries.at(0),
        )  # fmt: skip
        kept = cache.rows
        if index:
            assert cache.index, "this layer has an indexer"
            kept = cache.index
        self._builder.add(
            compressed.append_entry, [Access(entries)], [Access(entries), Access(kept)],
            x=entries.at(0), rows=self._rows, size=size, every=cache.every, weight=norm.address, epsilon=epsilon,
            frequencies=self._constant(frequencies), pairs=len(frequencies), positions=self._positions,
            sequences=self._sequences, kept=kept.at(0), by_columns=index, **self._blocks(cache),
        )  # fmt: skip

    def choose_entries(self, q: Value, weights: Value, cache: LayerCache | LayerRows, top: int) -> Value:
        """As choose_tokens, of entries, or of runs of tokens with a key together. q (rows, heads * size): as scores want it."""
        assert cache.index, "this layer has an indexer"
        heads, most = weights.width, self.longest // cache.every
        scores = self._buffer("scores of entries", most * 4)
        self._builder.add(
            compressed.score_entries, [*q.accesses(), *weights.accesses(), Access(cache.index)], [Access(scores)],
            q=q.pointer, q_stride=q.stride, rows=self._rows, heads=heads, size=q.width // heads, weights=weights.pointer,
            weights_stride=weights.stride, positions=self._positions, sequences=self._sequences, every=cache.every, top=top,
            pitch=most, scores=scores.at(0), **self._index(cache),
        )  # fmt: skip
        return self._choose(scores, most, cache.every, top)

    def compressed_attention(
        self, q: Value, heads: int, scale: float, sinks: Vector, tokens: LayerRows, entries: LayerRows | None, chosen: Value | None
    ) -> Value:
        """(rows, heads * size): attention to the last tokens, and to entries, all or those that choose_entries gave."""
        size, spans = q.width // max(heads, 1), self.site.step.shape.max_spans
        scratch = self._buffer("attention scratch", SCRATCH_BYTES, per_thread=True, rows=1)
        room = self._buffer("gathered rows", 2 * CACHE_BLOCK * size * 2, per_thread=True, rows=1)
        parts = self._buffer("parts", heads * compressed.attention.SPLITS * compressed.attention.part_bytes(size), rows=spans)
        out = self._buffer("attention", q.width * 4)
        far: dict[str, int | Pointer] = {"entry_tables": 0, "entries": 0, "entry_stride": 0, "every": 0}
        reads = [*q.accesses(), Access(tokens.rows)]
        if entries:
            blocks = self._blocks(entries)
            far = {"entry_tables": blocks["tables"], "entries": entries.rows.at(0), "entry_stride": blocks["block_stride"]}
            far["every"], reads = entries.every, [*reads, Access(entries.rows)]
        choice: dict[str, int | Pointer] = {"choosing": 0, "chosen": 0, "top": 0}
        if chosen:
            choice, reads = {"choosing": 1, "chosen": chosen.pointer, "top": chosen.width // 2}, [*reads, *chosen.accesses()]
        self._builder.add(
            compressed.compressed_attention, reads, [Access(out), Access(parts), Access(scratch, PRIVATE), Access(room, PRIVATE)],
            q=q.pointer, q_stride=q.stride, heads=heads, size=size, scale=scale, sinks=sinks.address, spans=self._spans,
            num_spans=self._num_spans, kept=tokens.rows.at(0), window=tokens.window, scratch=scratch.at(0),
            scratch_stride=scratch.thread_stride, room=room.at(0), room_stride=room.thread_stride, parts=parts.at(0),
            finished=self._counters(spans), out=out.at(0), **far, **choice, **self._blocks(tokens),
        )  # fmt: skip
        return self._made(out, q.width, self._rows)

    def _blocks(self, cache: LayerRows) -> dict[str, int | Pointer]:
        step = self.site.step
        return {
            "tables": step.tables[cache.table].ctypes.data, "table_length": step.shape.table_length,
            "block_stride": cache.rows.stride,
        }  # fmt: skip
