"""The latent rows of attention as DeepSeek-V2 has it (https://arxiv.org/abs/2405.04434): of each token one row is kept for all
heads, and a part of the key that rotates. A head's own matrices make keys and values of latent rows (unabsorbed.py), or the other
way round queries for them and values of their sums (absorbed.py).
"""

from types import ModuleType

from numatp.kernels.compile import kernel, share
from numatp.kernels.norm import inverse_rms
from numatp.kernels.places import cache_place
from numatp.kernels.rope import rotate_pairs
from numatp.kernels.simd import load_f32x16, load_i64, offset, store_f32x16

cache: ModuleType = globals()["cache"]  # the cache type: specialize() has set it


@kernel(
    x="pointer", x_stride="int", rows="pointer", latent="int", rotated="int", weight="pointer", epsilon="float", angles="pointer",
    positions="pointer", sequences="pointer", tables="pointer", table_length="int", keys="pointer", values="pointer",
    block_stride="int", head_bytes="int", value_bytes="int", copy="pointer",
)  # fmt: skip
def append_latent(args, thread, threads):
    """x (rows, latent + rotated) in place: the first part normalised, the rest's neighbours rotated; the whole row is kept as a
    key, the first part as a value. What a cache keeps it may overwrite: copy (rows, latent) is for the value.
    """
    first, last = share(load_i64(args.rows, 0), thread, threads)
    for row in range(first, last):
        x = offset(args.x, row * args.x_stride)
        scale = inverse_rms(x, args.latent, args.epsilon)
        copy = offset(args.copy, row * args.latent * 4)
        for i in range(0, args.latent, 16):
            value = load_f32x16(x, i) * scale * load_f32x16(args.weight, i)
            store_f32x16(x, i, value)
            store_f32x16(copy, i, value)
        rotate_pairs(offset(x, args.latent * 4), offset(args.angles, row * args.rotated * 4), args.rotated // 2, 2, 1)
        block, place = cache_place(args.tables, args.table_length, load_i64(args.sequences, row), load_i64(args.positions, row))
        cache.store_key(offset(args.keys, block * args.block_stride), place, args.latent + args.rotated, x)
        cache.store_value(offset(args.values, block * args.block_stride), place, args.latent, copy)
