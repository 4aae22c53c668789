"""--check-ranks: ranks that do not hold the same bits where they must are found out, and those that do are left alone."""

import sys

import pytest
from support.commands import SCRIPTS, mpirun
from support.models import tiny, tiny_cohere2, tiny_qwen3moe, tiny_qwen3next
from support.warm import numatp

MODELS = {"llama": tiny, "cohere2": tiny_cohere2, "qwen3moe": tiny_qwen3moe, "qwen3next": tiny_qwen3next}


def found(tmp_path, model, fault, ranks):
    MODELS[model].write(tmp_path / "tiny.gguf", "Q4_1")
    result = mpirun(ranks, sys.executable, SCRIPTS / "run_check.py", tmp_path / "tiny.gguf", fault)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("model", MODELS)
def test_ranks_hold_the_same_bits(tmp_path, model):
    layers = MODELS[model].SIZES["layers"]
    exchanges = 1 + layers * (1 if model == "cohere2" else 2)
    assert found(tmp_path, model, "nothing", 3) == f"alike: {exchanges + layers * (model == 'qwen3moe')} digests\n"


def test_another_residual_is_found(tmp_path):
    line = "rank 1 holds other bits than rank 0 in the residual after exchange 2 of program 'many rows'\n"
    assert found(tmp_path, "llama", "lost_residual", 2) == line


def test_another_choice_of_experts_is_found(tmp_path):
    line = "rank 1 holds other bits than rank 0 in the choice of experts after exchange 4 of program 'many rows'\n"
    assert found(tmp_path, "qwen3moe", "other_experts", 2) == line


def test_the_command_checks(model_path):
    prompt = ("-p", "The capital of France is", "-n", 8, "--temp", 0)
    result = numatp("generate", "-m", model_path, *prompt, "--ranks", 3, "--check-ranks")
    assert result.returncode == 0 and result.stdout.startswith(" Paris"), result.stderr
