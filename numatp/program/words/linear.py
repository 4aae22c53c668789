"""Linear attention: a short convolution and the gated delta rule, which keep a state of fixed size."""

from itertools import accumulate

from numatp.kernels import convolution, delta, norm, pieces
from numatp.kernels.states import PIECE, conv_bytes, delta_bytes
from numatp.program.recorder import Recorder
from numatp.program.values import PRIVATE, Access, LayerState, LinearHeads, Pointer, Value
from numatp.weights.matrix import Vector


class Linear(Recorder):
    def causal_conv(self, x: Value, weight: Vector, width: int, state: LayerState) -> Value:
        """silu of a convolution over the last `width` rows of a sequence, channel by channel; weight (width, channels)."""
        assert len(x.parts) == 1, "the channels are divided as the product that made them"
        out, columns = self._buffer(f"{x.name}.conv", x.width * 4), self._columns(x.width)
        self._builder.add(
            convolution.causal_conv, [*x.accesses(columns), Access(state.state)], [Access(out, columns), Access(state.state)],
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
        count, group, shape = len(heads.keys), heads.group, self.site.step.shape
        # A span touches a piece for every PIECE of its rows, and one that it does not begin or end.
        room = min(self.max_rows, self.max_rows // PIECE + 2 * shape.max_sequences)
        keys = self._buffer("delta keys", count * pieces.KEYS_BYTES, rows=room)
        weights = self._buffer("delta weights", count * group * pieces.WEIGHTS_BYTES, rows=room)
        scratch = self._buffer("delta scratch", delta.SCRATCH_BYTES, per_thread=True, rows=1)
        out = self._buffer("delta", heads.width * 4)
        if heads.tiled:
            first, every = heads.keys.start, heads.all_keys
            steps = {"gate_key_step": 1, "gate_step": every, "key_step": 1, "step": every}
        else:
            first, steps = 0, {"gate_key_step": 2 * group, "gate_step": 1, "key_step": group, "step": 1}
        begin, sizes = conv_bytes(qkv.width, conv_width), delta_bytes(count, count * group, heads.size)
        matrices, changes, kept_keys, kept_decays = (state.state.at(at) for at in accumulate(sizes[:-1], initial=begin))
        both: dict[str, int | Pointer] = {
            "keys": keys.at(0), "weights": weights.at(0), "pieces": room, "key_heads": count, "group": group,
            "tiled": heads.tiled, "head_size": heads.size, "kept_keys": kept_keys, "kept_decays": kept_decays,
            "state_stride": state.state.stride, "spans": self._spans, "num_spans": self._num_spans,
        }  # fmt: skip
        self._builder.add(
            pieces.delta_pieces, [*qkv.accesses(), *beta.accesses(), *alpha.accesses(), Access(state.state)],
            [Access(keys), Access(weights)],
            qkv=qkv.pointer, qkv_stride=qkv.stride, beta=beta.at(first), beta_stride=beta.stride, alpha=alpha.at(first),
            alpha_stride=alpha.stride, decay=decay.address + 4 * first, bias=bias.address + 4 * first, **steps, epsilon=epsilon,
            **both,
        )  # fmt: skip
        self._builder.add(
            delta.gated_delta, [*qkv.accesses(), Access(keys), Access(weights), Access(state.state)],
            [Access(out), Access(state.state), Access(scratch, PRIVATE)],
            values=qkv.at(2 * count * heads.size), values_stride=qkv.stride, state=matrices, kept_changes=changes,
            scratch=scratch.at(0), scratch_stride=scratch.thread_stride, out=out.at(0), out_stride=out.stride, **both,
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
