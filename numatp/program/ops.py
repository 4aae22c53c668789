"""The vocabulary in which a model file says its forward pass; each word records one or more ops.

Two programs are recorded from one description: for Steps of one row, where every thread makes small activations for itself
(cheaper than a barrier), and for Steps of many rows, where threads share the rows.
"""

from dataclasses import dataclass

import numpy as np

from numatp.kernels import activation, attention, exchange, norm, rope
from numatp.kernels.compile import Kernel, specialize
from numatp.program.builder import ANYHOW, PRIVATE, Access, Buffer, Builder, Program
from numatp.program.step import StepWindow
from numatp.weights.loader import Matrix, Vector, neighbours_joined

LONG_EXCHANGE = 256 * 1024  # bytes; above it reading every peer's whole message costs more than a second meeting


@dataclass(frozen=True, eq=False)
class Value:
    """float32 rows (rows, width), in one or more buffers side by side."""

    buffers: tuple[Buffer, ...]
    width: int
    division: object = ANYHOW  # how the op that made it divided it, for an op that reads it divided the same way

    def accesses(self) -> list[Access]:
        return [Access(buffer, self.division) for buffer in self.buffers]


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer for this rank's KV heads (kernels/attention.py); strides go from block to block."""

    keys: Buffer
    values: Buffer


@dataclass(frozen=True)
class Site:
    """Where a program will run: this rank, its threads, and the memory that it shares with others."""

    rank: int
    size: int
    threads: int
    lanes: int  # smallest thread count of any rank
    team: int  # address of the C runtime's team
    width: int  # of the residual stream
    step: StepWindow
    partials: tuple[np.ndarray, np.ndarray]  # per parity: addresses uint64 (size,), each of (max_rows, width) float32
    logits: int  # address of (max_rows, logit_stride bytes)
    logit_stride: int


