"""bench/synthetic.py: random files at the shape of a real model, which numatp loads and runs."""

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

SMALL = {"layers": 2, "width": 256, "heads": 4, "kv_heads": 2, "head_size": 64, "ffn": 512, "vocab": 800}


@pytest.fixture(autouse=True)
def small_models(monkeypatch):
    """The named models, but small."""
    for name, sizes in synthetic.MODELS.items():
        more = {"experts": 4, "used": 2, "expert_ffn": 256} if "experts" in sizes else {}
        more |= {"full_every": 2, "linear_keys": 2, "linear_values": 4} if "full_every" in sizes else {}
        monkeypatch.setitem(synthetic.MODELS, name, sizes | SMALL | more)


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
    [("llama-3.2-1b", "Q4_0"), ("llama-3.1-8b", "Q4_K_M"), ("qwen3-8b", "Q8_0"), ("qwen3-30b-a3b", "Q4_K"), ("qwen3.5-4b", "Q4_0")],
)
def test_a_file_loads_and_runs(tmp_path, name, kind):
    synthetic.write(tmp_path / "model.gguf", name, kind)
    result = numatp("bench", "-m", tmp_path / "model.gguf", "-p", "20", "-n", "4", "-r", "1", "--roofline", "0", "-o", "json")
    assert result.returncode == 0, result.stderr
    assert [row["n_prompt"] for row in json.loads(result.stdout)] == [20, 0]


def test_llama_cpps_mixes(tmp_path):
    synthetic.write(tmp_path / "model.gguf", "llama-3.2-1b", "Q4_0")
    assert {t.type for t in read_gguf(tmp_path / "model.gguf").tensors.values() if len(t.shape) > 1} == {"Q4_0", "Q6_K"}
    synthetic.write(tmp_path / "pure.gguf", "llama-3.2-1b", "Q4_0", pure=True)
    assert {t.type for t in read_gguf(tmp_path / "pure.gguf").tensors.values() if len(t.shape) > 1} == {"Q4_0"}
    synthetic.write(tmp_path / "mixed.gguf", "llama-3.1-8b", "Q4_K_M", layers=16)
    tensors = read_gguf(tmp_path / "mixed.gguf").tensors
    assert tensors["output.weight"].type == "Q6_K" and tensors["token_embd.weight"].type == "Q4_K"
    better = [i for i in range(16) if tensors[f"blk.{i}.ffn_down.weight"].type == "Q6_K"]
    assert better == [0, 1, 4, 7, 10, 13, 14, 15]


def test_its_vocabulary_spells_any_text(tmp_path):
    synthetic.write(tmp_path / "model.gguf", "llama-3.2-1b", "Q4_0")
    tokenizer = Tokenizer.from_gguf(read_gguf(tmp_path / "model.gguf"))
    text = "Any text: äöü 東京\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == SMALL["vocab"]


def test_unknown_names_in_one_line(tmp_path):
    result = run(sys.executable, TESTS.parent / "bench/synthetic.py", "llama-9", "Q4_0", tmp_path / "model.gguf")
    assert result.returncode == 2
    assert "invalid choice: 'llama-9'" in result.stderr
