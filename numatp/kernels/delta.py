"""The gated delta rule (https://arxiv.org/abs/2412.06464) and the short convolution before it, as Qwen3-Next and Qwen3.5 have them.

The state of a sequence, in float32: the last width - 1 inputs of the convolution, (width - 1, channels), then for every value
head a matrix S, head_size keys by head_size values. The columns of S do not see each other, so S lies in strips of 16 columns,
(value_heads, head_size / 16, head_size, 16), and a strip is one thread's piece of work.
"""

from math import exp as scalar_exp
from math import log1p, sqrt

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.exp import silu
from numatp.kernels.jit import float32
from numatp.kernels.simd import fma, load_f32, load_f32x16, load_i64, offset, splat_f32, store_f32x16, sum_f32x16


@device
def conv_input(x, x_stride, state, channels, width, time, position, channel):
    """16 channels of the input `time` rows after the span's first, before which the state stands and, at position 0, nothing."""
    if time >= 0:
        return load_f32x16(offset(x, time * x_stride), channel)
    if position > 0:
        return load_f32x16(offset(state, (time + width - 1) * channels * 4), channel)
    return splat_f32(0)


@kernel(
    x="pointer", x_stride="int", channels="int", weight="pointer", width="int", state="pointer", state_stride="int",
    spans="pointer", num_spans="pointer", out="pointer", out_stride="int",
)  # fmt: skip
def causal_conv(args, thread, threads):
    """out[t] = silu(sum over j of weight[j] * x[t - (width - 1) + j]) per channel; a sequence's last inputs stay in its state.

    x (rows, channels), a multiple of 16 channels; weight (width, channels). Threads divide the channels as a matrix product does.
    """
    first, last = share(args.channels // 16, thread, threads)
    before = args.width - 1  # inputs that the state holds
    for span in range(load_i64(args.num_spans, 0)):
        span = offset(args.spans, span * 32)
        sequence, row, rows, position = load_i64(span, 0), load_i64(span, 1), load_i64(span, 2), load_i64(span, 3)
        x, out = offset(args.x, row * args.x_stride), offset(args.out, row * args.out_stride)
        state = offset(args.state, sequence * args.state_stride)
        for channel in range(first * 16, last * 16, 16):
            for t in range(rows):
                total = splat_f32(0)
                for j in range(args.width):
                    value = conv_input(x, args.x_stride, state, args.channels, args.width, t - before + j, position, channel)
                    total = fma(value, load_f32x16(args.weight, j * args.channels + channel), total)
                store_f32x16(offset(out, t * args.out_stride), channel, silu(total))
            # In rising order: a place that is still to be read lies behind the one that is written.
            for j in range(before):
                value = conv_input(x, args.x_stride, state, args.channels, args.width, rows - before + j, position, channel)
                store_f32x16(state, j * args.channels + channel, value)


@device
def inverse_length(x, size, epsilon):
    """1 / sqrt(sum(x**2) + epsilon)."""
    squares = splat_f32(0)
    for i in range(0, size, 16):
        squares = fma(load_f32x16(x, i), load_f32x16(x, i), squares)
    return float32(1) / sqrt(sum_f32x16(squares) + epsilon)


@device
def delta_step(strip, q, k, v, size, decay, beta, epsilon):
    """One token on 16 columns of a state: S = decay * S + k (beta * (v - (decay * S) k)), the result is S q.

    q and k are normalised to length 1, q besides by sqrt(size); that is done to what comes out of the sums, not to their terms.
    """
    k_scale = inverse_length(k, size, epsilon)
    known = splat_f32(0)
    for i in range(size):
        known = fma(load_f32x16(strip, i * 16), splat_f32(load_f32(k, i)), known)
    change = (load_f32x16(v, 0) - known * splat_f32(decay * k_scale)) * splat_f32(beta * k_scale)
    result, kept = splat_f32(0), splat_f32(decay)
    for i in range(size):
        row = fma(splat_f32(load_f32(k, i)), change, load_f32x16(strip, i * 16) * kept)
        store_f32x16(strip, i * 16, row)
        result = fma(row, splat_f32(load_f32(q, i)), result)
    return result * splat_f32(inverse_length(q, size, epsilon) / sqrt(float32(size)))


@kernel(
    qkv="pointer", qkv_stride="int", beta="pointer", beta_stride="int", alpha="pointer", alpha_stride="int", gate_key_step="int",
    gate_step="int", decay="pointer", bias="pointer", key_step="int", step="int", key_heads="int", group="int", tiled="int",
    head_size="int", epsilon="float", state="pointer", state_stride="int", spans="pointer", num_spans="pointer", out="pointer",
    out_stride="int",
)  # fmt: skip
def gated_delta(args, thread, threads):
    """out (rows, value_heads, head_size), token after token of each span; a span that begins at position 0 has a zero state.

    qkv (rows, 2 * key_heads + value_heads, head_size). `group` value heads share a key head: those that follow each other, or,
    tiled, those that are key_heads apart. Per row and value head, beta before its sigmoid, and alpha, which sets the decay
    exp(decay * softplus(alpha + bias)); decay (below 0) and bias are per value head. The j-th value head of key head i has beta and
    alpha at i * gate_key_step + j * gate_step, decay and bias at i * key_step + j * step.
    """
    size, group = args.head_size, args.group
    strips = size // 16
    first, last = share(args.key_heads * group * strips, thread, threads)
    for span in range(load_i64(args.num_spans, 0)):
        span = offset(args.spans, span * 32)
        sequence, row, rows, position = load_i64(span, 0), load_i64(span, 1), load_i64(span, 2), load_i64(span, 3)
        state = offset(args.state, sequence * args.state_stride)
        for unit in range(first, last):
            head, column = unit // strips, unit % strips * 16
            key_head, slot = head // group, head % group
            if args.tiled:
                key_head, slot = head % args.key_heads, head // args.key_heads
            gate, constant = key_head * args.gate_key_step + slot * args.gate_step, key_head * args.key_step + slot * args.step
            strip = offset(state, unit * size * 64)
            if position == 0:
                for i in range(size):
                    store_f32x16(strip, i * 16, splat_f32(0))
            for t in range(row, row + rows):
                qkv = offset(args.qkv, t * args.qkv_stride)
                q = offset(qkv, key_head * size * 4)
                k = offset(q, args.key_heads * size * 4)
                v = offset(qkv, ((2 * args.key_heads + head) * size + column) * 4)
                opened = load_f32(offset(args.beta, t * args.beta_stride), gate)
                beta = float32(1) / (float32(1) + float32(scalar_exp(-opened)))
                alpha = load_f32(offset(args.alpha, t * args.alpha_stride), gate) + load_f32(args.bias, constant)
                # softplus without overflow: log(1 + e**x) = max(x, 0) + log(1 + e**-|x|)
                softplus = max(alpha, float32(0)) + float32(log1p(scalar_exp(-abs(alpha))))
                decay = float32(scalar_exp(load_f32(args.decay, constant) * softplus))
                result = delta_step(strip, q, k, v, size, decay, beta, args.epsilon)
                store_f32x16(offset(args.out, t * args.out_stride), head * size + column, result)
