"""Folders as other tools leave them: indexes that do not match, keys in two places, the text part of a multimodal model. What loads
loads as transformers loads it, and one line says what was left out; what contradicts itself is refused."""

import json

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.models import folders, golden_folders, quantized_folders, tiny
from support.models.opening import opened, refused

from numatp import models
from numatp.errors import UserError
from numatp.files.huggingface import Assembled
from numatp.files.safetensors import read_floats

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return folders.llama(tiny.write(tmp_path_factory.mktemp("llama") / "tiny.gguf"))


@pytest.fixture
def write(tmp_path, llama):
    """write(config changes, shards, leave out): a folder of the tiny Llama."""

    def make(config=None, shards=1, leave_out=()):
        tensors = {name: values for name, values in llama[1].items() if name not in leave_out}
        return folders.write(tmp_path / "folder", llama[0] | (config or {}), tensors, shards)

    return make


def change_index(folder, change):
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    change(places)
    index.write_text(json.dumps({"weight_map": places}))
    return folder


# ---------------------------------------------------------------- tied matrices and the index


def test_an_index_may_name_the_head_of_a_tied_model_that_is_not_stored(write):
    folder = write({"tie_word_embeddings": True}, shards=2, leave_out=[HEAD])
    change_index(folder, lambda places: places.update({HEAD: places[EMBEDDING]}))
    assert opened(folder)[1].tied
    refused(write({"tie_word_embeddings": False}, shards=2, leave_out=[HEAD]), f"'{HEAD}' is missing")
    change_index(folder, lambda places: places.update({HEAD: places[EMBEDDING]}))
    refused(folder, f"lacks tensor '{HEAD}'", "index.json")


def test_a_head_that_the_index_does_not_name_is_left_out_of_a_tied_model(write):
    folder = write({"tie_word_embeddings": True}, shards=2)
    file, spec = opened(change_index(folder, lambda places: places.pop(HEAD)))
    assert spec.tied and "lm_head.weight is left out" in file.notes[0]
    folder = write({"tie_word_embeddings": False}, shards=2)
    refused(change_index(folder, lambda places: places.pop(HEAD)), f"'{HEAD}' is not in", "index.json")


def test_a_tied_model_that_stores_another_head_uses_it(write, llama):
    """As transformers 5 does; a copy of the embedding is no other head."""
    folder = write({"tie_word_embeddings": True})
    file, spec = opened(folder)
    assert not spec.tied and f"{HEAD} is another: that is used" in file.notes[0]
    assert (read_floats(file.tensors["output.weight"]) == llama[1][HEAD]).all()
    folders.write(folder, llama[0] | {"tie_word_embeddings": True}, llama[1] | {HEAD: llama[1][EMBEDDING]})
    file, spec = opened(folder)
    assert spec.tied and not file.notes


def test_files_that_the_index_does_not_name_do_not_count(write, llama, tmp_path):
    folder = write(shards=2)
    (folders.write(tmp_path / "stray", {}, {HEAD: llama[1][HEAD] + 1}) / "model.safetensors").rename(folder / "model.safetensors")
    file, _ = opened(folder)
    assert (read_floats(file.tensors["output.weight"]) == llama[1][HEAD]).all() and not file.notes


def test_an_index_of_more_files_than_there_are_is_stale(write):
    folder = write(shards=2)
    change_index(folder, lambda places: places.update({HEAD: "model-00003-of-00004.safetensors"}))
    refused(folder, "model-00003-of-00004.safetensors", "is missing", "index.json")


