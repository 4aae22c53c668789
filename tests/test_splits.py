"""The parts of all ranks together are the whole."""

import pytest

from numatp.weights.splits import Sizes, part, split


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize(("count", "unit"), [(9, 1), (48, 32), (1536, 32), (29568, 32), (200, 16), (1, 32), (64, 64)])
def test_parts_rejoin_to_the_whole(count, unit, size):
    parts = [part(count, unit, rank, size) for rank in range(size)]
    assert [i for one in parts for i in one] == list(range(count))
    assert all(one.start % unit == 0 or one.start == count for one in parts)
    full = [len(one) for one in parts if one.stop < count or count % unit == 0]
    assert max(full, default=0) - min(full, default=0) <= unit


@pytest.mark.parametrize("size", range(1, 6))
@pytest.mark.parametrize(("heads", "kv_heads", "head_size"), [(9, 3, 64), (8, 1, 128), (6, 6, 48), (64, 8, 80)])
def test_a_rank_holds_the_kv_heads_that_its_heads_read(heads, kv_heads, head_size, size):
    sizes = Sizes(width=64, heads=heads, kv_heads=kv_heads, head_size=head_size, ffn=96, vocab=100)
    for rank in range(size):
        own = split(sizes, rank, size)
        assert set(own.kv_heads) == {head // sizes.group for head in own.heads}
        assert own.heads.start * head_size % 32 == 0
