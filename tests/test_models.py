"""Metadata that would make an architecture compute nonsense or reach outside memory is refused in one line."""

import re
import shutil
from dataclasses import replace

import gguf
import numpy as np
import pytest
from support.models import tiny_cohere2, tiny_qwen3, tiny_qwen3next
from support.models.golden import FEATURES, GOLDEN

from numatp import models
from numatp.errors import UserError
from numatp.models.layers import Attention, Recurrent
from numatp.weights.rules import cut
from numatp.weights.splits import split

LONGROPE, YARN = gguf.RopeScalingType.LONGROPE, gguf.RopeScalingType.YARN


def spec_of(path):
    file, model = models.open_model(path)
    return model.read_spec(file)


def written(tmp_path, tiny, monkeypatch, more=(), **sizes):
    """A file with other metadata than the tiny model has, and as many tensors of no meaning as it has layers."""
    for name, value in sizes.items():
        monkeypatch.setitem(tiny.SIZES, name, value)
    writer = tiny.writer_of(tmp_path / "tiny.gguf")
    for method, value in more:
        getattr(writer, method)(value)
    for i in range(tiny.SIZES["layers"]):
        writer.add_tensor(f"tensor{i}", np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize(
    ("tiny", "sizes"),
    [
        (tiny_cohere2, {"head_size": 34, "width": 288}),  # turns more values than a head has
        (tiny_cohere2, {"window": 0}),
        (tiny_qwen3next, {"rotated": 64}),
        (tiny_qwen3next, {"rotated": 7}),
        (tiny_qwen3next, {"key_heads": 3}),
        (tiny_qwen3next, {"key_heads": 0}),
        (tiny_qwen3next, {"linear_head_size": 24}),
        (tiny_qwen3next, {"linear_head_size": 144}),
        (tiny_qwen3next, {"conv_width": 1}),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, monkeypatch, tiny, sizes):
    with pytest.raises(UserError) as refused:
        spec_of(written(tmp_path, tiny, monkeypatch, **sizes))
    assert "tiny.gguf" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("tiny", "more", "named"),
    [
        (tiny_qwen3next, [("add_nextn_predict_layers", 5)], "5 of its 5 layers predict further tokens"),
        (tiny_qwen3next, [("add_expert_count", 4)], "qwen3next.expert_used_count"),
        (tiny_qwen3, [("add_rope_scaling_type", LONGROPE)], "'qwen3.rope.scaling.type' is 'longrope'"),
        (tiny_qwen3, [("add_rope_scaling_type", YARN), ("add_rope_scaling_yarn_ext_factor", 0.5)], "yarn_ext_factor"),
        (tiny_qwen3, [("add_rope_scaling_type", YARN), ("add_rope_scaling_yarn_beta_fast", 0.5)], "0.5 and 1 turns"),
        (tiny_qwen3, [("add_rope_scaling_factor", 0.5)], "1 or more"),
    ],
)
def test_what_cannot_be_computed_is_refused(tmp_path, monkeypatch, tiny, more, named):
    with pytest.raises(UserError, match=re.escape(named)) as refused:
        spec_of(written(tmp_path, tiny, monkeypatch, more))
    assert str(refused.value).startswith(str(tmp_path / "tiny.gguf"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", FEATURES)
def test_tensors_that_are_missing_unknown_or_of_another_shape_are_named(name):
    """Of each architecture: every tensor in turn."""
    file, module = models.open_model(GOLDEN / f"{name}.gguf")
    tensors = dict(file.tensors)

    def refusal():
        spec = module.read_spec(file)
        with pytest.raises(UserError) as refused:
            cut(file, module.rules(spec), spec.sizes, split(spec.sizes, 0, 1))
        assert str(refused.value).startswith(str(file.path))
        assert "\n" not in str(refused.value)
        return str(refused.value)

    optional = {"output.weight", "rope_freqs.weight"} | {f"blk.0.attn_{part}_norm.weight" for part in "qk"}
    fused = name.startswith("phi3") or name == "bailingmoe2"
    if name.startswith("gemma4"):  # without values the keys are taken
        optional.add("blk.0.attn_v.weight")
    for tensor, info in tensors.items():
        if tensor.startswith("blk.0.") or not tensor.startswith("blk."):
            file.tensors = {other: value for other, value in tensors.items() if other != tensor}
            if tensor not in optional:
                # Of several matrices in one tensor the first is named.
                wanted = tensor.replace("gate_up", "gate")
                wanted = wanted.replace("attn_qkv", "attn_q") if fused else wanted
                assert f"'{wanted}' is missing" in refusal()
            file.tensors = tensors | {tensor: replace(info, shape=(*info.shape[:-1], info.shape[-1] + 1))}
            if tensor != "token_embd.weight":
                assert f"'{tensor}' has shape" in refusal()
    file.tensors = tensors | {"blk.0.attn_surprise.weight": next(iter(tensors.values()))}
    assert "'blk.0.attn_surprise.weight' is not part of" in refusal()


def test_what_nobody_reads_of_layers_that_borrow_is_left_out():
    """Released files have keys and values of those layers too."""
    file, module = models.open_model(GOLDEN / "gemma4-e2b.gguf")
    whole = module.read_spec(file)
    spare = [f"blk.{layer}.attn_{name}.weight" for layer in (3, 4) for name in ("k", "v", "k_norm")]
    tensors = dict(file.tensors)
    file.tensors |= {name: tensors[name.replace("blk.3", "blk.1").replace("blk.4", "blk.2")] for name in spare}
    spec = module.read_spec(file)
    assert (spec.layers, spec.from_keys, file.tensors) == (whole.layers, whole.from_keys, tensors)
    assert [getattr(layer, "lender", None) for layer in spec.layers] == [None, None, None, 1, 2]
    assert "6 tensors are left out" in file.notes[-1]


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("gemma4-e2b", "attention.shared_kv_layers", 4, "4 layers that read keys and values of others, and no such others"),
        ("gemma4-e2b", "embedding_length_per_layer_input", 48, "48 values of a token for each layer"),
        ("llama4", "attention.sliding_window", -1, "chunks of -1 tokens"),
        ("mimo2", "attention.value_length", 24, "head size 24"),
        ("bailingmoe3", "kda.gate_lower_bound", 1.0, "without a least value, or one of 1"),
        ("bailingmoe3", "kda.head_dim", 24, "heads of 24"),
        ("glm5-next", "attention.indexer.kpool", 3, "chooses 24 tokens in runs of 3"),
        ("glm5-next", "attention.indexer.kpool", 2, "chooses 24 tokens in runs of 2"),
        ("glm5-next", "attention.indexer.kpool_select_tail", False, "does not see the last tokens"),
        ("glm5-next", "attention.indexer.head_count", 6, "6 heads"),
        ("glm5-next", "attention.q_lora_rank", 0, "lacks 'glm5-next.attention.q_lora_rank'"),
        ("glm5-next", "rope.dimension_count", 16, "rotates keys"),
        ("glm5-next", "kda.gate_lower_bound", 1.0, "decays that grow"),
        ("glm5-next", "hyper_connection.count", 2, "a residual of 2 streams"),
        ("glm5-next", "swiglu_clamp_exp", 0.0, "no limit above 0"),
    ],
)
def test_what_newer_architectures_cannot_compute(name, key, value, message):
    file, module = models.open_model(GOLDEN / f"{name}.gguf")
    file.metadata.replace(f"{file.text('general.architecture')}.{key}", value)
    with pytest.raises(UserError, match=message):
        module.read_spec(file)


def test_kinds_of_layers(tmp_path, monkeypatch):
    size = tiny_cohere2.SIZES["head_size"]
    window, everything = Attention(size, size, tiny_cohere2.SIZES["window"]), Attention(size, size)
    cohere2 = written(tmp_path, tiny_cohere2, monkeypatch)
    assert spec_of(cohere2).layers == (window, window, window, everything, window)
    cohere2 = written(tmp_path, tiny_cohere2, monkeypatch, [("add_sliding_window_pattern", 2)])
    assert spec_of(cohere2).layers == (window, everything, window, everything, window)
    spec = spec_of(written(tmp_path, tiny_qwen3next, monkeypatch))
    assert [isinstance(layer, Recurrent) for layer in spec.layers] == [True, True, True, False, True]
    # Of 5 key heads of 32 values and twice as many value heads, as float32: conv inputs of their channels, 3 and those of 7 tokens
    # that can be taken back, their matrices, and of 8 tokens what each changes in each value head, its keys, and its decays.
    sizes = [spec.layers[0].state_bytes(split(spec.sizes, rank, 2)) for rank in (0, 1)]
    kept = 8 * (2 * 32 + 32 + 2)
    assert sizes == [4 * heads * (10 * 4 * 32 + 2 * 32 * 32 + kept) for heads in (2, 3)]


@pytest.mark.parametrize(("key", "place", "value", "named"), [
    ("hyper_connection.count", 0, 2, "a residual of 2 streams"), ("expert_gating_func", 0, 2, "routes by function 2"),
    ("hash_layer_count", 0, 4, "tables of experts for 4 of its 3 layers"), ("attention.indexer.head_count", 0, 6, "6 heads"),
    ("attention.output_group_count", 0, 3, "in 3 groups"), ("attention.compress_ratios", 2, 24, "entries of 24 tokens"),
    ("attention.compress_ratios", 0, 2, "entries of 2 tokens"), ("swiglu_clamp_exp", 1, 0.0, "no limit above 0"),
    ("rope.dimension_count", 0, 48, "48 values of them rotated"), ("attention.q_lora_rank", 0, 40, "rank of queries of 40"),
])  # fmt: skip
def test_what_deepseek4_cannot_compute_is_refused(tmp_path, key, place, value, named):
    shutil.copy(GOLDEN / "deepseek4.gguf", tmp_path / "a.gguf")
    field = gguf.GGUFReader(tmp_path / "a.gguf", "r+").fields[f"deepseek4.{key}"]
    field.parts[field.data[place]][0] = value
    with pytest.raises(UserError, match=named) as refused:
        spec_of(tmp_path / "a.gguf")
    assert str(refused.value).startswith(str(tmp_path / "a.gguf")) and "\n" not in str(refused.value)


def test_deepseek4_takes_no_guess_back():
    """Each token changes its state: with pieces of one token none is guessed (engine/sequence.py)."""
    spec = spec_of(GOLDEN / "deepseek4.gguf")
    assert (spec.piece, spec.rewinds) == (1, False)
