"""The vocabulary in which a model file says its forward pass; each word records one or more ops.

Two programs are recorded from one description: for Steps of one row, where every thread makes small activations for itself
(cheaper than a barrier), and for Steps of many rows, where threads share the rows. A third ends in scores instead of logits.
"""

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from numatp import quants
from numatp.kernels import activation, bias, delta, exchange, experts, gate, norm, rope
from numatp.kernels.compile import Kernel, specialize
from numatp.kernels.digest import digest
from numatp.kernels.layout import NO_WINDOW, cache_bytes, conv_bytes
from numatp.kernels.rows import GROUP
from numatp.kernels.score import join_scores
from numatp.kernels.simd import LANES
from numatp.program.builder import ANYHOW, PRIVATE, Access, Buffer, Builder, Program
from numatp.program.step import StepWindow
from numatp.quants.table import Format
from numatp.weights.loader import Matrix, Vector, neighbours_joined, side_by_side

LONG_EXCHANGE = 256 * 1024  # bytes; above it reading every peer's whole message costs more than a second meeting
MOST_DIGESTS_PER_LAYER = 4
MOST_PLACES_PER_ROW = 256  # of a Step, in the groups of experts
LINE = 128  # bytes; threads must not share cache lines, which are fetched in pairs


@dataclass(frozen=True, eq=False)
class Value:
    """float32 rows (rows, width), in one or more buffers side by side."""

    buffers: tuple[Buffer, ...]
    width: int
    rows: int  # address of their number
    division: object = ANYHOW  # how the op that made it divided it, for an op that reads it divided the same way
    most: int = 0  # rows at most, 0: those of a Step

    def accesses(self) -> list[Access]:
        return [Access(buffer, self.division) for buffer in self.buffers]

    @property
    def address(self) -> int:
        return self.buffers[0].address

    @property
    def stride(self) -> int:
        return self.buffers[0].stride

    @property
    def thread_stride(self) -> int:
        return self.buffers[0].thread_stride


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer for this rank's KV heads (kernels/attention.py); strides go from block to block."""

    keys: Buffer
    values: Buffer
    table: int  # which of the Step's tables lists its blocks
    type: str = "f16"  # one of kernels/caches
    window: int = NO_WINDOW  # tokens that a row sees, itself included


@dataclass(frozen=True, eq=False)
class Routes:
    """Which rows each expert takes (kernels/experts.py), by addresses; `most` places at most."""

    buffer: Buffer
    used: int
    most: int
    counts: int
    active: int
    rows_of_places: int
    experts_of_places: int
    places: int
    chosen: int
    shares: int


@dataclass(frozen=True)
class LayerState:
    """The state of a recurrent layer; its stride goes from sequence to sequence."""

    state: Buffer


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
    logits: int  # address of (max_sequences, logit_stride bytes)
    logit_stride: int
    scores: int  # address of this rank's (max_rows, 4) float32, see kernels/score.py
    digests: int = 0  # address of this rank's int64 digests of what all ranks must hold alike; 0: none are made


