"""Mistral's own folders: params.json and consolidated.safetensors give a Hugging Face folder's logits, or say what they lack."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy
from support.engines import run_plan
from support.logits import F16_ROUNDING, error
from support.models import folders, golden_folders
from support.models.golden import GOLDEN

from numatp import models
from numatp.errors import UserError
from numatp.weights.rules import cut
from numatp.weights.splits import split

PARAMS = {
    "dim": 32, "n_layers": 2, "head_dim": 16, "hidden_dim": 64, "n_heads": 5, "n_kv_heads": 5, "rope_theta": 1000.0,
    "norm_eps": 1e-6, "vocab_size": 100, "tied_embeddings": False, "max_position_embeddings": 512, "q_lora_rank": 32,
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "kv_lora_rank": 64, "v_head_dim": 32,
    "moe": {
        "expert_parallel": 1, "expert_model_parallel": 1, "route_every_n": 1, "first_k_dense_replace": 1, "num_experts": 5,
        "num_experts_per_tok": 2, "num_expert_groups": 1, "num_expert_groups_per_tok": 1, "routed_scale": 1.0,
        "expert_hidden_dim": 32, "num_shared_experts": 2,
    },
    "yarn": {"original_max_position_embeddings": 32, "factor": 4.0, "apply_scale": False, "beta": 32, "alpha": 1},
    "llama_4_scaling": {"original_max_position_embeddings": 32, "beta": 0.3},
    "vision_encoder": {"hidden_size": 64},
}  # fmt: skip
NAMES = {
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "self_attn.kv_a_layernorm": "attention.kv_a_norm",
    "self_attn.kv_a_proj_with_mqa": "attention.wkv_a_with_mqa", "self_attn.kv_b_proj": "attention.wkv_b",
    "self_attn.o_proj": "attention.wo", "self_attn.q_a_layernorm": "attention.q_a_norm", "self_attn.q_a_proj": "attention.wq_a",
    "self_attn.q_b_proj": "attention.wq_b", "mlp.gate.": "gate.", "mlp.shared_experts": "shared_experts", "mlp.experts": "experts",
    "mlp.": "feed_forward.", "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3",
}  # fmt: skip


def tensors_of(tmp_path):
    """The golden model's, by Mistral's names."""
    written = golden_folders.write(tmp_path / "theirs", "mistral4", floats=True)
    found = safetensors.numpy.load_file(written / "model.safetensors")
    place = "model.layers.1.mlp.experts"
    both, down = found.pop(f"{place}.gate_up_proj"), found.pop(f"{place}.down_proj")
    for expert in range(5):
        gate, up = np.split(both[expert], 2)
        named = {"gate_proj": gate, "up_proj": up, "down_proj": down[expert]}
        found |= {f"{place}.{expert}.{name}.weight": np.ascontiguousarray(values) for name, values in named.items()}
    for theirs, own in NAMES.items():
        found = {name.replace(theirs, own): values for name, values in found.items()}
    return found | {"vision_encoder.conv.weight": np.zeros((4, 4), np.float16)}


def write(folder, tensors, params=PARAMS):
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    safetensors.numpy.save_file(tensors, folder / "consolidated.safetensors")
    return folder


def logits(folder, tmp_path):
    recorded = np.load(GOLDEN / "mistral4.npz")
    tokens = recorded["tokens0"].tolist()
    got, _ = run_plan(folder, tmp_path, 1, [[[0, 40]], [[0, 40]], *[[[0, 1]]] * 10], [tokens], threads=1)
    positions = [int(key.split(",")[1]) for key in got if "," in key]
    return np.array([got[f"0,{p}"] for p in positions]), recorded["logits0"][positions].astype(np.float64)


def test_logits_are_those_of_a_hugging_face_folder(tmp_path):
    got, wanted = logits(write(tmp_path / "own", tensors_of(tmp_path)), tmp_path)
    assert error(got, wanted) < 2 * F16_ROUNDING


def test_an_index_names_several_files(tmp_path):
    tensors = tensors_of(tmp_path)
    folder = write(tmp_path / "own", tensors)
    names = sorted(tensors)
    (folder / "consolidated.safetensors").unlink()
    files = [f"consolidated-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, file in enumerate(files):
        safetensors.numpy.save_file({name: tensors[name] for name in names[i::2]}, folder / file)
    places = {name: files[i % 2] for i, name in enumerate(names)}
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    file, _ = models.open_model(folder)
    assert len(file.tensors) > 20 and any("images are not understood" in note for note in file.notes)
    del places[names[3]]
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match=re.escape("is not in 'consolidated.safetensors.index.json'")):
        models.open_model(folder)


def test_weights_of_8_bits(tmp_path):
    """A scale for each matrix."""
    tensors = tensors_of(tmp_path)
    codes = np.random.default_rng(0).integers(0, 120, (64, 32)).astype(np.uint8)
    name = "layers.0.feed_forward.w1"
    del tensors[f"{name}.weight"], tensors["vision_encoder.conv.weight"]
    tensors |= {f"{name}.weight": codes, f"{name}.qscale_weight": np.float32(0.01).reshape(()), f"{name}.qscale_act": np.float32(1)}
    folder = tmp_path / "own"
    folders.write(folder, {}, {key: np.asarray(values) for key, values in tensors.items()})
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    params = PARAMS | {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}
    (folder / "params.json").write_text(json.dumps(params))
    file, module = models.open_model(folder)
    spec = module.read_spec(file)
    slices, _ = cut(file, module.rules(spec), spec.sizes, split(spec.sizes, 0, 1))
    (gate,) = (piece.info for piece in slices if piece.name == "blk.0.ffn_gate.weight")
    from numatp.files.layouts.fp8 import E4M3

    read = gate.pieces[0].cut(np.arange(64), range(32))
    assert (read(slice(None)).view(np.float32).reshape(64, 32) == E4M3[codes] * np.float32(0.01)).all()


@pytest.mark.parametrize(("changes", "named"), [
    ({"moe": None}, "without latent attention or experts"), ({"kv_lora_rank": None}, "without latent attention or experts"),
    ({"rope_scaling": {"factor": 2}}, "'rope_scaling'"), ({"quantization": {"qformat_weight": "nvfp4"}}, "'fp8_e4m3'"),
    ({"moe": PARAMS["moe"] | {"route_every_n": 2}}, "'route_every_n': 2"), ({"moe": PARAMS["moe"] | {"bias": True}}, "'bias'"),
    ({"yarn": PARAMS["yarn"] | {"apply_scale": True}}, "'apply_scale'"), ({"activation": "gelu"}, "gelu"),
    ({"llama_4_scaling": {"original_max_position_embeddings": 64, "beta": 0.3}}, "'original_max_position_embeddings': 64"),
])  # fmt: skip
def test_what_numatp_does_not_compute_is_refused(tmp_path, changes, named):
    folder = write(tmp_path / "own", tensors_of(tmp_path), PARAMS | changes)
    with pytest.raises(UserError, match=re.escape(named)) as refused:
        file, module = models.open_model(folder)
        module.read_spec(file)
    assert str(refused.value).startswith(str(folder / "params.json")) and "\n" not in str(refused.value)
    # With a config.json beside it the folder is a Hugging Face one.
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="architectures"):
        models.open_model(folder)
