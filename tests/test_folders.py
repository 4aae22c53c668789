"""Models from Hugging Face folders."""

import folders
import numpy as np
import pytest
import test_model
import tiny
from test_sequences import ALONE, MODELS, SEQUENCES, check, run_plan


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_folders_agree_with_naive(tmp_path, model, ranks):
    tensors = MODELS[model][0].write(tmp_path / "tiny.gguf")
    folder = folders.write(tmp_path / "folder", *folders.FOLDERS[model](tensors), shards=3)
    got, _ = run_plan(folder, tmp_path, ranks, ALONE, SEQUENCES[:1])
    check(model, got, SEQUENCES[:1], tensors)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_llama_agrees_with_naive(tmp_path, ranks):
    tensors = tiny.write(tmp_path / "tiny.gguf", tied=ranks == 2)
    folder = folders.write(tmp_path / "folder", *folders.llama(tensors))
    got = test_model.engine_logits(folder, tmp_path, ranks)
    assert test_model.error(got, test_model.expected(tensors)) < test_model.F16_ROUNDING


def test_sixteen_bits(tmp_path):
    exact = tiny.write(tmp_path / "tiny.gguf", "BF16")
    config, tensors = folders.llama(exact)
    for kept in (folders.bf16, lambda values: values.astype(np.float16)):
        rounded = {name: kept(values) if values.ndim > 1 else values for name, values in tensors.items()}
        got = test_model.engine_logits(folders.write(tmp_path / "folder", config, rounded), tmp_path, 2)
        assert test_model.error(got, test_model.expected(exact)) < test_model.F16_ROUNDING
