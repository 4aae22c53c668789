"""Layers that forget, and several sequences in one Step, against naive passes over one whole sequence after another."""

import json

import numpy as np
import pytest
from support.engines import ALONE, MODELS, SEQUENCES, check, run_plan
from support.logits import F16_ROUNDING, error
from support.models import tiny_cohere2
from support.warm import run_script

from numatp.engine.blocks import Blocks
from numatp.engine.cache import Pool
from numatp.errors import NumatpError
from numatp.kernels.layout import NO_WINDOW
from numatp.machine import isa

# Steps of [sequence, number of tokens], at most 48 tokens in all.
TOGETHER = [
    [[0, 45]], [[2, 1], [0, 40], [1, 7]], [[2, 30]], *[[[2, 9], [0, 20], [1, 8]]] * 4, *[[[0, 1], [2, 25], [1, 1]]] * 2,
    *[[[1, 1], [0, 1], [2, 1]]] * 3, *[[[0, 40], [2, 5]]] * 2, *[[[0, 1]]] * 20, *[[[2, 1]]] * 20,
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("ranks", "threads"), [(1, 3), (2, 1), (3, 2), (5, 1)])
def test_sequences_in_one_step_agree_with_naive(tmp_path, model, ranks, threads):
    tensors = MODELS[model][0].write(tmp_path / "tiny.gguf")
    got, _ = run_plan(tmp_path / "tiny.gguf", tmp_path, ranks, TOGETHER, SEQUENCES, threads)
    check(model, got, SEQUENCES, tensors)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("level", [level.name for level in isa.LEVELS[1:]])
def test_other_instruction_sets_agree_with_naive(tmp_path, model, level):
    try:
        isa.choose({"NUMATP_ISA": level})
    except NumatpError as error:
        pytest.skip(str(error))
    tensors = MODELS[model][0].write(tmp_path / "tiny.gguf", "Q4_1")
    got, _ = run_plan(tmp_path / "tiny.gguf", tmp_path, 2, TOGETHER, SEQUENCES, NUMATP_ISA=level)
    check(model, got, SEQUENCES, tensors, "Q4_1")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("matrix_type", ["F32", "Q4_1"])
def test_one_sequence_cut_anywhere_agrees_with_naive(tmp_path, model, matrix_type):
    tensors = MODELS[model][0].write(tmp_path / "tiny.gguf", matrix_type)
    got, _ = run_plan(tmp_path / "tiny.gguf", tmp_path, 2, ALONE, SEQUENCES[:1])
    check(model, got, SEQUENCES[:1], tensors, matrix_type)


@pytest.mark.parametrize("model", MODELS)
def test_a_sequence_alone_and_in_company(tmp_path, model):
    MODELS[model][0].write(tmp_path / "tiny.gguf")
    together, _ = run_plan(tmp_path / "tiny.gguf", tmp_path, 2, TOGETHER, SEQUENCES)
    for sequence, tokens in enumerate(SEQUENCES):
        steps = [[[0, count] for other, count in step if other == sequence] for step in TOGETHER]
        alone, _ = run_plan(tmp_path / "tiny.gguf", tmp_path, 2, [step for step in steps if step], [tokens])
        for name, row in alone.items():
            if "," in name:
                assert error(together[f"{sequence},{name.split(',')[1]}"][None], row[None]) < F16_ROUNDING


def test_a_window_uses_its_blocks_again(tmp_path):
    tiny_cohere2.write(tmp_path / "tiny.gguf")
    for steps, sequences in ((TOGETHER, SEQUENCES), (ALONE, SEQUENCES[:1])):
        _, counts = run_plan(tmp_path / "tiny.gguf", tmp_path, 1, steps, sequences)
        for window, taken, different in counts:
            assert taken == sum(-(-len(tokens) // 64) for tokens in sequences)
            assert different < taken if window == tiny_cohere2.SIZES["window"] else different == taken


@pytest.mark.parametrize("model", MODELS)
def test_requests_that_wait_for_room_get_the_answers_that_they_would_get_alone(tmp_path, model):
    """Two places and blocks for about two of five requests: places, blocks and states are used again and again."""
    tensors = MODELS[model][0].write(tmp_path / "tiny.gguf")
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 200, length).tolist() for length in (130, 20, 75, 100, 1)]
    plan = {"prompts": prompts, "max_tokens": 12, "context": 260, "at_once": 2, "cancelled": 1}
    result = run_script("run_requests", tmp_path / "tiny.gguf", 2, json.dumps(plan))
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout)
    assert 0 < len(answers[1]) < 12
    module, reference = MODELS[model]
    for number, prompt in enumerate(prompts):
        answer = answers[number]
        assert number == 1 or len(answer) == 12
        # Each token is the most probable one after those before it: so greedy decoding alone gives the same, in one pass.
        logits = reference.logits(module.SIZES, tensors, prompt + answer[:-1])
        assert logits[len(prompt) - 1 :].argmax(-1).tolist() == answer


def test_a_block_is_free_when_nobody_holds_it_any_more():
    blocks = Blocks([Pool(NO_WINDOW, (0,), 3)], max_rows=16)
    taken = [blocks.take(0) for _ in range(4)]
    assert sorted(taken[:3]) == [0, 1, 2] and taken[3] is None
    blocks.hold(0, taken[1])
    blocks.release(0, taken[:2])
    assert (blocks.take(0), blocks.take(0)) == (taken[0], None)
    blocks.release(0, [taken[1]])
    assert blocks.take(0) == taken[1]
