"""Hyper-connections: a residual of several streams, from which a block reads one row, and to which what it makes goes back."""

from collections.abc import Hashable

import numpy as np

from numatp.kernels import streams
from numatp.kernels.states import MIXES, STREAMS
from numatp.program.recorder import Recorder
from numatp.program.values import Access, Pointer, Value
from numatp.weights.matrix import Vector


class Streams(Recorder):
    def spread_streams(self, x: Value) -> Value:
        """(rows, STREAMS * width): x again and again. On a host that begins with a later layer x is what came of that."""
        if x.width == STREAMS * self.site.width:
            return x
        out = self._passed if self.site.passages else self._buffer("streams", STREAMS * x.width * 4)
        self._builder.add(
            streams.spread_streams, x.accesses(self._columns(x.width)), [Access(out, self._of_streams(x.width))],
            x=x.pointer, rows=self._rows, width=x.width, out=out.at(0),
        )  # fmt: skip
        return self._made(out, STREAMS * x.width, self._rows)

    def gather_streams(
        self, x: Value, mixes: Value, scale: Vector, base: Vector, rounds: int, least: float, weight: Vector, epsilon: float,
        last: bool = False,
    ) -> tuple[Value, Value]:  # fmt: skip
        """(the normalised row that a block reads, (rows, width); what merge_streams takes): kernels/streams.py.

        mixes: what the matrix of these connections makes of x. last: behind all layers, of the rows whose logits are wanted.
        """
        width = x.width // STREAMS
        rows: int = self._num_logits if last else self._rows
        select: int | Pointer = self.site.step.logit_rows.ctypes.data if last else self._every_row(self.max_rows)
        out, division = self._buffer("streams gathered", width * 4, self.private), self._share_of_rows(rows)
        shares = self._buffer("shares of streams", MIXES * 4, self.private)
        self._builder.add(
            streams.gather_streams, [*x.accesses(), *mixes.accesses()], [Access(out, division), Access(shares, division)],
            streams=x.pointer, mixes=mixes.pointer, mixes_stride=mixes.stride, rows=rows, select=select, width=width,
            scale=scale.address, base=base.address, last=last, rounds=rounds, least=least, epsilon=epsilon, weight=weight.address,
            out=out.at(0), out_thread_stride=out.thread_stride, shares=shares.at(0), shares_stride=shares.stride,
            shares_thread_stride=shares.thread_stride, private=self.private,
        )  # fmt: skip
        made = self._made(out, width, rows, division=division)
        return made, self._made(shares, MIXES, rows, division=division)

    def mean_streams(self, x: Value, weight: Vector, epsilon: float) -> Value:
        """(rows whose logits are wanted, width): the normalised mean of the streams."""
        width, rows = x.width // STREAMS, self._num_logits
        out, division = self._buffer("mean of streams", width * 4, self.private), self._share_of_rows(rows)
        self._builder.add(
            streams.sum_streams, x.accesses(), [Access(out, division)],
            streams=x.pointer, shares=self._constant(np.full(STREAMS, 1 / STREAMS, np.float32)), rows=rows,
            select=self.site.step.logit_rows.ctypes.data, width=width, epsilon=epsilon, weight=weight.address, out=out.at(0),
            out_thread_stride=out.thread_stride, private=self.private,
        )  # fmt: skip
        return self._made(out, width, rows, division=division)

    def merge_streams(self, x: Value, made: Value, shares: Value) -> Value:
        """x (rows, STREAMS * width) with what a block made (rows, width), in its place."""
        mine = x.accesses(self._of_streams(made.width))
        self._builder.add(
            streams.merge_streams, [*mine, *made.accesses(self._columns(made.width)), *shares.accesses()], mine,
            streams=x.pointer, made=made.pointer, rows=self._rows, width=made.width, shares=shares.pointer,
            shares_stride=shares.stride, shares_thread_stride=shares.thread_stride,
        )  # fmt: skip
        return self._changed(x, "streams")

    def _of_streams(self, width: int) -> Hashable:
        """The same columns of all streams, as _columns divides those of one."""
        return ("streams", width, self.site.threads)