class Ops:
    """Records one program; `max_rows` is the most rows a Step of it may have, a multiple of GROUP or 1."""

    def __init__(self, name: str, site: Site, max_rows: int, scored: bool = False):
        self.site, self.max_rows, self.scored = site, max_rows, scored
        self.private = max_rows == 1
        self.pitch = 1 if self.private else GROUP
        assert max_rows % self.pitch == 0
        self._builder = Builder(name)
        self._memory: list[np.ndarray] = []
        self._buffers: dict[str, Buffer] = {}
        self._activations: dict[tuple[Value, str, int, Routes | None], tuple[Buffer, Access]] = {}
        self._num_exchanges = 0
        self.digests: list[str] = []  # of what, in order
        self._partials = [Buffer(f"partial{parity}", int(site.partials[parity][site.rank]), site.width * 4) for parity in (0, 1)]
        step = site.step
        self._rows, self._num_logits, self._num_spans = (a.ctypes.data for a in (step.num_rows, step.num_logits, step.num_spans))
        self._positions, self._sequences, self._spans = (a.ctypes.data for a in (step.positions, step.sequences, step.spans))
        self._all_rows = self._kept(np.arange(MOST_PLACES_PER_ROW * step.shape.max_rows))

    def finish(self) -> Program:
        return self._builder.finish([*self._memory, *self._buffers.values()])

    # ------------------------------------------------------------ memory

    def _kept(self, array: np.ndarray) -> int:
        """The address of an array that lives as long as the program."""
        self._memory.append(array)
        return array.ctypes.data

    def _buffer(self, name: str, row_bytes: int, private: bool = False, rows: int | None = None) -> Buffer:
        """Memory for (max_rows, row_bytes), per thread if private; one buffer per name, used by all layers."""
        if name not in self._buffers:
            copy = ((rows or self.max_rows) * row_bytes + LINE - 1) // LINE * LINE
            copies = self.site.threads if private else 1
            memory = np.full(copy * copies + LINE, 0xFF, np.uint8)  # not-a-number, so that a missing op is seen
            address = (self._kept(memory) + LINE - 1) // LINE * LINE
            self._buffers[name] = Buffer(name, address, row_bytes, copy if private else 0)
        buffer = self._buffers[name]
        assert buffer.stride == row_bytes, (name, buffer.stride, row_bytes)
        return buffer

    def _columns(self, width: int) -> tuple[str, int, int]:
        """How this rank's threads divide the columns of a matrix product."""
        return ("columns", width, self.site.threads)

    def _lanes(self, width: int) -> tuple[str, int, int]:
        return ("columns", width, self.site.lanes)

    def _share_of_rows(self, rows: int) -> object:
        return PRIVATE if self.private else ("rows", rows, self.site.threads)

    # ------------------------------------------------------------ normalisation and products

    def rms_norm(self, x: Value, weight: Vector, epsilon: float, logits_only: bool = False) -> Value:
        """(rows, width); logits_only: just the rows whose logits are wanted."""
        return self._normalize(norm.rms_norm, x, weight, logits_only, epsilon=epsilon)

    def layer_norm(self, x: Value, weight: Vector, epsilon: float, logits_only: bool = False, scale: float = 1.0) -> Value:
        """scale * the normalised rows, (rows, width); logits_only: just the rows whose logits are wanted."""
        return self._normalize(norm.layer_norm, x, weight, logits_only, epsilon=epsilon, scale=scale)

    def _normalize(self, kernel: Kernel, x: Value, weight: Vector, logits_only: bool, **numbers: float) -> Value:
        rows, select = (self._num_logits, self.site.step.logit_rows.ctypes.data) if logits_only else (self._rows, self._all_rows)
        out, division = self._buffer(f"norm{x.width}", x.width * 4, self.private), self._share_of_rows(rows)
        self._builder.add(
            kernel, x.accesses(), [Access(out, division)], 0,
            x=x.address, rows=rows, select=select, weight=weight.address, width=x.width,
            out=out.address, out_thread_stride=out.thread_stride, private=self.private, **numbers,
        )  # fmt: skip
        return Value((out,), x.width, rows, division)

    def _activation(self, x: Value, format: Format, routes: Routes | None = None) -> tuple[Buffer, Access]:
        """x as matrices of a format want it (kernels/activation.py), made once for all that read it.

        routes: x has the rows of the Step, and they are wanted at the places of their experts.
        """
        kernels = quants.kernels_of(format.name)
        wanted = x, kernels.ACTIVATION, kernels.ZERO, routes
        if wanted not in self._activations:
            self._activations[wanted] = self._make_activation(*wanted)
        return self._activations[wanted]

    def _make_activation(self, x: Value, form: str, zero: int, routes: Routes | None) -> tuple[Buffer, Access]:
        # A product reads all rows on every thread, however they were written.
        if form == "f32" and self.private and not routes:
            return x.buffers[0], Access(x.buffers[0], PRIVATE if x.division == PRIVATE else ANYHOW)
        group = activation.group_bytes(form, x.width, self.pitch)
        most, rows, select = x.most or self.max_rows, x.rows, self._all_rows
        reads, name = x.accesses(), f"{x.buffers[0].name}.{form}-{zero}"
        if routes:
            most, rows, select = routes.most, routes.counts, routes.rows_of_places
            reads, name = [*reads, Access(routes.buffer)], f"{name}.routed"
        out = self._buffer(name, group, self.private, rows=most // self.pitch)
        # Whole groups on one thread would divide few rows badly, so rows are divided: the access is not by column or group.
        division = self._share_of_rows(rows)
        kernel, width = (activation.quantize, {"blocks": x.width // activation.BLOCK, "zero": zero}) if form == "q8" else (
            activation.interleave, {"width": x.width}
        )  # fmt: skip
        self._builder.add(
            kernel, reads, [Access(out, division)],
            x=x.address, x_stride=x.stride, x_thread_stride=x.thread_stride, select=select, rows=rows,
            out=out.address, out_group=group, out_thread_stride=out.thread_stride, pitch=self.pitch, private=self.private,
            **width,
        )  # fmt: skip
        return out, Access(out, PRIVATE if self.private else ANYHOW)

    def _product(self, x: Value, weight: Matrix, out: Buffer, add: bool = False) -> None:
        """out = [out +] weight x."""
        source, access = self._activation(x, weight.format)
        mine = Access(out, self._columns(weight.rows))
        self._builder.add(
            _of(weight, "matmul"), [access, mine] if add else [access], [mine], weight.num_bytes,
            weights=weight.address, tiles=weight.tiles, tile_bytes=weight.tile_bytes, units=weight.units,
            rows=x.rows, x=source.address, x_group=source.stride, x_thread_stride=source.thread_stride, pitch=self.pitch,
            out=out.address, out_stride=out.stride, add=add,
        )  # fmt: skip

    def matmul(self, name: str, x: Value, *weights: Matrix) -> Value:
        """(rows, sum of the matrices' rows): the products side by side."""
        # Whole tiles are written: only the last matrix may end inside one.
        assert all(weight.rows % LANES == 0 for weight in weights[:-1]), name
        width = sum(weight.rows for weight in weights)
        whole = self._buffer(name, -(-width // LANES) * LANES * 4)
        buffers, column = [], 0
        for weight in neighbours_joined(weights):
            part = self._buffers.setdefault(f"{name}+{column}", Buffer(name, whole.address + column * 4, whole.stride))
            self._product(x, weight, part)
            buffers.append(part)
            column += weight.rows
        return Value(tuple(buffers), width, x.rows)

    def add_bias(self, x: Value, *biases: Vector) -> Value:
        """x + the biases side by side, in x's place; x is a product of as many matrices."""
        joined = side_by_side(biases)
        assert joined.length == x.width, "one value per column"
        # A single product is divided in the same way; several may be divided in others.
        division = self._columns(x.width) if len(x.buffers) == 1 else ANYHOW
        mine = [Access(buffer, division) for buffer in x.buffers]
        self._builder.add(
            bias.add_bias, mine, mine, x=x.address, x_stride=x.stride, rows=x.rows, width=x.width, bias=joined.address
        )  # fmt: skip
        return x

    def silu_gate(self, x: Value) -> Value:
        """silu(first half of the columns) * second half."""
        return self._gate(gate.silu_gate, x)

    def gelu_gate(self, x: Value) -> Value:
        """gelu(first half of the columns) * second half, gelu as approximated with tanh."""
        return self._gate(gate.gelu_gate, x)

    def clamped_gate(self, x: Value, alpha: float, limit: float) -> Value:
        """g * sigmoid(alpha * g) * (second half + 1), g the first half; halves are clamped to `limit` (kernels/gate.py)."""
        return self._gate(gate.clamped_gate, x, alpha=alpha, limit=limit)

    def _gate(self, kernel: Kernel, x: Value, **numbers: float) -> Value:
        width = x.width // 2
        name = "routed gated" if x.most else "gated"
        out, division = self._buffer(name, width * 4, self.private, rows=x.most), self._share_of_rows(x.rows)
        self._builder.add(
            kernel, x.accesses(), [Access(out, division)], 0,
            gate=x.address, up=x.address + width * 4, stride=x.stride, rows=x.rows, width=width,
            out=out.address, out_thread_stride=out.thread_stride, private=self.private, **numbers,
        )  # fmt: skip
        return Value((out,), width, x.rows, division, x.most)

    def sigmoid_gate(self, x: Value, gate_: Value) -> Value:
        """x * sigmoid(gate), both (rows, width)."""
        out, division = self._buffer(f"{x.buffers[0].name}.gated", x.width * 4, self.private), self._share_of_rows(x.rows)
        self._builder.add(
            gate.sigmoid_gate, [*x.accesses(), *gate_.accesses()], [Access(out, division)],
            x=x.address, x_stride=x.stride, gate=gate_.address, gate_stride=gate_.stride, rows=x.rows, width=x.width,
            out=out.address, out_thread_stride=out.thread_stride, private=self.private,
        )  # fmt: skip
        return Value((out,), x.width, x.rows, division)

    def dot_gate(self, x: Value, h: Value, weight: Vector) -> Value:
        """x * sigmoid(h . weight), in x's place: one number per row opens and closes all of it. x is gated, h normalised."""
        mine = x.accesses()
        self._builder.add(
            gate.dot_gate, [*mine, *h.accesses()], mine,
            x=x.address, x_thread_stride=x.thread_stride, width=x.width, h=h.address, h_thread_stride=h.thread_stride,
            h_width=h.width, weight=weight.address, rows=x.rows, private=self.private,
        )  # fmt: skip
        return x

    # ------------------------------------------------------------ attention

    def _heads(self, qkv: Value, heads: int) -> list[Access]:
        """Accesses of ops whose threads divide the heads of all rows."""
        return [Access(buffer, ("heads", heads, self.site.threads)) for buffer in qkv.buffers]

    def rms_norm_heads(
        self, qkv: Value, heads: int, kv_heads: int, head_size: int, q_weight: Vector, k_weight: Vector, epsilon: float
    ) -> None:
        """Normalises each q and k head of qkv (rows, heads + 2 kv_heads, head_size) in place; weights (head_size,)."""
        self._normalize_heads(norm.rms_norm_heads, qkv, heads, kv_heads, head_size, q_weight, k_weight, epsilon)

    def layer_norm_heads(
        self, qkv: Value, heads: int, kv_heads: int, head_size: int, q_weight: Vector, k_weight: Vector, epsilon: float
    ) -> None:
        """As rms_norm_heads, with mean subtraction and weights (heads, head_size) and (kv_heads, head_size)."""
        self._normalize_heads(norm.layer_norm_heads, qkv, heads, kv_heads, head_size, q_weight, k_weight, epsilon)

    def _normalize_heads(
        self, kernel: Kernel, qkv: Value, heads: int, kv_heads: int, head_size: int, q_weight: Vector, k_weight: Vector,
        epsilon: float,
    ) -> None:  # fmt: skip
        mine = self._heads(qkv, heads + 2 * kv_heads)
        self._builder.add(
            kernel, mine, mine,
            x=qkv.address, rows=self._rows, heads=heads + 2 * kv_heads, q_heads=heads, k_heads=kv_heads, size=head_size,
            q_weight=q_weight.address, k_weight=k_weight.address, epsilon=epsilon,
        )  # fmt: skip

    def rotation(self, frequencies: np.ndarray, scale: float = 1.0, name: str = "angles") -> Buffer:
        """scale * cos and sin of this Step's positions: float32 (rows, pairs, 2) from float64 frequencies (pairs,).

        A model with several rotations gives each a name.
        """
        out = self._buffer(name, len(frequencies) * 8)
        self._builder.add(
            rope.rotation_angles, [], [Access(out)],
            positions=self._positions, rows=self._rows, frequencies=self._kept(frequencies), pairs=len(frequencies),
            scale=scale, out=out.address,
        )  # fmt: skip
        return out

    def _cache(self, cache: LayerCache, head_size: int) -> dict[str, int]:
        step = self.site.step
        return {
            "head_bytes": cache_bytes(cache.type, head_size),
            "tables": step.tables[cache.table].ctypes.data, "table_length": step.shape.table_length,
            "keys": cache.keys.address, "values": cache.values.address, "block_stride": cache.keys.stride,
        }  # fmt: skip

    def rotate_and_append(
        self, qkv: Value, heads: int, kv_heads: int, head_size: int, angles: Buffer | None, cache: LayerCache, neighbours: bool
    ) -> None:
        """Rotates q and k of qkv (rows, heads + 2 kv_heads, head_size) in place; appends k and v to the cache.

        angles: of the first pairs of a head, the rest is not turned; None: nothing is. neighbours: pair i is (2i, 2i + 1), as
        GGUF files of Llama have it; else (i, i + pairs).
        """
        pairs = angles.stride // 8 if angles else 0
        mine = self._heads(qkv, heads + 2 * kv_heads)
        self._builder.add(
            _by_cache("append", cache).rotate_and_append, [*mine, *([Access(angles)] if angles else [])],
            [*mine, Access(cache.keys), Access(cache.values)],
            qkv=qkv.address, rows=self._rows, heads=heads, kv_heads=kv_heads, head_size=head_size,
            angles=angles.address if angles else 0, pairs=pairs, step=2 if neighbours else 1, apart=1 if neighbours else pairs,
            positions=self._positions, sequences=self._sequences, **self._cache(cache, head_size),
        )  # fmt: skip

    def attention(
        self, qkv: Value, heads: range, kv_heads: range, group: int, head_size: int, scale: float, cache: LayerCache,
        sinks: Vector | None = None,
    ) -> Value:  # fmt: skip
        """(rows, local_heads * head_size). heads, kv_heads: this rank's, as numbers in the model; group: heads per KV head.

        sinks: per head the score of one more token that all see, whose value is zero.
        """
        attention, sequences = _by_cache("attention", cache), self.site.step.shape.max_sequences
        scratch = self._buffer("attention scratch", attention.SCRATCH_BYTES, private=True, rows=1)
        parts = self._buffer("parts", len(heads) * attention.SPLITS * attention.part_bytes(head_size), rows=sequences)
        if "finished" not in self._buffers:
            counters = self._kept(np.zeros(sequences * max(len(kv_heads), 1), np.int64))
            self._buffers["finished"] = Buffer("finished", counters)
        out = self._buffer("attention", len(heads) * head_size * 4)
        self._builder.add(
            attention.attention, [*qkv.accesses(), Access(cache.keys), Access(cache.values)],
            [Access(out), Access(parts), Access(scratch, PRIVATE)],
            q=qkv.address, q_stride=qkv.stride, heads=len(heads), kv_heads=len(kv_heads), head_size=head_size,
            first_head=heads.start, first_kv_head=kv_heads.start, group=group, scale=scale, window=cache.window,
            spans=self._spans, num_spans=self._num_spans, scratch=scratch.address, scratch_stride=scratch.thread_stride,
            parts=parts.address, finished=self._buffers["finished"].address,
            sinks=sinks.address if sinks else 0, sunk=sinks is not None, out=out.address,
            **self._cache(cache, head_size),
        )  # fmt: skip
        return Value((out,), len(heads) * head_size, self._rows)

    # ------------------------------------------------------------ linear attention

    def causal_conv(self, x: Value, weight: Vector, width: int, state: LayerState) -> Value:
        """silu of a convolution over the last `width` rows of a sequence, channel by channel; weight (width, channels)."""
        assert len(x.buffers) == 1, "the channels are divided as the product that made them"
        out, columns = self._buffer(f"{x.buffers[0].name}.conv", x.width * 4), self._columns(x.width)
        self._builder.add(
            delta.causal_conv, [Access(x.buffers[0], columns), Access(state.state)], [Access(out, columns), Access(state.state)],
            x=x.address, x_stride=x.stride, channels=x.width, weight=weight.address, width=width, state=state.state.address,
            state_stride=state.state.stride, spans=self._spans, num_spans=self._num_spans, out=out.address, out_stride=out.stride,
        )  # fmt: skip
        return Value((out,), x.width, x.rows)

    def gated_delta(
        self, qkv: Value, gates: Value, decay: Vector, bias: Vector, key_heads: int, group: int, head_size: int, conv_width: int,
        epsilon: float, state: LayerState,
    ) -> Value:  # fmt: skip
        """(rows, key_heads * group * head_size) by the gated delta rule (kernels/delta.py); key_heads: this rank's."""
        out = self._buffer("delta", key_heads * group * head_size * 4)
        self._builder.add(
            delta.gated_delta, [*qkv.accesses(), *gates.accesses(), Access(state.state)], [Access(out), Access(state.state)],
            qkv=qkv.address, qkv_stride=qkv.stride, gates=gates.address, gates_stride=gates.stride, decay=decay.address,
            bias=bias.address, key_heads=key_heads, group=group, head_size=head_size, epsilon=epsilon,
            state=state.state.address + conv_bytes(qkv.width, conv_width), state_stride=state.state.stride,
            spans=self._spans, num_spans=self._num_spans, out=out.address, out_stride=out.stride,
        )  # fmt: skip
        return Value((out,), key_heads * group * head_size, qkv.rows)

    def gated_rms_norm(self, x: Value, gate_: Value, weight: Vector, epsilon: float) -> Value:
        """rms_norm of each head of x (rows, heads * size) * silu(gate); weight (size,)."""
        out, division = self._buffer(f"{x.buffers[0].name}.norm", x.width * 4, self.private), self._share_of_rows(x.rows)
        self._builder.add(
            norm.gated_rms_norm, [*x.accesses(), *gate_.accesses()], [Access(out, division)],
            x=x.address, x_stride=x.stride, gate=gate_.address, gate_stride=gate_.stride, rows=x.rows,
            heads=x.width // weight.length, size=weight.length, weight=weight.address, epsilon=epsilon,
            out=out.address, out_thread_stride=out.thread_stride, private=self.private,
        )  # fmt: skip
        return Value((out,), x.width, x.rows, division)

    # ------------------------------------------------------------ experts

    def route(self, logits: Value, used: int, normalize: bool) -> Routes:
        """The `used` most probable experts of each row; logits (rows, experts), which all ranks have made from the same bits."""
        count = logits.width
        pairs = self.max_rows * used
        most = -(-(pairs + min(count, pairs) * (self.pitch - 1)) // self.pitch) * self.pitch
        assert most <= MOST_PLACES_PER_ROW * self.site.step.shape.max_rows
        lengths = {
            "counts": 2, "active": 3 * count, "rows_of_places": most, "experts_of_places": most, "places": pairs, "chosen": pairs,
            "shares": pairs, "next": count,
        }  # fmt: skip
        buffer = self._buffer("routes", 8 * sum(lengths.values()), rows=1)
        starts = dict(zip(lengths, np.cumsum([0, *lengths.values()]).tolist(), strict=False))
        at = {name: buffer.address + 8 * start for name, start in starts.items()}
        self._builder.add(
            experts.choose, logits.accesses(), [Access(buffer), *logits.accesses()],
            logits=logits.address, logits_stride=logits.stride, rows=logits.rows, experts=count, used=used, normalize=normalize,
            chosen=at["chosen"], shares=at["shares"],
        )  # fmt: skip
        self._digest("the choice of experts", Access(buffer), at["chosen"], used * 8, used, logits.rows)
        self._builder.add(
            experts.arrange, [Access(buffer)], [Access(buffer)],
            rows=logits.rows, experts=count, used=used, pitch=self.pitch, chosen=at["chosen"], counts=at["counts"],
            active=at["active"], rows_of_places=at["rows_of_places"], experts_of_places=at["experts_of_places"],
            places=at["places"], next=at["next"],
        )  # fmt: skip
        kept = ("counts", "active", "rows_of_places", "experts_of_places", "places", "chosen", "shares")
        return Routes(buffer, used, most, *(at[name] for name in kept))

    def expert_matmul(self, name: str, x: Value, routes: Routes, *weights: Matrix) -> Value:
        """(places, sum of an expert's rows): the products side by side; x has a row for each row of the Step, or for each place."""
        width = sum(weight.rows // weight.experts for weight in weights)
        whole = self._buffer(name, -(-width // LANES) * LANES * 4, rows=routes.most)
        buffers, column = [], 0
        for weight in weights:
            rows = weight.rows // weight.experts
            part = self._buffers.setdefault(f"{name}+{column}", Buffer(name, whole.address + column * 4, whole.stride))
            source, access = self._activation(x, weight.format, None if x.most else routes)
            read = weight.num_bytes // weight.experts * routes.used  # by one row
            self._builder.add(
                _of(weight, "experts"), [access, Access(routes.buffer)], [Access(part)], read,
                weights=weight.address, tiles=rows // LANES, tile_bytes=weight.tile_bytes, units=weight.units, counts=routes.counts,
                active=routes.active, x=source.address, x_group=source.stride, x_thread_stride=source.thread_stride,
                pitch=self.pitch, out=part.address, out_stride=part.stride,
            )  # fmt: skip
            buffers.append(part)
            column += rows
        return Value(tuple(buffers), width, routes.counts, most=routes.most)

    def add_expert_bias(self, x: Value, routes: Routes, *biases: Vector) -> Value:
        """x + the bias of each place's expert, in x's place; x is an expert_matmul of as many matrices; biases (experts, rows)."""
        for buffer, bias_ in zip(x.buffers, biases, strict=True):
            mine = Access(buffer, ("places", x.width, self.site.threads))
            self._builder.add(
                bias.add_selected_bias, [mine, Access(routes.buffer)], [mine],
                x=buffer.address, x_stride=buffer.stride, rows=x.rows, width=x.width // len(biases),
                select=routes.experts_of_places, bias=bias_.address, private=self.private,
            )  # fmt: skip
        return x

    def add_experts(
        self, x: Value, h: Value, routes: Routes, weight: Matrix, *products: tuple[Value, Matrix], bias_: Vector | None = None
    ) -> Value:
        """x + each row's sum of share * (expert's weight h) + further products as in add_products: one exchange.

        bias_: (experts, width), each expert's added to its product.
        """
        made = self.expert_matmul("expert down", h, routes, weight)
        partial = self._partials[(self._num_exchanges + 1) % 2]
        for i, (other, matrix) in enumerate(products):
            self._product(other, matrix, partial, add=i > 0)
        self._combine(made.address, made.stride, made.accesses(), routes, routes.places, partial, x, add=bool(products))
        if bias_ and self.site.rank == 0:  # the ranks' parts are added up
            self._combine(bias_.address, x.width * 4, [], routes, routes.chosen, partial, x, add=True)
        return self._exchange(partial, x, add=True)

    def _combine(
        self, rows: int, stride: int, reads: list[Access], routes: Routes, places: int, partial: Buffer, x: Value, add: bool
    ) -> None:
        """partial = [partial +] each row's sum of share * the row at its place in `rows`."""
        mine = Access(partial, self._columns(x.width))
        self._builder.add(
            experts.combine, [*reads, Access(routes.buffer), *([mine] if add else [])], [mine],
            x=rows, x_stride=stride, rows=x.rows, used=routes.used, places=places, shares=routes.shares,
            width=x.width, out=partial.address, out_stride=partial.stride, add=add,
        )  # fmt: skip

    # ------------------------------------------------------------ what ranks do together

    def embed(self, weight: Matrix, first_token: int, scale: float = 1.0) -> Value:
        """scale * the tokens' rows, (rows, width): the rank that holds a token's row hands it to all."""
        width = weight.columns
        partial = self._partials[(self._num_exchanges + 1) % 2]
        self._builder.add(
            _of(weight, "embed"), [], [Access(partial)],
            weights=weight.address, tile_bytes=weight.tile_bytes, units=weight.units, first_token=first_token,
            last_token=first_token + weight.rows, tokens=self.site.step.tokens.ctypes.data, rows=self._rows,
            scale=scale, out=partial.address, out_stride=partial.stride,
        )  # fmt: skip
        assert width == self.site.width
        return self._exchange(partial, Value((self._buffer("residual", width * 4),), width, self._rows), add=False)

    def add_product(self, x: Value, h: Value, weight: Matrix, bias_: Vector | None = None) -> Value:
        """x + weight h [+ bias], in x's place, where each rank holds its columns of weight and its part of h: one exchange."""
        return self._exchange(self._sum_of_products([(h, weight)], bias_), x, add=True)

    def add_products(self, x: Value, *products: tuple[Value, Matrix]) -> Value:
        """x + the sum of weight h over several (h, weight): what a rank holds of them is added up before the one exchange."""
        return self._exchange(self._sum_of_products(list(products)), x, add=True)

    def add_normalized_product(self, x: Value, h: Value, weight: Matrix, norm_weight: Vector, epsilon: float) -> Value:
        """x + rms_norm(weight h), in x's place: as add_product, where the whole sum is normalised before it is added."""
        out = Value((self._buffer("product", x.width * 4),), x.width, self._rows)
        made = self._exchange(self._sum_of_products([(h, weight)]), out, add=False)
        mine = Access(x.buffers[0], ("rows or columns", x.width, self.site.threads))
        self._builder.add(
            norm.add_rms_norm, [*made.accesses(), mine], [mine],
            x=made.address, rows=self._rows, weight=norm_weight.address, width=x.width, epsilon=epsilon, out=x.address,
            private=self.private,
        )  # fmt: skip
        return Value(x.buffers, x.width, x.rows)

    def _sum_of_products(self, products: list[tuple[Value, Matrix]], bias_: Vector | None = None) -> Buffer:
        """This rank's part of it, in the buffer of the next exchange."""
        partial = self._partials[(self._num_exchanges + 1) % 2]
        for i, (h, weight) in enumerate(products):
            self._product(h, weight, partial, add=i > 0)
        if bias_ and self.site.rank == 0:  # the ranks' parts are added up
            mine = Access(partial, self._columns(bias_.length))
            self._builder.add(
                bias.add_bias, [mine], [mine],
                x=partial.address, x_stride=partial.stride, rows=self._rows, width=bias_.length, bias=bias_.address,
            )  # fmt: skip
        return partial

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
        result = {"out": x.address, "add": add}
        if site.size > 1:
            self._builder.sync(site.team, mine)
        # With two ranks both ways read the same bytes from the peer.
        if site.size > 2 and self.max_rows * x.width * 4 > LONG_EXCHANGE:
            self._builder.add(exchange.reduce_scatter, [mine], [mine], rank=site.rank, **common)
            self._builder.sync(site.team, mine)
            self._builder.add(exchange.gather, [mine, out], [out], **common, **result)
        else:
            self._builder.add(exchange.sum_partials, [mine, out], [out], **common, **result)
        self._digest("the residual", Access(x.buffers[0]), x.address, x.stride, x.width * 4 // 8, self._rows)
        return Value(x.buffers, x.width, x.rows)

    def _digest(self, what: str, access: Access, address: int, stride: int, words: int, rows: int) -> None:
        if self.site.digests:
            out = self.site.digests + 8 * len(self.digests)
            self._builder.add(digest, [access], [], x=address, stride=stride, rows=rows, words=words, out=out)
            self.digests.append(f"{what} after exchange {self._num_exchanges}")

    def logits(self, x: Value, weight: Matrix, first_token: int) -> None:
        """This rank's columns of the logits (num_logits, vocab), or what the scores need of them, into the window."""
        if self.scored:
            return self._score(x, weight, first_token)
        site = self.site
        self._product(x, weight, Buffer("logits", site.logits + first_token * 4, site.logit_stride))

    def _score(self, x: Value, weight: Matrix, first_token: int) -> None:
        source, access = self._activation(x, weight.format)
        scratch = self._buffer("score scratch", 64, private=True, rows=self.pitch)
        parts = self._buffer("scores", 16, private=True)
        self._builder.add(
            _of(weight, "score"), [access], [Access(parts, self._columns(weight.rows)), Access(scratch, PRIVATE)], weight.num_bytes,
            weights=weight.address, tiles=weight.tiles, tile_bytes=weight.tile_bytes, units=weight.units, vocab=weight.rows,
            first_token=first_token, targets=self.site.step.targets.ctypes.data, rows=x.rows, x=source.address,
            x_group=source.stride, pitch=self.pitch, scratch=scratch.address, scratch_stride=scratch.thread_stride,
            out=parts.address, out_thread_stride=parts.thread_stride,
        )  # fmt: skip
        self._builder.add(
            join_scores, [Access(parts)], [Access(Buffer("window scores", self.site.scores))],
            parts=parts.address, parts_thread_stride=parts.thread_stride, rows=x.rows, out=self.site.scores,
        )  # fmt: skip


def _by_cache(template: str, cache: LayerCache) -> ModuleType:
    return specialize(template, "cache", f"numatp.kernels.caches.{cache.type}")


def _of(weight: Matrix, kernel: str) -> Kernel:
    return getattr(specialize("matmul", "quant", weight.format.module), kernel)
