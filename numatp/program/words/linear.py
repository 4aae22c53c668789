"""Linear attention: a short convolution and the gated delta rule, which keep a state of fixed size."""

from itertools import accumulate

from numatp.kernels import channels, convolution, delta, norm, pieces
from numatp.kernels.states import PIECE, conv_bytes, conv_rows, delta_bytes
from numatp.program.recorder import Recorder
from numatp.program.values import ANYHOW, PRIVATE, Access, LayerState, LinearHeads, Pointer, Value
from numatp.weights.matrix import Vector


class Linear(Recorder):
    def causal_conv(self, x: Value, width: int, state: LayerState, *weights: Vector) -> Value:
        """silu of a convolution over the last `width` rows of a sequence, channel by channel; weights (width, channels) of channels
        side by side.
        """
        assert sum(weight.length for weight in weights) == x.width * width, "weights for every channel"
        out = self._buffer(f"{x.name}.conv", x.width * 4)
        # As the product that made the channels, if that was one and this is.
        division = self._columns(x.width) if len(weights) == len(x.parts) == 1 else ANYHOW
        first = 0
        for weight in weights:
            channels_ = weight.length // width
            mine = x.columns(first, channels_) if len(weights) > 1 else x
            kept, made = conv_bytes(first, width), Access(out, division, range(4 * first, 4 * (first + channels_)))
            keeps = Access(state.state, division, range(kept, kept + conv_bytes(channels_, width)))
            self._builder.add(
                convolution.causal_conv, [*mine.accesses(division), keeps], [made, keeps],
                x=mine.pointer, x_stride=x.stride, channels=channels_, weight=weight.address, width=width, kept=conv_rows(width),
                state=state.state.at(kept), state_stride=state.state.stride, spans=self._joined, num_spans=self._num_joined,
                out=made.pointer, out_stride=out.stride,
            )  # fmt: skip
            first += channels_
        return self._made(out, x.width, x.rows)

    def gated_delta(
        self, qkv: Value, beta: Value, alpha: Value, decay: Vector, bias: Vector, heads: LinearHeads, conv_width: int,
        epsilon: float, state: LayerState,
    ) -> Value:  # fmt: skip
        """(rows, values of all value heads) by the gated delta rule (kernels/delta.py).

        Of tiled heads beta, alpha, decay and bias are those of the whole model; of others those of this rank, and both beta and
        alpha are in one product: for each key head its betas, then its alphas. Of heads with decays by channel beta and decay are
        those of the whole model, alpha (rows, heads * size) and bias those of this rank.
        """
        count, group, shape = len(heads.keys), heads.group, self.site.step.shape
        # A span touches a piece for every PIECE of its rows, and one that it does not begin or end.
        room = min(self.max_rows, self.max_rows // PIECE + 2 * shape.max_sequences)
        keys_bytes = channels.CHANNEL_KEYS_BYTES if heads.by_channel else pieces.KEYS_BYTES
        keys = self._buffer("delta keys", count * keys_bytes, rows=room)
        weights = self._buffer("delta weights", count * group * pieces.WEIGHTS_BYTES, rows=room)
        scratch = self._buffer("delta scratch", delta.SCRATCH_BYTES, per_thread=True, rows=1)
        out = self._buffer("delta", heads.width * 4)
        begin, sizes = conv_bytes(qkv.width, conv_width), delta_bytes(count, count * group, heads.size, heads.by_channel)
        matrices, changes, kept_keys, kept_decays = (state.state.at(at) for at in accumulate(sizes[:-1], initial=begin))
        both: dict[str, int | Pointer] = {
            "keys": keys.at(0), "weights": weights.at(0), "pieces": room, "key_heads": count, "head_size": heads.size,
            "kept_keys": kept_keys, "kept_decays": kept_decays, "state_stride": state.state.stride, "spans": self._joined,
            "num_spans": self._num_joined,
        }  # fmt: skip
        first = heads.keys.start if heads.tiled or heads.by_channel else 0
        gates: dict[str, float | Pointer] = {
            "qkv": qkv.pointer, "qkv_stride": qkv.stride, "beta": beta.at(first), "beta_stride": beta.stride,
            "alpha_stride": alpha.stride, "decay": decay.address + 4 * first, "epsilon": epsilon,
        }  # fmt: skip
        reads = [*qkv.accesses(), *beta.accesses(), *alpha.accesses(), Access(state.state)]
        writes = [Access(keys), Access(weights)]
        if heads.by_channel:
            self._builder.add(
                channels.channel_pieces, reads, writes, alpha=alpha.pointer, bias=bias.address, bound=heads.bound, **gates, **both
            )  # fmt: skip
        else:
            steps = {"gate_key_step": 2 * group, "gate_step": 1, "key_step": group, "step": 1}
            if heads.tiled:
                steps = {"gate_key_step": 1, "gate_step": heads.all_keys, "key_step": 1, "step": heads.all_keys}
            self._builder.add(
                pieces.delta_pieces, reads, writes, alpha=alpha.at(first), bias=bias.address + 4 * first, group=group,
                tiled=heads.tiled, **steps, **gates, **both,
            )  # fmt: skip
        self._builder.add(
            delta.gated_delta, [*qkv.accesses(), Access(keys), Access(weights), Access(state.state)],
            [Access(out), Access(state.state), Access(scratch, PRIVATE)],
            values=qkv.at(2 * count * heads.size), values_stride=qkv.stride, state=matrices, kept_changes=changes,
            scratch=scratch.at(0), scratch_stride=scratch.thread_stride, out=out.at(0), out_stride=out.stride,
            keys_bytes=keys_bytes, group=group, tiled=heads.tiled, by_channel=heads.by_channel, **both,
        )  # fmt: skip
        return self._made(out, heads.width, qkv.rows)

    def gated_rms_norm(self, x: Value, gate_: Value, weight: Vector, epsilon: float, by_sigmoid: bool = False) -> Value:
        """rms_norm of each head of x (rows, heads * size) * silu(gate), or sigmoid(gate); weight (size,)."""
        out, division = self._buffer(f"{x.name}.norm", x.width * 4, self.private), self._share_of_rows(x.rows)
        self._builder.add(
            norm.gated_rms_norm, [*x.accesses(), *gate_.accesses()], [Access(out, division)],
            x=x.pointer, x_stride=x.stride, gate=gate_.pointer, gate_stride=gate_.stride, rows=x.rows,
            heads=x.width // weight.length, size=weight.length, weight=weight.address, epsilon=epsilon, by_sigmoid=by_sigmoid,
            out=out.at(0), out_thread_stride=out.thread_stride, private=self.private,
        )  # fmt: skip
        return self._made(out, x.width, x.rows, division=division)
