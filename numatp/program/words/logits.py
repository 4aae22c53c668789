"""Logits of this rank's part of the vocabulary, or what scores need of them."""

import numpy as np

from numatp.kernels import softcap
from numatp.kernels.layout import TOP_BYTES
from numatp.kernels.score import join_scores
from numatp.kernels.simd import LANES
from numatp.program.division import Tiles
from numatp.program.values import PRIVATE, Access, Buffer, ThreadStride, Value
from numatp.program.words.dense import Dense, kernel_of
from numatp.weights.matrix import Matrix
from numatp.weights.splits import SEGMENTS


class Logits(Dense):
    def logits(self, x: Value, weight: Matrix, first_token: int, cap: float = 0.0) -> None:
        """This rank's columns of the logits (num_logits, vocab), or what the scores need of them, into the window.

        cap: of the logits (kernels/softcap.py), 0 for none.
        """
        if self.scored:
            return self._score(x, weight, first_token, cap)
        site = self.site
        out = Buffer("logits", site.logit_stride, address=site.logits + first_token * 4)
        mine = Access(out, self._columns(weight.rows))
        self._multiply(self._product(x, [weight], mine))
        if cap:
            self._builder.add(
                softcap.cap_columns, [mine], [mine],
                x=out.at(0), x_stride=out.stride, rows=x.rows, width=weight.rows, cap=cap,
            )  # fmt: skip

    def _score(self, x: Value, weight: Matrix, first_token: int, cap: float) -> None:
        activation = self._activation(x, weight.format)
        scratch = self._buffer("score scratch", 64, per_thread=True)
        panels, more = self._panels()
        by_tile = bool(self.site.segments)
        parts, stride, edges = self._parts_of_scores(weight, first_token)
        tops = self._buffer("most probable", TOP_BYTES, per_thread=True)
        step, mine = self.site.step, self._columns(weight.rows)
        self._builder.add(
            kernel_of(weight, "score"), [activation.access],
            [Access(parts, mine), Access(tops, mine), Access(scratch, PRIVATE), *more], [weight],
            None, Tiles(weight.tiles, weight.num_bytes),
            weights=weight.address, tiles=weight.tiles, tile_bytes=weight.tile_bytes, units=weight.units, vocab=weight.rows,
            first_token=first_token, targets=step.targets.ctypes.data, rows=x.rows, x=activation.pointer,
            x_group=activation.group_bytes, pitch=self.pitch, scratch=scratch.at(0), scratch_thread_stride=scratch.thread_stride,
            cap=cap, by_tile=by_tile, out=parts.at(0), out_stride=stride, tops=tops.at(0), tops_thread_stride=tops.thread_stride,
            num_top=step.num_top.ctypes.data, **panels,
        )  # fmt: skip
        told = [Buffer("window scores", address=self.site.scores), Buffer("window tops", address=self.site.tops)]
        self._builder.add(
            join_scores, [Access(parts), Access(tops)], [Access(buffer) for buffer in told],
            parts=parts.at(0), parts_stride=stride, edges=self._constant(edges), segments=len(edges) - 1,
            tops=tops.at(0), tops_thread_stride=tops.thread_stride, num_top=step.num_top.ctypes.data, rows=x.rows,
            out=self.site.scores, out_stride=16 * (SEGMENTS if by_tile else 1), out_tops=self.site.tops,
        )  # fmt: skip

    def _parts_of_scores(self, weight: Matrix, first_token: int) -> tuple[Buffer, ThreadStride | int, np.ndarray]:
        """What scores add up: (buffer, bytes from part to part, where each segment's parts begin and the last one's end)."""
        site = self.site
        if not site.segments:
            parts = self._buffer("scores", 16, per_thread=True)
            return parts, parts.thread_stride, np.array([0, site.threads])
        parts = self._buffer("scores of tiles", 16, rows=max(weight.tiles, 1) * self.room)
        ends = [-(-(segment.vocab.stop - first_token) // LANES) for segment in site.segments]
        return parts, 16 * self.room, np.array([0, *ends])
