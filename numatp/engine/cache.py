"""The key-value cache of one rank: blocks of tokens, and in each block all layers, so that memory is touched as it is needed."""

from numatp.kernels.attention import CACHE_BLOCK
from numatp.program.builder import Buffer
from numatp.program.ops import LayerCache
from numatp.weights.splits import Sizes, Split

ELEMENT = 2  # bytes of a float16


def num_blocks(context: int) -> int:
    return -(-context // CACHE_BLOCK)


def layer_bytes(sizes: Sizes, split: Split) -> int:
    """Bytes of the keys, and of the values, of one layer in one block: this rank's KV heads."""
    return CACHE_BLOCK * len(split.kv_heads) * sizes.head_size * ELEMENT


def cache_bytes(sizes: Sizes, split: Split, layers: int, context: int) -> int:
    return num_blocks(context) * layers * 2 * layer_bytes(sizes, split)


def layer_caches(address: int, sizes: Sizes, split: Split, layers: int) -> list[LayerCache]:
    """Where each layer lies in a cache at `address`."""
    part = layer_bytes(sizes, split)
    stride = layers * 2 * part
    return [
        LayerCache(Buffer(f"keys{i}", address + 2 * i * part, stride), Buffer(f"values{i}", address + (2 * i + 1) * part, stride))
        for i in range(layers)
    ]
