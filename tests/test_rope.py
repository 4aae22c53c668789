"""Frequencies of rotary embedding as transformers computes them for released models (tests/data/make_golden.py)."""

import json

import gguf
import numpy as np
import pytest
from support.models.golden import GOLDEN

from numatp.files.gguf import read_gguf
from numatp.models.rope import llama3_factors, plain, read_rope

RECORDED = json.loads((GOLDEN / "ropes.json").read_text())
# transformers computes in float32: a logarithm of a base, an exponential of it, and the quotients of the ramp.
ROUNDING = 16 * np.finfo(np.float32).eps


@pytest.mark.parametrize("name", [name for name, recorded in RECORDED.items() if recorded["rope_type"] != "llama3"])
def test_scaling_by_metadata(tmp_path, name):
    recorded = RECORDED[name]
    writer = gguf.GGUFWriter(str(tmp_path / "tiny.gguf"), "qwen2")
    writer.add_context_length(recorded["context"])
    writer.add_rope_freq_base(recorded["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType(recorded["rope_type"]))
    writer.add_rope_scaling_factor(recorded["factor"])
    if "original_max_position_embeddings" in recorded:
        writer.add_rope_scaling_orig_ctx_len(recorded["original_max_position_embeddings"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    rope = read_rope(read_gguf(tmp_path / "tiny.gguf"), recorded["head_size"], truncate=recorded.get("truncate", True))
    wanted = np.array(recorded["frequencies"])
    assert np.abs(rope.frequencies / wanted - 1).max() < ROUNDING
    assert rope.scale == pytest.approx(recorded["scale"], rel=1e-7)


@pytest.mark.parametrize("name", [name for name, recorded in RECORDED.items() if recorded["rope_type"] == "llama3"])
def test_llama3_scaling(name):
    recorded = RECORDED[name]
    frequencies = plain(recorded["rope_theta"], recorded["head_size"])
    low, high, trained = (recorded[key] for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    got = frequencies / llama3_factors(frequencies, recorded["factor"], low, high, trained)
    assert np.abs(got / np.array(recorded["frequencies"]) - 1).max() < ROUNDING


def test_llama3_scaling_is_the_tensor_that_converters_write():
    info = read_gguf(GOLDEN / "llama.gguf").tensors["rope_freqs.weight"]
    written = np.frombuffer(info.path.read_bytes()[info.offset : info.offset + info.num_bytes], np.float32)
    assert len(set(written.tolist())) == 3  # the smallest, the largest, and one between
    assert np.abs(llama3_factors(plain(1000.0, 16), 8.0, 1.0, 4.0, 64) / written - 1).max() < ROUNDING
