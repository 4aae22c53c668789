"""--same-bits: logits and scores do not depend on the number of ranks, nor on threads, company and how a prompt is cut."""

import numpy as np
import pytest
from support.engines import run_plan
from support.models import tiny, tiny_cohere2, tiny_qwen3moe, tiny_qwen3next
from support.models.golden import GOLDEN
from support.warm import numatp

from numatp.weights.splits import SEGMENTS, Cut, Shared, Sizes, segments, split

# Heads, units of columns and keys that 2, 4 and 8 ranks share unevenly; quantised so that a rounding may fall the other way.
TINY = {"dense": tiny, "windows": tiny_cohere2, "experts": tiny_qwen3moe, "recurrent": tiny_qwen3next}
# Latent attention; norms over the heads of all ranks; biases of experts; a factor of what is added; experts that all share.
# Then an indexer's tokens, experts beside a parallel block, rows of each layer's own, chunks, values smaller than keys, entries,
# runs of tokens.
RECORDED = ("deepseek2", "minimax-m2", "gpt-oss", "granitemoe", "qwen2moe")
RECORDED_TOO = ("deepseek32", "cohere2moe", "gemma4-e2b", "llama4", "mimo2", "deepseek4", "glm5-next")
NEXT = 4  # tokens that follow a prompt one by one


def alone(*prompts):
    """Steps of [sequence, number of tokens]: one sequence after the other."""
    cut = [(sequence, [45] * (prompt // 45) + [prompt % 45] * (prompt % 45 > 0)) for sequence, prompt in enumerate(prompts)]
    return [[[sequence, count]] for sequence, counts in cut for count in [*counts, *[1] * NEXT]]


def together(first, second):
    """Both side by side, cut elsewhere."""
    return [[[0, 7]], [[0, first - 16], [1, 5]], [[1, second - 5]], [[0, 9], [1, 1]], *[[[0, 1], [1, 1]]] * (NEXT - 1), [[0, 1]]]


def same_bits(path, tmp_path, sequences, runs):
    """Asserts that all (ranks, threads, steps) give the bits of one thread of one rank."""

    def run(ranks, threads, steps):
        work = steps(*(len(tokens) - NEXT for tokens in sequences))
        return run_plan(path, tmp_path, ranks, work, sequences, threads, job={"same_bits": True})[0]

    wanted = run(1, 1, alone)
    for ranks, threads, steps in runs:
        got = run(ranks, threads, steps)
        common = wanted.keys() & got.keys()
        assert len(common) >= 2 * (1 + NEXT) + 2  # each prompt's last token, those that follow, and the scores
        differing = sorted(name for name in common if not np.array_equal(wanted[name], got[name]))
        assert not differing, f"{ranks} ranks with {threads} threads: {differing}"


@pytest.mark.parametrize("model", TINY)
def test_models_of_each_kind(tmp_path, model):
    TINY[model].write(tmp_path / "tiny.gguf", "Q4_1")
    sequences = [np.random.default_rng(i).integers(0, 200, length).tolist() for i, length in enumerate((60, 40))]
    runs = [(1, 3, together), (2, 1, together), (4, 1, alone), *([(8, 1, together)] if model == "dense" else [])]
    same_bits(tmp_path / "tiny.gguf", tmp_path, sequences, runs)


@pytest.mark.parametrize("name", RECORDED + RECORDED_TOO)
def test_recorded_models(tmp_path, name):
    recorded = np.load(GOLDEN / f"{name}.npz")
    sequences = [recorded[f"tokens{i}"].tolist()[:length] for i, length in enumerate((60, 40))]
    same_bits(GOLDEN / f"{name}.gguf", tmp_path, sequences, [(2, 2, together), *([(4, 1, together)] if name in RECORDED else [])])


def test_super_blocks_cut_inside(tmp_path):
    tiny.write(tmp_path / "tiny.gguf", "Q4_K", sizes=tiny.SUPER_SIZES)
    sequences = [np.random.default_rng(i).integers(0, 200, length).tolist() for i, length in enumerate((60, 40))]
    same_bits(tmp_path / "tiny.gguf", tmp_path, sequences, [(4, 1, together)])


@pytest.mark.parametrize("count", [0, 1, 5, 8, 9, 30, 64])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks_hold_whole_segments(count, ranks):
    sizes = Sizes(heads=Cut(count, 2), kv_heads=Shared(count, "heads", 3), vocab=Cut(16 * count, 16), width=count)
    all_segments = segments(sizes, 0, 1)
    assert len(all_segments) == SEGMENTS
    for rank in range(ranks):
        own, whole = segments(sizes, rank, ranks), split(sizes, rank, ranks)
        assert [*own] == [*all_segments[rank * SEGMENTS // ranks : (rank + 1) * SEGMENTS // ranks]]
        for word in ("heads", "vocab"):
            assert [i for segment in own for i in segment[word]] == [*whole[word]]


def test_what_cannot_be_promised_is_refused(tmp_path):
    tiny.write(tmp_path / "tiny.gguf")
    command = ("generate", "-m", tmp_path / "tiny.gguf", "-p", "a", "-n", 1, "--same-bits")
    for more, words in (
        (("--ranks", 3), "1, 2, 4 and 8 ranks, and this job has 3"),
        (("--ranks", 2, "-ts", "3,1"), "-ts gives them others"),
    ):
        result = numatp(*command, *more)
        assert result.returncode != 0 and result.stderr.splitlines()[-1].count(words) == 1, result.stderr
        assert "Traceback" not in result.stderr
