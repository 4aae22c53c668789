"""How threads divide the weights of a token, by arithmetic on recorded programs of machines of any size; and that bits stay."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from support.engines import run_plan
from support.models import tiny, tiny_qwen3moe

from numatp.engine.draft import read_header
from numatp.engine.job import Job
from numatp.engine.layout import lay_out
from numatp.engine.programs import ONE_ROW
from numatp.engine.rehearsal import rehearse
from numatp.engine.sections import sections_of
from numatp.models import shapes
from numatp.program import division
from numatp.program.division import Tiles

THREADS, RANKS = (16, 24, 32, 48, 56, 64, 96, 128), (1, 2, 4, 8)
LAYERS = 8  # all kinds that there are come in these
MOST = 1.05  # of the mean, that the busiest thread may read between barriers
# (ranks, threads per rank) of 1 and 2 ranks whose busiest threads read more: narrow models, of whose matrices many threads have
# less than a tile of 16 rows each.
TOO_FEW_TILES = {
    "glm-4.7-flash": {(2, 96), (2, 128)},
    "ling-mini-2.0": {(2, 96), (2, 128)},
    "smollm3-3b": {(2, 96)},
    "smollm2-135m": {*product((1, 2), (48, 56, 64, 96, 128)), (2, 24), (2, 32)},
    "llama-3.2-1b": {(2, 96), (2, 128)},
    "qwen3-0.6b": {(1, 96), (1, 128), (2, 48), (2, 56), (2, 96), (2, 128)},
    "gemma-4-e2b": {(1, 128), (2, 56), (2, 64), (2, 96), (2, 128)},
    "gemma-4-e4b": {(1, 128), (2, 56), (2, 96), (2, 128)},
}


def recorded(name, ranks, threads=8):
    """One row's program of the rank with most weights, of a model of this shape with fewer layers."""
    shape = shapes.SHAPES[name]
    metadata, count = dict(shape.metadata), shape.metadata["block_count"]
    if "attention.shared_kv_layers" not in metadata:
        metadata |= {key: value[:LAYERS] for key, value in metadata.items() if isinstance(value, list) and len(value) == count}
        metadata["block_count"] = LAYERS
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SHAPES, name, replace(shape, metadata=metadata))
        model, job = read_header(name), Job(name, context=4096)
    return program_of(model, job, ranks, threads)


def program_of(model, job, ranks, threads):
    """One row's, of the rank with most weights."""
    layouts = [lay_out(model, job, rank, list(range(ranks)), {}) for rank in range(ranks)]
    widest = max(range(ranks), key=lambda rank: layouts[rank].weight_bytes)
    sections = sections_of(model.spec, job, job.context, len(layouts[0].pools))
    return rehearse(ONE_ROW, model, layouts[widest], sections, widest, ranks, threads, threads)


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_threads_read_equally_much_between_barriers(name):
    """Of products that are divided together no thread reads more than the mean and one piece: a super-block of a tile, or a tile
    where a thread has less than one, as two threads would only take turns at its sums, which are one chain; but for what is not
    worth the while. Over a whole token that is MOST of the mean, with exceptions.
    """
    too_much = {}
    for ranks in RANKS:
        program = recorded(name, ranks)
        divided = sum(tiles.num_bytes * times for section, times in program.sections.items() for tiles in sum(section, ()))
        assert divided == pytest.approx(program.weight_bytes)
        # So few layers would have the head's division, which is even, count for too much.
        layers = replace(program, ops=[op for op in program.ops if not any(matrix.head for matrix in op.matrices)])
        for threads in THREADS:
            more = layers.busiest_bytes(threads) * threads / layers.weight_bytes
            if more > MOST and ranks <= 2:
                too_much[ranks, threads] = round(more, 2)
            for together in {together for section in layers.sections for together in section}:
                read, some = division.shares(together, threads), [tiles for tiles in together if tiles.count]
                cut = all(tiles.units and read.mean() >= tiles.tile_bytes for tiles in some)
                piece = max(tiles.tile_bytes * (min(tiles.grain / tiles.units, 1) if cut else 1) for tiles in some)
                assert read.max() <= read.mean() + piece + division.WORTH_DEALING, (ranks, threads, together)
    assert too_much.keys() == TOO_FEW_TILES.get(name, set()), too_much


SOME = (
    (Tiles(512, 512 * 36864, 128, 8),),
    (Tiles(320, 320 * 75808, 256, 8), Tiles(32, 32 * 107552, 256, 8)),
    (Tiles(97, 97 * 9312, 29, 8, 5), Tiles(33, 33 * 2048, 1, 1)),
    (Tiles(40, 40 * 75808, 256, 8), Tiles(8, 8 * 107552, 256, 8)),
    (Tiles(64, 64 * 4096), Tiles(0, 0, 4), Tiles(33, 33 * 65536)),
)  # fmt: skip


