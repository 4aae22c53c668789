"""`numatp inspect`: what it says of models that numatp computes, and exactly why of others."""

import json

import gguf
import pytest
from support.models import folders, tiny
from support.warm import numatp

from numatp.cli.inspect import describe, lines_of
from numatp.errors import UserError


def test_a_model_that_works(model_path):
    result = numatp("inspect", model_path, "-o", "json")
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["supported"] and not found["reason"]
    assert found["architecture"] == "llama" and found["sizes"]["layers"] == 30
    reader = gguf.GGUFReader(model_path)
    assert [(t["name"], t["type"], t["shape"], t["bytes"]) for t in found["tensors"]] == [
        (t.name, t.tensor_type.name, t.shape.tolist()[::-1], t.n_bytes) for t in reader.tensors
    ]
    weights, num_bytes = sum(int(t.n_elements) for t in reader.tensors), sum(int(t.n_bytes) for t in reader.tensors)
    assert (found["weights"], found["weight_bytes"]) == (weights, num_bytes)
    assert found["bits_per_weight"] == pytest.approx(8 * num_bytes / weights)
    assert found["kernels"]["one row"]["attention_f16.attention"] == 30
    assert found["tokenizer"]["tokens"] == 49152 and "im_start" in found["tokenizer"]["chat_template"]
    assert any("Q4_1" in line and "blk.7.attn_q.weight" in line for line in lines_of(found))


def test_a_folder(tmp_path):
    folders.write(tmp_path / "folder", *folders.llama(tiny.write(tmp_path / "tiny.gguf")))
    found = describe(tmp_path / "folder")
    assert found["architecture"] == "llama" and found["sizes"]["layers"] == tiny.SIZES["layers"]


@pytest.mark.parametrize(("options", "reason"), [
    ({"architecture": "falcon"}, r"architecture 'falcon' is not supported; supported: "),
    ({"matrix_type": "Q1_0", "sizes": tiny.SUPER_SIZES}, r"tensor 'token_embd.weight' has type Q1_0, which numatp cannot"),
    ({"leave_out": ("blk.1.attn_k",)}, r"tensor 'blk.1.attn_k.weight' is missing"),
    ({"sizes": tiny.SIZES | {"head_size": 24}}, r"multiples of 16"),
    ({}, r"metadata lacks 'tokenizer.ggml.model'"),
])  # fmt: skip
def test_exactly_why_not(tmp_path, options, reason):
    tiny.write(tmp_path / "a.gguf", **options)
    found = describe(tmp_path / "a.gguf")
    assert not found["supported"] and reason in found["reason"]
    assert found["tensors"]  # what is in the file is shown all the same
    assert any(line.startswith("supported     no: ") and reason in line for line in lines_of(found))


def test_no_model(tmp_path):
    (tmp_path / "a.gguf").write_text("not a model")
    with pytest.raises(UserError, match="not a GGUF file"):
        describe(tmp_path / "a.gguf")