class Ops:
    """Records one program; `max_rows` is the most rows a Step of it may have."""

    def __init__(self, name: str, site: Site, max_rows: int):
        self.site, self.max_rows = site, max_rows
        self.private = max_rows == 1
        self._builder = Builder(name)
        self._memory: list[np.ndarray] = []
        self._buffers: dict[str, Buffer] = {}
        self._quantized: dict[Value, Buffer] = {}
        self._num_exchanges = 0
        self._partials = [
            Buffer(f"partial{parity}", int(site.partials[parity][site.rank]), site.width * 4) for parity in (0, 1)
        ]
        self._logits = Buffer("logits", site.logits, site.logit_stride)
        step = site.step
        self._rows, self._positions, self._sequences = (
            a.ctypes.data for a in (step.num_rows, step.positions, step.sequences)
        )
        self._all_rows = np.arange(step.shape.max_rows)
        self._memory.append(self._all_rows)

    def finish(self) -> Program:
        return self._builder.finish([*self._memory, *self._buffers.values()])

    # ------------------------------------------------------------ memory

    def _buffer(self, name: str, row_bytes: int, private: bool = False) -> Buffer:
        """Memory for (max_rows, row_bytes), per thread if private; one buffer per name, used by all layers."""
        if name not in self._buffers:
            copy = (self.max_rows * row_bytes + 127) // 128 * 128  # threads must not share cache lines
            copies = self.site.threads if private else 1
            memory = np.full(copy * copies + 128, 0xFF, np.uint8)  # not-a-number, so that a missing op is seen
            self._memory.append(memory)
            address = (memory.ctypes.data + 127) // 128 * 128
            self._buffers[name] = Buffer(name, address, row_bytes, copy if private else 0)
        buffer = self._buffers[name]
        assert buffer.stride == row_bytes, (name, buffer.stride, row_bytes)
        return buffer

    def _columns(self, width: int) -> tuple[str, int, int]:
        """How this rank's threads divide the columns of a matrix product."""
        return ("columns", width, self.site.threads)

    def _lanes(self, width: int) -> tuple[str, int, int]:
        return ("columns", width, self.site.lanes)

    def _share_of_rows(self) -> object:
        return PRIVATE if self.private else ("rows", self.site.threads)

    # ------------------------------------------------------------ normalisation and products

    def rms_norm(self, x: Value, weight: Vector, epsilon: float, logits_only: bool = False) -> Value:
        """(rows, width); logits_only: just the rows whose logits are wanted."""
        step = self.site.step
        out = self._buffer(f"norm{x.width}", x.width * 4, self.private)
        self._builder.add(
            norm.rms_norm, x.accesses(), [Access(out, self._share_of_rows())],
            x=x.buffers[0].address, rows=step.num_logits.ctypes.data if logits_only else self._rows,
            select=step.logit_rows.ctypes.data if logits_only else self._all_rows.ctypes.data,
            weight=weight.address, width=x.width, epsilon=epsilon,
            out=out.address, out_thread_stride=out.thread_stride, private=self.private,
        )  # fmt: skip
        return Value((out,), x.width, self._share_of_rows())

    def _activation(self, x: Value, form: str, rows: int) -> tuple[Buffer, Access]:
        """x as the format of a matrix wants it: float32, or quantised once for all matrices that read it."""
        # A product reads all rows on every thread, however they were written.
        division = PRIVATE if x.division == PRIVATE else ANYHOW
        if form == "f32":
            return x.buffers[0], Access(x.buffers[0], division)
        if x not in self._quantized:
            row_bytes = activation.row_bytes(x.width)
            out = self._buffer(f"{x.buffers[0].name}.q8", row_bytes, self.private)
            self._builder.add(
                activation.quantize, x.accesses(), [Access(out, self._share_of_rows())],
                x=x.buffers[0].address, x_stride=x.buffers[0].stride, x_thread_stride=x.buffers[0].thread_stride,
                out=out.address, out_stride=row_bytes, out_thread_stride=out.thread_stride,
                rows=rows, blocks=x.width // activation.BLOCK, private=self.private,
            )  # fmt: skip
            self._quantized[x] = out
        return self._quantized[x], Access(self._quantized[x], PRIVATE if self.private else ANYHOW)

    def _product(self, x: Value, weight: Matrix, out: Buffer, rows: int) -> None:
        source, access = self._activation(x, weight.format.ACTIVATION, rows)
        self._builder.add(
            _of(weight, "matmul"), [access], [Access(out, self._columns(weight.rows))], weight.num_bytes,
            weights=weight.address, tiles=weight.tiles, tile_bytes=weight.tile_bytes, units=weight.units,
            rows=rows, x=source.address, x_stride=source.stride, x_thread_stride=source.thread_stride,
            out=out.address, out_stride=out.stride,
        )  # fmt: skip

    def matmul(self, name: str, x: Value, *weights: Matrix) -> Value:
        """(rows, sum of the matrices' rows): the products side by side."""
        width = sum(weight.rows for weight in weights)
        whole = self._buffer(name, width * 4)
        buffers, column = [], 0
        for weight in neighbours_joined(weights):
            part = self._buffers.setdefault(f"{name}+{column}", Buffer(name, whole.address + column * 4, width * 4))
            self._product(x, weight, part, self._rows)
            buffers.append(part)
            column += weight.rows
        return Value(tuple(buffers), width)

    def gated_matmul(self, x: Value, gate: Matrix, up: Matrix) -> Value:
        """silu(gate x) * (up x): (rows, local_ffn)."""
        assert gate.format is up.format, "gate and up of one layer have one format"
        source, access = self._activation(x, gate.format.ACTIVATION, self._rows)
        out = self._buffer("gated", gate.rows * 4)
        self._builder.add(
            _of(gate, "gated_matmul"), [access], [Access(out, self._columns(gate.rows))], gate.num_bytes + up.num_bytes,
            gate=gate.address, up=up.address, tiles=gate.tiles, tile_bytes=gate.tile_bytes, units=gate.units,
            rows=self._rows, x=source.address, x_stride=source.stride, x_thread_stride=source.thread_stride,
            out=out.address, out_stride=out.stride,
        )  # fmt: skip
        return Value((out,), gate.rows)

    # ------------------------------------------------------------ attention

    def rotation(self, frequencies: np.ndarray) -> Buffer:
        """cos and sin of this Step's positions: float32 (rows, pairs, 2) from float64 frequencies (pairs,)."""
        out = self._buffer("angles", len(frequencies) * 8)
        self._memory.append(frequencies)
        self._builder.add(
            rope.rotation_angles, [], [Access(out)],
            positions=self._positions, rows=self._rows, frequencies=frequencies.ctypes.data, pairs=len(frequencies),
            out=out.address,
        )  # fmt: skip
        return out

    def rotate_and_append(
        self, qkv: Value, heads: int, kv_heads: int, head_size: int, angles: Buffer, cache: LayerCache
    ) -> None:
        """Rotates q and k of qkv (rows, heads + 2 kv_heads, head_size) in place; appends k and v to the cache."""
        step = self.site.step
        self._builder.add(
            rope.rotate_and_append, [*qkv.accesses(), Access(angles)],
            [*qkv.accesses(), Access(cache.keys), Access(cache.values)],
            qkv=qkv.buffers[0].address, rows=self._rows, heads=heads, kv_heads=kv_heads, head_size=head_size,
            angles=angles.address, pairs=angles.stride // 8, positions=self._positions, sequences=self._sequences,
            tables=step.tables.ctypes.data, table_length=step.shape.table_length,
            keys=cache.keys.address, values=cache.values.address, block_stride=cache.keys.stride,
        )  # fmt: skip

    def attention(
        self, qkv: Value, heads: range, kv_heads: range, group: int, head_size: int, scale: float, cache: LayerCache
    ) -> Value:
        """(rows, local_heads * head_size). heads, kv_heads: this rank's, as numbers in the model; group: heads per KV head."""
        step = self.site.step
        scratch = self._buffer("scores", attention.CACHE_BLOCK * 4, private=True)
        out = self._buffer("attention", len(heads) * head_size * 4)
        self._builder.add(
            attention.attention, [*qkv.accesses(), Access(cache.keys), Access(cache.values)],
            [Access(out), Access(scratch, PRIVATE)],
            qkv=qkv.buffers[0].address, rows=self._rows, heads=len(heads), kv_heads=len(kv_heads), head_size=head_size,
            first_head=heads.start, first_kv_head=kv_heads.start, group=group, scale=scale,
            positions=self._positions, sequences=self._sequences,
            tables=step.tables.ctypes.data, table_length=step.shape.table_length,
            keys=cache.keys.address, values=cache.values.address, block_stride=cache.keys.stride,
            scratch=scratch.address, scratch_stride=scratch.thread_stride, out=out.address,
        )  # fmt: skip
        return Value((out,), len(heads) * head_size)

    # ------------------------------------------------------------ what ranks do together

    def embed(self, weight: Matrix, first_token: int) -> Value:
        """(rows, width): the rank that holds a token's row hands it to all."""
        width = weight.columns
        partial = self._partials[(self._num_exchanges + 1) % 2]
        self._builder.add(
            _of(weight, "embed"), [], [Access(partial)],
            weights=weight.address, tile_bytes=weight.tile_bytes, units=weight.units, first_token=first_token,
            last_token=first_token + weight.rows, tokens=self.site.step.tokens.ctypes.data, rows=self._rows,
            out=partial.address, out_stride=partial.stride,
        )  # fmt: skip
        assert width == self.site.width
        return self._exchange(partial, Value((self._buffer("residual", width * 4),), width), add=False)

    def add_product(self, x: Value, h: Value, weight: Matrix) -> Value:
        """x + weight h, in x's place, where each rank holds its columns of weight and its part of h: one exchange."""
        partial = self._partials[(self._num_exchanges + 1) % 2]
        self._product(h, weight, partial, self._rows)
        return self._exchange(partial, x, add=True)

    def _exchange(self, partial: Buffer, x: Value, add: bool) -> Value:
        """x = [x +] the sum of all ranks' partials, in rank order. Two buffers by parity: a rank may be one exchange ahead.

        All exchanges of a program have one width, so lane bounds never change and a lane needs no barrier of its own.
        """
        self._num_exchanges += 1
        site, lane = self.site, self._lanes(x.width)
        table = site.partials[self._num_exchanges % 2]
        mine, out = Access(partial, lane), Access(x.buffers[0], lane)
        common = {
            "partials": table.ctypes.data, "ranks": site.size, "lanes": site.lanes, "rows": self._rows, "width": x.width,
        }  # fmt: skip
        result = {"out": x.buffers[0].address, "add": add}
        if site.size > 1:
            self._builder.sync(site.team, mine)
        # With two ranks both ways read the same bytes from the peer.
        if site.size > 2 and self.max_rows * x.width * 4 > LONG_EXCHANGE:
            self._builder.add(exchange.reduce_scatter, [mine], [mine], rank=site.rank, **common)
            self._builder.sync(site.team, mine)
            self._builder.add(exchange.gather, [mine, out], [out], **common, **result)
        else:
            self._builder.add(exchange.sum_partials, [mine, out], [out], **common, **result)
        return Value(x.buffers, x.width)

    def logits(self, x: Value, weight: Matrix, first_token: int) -> None:
        """This rank's columns of the logits (num_logits, vocab), into the window."""
        part = Buffer("logits", self._logits.address + first_token * 4, self._logits.stride)
        self._product(x, weight, part, self.site.step.num_logits.ctypes.data)


def _of(weight: Matrix, kernel: str) -> Kernel:
    return getattr(specialize("matmul", "quant", weight.format.__name__), kernel)
