"""Attention: norms and rotation of heads, keys and values in a cache, and the sum over them."""

from types import ModuleType

import numpy as np

from numatp.kernels import norm, rope, scale
from numatp.kernels.compile import Kernel, specialize
from numatp.kernels.layout import cache_bytes
from numatp.kernels.scratch import scratch_bytes
from numatp.program.recorder import Recorder
from numatp.program.values import PRIVATE, Access, HeadRoutes, Heads, LayerCache, Pointer, Value
from numatp.weights.matrix import Vector


class Attention(Recorder):
    def rms_norm_heads(self, qkv: Value, heads: Heads, q_weight: Vector | None, k_weight: Vector | None, epsilon: float) -> Value:
        """qkv (rows, all heads, size) with each q and k head normalised, in its place; weights (size,), None: ones."""
        return self._normalize_heads(norm.rms_norm_heads, qkv, heads, q_weight, k_weight, epsilon)

    def layer_norm_heads(self, qkv: Value, heads: Heads, q_weight: Vector, k_weight: Vector, epsilon: float) -> Value:
        """As rms_norm_heads, with mean subtraction and weights (queries, size) and (keys, size)."""
        return self._normalize_heads(norm.layer_norm_heads, qkv, heads, q_weight, k_weight, epsilon)

    def _normalize_heads(
        self, kernel: Kernel, qkv: Value, heads: Heads, q_weight: Vector | None, k_weight: Vector | None, epsilon: float
    ) -> Value:
        mine = qkv.accesses(self._heads(heads.count))
        q, k = (weight.address if weight else self._ones(heads.size) for weight in (q_weight, k_weight))
        self._builder.add(
            kernel, mine, mine,
            x=qkv.pointer, rows=self._rows, heads=heads.count, q_heads=len(heads.queries), k_heads=len(heads.keys), size=heads.size,
            q_weight=q, k_weight=k, epsilon=epsilon,
        )  # fmt: skip
        return self._changed(qkv, f"{qkv.name}, heads normalised")

    def rms_norm_values(self, qkv: Value, heads: Heads, epsilon: float, from_keys: bool) -> Value:
        """qkv with the heads of values normalised without a weight, in its place; from_keys: they are the keys, normalised so, and
        qkv has room for them.
        """
        # A value that is made of a key is made by another thread than the key.
        mine = qkv.accesses(None if from_keys else self._heads(heads.count))
        self._builder.add(
            norm.rms_norm_values, mine, mine,
            x=qkv.pointer, rows=self._rows, heads=heads.count, k_heads=len(heads.keys), size=heads.size, from_keys=from_keys,
            epsilon=epsilon,
        )  # fmt: skip
        return self._changed(qkv, f"{qkv.name}, values normalised")

    def temper_heads(self, qkv: Value, heads: Heads, every: float, by: float, shift: float = 0.0) -> Value:
        """qkv with queries times 1 + by * log(1 + floor((position + shift) / every)), in its place."""
        mine = qkv.accesses(self._heads(heads.count))
        self._builder.add(
            scale.temper_heads, mine, mine,
            x=qkv.pointer, rows=self._rows, heads=heads.count, q_heads=len(heads.queries), size=heads.size,
            positions=self._positions, every=every, by=by, shift=shift,
        )  # fmt: skip
        return self._changed(qkv, f"{qkv.name}, tempered")

    def rotation(self, frequencies: np.ndarray, scale: float = 1.0) -> Value:
        """scale * cos and sin of this Step's positions: float32 (rows, pairs, 2) from float64 frequencies (pairs,)."""
        pairs = len(frequencies)
        out = self._buffer("angles", pairs * 8)
        self._builder.add(
            rope.rotation_angles, [], [Access(out)],
            positions=self._positions, rows=self._rows, frequencies=self._constant(frequencies), pairs=pairs,
            scale=scale, out=out.at(0),
        )  # fmt: skip
        return self._made(out, 2 * pairs, self._rows)

    def rotate_and_append(
        self, qkv: Value, heads: Heads, angles: Value | None, cache: LayerCache, neighbours: bool, value_size: int = 0
    ) -> Value:
        """qkv (rows, all heads, size) with q and k rotated, in its place; k and v are appended to the cache. value_size: of a head
        of values, by default as large as the others.

        angles: of the first pairs of a head, the rest is not turned; None: nothing is. neighbours: pair i is (2i, 2i + 1), as
        GGUF files of Llama have it; else (i, i + pairs).
        """
        pairs, value_size = angles.width // 2 if angles else 0, value_size or heads.size
        mine = qkv.accesses(self._heads(heads.count))
        self._builder.add(
            by_cache("append", cache).rotate_and_append, [*mine, *(angles.accesses() if angles else [])],
            [*mine, Access(cache.keys), Access(cache.values)],
            qkv=qkv.pointer, rows=self._rows, heads=len(heads.queries), kv_heads=len(heads.keys), head_size=heads.size,
            angles=angles.pointer if angles else 0, pairs=pairs, step=2 if neighbours else 1, apart=1 if neighbours else pairs,
            positions=self._positions, sequences=self._sequences, value_size=value_size,
            **self._cache(cache, heads.size, value_size),
        )  # fmt: skip
        return self._changed(qkv, f"{qkv.name}, rotated")

    def attention(
        self, qkv: Value, heads: Heads, scale: float, cache: LayerCache, sinks: Vector | None = None, cap: float = 0.0,
        value_size: int = 0, routes: HeadRoutes | None = None,
    ) -> Value:  # fmt: skip
        """(rows, queries * value_size), by default as large as keys. sinks: per head the score of one more token that all see,
        whose value is zero; cap: of the scores (kernels/softcap.py), 0 for none; routes: of the rows that are wanted, if not all.
        """
        kernels, spans = by_cache("attention", cache), self.site.step.shape.max_spans
        value_size = value_size or heads.size
        width = len(heads.queries) * value_size
        scratch = self._buffer("attention scratch", scratch_bytes(heads.size, value_size), per_thread=True, rows=1)
        panels, more = self._panels()
        parts = self._buffer("parts", len(heads.queries) * kernels.SPLITS * kernels.part_bytes(value_size), rows=spans)
        out = self._buffer("attention", width * 4)
        self._builder.add(
            kernels.attention,
            [*qkv.accesses(), Access(cache.keys), Access(cache.values), *([Access(routes.buffer)] if routes else [])],
            [Access(out), Access(parts), Access(scratch, PRIVATE), *more],
            q=qkv.pointer, q_stride=qkv.stride, heads=len(heads.queries), kv_heads=len(heads.keys), head_size=heads.size,
            value_size=value_size, first_head=heads.queries.start, first_kv_head=heads.keys.start, group=heads.group, scale=scale,
            window=cache.window, chunked=cache.chunked,
            spans=routes.own_spans if routes else self._spans,
            num_spans=routes.num_own_spans if routes else self._num_spans,
            scratch=scratch.at(0), scratch_stride=scratch.thread_stride, parts=parts.at(0),
            finished=self._counters(spans * max(len(heads.keys), 1)),
            sinks=sinks.address if sinks else 0, sunk=sinks is not None, cap=cap, rows=self._rows, tiled=self._tiled, out=out.at(0),
            **panels,
            **self._cache(cache, heads.size, value_size),
        )  # fmt: skip
        return self._made(out, width, self._rows)

    def _counters(self, count: int) -> int:
        """The address of int64 (count,) that are 0 before each op and after it."""
        if count not in self._zeros:
            self._zeros[count] = self._constant(np.zeros(count, np.int64))
        return self._zeros[count]

    def _cache(self, cache: LayerCache, size: int, value_size: int) -> dict[str, int | Pointer]:
        step = self.site.step
        return {
            "head_bytes": cache_bytes(cache.type, size), "value_bytes": cache_bytes(cache.type, value_size),
            "tables": step.tables[cache.table].ctypes.data, "table_length": step.shape.table_length,
            "keys": cache.keys.at(0), "values": cache.values.at(0), "block_stride": cache.keys.stride,
        }  # fmt: skip


def by_cache(template: str, cache: LayerCache) -> ModuleType:
    return specialize(template, "cache", f"numatp.kernels.caches.{cache.type}")
