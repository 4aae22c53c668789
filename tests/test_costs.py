"""What numatp promises to spend: bytes read and held per rank, Python per token, MPI only before the first Step."""

import json
import os
import sys

import pytest
from support.commands import SCRIPTS, mpirun, run
from support.models import tiny

MB = 1 << 20
# Large enough that what else a start reads (kernels, libraries) weighs little.
SIZES = tiny.SIZES | {"width": 1024, "heads": 16, "kv_heads": 4, "head_size": 64, "ffn": 4096, "vocab": 8192, "layers": 4}


def costs(path, case, ranks, prefix=()):
    command = [*prefix, sys.executable, SCRIPTS / "run_costs.py", path, case]
    result = mpirun(ranks, *command) if ranks > 1 else run(*command)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "model.gguf"
    tiny.write(path, "F16", sizes=SIZES)
    with open(path) as file:
        os.fsync(file.fileno())  # or its pages could not leave memory
    return path


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_rank_reads_and_holds_its_slice(large, ranks):
    found = costs(large, "memory", ranks)
    assert len(found) == ranks
    # Whole rows are read of matrices that are cut by columns: attn_output and ffn_down.
    by_columns = 2 * SIZES["layers"] * SIZES["width"] * (SIZES["heads"] * SIZES["head_size"] + SIZES["ffn"])
    for rank in found:
        assert rank["read"] <= 1.1 * (rank["weights"] + by_columns * (ranks - 1) / ranks)
        assert rank["peak"] <= rank["weights"] + rank["cache"] + 150 * MB
        assert rank["mpi_ended"] == (ranks > 1)
    # Twice are stored only the norms, and keys and values of a head that two ranks need.
    assert sum(rank["weights"] for rank in found) <= 1.02 * large.stat().st_size


@pytest.mark.parametrize("ranks", [2, 3])
def test_smollm2_in_parts_is_hardly_larger(model_path, ranks):
    found = costs(model_path, "memory", ranks)
    assert sum(rank["weights"] for rank in found) <= 1.02 * model_path.stat().st_size
    assert all(rank["peak"] <= rank["weights"] + rank["cache"] + 150 * MB for rank in found)


def test_weights_and_caches_lie_on_huge_pages_of_the_node(large):
    (found,) = costs(large, "arenas", 1)
    for arena in ("weights", "caches"):
        assert found[arena] == {"huge": True, "policy": "bind:0"}
    assert found["notes"] == [] and "100.0 %" in found["pages"]


def test_a_policy_from_outside_is_kept(large):
    (found,) = costs(large, "arenas", 1, [sys.executable, SCRIPTS / "policy.py", "interleave", 0])
    for arena in ("weights", "caches"):
        assert found[arena]["policy"] == "interleave:0"
    assert found["notes"] == ["the memory policy interleave:0 was set from outside (numactl?) and is kept"]


def test_the_file_leaves_memory_where_that_is_short(large):
    assert costs(large, "arenas", 1)[0]["cached"] > 0.99
    # What the kernel reads ahead comes after we have dropped it.
    assert costs(large, "arenas_where_memory_is_short", 1)[0]["cached"] < 0.25


def test_python_per_token_does_not_depend_on_layers(tmp_path):
    found = {}
    for layers in (2, 30):
        path = tmp_path / f"{layers}.gguf"
        tiny.write(path, sizes=tiny.SIZES | {"layers": layers})
        found[layers] = costs(path, "calls", 1)[0]["calls"]
    assert found[2] == found[30] and 0 < found[2] < 200
