"""Linear attention: a short convolution and the gated delta rule, which keep a state of fixed size."""

from numatp.kernels import delta, norm
from numatp.kernels.layout import conv_bytes
from numatp.program.recorder import Recorder
from numatp.program.values import Access, LayerState, LinearHeads, Value
from numatp.weights.matrix import Vector


class Linear(Recorder):
    def causal_conv(self, x: Value, weight: Vector, width: int, state: LayerState) -> Value:
        """silu of a convolution over the last `width` rows of a sequence, channel by channel; weight (width, channels)."""
        assert len(x.parts) == 1, "the channels are divided as the product that made them"
        out, columns = self._buffer(f"{x.name}.conv", x.width * 4), self._columns(x.width)
        self._builder.add(
            delta.causal_conv, [*x.accesses(columns), Access(state.state)], [Access(out, columns), Access(state.state)],
            x=x.pointer, x_stride=x.stride, channels=x.width, weight=weight.address, width=width, state=state.state.at(0),
            state_stride=state.state.stride, spans=self._spans, num_spans=self._num_spans, out=out.at(0), out_stride=out.stride,
        )  # fmt: skip
        return self._made(out, x.width, x.rows)

    def gated_delta(
        self, qkv: Value, gates: Value, decay: Vector, bias: Vector, heads: LinearHeads, conv_width: int, epsilon: float,
        state: LayerState,
    ) -> Value:  # fmt: skip
        """(rows, values of all value heads) by the gated delta rule (kernels/delta.py)."""
        out = self._buffer("delta", heads.width * 4)
        self._builder.add(
            delta.gated_delta, [*qkv.accesses(), *gates.accesses(), Access(state.state)], [Access(out), Access(state.state)],
            qkv=qkv.pointer, qkv_stride=qkv.stride, gates=gates.pointer, gates_stride=gates.stride, decay=decay.address,
            bias=bias.address, key_heads=heads.keys, group=heads.group, head_size=heads.size, epsilon=epsilon,
            state=state.state.at(conv_bytes(qkv.width, conv_width)), state_stride=state.state.stride,
            spans=self._spans, num_spans=self._num_spans, out=out.at(0), out_stride=out.stride,
        )  # fmt: skip
        return self._made(out, heads.width, qkv.rows)

    def gated_rms_norm(self, x: Value, gate_: Value, weight: Vector, epsilon: float) -> Value:
        """rms_norm of each head of x (rows, heads * size) * silu(gate); weight (size,)."""
        out, division = self._buffer(f"{x.name}.norm", x.width * 4, self.private), self._share_of_rows(x.rows)
        self._builder.add(
            norm.gated_rms_norm, [*x.accesses(), *gate_.accesses()], [Access(out, division)],
            x=x.pointer, x_stride=x.stride, gate=gate_.pointer, gate_stride=gate_.stride, rows=x.rows,
            heads=x.width // weight.length, size=weight.length, weight=weight.address, epsilon=epsilon,
            out=out.at(0), out_thread_stride=out.thread_stride, private=self.private,
        )  # fmt: skip
        return self._made(out, x.width, x.rows, division=division)
