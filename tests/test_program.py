"""Barriers: enough of them, and not one too many."""

import json
import sys

import pytest
from support.commands import SCRIPTS, run
from support.models import tiny, tiny_cohere2, tiny_qwen3moe, tiny_qwen3next
from support.models.golden import GOLDEN

MODELS = {"llama": tiny, "cohere2": tiny_cohere2, "qwen3moe": tiny_qwen3moe, "qwen3next": tiny_qwen3next}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("matrix_type", ["Q4_1", "F32"])
@pytest.mark.parametrize(("program", "rows"), [("one row", 1), ("many rows", 5), ("scores", 5)])
def test_each_barrier_is_needed_and_all_are_enough(tmp_path, rows, matrix_type, program, model):
    MODELS[model].write(tmp_path / "tiny.gguf", matrix_type)
    result = run(sys.executable, SCRIPTS / "interleave.py", tmp_path / "tiny.gguf", rows, program)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["any_order"]
    assert seen["barriers"] > 10
    if model != "qwen3moe":  # which threads have work on experts depends on the rows: a barrier may be unneeded by chance
        assert seen["unneeded"] == []
    # One to hand out the embedding; a layer needs two, or one where attention and feed-forward stand side by side.
    assert seen["exchanges"] == 1 + MODELS[model].SIZES["layers"] * (1 if model == "cohere2" else 2)


@pytest.mark.parametrize("model", ["command-r-plus", "gemma3", "gpt-oss", "qwen2", "qwen2moe"])
@pytest.mark.parametrize(("program", "rows"), [("one row", 1), ("many rows", 5)])
def test_barriers_are_enough_for_other_words(rows, program, model):
    result = run(sys.executable, SCRIPTS / "interleave.py", GOLDEN / f"{model}.gguf", rows, program)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["any_order"]
    # These models are so narrow that some threads have no columns: more barriers than these may be unneeded by chance.
    assert len(seen["unneeded"]) < seen["barriers"] / 2