@pytest.mark.parametrize("golden", ["qwen2", "cohere2"])
def test_stored_frequencies_are_no_weights(tmp_path, golden):
    """Older versions of transformers wrote them beside the weights."""
    folder = golden_folders.write(tmp_path / "folder", golden)
    names = opened(folder)[0].tensors.keys()
    tensors = {name: np.array(values) for name, values in load_file(folder / "model.safetensors").items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    assert opened(folders.write(folder, json.loads((folder / "config.json").read_text()), tensors))[0].tensors.keys() == names


# ---------------------------------------------------------------- keys of config.json


@pytest.mark.parametrize(("settings", "said"), [({}, 1), ({"version": "0.6"}, 1), ({"quant_method": None}, 1), (None, 0)])
def test_a_quantization_that_names_no_method_is_none(write, settings, said):
    file, _ = opened(write({"quantization_config": settings}))
    assert len(file.notes) == said and all("names no method" in note for note in file.notes)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    "config",
    [
        {"rope_scaling": None, "rope_parameters": YARN},
        {"rope_scaling": YARN, "rope_parameters": None},
        {"rope_scaling": YARN, "rope_parameters": YARN},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, "rope_parameters": YARN},
        {"rope_scaling": {}, "rope_parameters": YARN},
        {"rope_parameters": YARN, "rope_theta": 77.0},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 64},
        {"rope_parameters": {**YARN, "factor": None}, "max_position_embeddings": 256},
    ],
)
def test_a_scaling_counts_wherever_it_stands(write, config):
    spec = opened(write(config))[1]
    assert spec.rope.scale == pytest.approx(0.1 * np.log(4) + 1)
    assert (spec.rope.frequencies == opened(write({"rope_scaling": YARN}))[1].rope.frequencies).all()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rope_scaling": YARN, "rope_parameters": {"rope_type": "default"}}, ["differ in 'factor'"]),
        ({"rope_scaling": YARN, "rope_parameters": YARN | {"factor": 8.0}}, ["differ in 'factor'"]),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": YARN}, ["differ in"]),
        ({"rope_parameters": 7}, ["'rope_parameters' is 7, and should be an object or null"]),
        ({"rope_parameters": {"full_attention": YARN}}, ["each kind of layers a rotation of its own"]),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, ["'partial_rotary_factor'"]),
        ({"partial_rotary_factor": 0.5}, ["'partial_rotary_factor'"]),
        ({"rope_scaling": YARN | {"factor": float("nan")}}, ["'rope.scaling.factor' should be a finite number"]),
        ({"rope_scaling": YARN | {"attention_factor": -1.0}}, ["should be a number above 0"]),
    ],
)
def test_what_a_rotation_cannot_be(write, config, words):
    refused(write(config), "config.json", *words)


@pytest.mark.parametrize(("more", "scale"), [({"mscale": 1.0}, None), ({"mscale": 1.0, "mscale_all_dim": 0.5}, 1.0648)])
def test_the_scale_of_yarn(write, more, scale):
    """By https://arxiv.org/abs/2309.00071, and as DeepSeek writes it, where both of its keys are there."""
    assert opened(write({"rope_scaling": YARN | more}))[1].rope.scale == pytest.approx(scale or 0.1 * np.log(4) + 1, rel=1e-4)


def test_yarn_that_ends_between_pairs(write, tmp_path):
    """It is computed; a GGUF file of it would be read otherwise."""
    whole, parts = (opened(write({"rope_scaling": YARN | {"truncate": truncate}}))[0] for truncate in (True, False))
    assert whole.encoded_metadata()["llama.rope.scaling.factor"]
    frequencies = [models.find(file).read_spec(file).rope.frequencies for file in (whole, parts)]
    assert (frequencies[0] != frequencies[1]).any()
    with pytest.raises(UserError, match="which no GGUF file says"):
        parts.encoded_metadata()


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "MistralForCausalLM"])
def test_a_window_is_mistral_s(write, name):
    windows = [opened(write({"architectures": [name], **more}))[1].layers[0].window for more in ({"sliding_window": 7}, {})]
    assert windows == ([7, 4096] if name.startswith("Mistral") else [None, None])


@pytest.mark.parametrize(("counts", "heads"), [([9, 9], 9), ([9, 3], None), ([], None), ([0, 0], None)])
def test_a_list_of_one_number_per_layer(write, counts, heads):
    folder = write({"num_attention_heads": counts})
    if heads:
        assert opened(folder)[1].sizes.heads == heads
    else:
        refused(folder, "differs between layers" if any(counts) else "should be whole numbers from 1")


# ---------------------------------------------------------------- multimodal models


