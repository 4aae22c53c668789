"""The key-value cache of one rank: one block pool, the same block numbers in every layer."""

from numatp.kernels.attention import CACHE_BLOCK
from numatp.program.builder import Buffer
from numatp.program.ops import LayerCache
from numatp.weights.splits import Sizes, Split

ELEMENT = 2  # bytes of a float16


def num_blocks(context: int) -> int:
    return -(-context // CACHE_BLOCK)


def cache_bytes(sizes: Sizes, split: Split, layers: int, context: int) -> int:
    """Bytes of keys and values of this rank's KV heads."""
    return 2 * layers * num_blocks(context) * CACHE_BLOCK * len(split.kv_heads) * sizes.head_size * ELEMENT


def layer_caches(address: int, sizes: Sizes, split: Split, layers: int, context: int) -> list[LayerCache]:
    each = cache_bytes(sizes, split, layers, context) // layers // 2
    return [
        LayerCache(Buffer(f"keys{i}", address + 2 * i * each), Buffer(f"values{i}", address + (2 * i + 1) * each))
        for i in range(layers)
    ]
