"""The short convolution before linear attention: each channel over its last few inputs, which a sequence's state keeps."""

from numatp.kernels.compile import device, kernel, share
from numatp.kernels.exp import silu
from numatp.kernels.simd import fma, load_f32x16, load_i64, offset, splat_f32, store_f32x16

BLOCK = 512  # channels that go through all rows together: their inputs of `width` rows and their weights stay in the first cache


@device
def conv_input(args, x, state, place, time, position, channel):
    """16 channels of the input `time` rows after the span's first. Earlier ones are in the state, at `place`; there are none before
    position 0.
    """
    if time >= 0:
        return load_f32x16(offset(x, time * args.x_stride), channel)
    if position + time >= 0:
        return load_f32x16(offset(state, place * args.channels * 4), channel)
    return splat_f32(0)


@device
def convolved(args, x, state, row, position, oldest, channel):
    """16 channels of one row of a span; oldest: the place in the state where the first of its inputs belongs."""
    total, first = splat_f32(0), row - (args.width - 1)
    if first >= 0:
        for j in range(args.width):
            value = load_f32x16(offset(x, (first + j) * args.x_stride), channel)
            total = fma(value, load_f32x16(args.weight, j * args.channels + channel), total)
    else:
        for j in range(args.width):
            place = oldest + j if oldest + j < args.kept else oldest + j - args.kept
            value = conv_input(args, x, state, place, first + j, position, channel)
            total = fma(value, load_f32x16(args.weight, j * args.channels + channel), total)
    return silu(total)


@kernel(
    x="pointer", x_stride="int", channels="int", weight="pointer", width="int", kept="int", state="pointer", state_stride="int",
    spans="pointer", num_spans="pointer", out="pointer", out_stride="int",
)  # fmt: skip
def causal_conv(args, thread, threads):
    """out[t] = silu(sum over j of weight[j] * x[t - (width - 1) + j]) per channel; a sequence's last inputs stay in its state.

    x (rows, channels), a multiple of 16 channels; weight (width, channels); state (kept, channels), the input at position p in row
    p % kept (conv_rows in states.py). Threads divide the channels as a matrix product does.
    """
    first, last = share(args.channels // 16, thread, threads)
    first, last = first * 16, last * 16
    for span in range(load_i64(args.num_spans, 0)):
        span = offset(args.spans, span * 32)
        sequence, row, rows, position = load_i64(span, 0), load_i64(span, 1), load_i64(span, 2), load_i64(span, 3)
        x, out = offset(args.x, row * args.x_stride), offset(args.out, row * args.out_stride)
        state = offset(args.state, sequence * args.state_stride)
        for begin in range(first, last, BLOCK):
            end = min(begin + BLOCK, last)
            for t in range(rows):
                oldest = (position + t - (args.width - 1)) % args.kept
                for channel in range(begin, end, 16):
                    store_f32x16(offset(out, t * args.out_stride), channel, convolved(args, x, state, t, position, oldest, channel))
            for t in range(max(rows - args.kept, 0), rows):
                place = offset(state, (position + t) % args.kept * args.channels * 4)
                for channel in range(begin, end, 16):
                    store_f32x16(place, channel, load_f32x16(offset(x, t * args.x_stride), channel))
