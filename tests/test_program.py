"""Barriers: enough of them, and not one too many."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from support.models import tiny, tiny_cohere2, tiny_qwen3moe, tiny_qwen3next
from support.models.golden import GOLDEN
from support.warm import run_script

from numatp import quants
from numatp.advice.inspect import support_of
from numatp.program.builder import Op, Program
from numatp.program.layout import lay_out
from numatp.program.ops import Ops
from numatp.program.recorder import Site
from numatp.program.step import StepShape, StepWindow
from numatp.program.values import PRIVATE, Access, Buffer, Overwritten, Pointer, Value
from numatp.weights.matrix import Matrix, Vector

MODELS = {"llama": tiny, "cohere2": tiny_cohere2, "qwen3moe": tiny_qwen3moe, "qwen3next": tiny_qwen3next}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("matrix_type", ["Q4_1", "F32"])
@pytest.mark.parametrize(("program", "rows"), [("one row", 1), ("many rows", 5), ("scores", 5)])
def test_each_barrier_is_needed_and_all_are_enough(tmp_path, rows, matrix_type, program, model):
    MODELS[model].write(tmp_path / "tiny.gguf", matrix_type)
    result = run_script("interleave", tmp_path / "tiny.gguf", rows, program)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["any_order"]
    assert seen["barriers"] > 10
    if model != "qwen3moe":  # which threads have work on experts depends on the rows: a barrier may be unneeded by chance
        assert seen["unneeded"] == []
    # One to hand out the embedding; a layer needs two, or one where attention and feed-forward stand side by side.
    assert seen["exchanges"] == 1 + MODELS[model].SIZES["layers"] * (1 if model == "cohere2" else 2)


@pytest.mark.parametrize("model", [
    "command-r-plus", "gemma2", "gemma3", "gemma4", "gpt-oss", "granitemoe", "mistral3", "qwen2", "qwen2moe", "qwen35",
    "minimax-m2", "dots1", "deepseek2-lite", "glm-dsa", "cohere2moe", "mimo2", "llama4", "gemma4-e2b",
    "deepseek4", "glm5-next",
])  # fmt: skip
@pytest.mark.parametrize(("program", "rows"), [("one row", 1), ("many rows", 5)])
def test_barriers_are_enough_for_other_words(rows, program, model):
    result = run_script("interleave", GOLDEN / f"{model}.gguf", rows, program)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["any_order"]
    # These models are so narrow that some threads have no columns: more barriers than these may be unneeded by chance.
    assert len(seen["unneeded"]) < seen["barriers"] / 2


def recorded(rows, record):
    """A program of some words on rows of 64 values, without an engine. record(p, x, matrix, norm); x (rows, 64)."""
    ops = Ops("some words", site(), rows)
    matrix = Matrix("blk.0.some.weight", quants.format_of("Q8_0", ""), 0, 64, 64)
    record(ops, ops.embed(replace(matrix, name="embedding"), 0), matrix, Vector("blk.0.norm.weight", 0, 64))
    return ops.finish()


def site():
    shape = StepShape(16, 1, 1, 1)
    nowhere = np.zeros(1, np.uint64)
    return Site(
        rank=0, seat=0, seats=1, threads=2, lanes=2, team=0, width=64,
        step=StepWindow(shape, np.zeros(shape.num_bytes // 8, np.int64)), partials=(nowhere, nowhere),
        logits=0, logit_stride=0, scores=0, tops=0,
    )  # fmt: skip


def test_a_rank_and_its_seat_are_two_numbers():
    """Rank 2 at seat 1 of a second host writes the partial of its seat and sums those of its host; rank 0 alone adds a bias."""
    partials = tuple(np.array([100, 200, 300], np.uint64) + parity for parity in (0, 50))

    def ops_of(rank, seat):
        ops = Ops("some words", replace(site(), rank=rank, seat=seat, seats=3, partials=partials), 16)
        matrix = Matrix("blk.0.some.weight", quants.format_of("Q8_0", ""), 0, 64, 64)
        x = ops.embed(replace(matrix, name="embedding"), 0)
        ops.add_product(x, x, matrix, Vector("bias", 0, 64))
        return {op.name: op for op in ops.finish().ops}

    here = ops_of(rank=2, seat=1)
    # What has no address yet is a thread's own scratch.
    assert {access.buffer.address for access in here["matmul_q8_0.matmul"].writes} - {None} == {200}
    assert {access.buffer.address for access in here["matmul_q8_0.embed"].writes} == {250}
    assert here["exchange.sum_partials"].record["ranks"][0] == 3
    assert "sync" in here
    assert [(rank, seat) for rank in (0, 1) for seat in (0, 1) if "bias.add_bias" in ops_of(rank, seat)] == [(0, 0), (0, 1)]


@pytest.mark.parametrize("rows", [1, 16])
def test_two_values_made_alike_are_two(rows):
    def record(p, x, matrix, norm):
        first, second = p.rms_norm(x, norm, 1e-5), p.rms_norm(x, norm, 1e-5)
        p.add_products(x, (first, matrix), (second, matrix))

    buffers = [life.buffer for life in recorded(rows, record).place().layout.lives if life.buffer.name == "blk.0.norm"]
    assert len({buffer.address for buffer in buffers}) == 2


@pytest.mark.parametrize("rows", [1, 16])
def test_a_rank_may_have_nothing_of_a_value(rows):
    def record(p, x, matrix, norm):
        p.add_product(x, p.silu_gate(p.matmul(x, replace(matrix, rows=0))), replace(matrix, columns=0))

    assert all(life.buffer.address for life in recorded(rows, record).place().layout.lives)


@pytest.mark.parametrize("rows", [1, 16])
def test_a_value_that_was_written_over_is_not_read(rows):
    def record(p, x, matrix, norm):
        p.add_product(x, p.rms_norm(x, norm, 1e-5), matrix)
        p.rms_norm(x, norm, 1e-5)

    with pytest.raises(Overwritten, match="'residual after exchange 1' is read after 'residual after exchange 2' was written"):
        recorded(rows, record)


def test_an_activation_of_a_value_that_was_written_over_is_not_read():
    def record(p, x, matrix, norm):
        h = p.matmul(x, matrix)
        p.matmul(h, matrix)
        p.add_bias(h, Vector("bias", 0, 64))
        p.matmul(h, matrix)

    with pytest.raises(Overwritten, match=r"'blk\.0\.some' is read after 'blk\.0\.some \+ bias' was written"):
        recorded(16, record)


def test_columns_of_a_value_meet_the_ops_that_wrote_them():
    """A part of a product conflicts with the op that wrote it, and not with that of the part beside it."""
    whole = Buffer("product", 512)
    whole.holds = product = Value("product", whole, 128, 0, (range(256), range(256, 512)), "columns")
    left, right, middle = product.columns(0, 64), product.columns(64, 64), product.columns(32, 64)
    written = [Access(whole, "columns", range(256)), Access(whole, "columns", range(256, 512))]
    assert [[mine.meets(its) for its in written] for mine in left.accesses() + right.accesses()] == [[True, False], [False, True]]
    assert left.accesses()[0].agrees(written[0])
    assert [mine.columns for mine in middle.accesses()] == [range(128, 256), range(256, 384)]
    assert not middle.accesses()[0].agrees(written[0])
    assert middle.columns(32, 32).pointer == Pointer(whole, 256)
    mine = Access(whole, PRIVATE, range(256))
    assert mine.agrees(Access(whole, PRIVATE)) and not mine.agrees(Access(whole, "columns", range(256)))
    whole.holds = None
    with pytest.raises(Overwritten, match=r"'product\[32:96\]' is read after 'nothing'"):
        middle.accesses()


def check_layout(program, threads):
    """No byte belongs to two buffers that threads may touch at the same time. Returns how many buffers share some bytes."""
    sections = np.cumsum([op.barrier for op in program.ops])
    by_section, by_op = {}, {}  # buffer: (first, last)
    for number, op in enumerate(program.ops):
        for buffer in {access.buffer for access in op.accesses if access.buffer.num_bytes}:
            by_section[buffer] = by_section.get(buffer, (sections[number],))[0], sections[number]
            by_op[buffer] = by_op.get(buffer, (number,))[0], number
    own = set(by_op) - {access.buffer for op in program.ops for access in op.accesses if access.division != PRIVATE}

    def copies(buffer):
        return [buffer.address + thread * buffer.copy_stride for thread in range(threads if buffer.per_thread else 1)]

    sharing = set()
    for one, other in itertools.combinations(by_op, 2):
        for (thread, mine), (their_thread, theirs) in itertools.product(enumerate(copies(one)), enumerate(copies(other))):
            if mine + one.num_bytes <= theirs or theirs + other.num_bytes <= mine:
                continue
            sharing |= {one, other}
            times = by_op if {one, other} <= own and thread == their_thread else by_section
            assert times[one][1] < times[other][0] or times[other][1] < times[one][0], (one.name, other.name)
    return len(sharing)


@pytest.mark.parametrize("model", sorted(path.stem for path in GOLDEN.glob("*.gguf")))
def test_values_that_live_at_the_same_time_share_no_memory(model):
    support = support_of(GOLDEN / f"{model}.gguf")
    assert not support.reason
    for program in support.programs:
        program.place()
        assert check_layout(program, 1) > 5
        # As much as if each kind of value of one layer had memory of its own, at most: layers take none of their own.
        assert program.activation_bytes < sum(
            {life.buffer.name.split(".", 2)[-1]: life.num_bytes for life in program.layout.lives}.values()
        )


def test_layouts_of_random_programs():
    rng = np.random.default_rng(5)
    for threads in (1, 2, 5):
        ops, alive = [], []
        for number in range(300):
            if rng.random() < 0.4:
                per_thread = rng.random() < 0.5
                alive.append(Buffer(f"b{number}", num_bytes=int(rng.integers(1, 4000)), per_thread=per_thread))
            alive = alive[-8:]
            chosen = [buffer for buffer in alive if rng.random() < 0.4]
            accesses = [Access(b, PRIVATE if b.per_thread and "7" not in b.name else None) for b in chosen]
            ops.append(Op("op", 0, np.zeros(1), accesses[:1], accesses[1:], barrier=rng.random() < 0.2))
        kept = next(buffer for op in ops for buffer in {access.buffer for access in op.accesses} if not buffer.per_thread)
        program = Program("random", ops, 0, layout=lay_out(ops, threads, [kept])).place()
        assert check_layout(program, threads) > 50
        lives = {life.buffer: life for life in program.layout.shared}
        end = lives[kept].start + lives[kept].num_bytes
        others = [life for life in lives.values() if life.buffer is not kept and life.first >= lives[kept].first]
        assert all(life.start >= end or life.start + life.num_bytes <= lives[kept].start for life in others)