@pytest.mark.parametrize("prefixes", [("language_model.model.", "language_model."), ("model.language_model.", "")])
def test_the_text_part_of_a_multimodal_folder(tmp_path, prefixes):
    """Both spellings of its tensors; what the text_config leaves out is what transformers takes."""
    alone = golden_folders.write(tmp_path / "alone", "gemma3")
    wanted, spec = opened(alone)
    config = json.loads((alone / "config.json").read_text())
    architectures = config.pop("architectures"), config.pop("rms_norm_eps"), config.pop("model_type")
    assert architectures == (["Gemma3ForCausalLM"], 1e-6, "gemma3_text")
    layers, others = prefixes
    tensors = {"vision_tower.x.weight": np.ones((2, 2), np.float32), "model.multi_modal_projector.y": np.ones(3, np.float32)}
    for name, info in wanted.tensors.items():
        theirs = wanted.called(name)
        values = info.values() - 1 if isinstance(info, Assembled) else read_floats(info)
        tensors[layers + theirs.removeprefix("model.") if theirs.startswith("model.") else others + theirs] = values
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config | {"model_type": "gemma3_text"}}
    file, found = opened(folders.write(tmp_path / "folder", whole, tensors))
    assert (found.sizes, found.layers, found.epsilon, found.tied) == (spec.sizes, spec.layers, spec.epsilon, spec.tied)
    assert file.tensors.keys() == wanted.tensors.keys()
    assert file.notes == [
        "Gemma3ForConditionalGeneration: the text model alone is loaded, multi_modal_projector, vision_tower left out; "
        "images and sounds are not understood"
    ]
    refused(folders.write(tmp_path / "folder", whole | {"architectures": ["Gemma3Model"]}, tensors), "is not supported")
    strange = whole | {"text_config": config | {"model_type": "mllama_text_model"}}
    refused(folders.write(tmp_path / "folder", strange, tensors), "is not supported")


