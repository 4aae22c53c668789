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
        self, qkv: Value, beta: Value, alpha: Value, decay: Vector, bias: Vector, heads: LinearHeads, conv_width: int,
        epsilon: float, state: LayerState,
    ) -> Value:  # fmt: skip
        """(rows, values of all value heads) by the gated delta rule (kernels/delta.py).

        Of tiled heads beta, alpha, decay and bias are those of the whole model; of others those of this rank, and both beta and
        alpha are in one product: for each key head its betas, then its alphas.
        """
        out, group = self._buffer("delta", heads.width * 4), heads.group
        if heads.tiled:
            first, every = heads.keys.start, heads.all_keys
            steps = {"gate_key_step": 1, "gate_step": every, "key_step": 1, "step": every}
        else:
            first, steps = 0, {"gate_key_step": 2 * group, "gate_step": 1, "key_step": group, "step": 1}
        reads = [*qkv.accesses(), *beta.accesses(), *alpha.accesses(), Access(state.state)]
        self._builder.add(
            delta.gated_delta, reads, [Access(out), Access(state.state)],
            qkv=qkv.pointer, qkv_stride=qkv.stride, beta=beta.at(first), beta_stride=beta.stride, alpha=alpha.at(first),
            alpha_stride=alpha.stride, decay=decay.address + 4 * first, bias=bias.address + 4 * first, **steps,
            key_heads=len(heads.keys), group=group, tiled=heads.tiled, head_size=heads.size, epsilon=epsilon,
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
