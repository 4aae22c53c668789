"""The naive forward passes against logits that llama.cpp computed (tests/data/make_tiny_logits.py), so that one misreading of an
architecture cannot pass both in them and in numatp.
"""

import json

import numpy as np
import pytest
from support.commands import TESTS
from support.logits import F16_ROUNDING, error
from support.models import tiny_cohere2, tiny_qwen3, tiny_qwen3moe, tiny_qwen3next
from support.reference import naive_cohere2, naive_qwen3, naive_qwen3moe, naive_qwen3next

RECORDED = json.loads((TESTS / "data/tiny_logits.json").read_text())


@pytest.mark.parametrize(
    ("name", "tiny", "naive"),
    [
        ("cohere2", tiny_cohere2, naive_cohere2),
        ("qwen3", tiny_qwen3, naive_qwen3),
        ("qwen3moe", tiny_qwen3moe, naive_qwen3moe),
        ("qwen3next", tiny_qwen3next, naive_qwen3next),
    ],
)
def test_naive_is_what_llama_cpp_computes(tmp_path, name, tiny, naive):
    tensors = tiny.write(tmp_path / "tiny.gguf")
    positions = [int(position) for position in RECORDED[name]]
    got = naive.logits(tiny.SIZES, tensors, RECORDED["tokens"])[positions]
    # llama.cpp rounds more than its cache to float16: attention's weights and queries too.
    assert error(got, np.array(list(RECORDED[name].values()))) < 4 * F16_ROUNDING
