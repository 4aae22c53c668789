"""The parts of all ranks together are the whole."""

import pytest

from numatp.errors import UserError
from numatp.models.hybrid import linear_sizes
from numatp.models.spec import decoder_sizes
from numatp.weights.splits import Cut, Shared, Sizes, cut_columns, part, shares_of, split


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize(("count", "unit"), [(9, 1), (48, 32), (1536, 32), (29568, 32), (200, 16), (1, 32), (64, 64)])
def test_parts_rejoin_to_the_whole(count, unit, size):
    parts = [part(count, unit, rank, size) for rank in range(size)]
    assert [i for one in parts for i in one] == list(range(count))
    assert all(one.start % unit == 0 or one.start == count for one in parts)
    full = [len(one) for one in parts if one.stop < count or count % unit == 0]
    assert max(full, default=0) - min(full, default=0) <= unit


@pytest.mark.parametrize("shares", [(3, 1), (1, 1, 1, 1), (0.6, 0.4), (1, 1e-9), (5, 2.5, 7.25), (1e9, 1, 1)])
@pytest.mark.parametrize(("count", "unit"), [(9, 1), (48, 32), (29568, 32), (200, 16), (1, 32)])
def test_uneven_parts_are_as_their_shares_to_a_unit(count, unit, shares):
    parts = [part(count, unit, rank, len(shares), shares) for rank in range(len(shares))]
    assert [i for one in parts for i in one] == list(range(count))
    assert all(one.start % unit == 0 or one.start == count for one in parts)
    for one, share in zip(parts, shares, strict=True):
        assert abs(len(one) - count * share / sum(shares)) <= 2 * unit  # half a unit at each edge, and the last may be short
    assert [part(count, unit, rank, 4, (2, 2, 2, 2)) for rank in range(4)] == [part(count, unit, rank, 4) for rank in range(4)]


def test_three_to_one():
    assert part(29568, 32, 0, 2, (3, 1)) == range(22176) and part(29568, 32, 1, 2, (3, 1)) == range(22176, 29568)
    assert part(64, 1, 0, 2, (0.55, 0.45)) == range(35)  # 35.2


@pytest.mark.parametrize(
    ("shares", "line"),
    [
        ((3, 0), "every share must be above 0"),
        ((1, -1), "every share must be above 0"),
        ((1, float("nan")), "every share must be above 0"),
        ((1, 2, 3), "-ts 1,2,3 is for 3 ranks and this job has 2: give one share per rank"),
    ],
)
def test_shares_that_mean_nothing(shares, line):
    with pytest.raises(UserError, match=line):
        shares_of(shares, [0, 1], {})


def test_shares_by_bandwidth():
    assert shares_of("auto", [0, 1, 1], {0: 200.0, 1: 100.0, 2: 7.0}) == [200, 50, 50]
    assert shares_of(None, [0, 1], {}) is None
    with pytest.raises(UserError, match="-ts auto: the bandwidth of node 1 is not known: run 'numatp bandwidth' once"):
        shares_of("auto", [0, 1], {0: 200.0})


@pytest.mark.parametrize("size", range(1, 6))
@pytest.mark.parametrize(("heads", "kv_heads", "head_size"), [(9, 3, 64), (8, 1, 128), (6, 6, 48), (64, 8, 80)])
def test_a_rank_holds_the_kv_heads_that_its_heads_read(heads, kv_heads, head_size, size):
    sizes = decoder_sizes(width=64, heads=heads, kv_heads=kv_heads, head_size=head_size, vocab=100, ffn=cut_columns(96))
    for rank in range(size):
        own = split(sizes, rank, size)
        assert set(own.kv_heads) == {head // sizes.group for head in own.heads}
        assert own.heads.start * head_size % 32 == 0


@pytest.mark.parametrize("size", range(1, 6))
@pytest.mark.parametrize(("key_heads", "value_heads", "head_size"), [(16, 32, 128), (5, 10, 32), (6, 18, 16), (0, 0, 0)])
@pytest.mark.parametrize("tiled", [False, True])
def test_linear_heads_are_cut_where_whole_columns_begin(key_heads, value_heads, head_size, tiled, size):
    sizes = Sizes(**linear_sizes(key_heads, value_heads, head_size, tiled))
    parts = [split(sizes, rank, size).linear_key_heads for rank in range(size)]
    assert [head for one in parts for head in one] == list(range(key_heads))
    columns = head_size if tiled else sizes.linear_group * head_size
    assert all(one.start * columns % 32 == 0 or one.start == key_heads for one in parts)


def test_a_word_that_no_other_model_has():
    """Sizes, and how they are cut, are the architecture's: nothing here knows these words."""
    sizes = Sizes(latent=96, pipes=Cut(10, 4), valves=Shared(5, "pipes", 2))
    assert sizes.pipes == sizes["pipes"] == 10 and sizes.valves == 5 and "taps" not in sizes
    with pytest.raises(AttributeError, match="taps"):
        _ = sizes.taps
    cuts = [split(sizes, rank, 2) for rank in (0, 1)]
    assert [(one.pipes, one.valves) for one in cuts] == [(range(4), range(2)), (range(4, 10), range(2, 5))]
    assert "latent" not in cuts[0] and cuts[0].get("latent", range(96)) == range(96)
