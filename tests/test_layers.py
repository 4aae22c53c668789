"""Whose rows and how many bytes, of kinds of tensors and layers that no architecture of today has."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from numatp.engine.cache import CacheLayout, pools_of, read_bytes
from numatp.files.model_file import TensorInfo
from numatp.kernels.layout import CACHE_BLOCK
from numatp.models.layers import Attention, InBlocks, IndexedAttention, Recurrent
from numatp.program.values import Buffer, Kept
from numatp.weights.rules import Rule, cut
from numatp.weights.splits import Cut, Shared, Sizes, split


@dataclass(frozen=True)
class LatentCache(Kept):
    rows: Buffer
    table: int


@dataclass(frozen=True)
class Latent(InBlocks):
    """One float16 row for all heads, whole on every rank."""

    size: int
    window: int | None = None

    def block_bytes(self, split, cache_type):
        return CACHE_BLOCK * self.size * 2

    def refusal(self, cache_type):
        return ""

    def placed(self, name, address, stride, table, split, cache_type):
        return LatentCache(Buffer(f"latent{name}", stride, address), table)


def test_a_cache_of_layers_of_other_sizes():
    sizes = Sizes(heads=Cut(8, 2), kv_heads=Shared(4, "heads", 2))
    layers = (Latent(96), Attention(64, 32), Recurrent(lambda split: 1000 * len(split.heads)), Attention(64, 64, window=70))
    spec = SimpleNamespace(layers=layers)
    pools = pools_of(spec, context=300, max_sequences=2, max_rows=16)
    assert [list(pool.layers) for pool in pools] == [[0, 1], [3]]
    mine = split(sizes, 1, 2)  # 4 heads, which read 2 KV heads
    cache = CacheLayout(spec, mine, pools, 2, "f16")
    latent, attention, recurrent, windowed = cache.at(1 << 20)
    whole_block = CACHE_BLOCK * 2 * (96 + 2 * (64 + 32))
    assert latent.rows.stride == attention.keys.stride == attention.values.stride == whole_block
    assert (latent.table, attention.table, windowed.table) == (0, 0, 1)
    assert attention.keys.address - latent.rows.address == CACHE_BLOCK * 2 * 96
    assert attention.values.address - attention.keys.address == CACHE_BLOCK * 2 * 2 * 64
    assert windowed.keys.address == (1 << 20) + pools[0].blocks * whole_block
    window_block = CACHE_BLOCK * 2 * 2 * (64 + 64)
    assert recurrent.state.address == windowed.keys.address + pools[1].blocks * window_block
    assert recurrent.state.stride == 4032 and cache.num_bytes == recurrent.state.address + 2 * 4032 - (1 << 20)
    assert read_bytes(spec, mine, 100, "f16") == 100 * whole_block // CACHE_BLOCK + 4000 + 70 * window_block // CACHE_BLOCK
    assert Attention(64, 24).refusal("q8_0") == "a q8_0 cache keeps heads in blocks of 32, and this model's have 24: use f16"


def test_a_cache_with_keys_of_an_indexer():
    """A row reads the keys of all tokens, and the rows of those that are chosen; a layer without an indexer has no keys of one."""
    mine = split(Sizes(heads=Cut(8, 2), latent_heads=Shared(1, "heads", 8)), 1, 2)
    own, shared = (IndexedAttention(96, 64, heads="latent_heads", top=50, index_size=size) for size in (32, 0))
    rows, index = CACHE_BLOCK * 2 * (96 + 64), CACHE_BLOCK * 2 * 32
    assert (own.block_bytes(mine, "f16"), shared.block_bytes(mine, "f16")) == (rows + index, rows)
    cache = own.placed("0", 1 << 20, 5000, 0, mine, "f16")
    assert cache.index and (cache.index.address, cache.index.stride) == ((1 << 20) + rows, 5000)
    assert shared.placed("1", 1 << 20, 5000, 0, mine, "f16").index is None
    assert own.read_bytes(mine, "f16", 40) == (rows + index) // CACHE_BLOCK * 40
    assert own.read_bytes(mine, "f16", 300) == rows // CACHE_BLOCK * 50 + index // CACHE_BLOCK * 300
    assert own.refusal("f16") == "" and "float16 cache only, not from q8_0" in own.refusal("q8_0")


def test_matrices_that_are_stacked_by_heads_are_cut_by_heads():
    """As the parts of MLA that belong to one head: a rank has all rows of its own heads, and whole experts are on every rank."""
    sizes = Sizes(heads=Cut(6, 2), experts=3, expert_ffn=Cut(64, 32), latent=64, size=32)
    rules = [Rule.stacked("k.weight", "heads", "latent", "size"), Rule.stacked("up.weight", "experts", "expert_ffn", "latent")]
    shapes = {"k.weight": (6, 64, 32), "up.weight": (3, 64, 64)}
    tensors = {name: TensorInfo(name, "F32", shape, 0, 0, Path("model")) for name, shape in shapes.items()}
    file = SimpleNamespace(tensors=tensors)
    (keys, ups), num_bytes = cut(file, rules, sizes, split(sizes, 1, 2))
    assert (keys.rows, keys.stacked, ups.stacked) == ([range(2 * 64, 6 * 64)], 4, 3)
    assert ups.rows == [range(64 * expert + 32, 64 * expert + 64) for expert in range(3)]
    assert (keys.at(1000).address, ups.at(1000).address) == (1000, 1000 + keys.num_bytes)
    assert num_bytes == keys.num_bytes + ups.num_bytes == 4 * (4 * 64 * 32 + 3 * 32 * 64)
