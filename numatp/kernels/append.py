"""Rotation of queries and keys, and the append of keys and values to the cache, whose type specialize() sets (kernels/caches)."""

from types import ModuleType

from numatp.kernels.compile import kernel, share
from numatp.kernels.places import cache_place
from numatp.kernels.rope import rotate_pairs
from numatp.kernels.simd import load_i64, offset

cache: ModuleType = globals()["cache"]  # the cache type: specialize() has set it


@kernel(
    qkv="pointer", rows="pointer", heads="int", kv_heads="int", head_size="int", angles="pointer", pairs="int", step="int",
    apart="int", positions="pointer", sequences="pointer", tables="pointer", table_length="int", keys="pointer", values="pointer",
    block_stride="int", head_bytes="int", value_bytes="int", value_size="int",
)  # fmt: skip
def rotate_and_append(args, thread, threads):
    """Rotates the q and k heads of qkv in place; stores k and v in the cache. A row of qkv has `heads` queries and kv_heads keys of
    head_size values, then as many values of value_size.

    Pair i of a head is (i * step, i * step + apart): neighbours with step 2, halves with step 1 and apart = pairs.
    """
    heads, turned = args.heads + 2 * args.kv_heads, args.heads + args.kv_heads
    width = turned * args.head_size + args.kv_heads * args.value_size
    first, last = share(load_i64(args.rows, 0) * heads, thread, threads)
    for item in range(first, last):
        row, head = item // heads, item % heads
        before = min(head, turned) * args.head_size + max(head - turned, 0) * args.value_size
        values = offset(args.qkv, (row * width + before) * 4)
        if head < turned:
            rotate_pairs(values, offset(args.angles, row * args.pairs * 8), args.pairs, args.step, args.apart)
        if head >= args.heads:
            block, place = cache_place(args.tables, args.table_length, load_i64(args.sequences, row), load_i64(args.positions, row))
            kv_head = (head - args.heads) % args.kv_heads
            start = block * args.block_stride
            if head < turned:
                cache.store_key(offset(args.keys, start + kv_head * args.head_bytes), place, args.head_size, values)
            else:
                cache.store_value(offset(args.values, start + kv_head * args.value_bytes), place, args.value_size, values)