@pytest.mark.parametrize("together", SOME)
@pytest.mark.parametrize("threads", [2, 3, 16, 24, 96, 128])
def test_each_unit_has_one_thread(together, threads):
    dealt = division.deal(together, threads)
    read = division.shares(together, threads)
    assert read.sum() == pytest.approx(sum(tiles.num_bytes for tiles in together))
    if dealt is None:
        return
    for tiles, bounds in zip(together, dealt, strict=True):
        places = [tuple(place) for place in bounds.tolist()]
        assert places == sorted(places) and places[0] == (0, 0) and places[-1] == (tiles.count, 0)
        cut = bounds[bounds[:, 1] > 0]
        assert len({tile for tile, _ in cut.tolist()}) == len(cut)  # nobody has the middle of a tile
        assert ((cut[:, 1] + tiles.phase) % tiles.grain == 0).all() and (cut[:, 1] < max(tiles.units, 1)).all()
        if len(together) == 1:  # who has a tile's last unit has the tile, as if there were whole ones only
            owned = bounds[:, 0]
            assert (owned == tiles.count * np.arange(threads + 1) // threads).all()
        works, done = division.in_turn(tiles, bounds), np.zeros((tiles.count, tiles.units), int)
        for first, last, begin, end in np.concatenate(works).tolist():
            done[first:last, begin:end] += 1
        assert (done == 1).all()
        assert sum(division.work_bytes(tiles, work) for work in works) == pytest.approx(tiles.num_bytes if tiles.units else 0)


def test_what_costs_more_than_it_gives_is_not_dealt():
    even, small, large = (Tiles(96, 96 * 4096, 8), Tiles(97, 97 * 512, 8), Tiles(97, 97 * 65536, 64))
    assert [division.deal((tiles,), 96) is None for tiles in (even, small, large)] == [True, True, False]
    assert division.deal((large,), 1) is None
    assert division.shares((large,), 96).max() < 1.05 * large.num_bytes / 96
    whole = replace(large, units=0)
    assert division.shares((whole,), 96).max() == 2 * whole.num_bytes / 97


def test_thin_matrices_are_dealt_with_those_beside_them():
    """32 tiles of V beside 288 of Q and K, for 96 threads: 3.3 tiles for each, and 4 tiles and one of V were whole ones taken."""
    together = (Tiles(288, 288 * 75808, 256, 8), Tiles(32, 32 * 107552, 256, 8))
    mean = sum(tiles.num_bytes for tiles in together) / 96
    assert division.shares(together, 96).max() < 1.03 * mean
    assert sum(division.shares((tiles,), 96) for tiles in together).max() > 1.2 * mean


@pytest.mark.parametrize("threads", [2, 96])
def test_programs_deal_what_the_arithmetic_says(threads):
    """And count what each op reads."""
    program, few = recorded("qwen3-30b-a3b", 2, threads), recorded("qwen3-30b-a3b", 2, 2)
    assert program.sections == few.sections and program.weight_bytes == few.weight_bytes
    wanted = 0
    for section, times in program.sections.items():
        for together in section:
            if (dealt := division.deal(together, threads)) is not None:
                cut = any((bounds[:, 1] > 0).any() for bounds in dealt)
                wanted += times * len(together) * (3 if cut else 1)
    names = [op.name for op in program.ops]
    assert sum(name.startswith("dealt_") for name in names) == wanted
    assert names.count("hand_on") == names.count("take_over") > 0 or threads == 2
    assert bool(wanted) == (threads == 96)


def test_experts_are_dealt_by_active_bytes():
    """Of 128 experts the 8 that a row has, gate and up together."""
    program = recorded("qwen3-30b-a3b", 2)
    gates = [op for op in program.ops if op.matrices and op.matrices[0].name.endswith("ffn_gate_exps.weight")]
    assert len(gates) == LAYERS and all(op.tiles.num_bytes * 128 == op.matrices[0].num_bytes * 8 for op in gates)
    ups = [op for op in program.ops if op.matrices and op.matrices[0].name.endswith("ffn_up_exps.weight")]
    assert all(op.together for op in ups)
    assert division.shares((gates[0].tiles, ups[0].tiles), 96).max() < 1.001 * 2 * gates[0].tiles.num_bytes / 96


def write_super_blocks(path):
    tiny.write(path, "Q4_K", sizes=tiny.SUPER_SIZES | {"width": 768, "ffn": 1280})


@pytest.mark.parametrize("write", [write_super_blocks, tiny_qwen3moe.write])
def test_a_dealt_token_has_the_bits_of_one_thread(tmp_path, write):
    """On two ranks, which cut inside super-blocks; tokens one by one behind a prompt, and experts."""
    path = tmp_path / "tiny.gguf"
    write(path)
    names = [op.name for op in program_of(read_header(str(path)), Job(str(path), context=256), 2, 7).ops]
    assert any(name.startswith("dealt_") for name in names) and "take_over" in names
    sequence = np.random.default_rng(0).integers(0, 200, 12).tolist()
    one, seven = (run_plan(path, tmp_path, 2, [[[0, 7]], *[[[0, 1]]] * 5], [sequence], threads)[0] for threads in (1, 7))
    rows = [name for name in one if "," in name]  # scores are sums over threads' parts
    assert len(rows) == 6 and not [name for name in rows if not np.array_equal(one[name], seven[name])]