@pytest.mark.parametrize(("golden", "kind", "name"), [
    ("qwen2", "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    ("qwen2", "qwen2_5_vl_text", "Qwen2_5_VLForConditionalGeneration"),
    ("qwen3", "qwen3_vl_text", "Qwen3VLForConditionalGeneration"),
])  # fmt: skip
def test_texts_of_qwen_vl(tmp_path, golden, kind, name):
    """As released, with the text model's keys beside the others and names without a prefix; and as transformers 5 writes them. A
    text turns alike in all three dimensions of their rotation."""
    alone = golden_folders.write(tmp_path / "alone", golden)
    wanted, _ = opened(alone)
    config = json.loads((alone / "config.json").read_text())
    del config["rope_parameters"]
    rope = {"rope_theta": 1000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    whole = config | rope | {"architectures": [name], "model_type": kind, "vision_config": {"depth": 1}}
    prefix = "model."
    if kind.endswith("_text"):
        whole = {"architectures": [name], "text_config": config | rope | {"model_type": kind}, "vision_config": {"depth": 1}}
        prefix = "model.language_model."
    tensors = {"visual.x.weight": np.ones((2, 2), np.float32)}
    for ours, info in wanted.tensors.items():
        values = info.values() if isinstance(info, Assembled) else read_floats(info)
        tensors[wanted.called(ours).replace("model.", prefix)] = values
    file, spec = opened(folders.write(tmp_path / "folder", whole, tensors))
    assert file.tensors.keys() == wanted.tensors.keys() and "visual left out" in file.notes[0]
    assert spec.rope.scale == 1 and spec.rope.frequencies[1] == pytest.approx(1000 ** (-2 / 16))


@pytest.mark.parametrize("kind", ["deepseek_sparse_attention", "full_attention"])
def test_the_text_part_of_glm_5_3_flash(tmp_path, kind):
    """As released: a table for linear attention, latent attention by an older name, layers that predict further tokens."""
    alone = golden_folders.write(tmp_path / "alone", "glm5-next")
    wanted, spec = opened(alone)
    config, stored = json.loads((alone / "config.json").read_text()), load_file(alone / "model.safetensors")
    config["layer_types"] = [one.replace("indexed_attention", kind) for one in config["layer_types"]]
    config["linear_attn_config"] = {
        "num_heads": config.pop("linear_num_heads"), "head_dim": config.pop("linear_head_dim"),
        "short_conv_kernel_size": config.pop("linear_conv_kernel_dim"), "gate_lower_bound": config.pop("linear_lower_bound"),
        "kda_layers": [0], "full_attn_layers": [1, 2],
    }  # fmt: skip
    config |= {
        "mhc": True, "mla_use_nope": True, "index_kpool_compress": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "first_k_dense_replace": 1, "num_nextn_predict_layers": 1,
    }  # fmt: skip
    tensors = {name.replace("model.", "model.language_model.", 1): values for name, values in stored.items()}
    tensors |= {"model.visual.x.weight": np.ones((2, 2), np.float32)}
    tensors["model.language_model.layers.3.eh_proj.weight"] = np.ones((2, 2), np.float32)
    whole = {
        "architectures": ["Glm5NextForConditionalGeneration"], "model_type": "glm5_next", "text_config": config,
        "vision_config": {"depth": 1},
    }  # fmt: skip
    file, found = opened(folders.write(tmp_path / "folder", whole, tensors))
    assert repr(found) == repr(spec) and file.tensors.keys() == wanted.tensors.keys()
    assert "visual left out" in file.notes[0] and "1 tensors of layers that predict further tokens" in file.notes[1]
    refused(folders.write(tmp_path / "folder", whole | {"text_config": config | {"mhc": False}}, tensors), "'mhc' is False")


def test_kimi_k2_with_experts_of_4_bits_beside_images(tmp_path):
    """As K2-Thinking to K2.6 have them: experts in whole numbers with a BF16 scale for 32, all else as floats."""
    folder = golden_folders.write(tmp_path / "plain", "deepseek2")
    config, stored = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    rng, tensors, weights = np.random.default_rng(0), {}, {}
    for name, values in stored.items():
        if ".experts." in name:
            q, scales = (
                rng.integers(0, 16, values.shape),
                folders.bf16(rng.uniform(0.01, 0.02, (len(values), values.shape[1] // 32))),
            )
            stem = f"language_model.{name.removesuffix('weight')}"
            tensors |= {f"{stem}weight_packed": quantized_folders.words(q, 4), f"{stem}weight_scale": scales}
            tensors[f"{stem}weight_shape"] = np.array(values.shape, np.int32)
            scale = (scales.astype(np.uint32) << 16).view(np.float32).astype(np.float16).astype(np.float32)
            weights[name] = (q.astype(np.float32) - 8) * scale.repeat(32, 1)
        else:
            tensors[f"language_model.{name}"] = values
    tensors["vision_tower.patch_embed.weight"] = np.zeros((4, 4), np.float16)
    kimi = {
        "architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25",
        "text_config": config | {"model_type": "kimi_k2", "quantization_config": quantized_folders.compressed("pack-quantized")},
    }  # fmt: skip
    file, spec = opened(folders.write(tmp_path / "kimi", kimi, tensors))
    assert repr(spec) == repr(opened(folder)[1]).replace(str(folder), str(file.path.parent))
    assert any("images" in note for note in file.notes)
    for part in ("gate", "up", "down"):
        info = file.tensors[f"blk.1.ffn_{part}_exps.weight"]
        assert isinstance(info, Assembled) and (info.type, info.note) == ("Q4_0", "")
        for expert, piece in enumerate(info.pieces):
            raw = piece.cut(np.arange(piece.shape[0]), range(piece.shape[1]))(slice(None))
            own = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q4_0)
            assert (own == weights[f"model.layers.1.mlp.experts.{expert}.{part}_proj.weight"]).all()


def test_heads_of_deepseek_in_8_bits(tmp_path):
    """As DeepSeek-V3 and GLM-5 are released: the matrix of keys and values too is FP8, with a scale for each block."""
    folder = golden_folders.write(tmp_path / "plain", "deepseek2")
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    made, weights = quantized_folders.fp8(np.random.default_rng(0), 5 * (32 + 32), 64, (64, 32))
    stem = "model.layers.0.self_attn.kv_b_proj"
    tensors |= {f"{stem}.{suffix}": values for suffix, values in made.items()}
    settings = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [64, 32], "activation_scheme": "dynamic"}
    file, _ = opened(folders.write(tmp_path / "folder", config | {"quantization_config": settings}, tensors))
    both = weights.reshape(5, 64, 64).astype(np.float32)
    for part, wanted in (("k", both[:, :32].swapaxes(1, 2)), ("v", both[:, 32:])):
        info = file.tensors[f"blk.0.attn_{part}_b.weight"]
        assert isinstance(info, Assembled) and (info.type, info.note) == ("F32", "FP8")
        (piece,) = info.pieces
        order = np.arange(piece.shape[0]) if info.order is None else info.order
        found = piece.cut(order, range(piece.shape[1]))(slice(None)).view(np.float32)
        assert np.allclose(found.reshape(wanted.shape), wanted, rtol=1e-6, atol=0)
