"""bench/synthetic.py: random files at the shape of a real model, which numatp loads and runs."""

import dataclasses
import json
import sys

import gguf
import numpy as np
import pytest
from support.commands import TESTS, run
from support.warm import numatp

sys.path.insert(0, str(TESTS.parent / "bench"))
import synthetic

from numatp.files.gguf import read_gguf
from numatp.text.tokenizer import Tokenizer

SMALL = {
    "embedding_length": 256, "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 64,
    "attention.value_length": 64, "feed_forward_length": 512,
}  # fmt: skip
SMALL_EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 256}
SMALL_DELTA = {"full_attention_interval": 2, "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 4 * 128}


def small(name, layers=2):
    """The shape of a known model, but small."""
    shape = synthetic.shape_of(name, layers)
    metadata = shape.metadata | SMALL
    metadata |= SMALL_EXPERTS if "expert_count" in metadata else {}
    metadata |= SMALL_DELTA if "full_attention_interval" in metadata else {}
    return dataclasses.replace(shape, vocab=800, metadata=metadata)


@pytest.mark.parametrize("kind", [*synthetic.SCALES, *synthetic.WRITTEN])
def test_values_have_the_size_that_weights_have(kind):
    rng = np.random.Generator(np.random.SFC64(1))
    blocks = synthetic.Blocks(kind, rng)
    values = gguf.quants.dequantize(blocks.make(1 << 16, 0.02), gguf.GGMLQuantizationType[kind])
    assert np.isfinite(values).all()
    assert values.std() == pytest.approx(0.02, rel=0.1)
    # Half a step of 4 bits, which have one value more below 0 than above, and four standard errors.
    assert abs(values.mean()) < 0.02 / np.sqrt((16**2 - 1) / 12) / 2 + 4 * 0.02 / np.sqrt(values.size)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama-3.2-1b", "Q4_0"),
        ("llama-3.1-8b", "Q4_K_M"),
        ("qwen3-8b", "Q8_0"),
        ("qwen3-30b-a3b", "Q4_K"),
        ("qwen3.5-4b", "Q4_0"),
        ("glm-4.6", "Q4_K_M"),
    ],
)
def test_a_file_loads_and_runs(tmp_path, name, kind):
    synthetic.write(tmp_path / "model.gguf", small(name), kind)
    result = numatp("bench", "-m", tmp_path / "model.gguf", "-p", "20", "-n", "4", "-r", "1", "--roofline", "0", "-o", "json")
    assert result.returncode == 0, result.stderr
    assert [row["n_prompt"] for row in json.loads(result.stdout)] == [20, 0]


def test_llama_cpps_mixes(tmp_path):
    synthetic.write(tmp_path / "model.gguf", small("llama-3.2-1b"), "Q4_0")
    assert {t.type for t in read_gguf(tmp_path / "model.gguf").tensors.values() if len(t.shape) > 1} == {"Q4_0", "Q6_K"}
    synthetic.write(tmp_path / "pure.gguf", small("llama-3.2-1b"), "Q4_0", pure=True)
    assert {t.type for t in read_gguf(tmp_path / "pure.gguf").tensors.values() if len(t.shape) > 1} == {"Q4_0"}
    synthetic.write(tmp_path / "mixed.gguf", small("llama-3.1-8b", layers=16), "Q4_K_M")
    tensors = read_gguf(tmp_path / "mixed.gguf").tensors
    assert tensors["output.weight"].type == "Q6_K" and tensors["token_embd.weight"].type == "Q4_K"
    better = [i for i in range(16) if tensors[f"blk.{i}.ffn_down.weight"].type == "Q6_K"]
    assert better == [0, 1, 4, 7, 10, 13, 14, 15]


def test_its_vocabulary_spells_any_text(tmp_path):
    synthetic.write(tmp_path / "model.gguf", small("llama-3.2-1b"), "Q4_0")
    tokenizer = Tokenizer.from_gguf(read_gguf(tmp_path / "model.gguf"))
    text = "Any text: äöü 東京\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == 800


def test_unknown_names_in_one_line(tmp_path):
    result = run(sys.executable, TESTS.parent / "bench/synthetic.py", "llama-9", "Q4_0", tmp_path / "model.gguf")
    assert result.returncode == 2
    assert "invalid choice: 'llama-9'" in result.stderr
