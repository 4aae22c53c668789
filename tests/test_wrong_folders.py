"""What is wrong with a Hugging Face folder is said in one line that names the file and the tensor, before anything is computed."""

import json
import struct
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.models import folders, golden_folders, opening, tiny, tiny_qwen3moe, tiny_qwen3next
from support.models.quantized_folders import LAYOUTS, autoround_settings, awq_settings, compressed, gptq_settings

from numatp import models
from numatp.errors import UserError
from numatp.files.safetensors import read_header
from numatp.weights.rules import cut
from numatp.weights.splits import split


def check(path):
    """All that an engine does before it loads, as one of two ranks."""
    file, model = models.open_model(path)
    spec = model.read_spec(file)
    return cut(file, model.rules(spec), spec.sizes, split(spec.sizes, 0, 2), "q8")


refused = partial(opening.refused, by=check)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return folders.llama(tiny.write(tmp_path_factory.mktemp("llama") / "tiny.gguf"))


@pytest.fixture
def write(tmp_path, llama):
    """write(config changes, tensors changes, shards): a folder of the tiny Llama; None takes away."""

    def make(config=None, tensors=None, shards=1):
        changed = [
            {k: v for k, v in (old | (new or {})).items() if v is not None}
            for old, new in zip(llama, (config, tensors), strict=True)
        ]
        return folders.write(tmp_path / "folder", *changed, shards)

    return make


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"


def test_a_folder_without_fault(write):
    slices, num_bytes = check(write({"rope_scaling": {"rope_type": "default"}}, shards=2))
    assert len(slices) == 3 + 9 * 2 and num_bytes


AUTOROUND = autoround_settings("auto_round:auto_gptq")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["T5Model"]}, ["architecture 'T5Model' is not supported", "the nearest names: ", "ForCausalLM"]),
        ({"architectures": "LlamaForCausalLM"}, ['"architectures" is']),
        ({"hidden_size": None}, ["lacks 'hidden_size' (a whole number)"]),
        ({"hidden_size": "96"}, ["'hidden_size' should be a whole number and is '96'"]),
        ({"num_hidden_layers": 0}, ["'num_hidden_layers' should be"]),
        ({"num_hidden_layers": 10**9}, ["'num_hidden_layers' should be a whole number from 1 to 21"]),
        ({"num_hidden_layers": 3}, ["'model.layers.2.input_layernorm.weight' is missing"]),
        ({"num_hidden_layers": 1}, ["'model.layers.1.input_layernorm.weight' is not part"]),
        ({"intermediate_size": 128}, ["gate_proj.weight' has shape (160, 96)", "needs (128, 96)"]),
        ({"rope_scaling": {"rope_type": "longrope"}}, ["'longrope', by which long texts", "numatp knows none, linear"]),
        ({"rope_scaling": [2.0]}, ["'rope_scaling' is [2.0], and should be an object or null"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["lacks 'rope.scaling.low_freq_factor'"]),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, ["scales its rotary embedding by 8 between factors 4 and 4"]),
        ({"rope_scaling": {"type": 7}}, ["'rope.scaling.type' should be a text and is 7"]),
        ({"hidden_act": "gelu"}, ["'hidden_act' is 'gelu', and numatp computes 'silu' only"]),
        ({"attention_bias": True}, ["'attention_bias' is True"]),
        ({"num_key_value_heads": 2}, ["9 heads cannot share 2 KV heads evenly"]),
        ({"tie_word_embeddings": "yes"}, ["'tie_word_embeddings' should be true or false"]),
        (
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            ["by method 'bitsandbytes', and numatp knows auto-round, awq, "],
        ),
        ({"quantization_config": 7}, ["is quantized by method None"]),
        ({"quantization_config": awq_settings(bits=3)}, ["its quantization has bits 3, and numatp knows 4"]),
        ({"quantization_config": awq_settings(version="gemv")}, ["version 'gemv'"]),
        ({"quantization_config": awq_settings(48)}, ["group_size 48, and numatp knows 32, 64, 128"]),
        ({"quantization_config": gptq_settings(bits=3)}, ["bits 3, and numatp knows 4, 8"]),
        ({"quantization_config": compressed("marlin-24")}, ["format 'marlin-24', and numatp knows 'pack-quantized'"]),
        ({"quantization_config": compressed("pack-quantized", num_bits=2)}, ["num_bits 2"]),
        ({"quantization_config": compressed("pack-quantized", strategy="tensor")}, ["strategy 'tensor'"]),
        (
            {"quantization_config": compressed("mxfp4-pack-quantized", type="float", group_size=16)},
            ["group_size 16, and numatp knows 32"],
        ),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": 128}}, ["weight_block_size 128"]),
        (
            {"quantization_config": {"quant_method": "fp8", "scale_fmt": "e5m0"}},
            ["scale_fmt 'e5m0', and numatp knows 'float', 'ue8m0'"],
        ),
        ({"quantization_config": AUTOROUND | {"bits": 2}}, ["bits 2, and numatp knows 4, 8"]),
        (
            {"quantization_config": AUTOROUND | {"packing_format": "itrex"}},
            ["packing_format 'itrex', and numatp knows 'auto_round:"],
        ),
        (
            {"quantization_config": AUTOROUND | {"extra_config": {"lm_head": {"bits": 8}}}},
            ["has bits 8 for lm_head, and 4 for others"],
        ),
        ({"quantization_config": {"quant_method": "../gptq"}}, ["by method '../gptq'"]),
    ],
)
def test_configs(write, config, words):
    refused(write(config), "config.json" if "shape" not in words[0] and "part" not in words[0] else "model", *words)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({UP: None}, [f"'{UP}' is missing"]),
        ({"lm_head.weight": None}, ["'lm_head.weight' is missing"]),
        ({"model.layers.0.self_attn.q_proj.bias": np.zeros(288, np.float32)}, ["q_proj.bias' is not part of this architecture"]),
        ({Q: np.zeros((288, 64), np.float32)}, [f"'{Q}' has shape (288, 64)", "needs (288, 96)"]),
        ({Q: np.zeros((288, 96), np.int8)}, [f"'{Q}' has type I8 and shape (288, 96), and should have F32"]),
        ({"model.norm.weight": np.zeros(96, np.int32)}, ["'model.norm.weight'", "I32"]),
        ({"x\n.weight": np.zeros(4, np.float32)}, ["is described as"]),
    ],
)
def test_tensors(write, tensors, words):
    refused(write(tensors=tensors), *words)


YARN = {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}
ODD = (None, 7, -1, "x", [], {}, [1], {"a": 1}, True, 1e308, 10**400, float("nan"), ["full_attention"], {"full_attention": 7}, [[]])


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3next", "gpt-oss"])
def test_odd_values_end_in_one_line(tmp_path, name):
    """Each key of config.json, and of the rotation: it loads, or is refused."""
    folder = golden_folders.write(tmp_path / "folder", name, floats=True)
    config, refusals = json.loads((folder / "config.json").read_text()), 0
    others = ("rope_scaling", "quantization_config", "text_config", "partial_rotary_factor", "tie_word_embeddings", "rope_theta")
    changes = [{key: value} for key in (*config, *others) for value in ODD]
    for key in (*YARN, "type", "rope_theta", "truncate", "attention_factor", "full_attention", "original_max_position_embeddings"):
        for value in ODD:
            layered = {"full_attention": YARN | {key: value}, "sliding_attention": {}}
            changes += [{"rope_parameters": YARN | {key: value}}, {"rope_parameters": layered, "rope_scaling": YARN}]
            changes.append({"rope_parameters": None, "rope_scaling": YARN | {key: value}})
    for change in changes:
        (folder / "config.json").write_text(json.dumps(config | change))
        try:
            check(folder)
            models.open_model(folder)[0].encoded_metadata()
        except UserError as error:
            refusals += 1
            assert str(error).startswith(str(folder)) and str(error).isprintable() and len(str(error)) < 400, change
    assert refusals > len(changes) / 3


def test_shards(write, tmp_path):
    folder, second = write(shards=2), "model-00002-of-00002.safetensors"
    index = folder / "model.safetensors.index.json"
    original = json.loads(index.read_text())
    places = original["weight_map"]

    def with_map(weight_map):
        index.write_text(json.dumps({"weight_map": weight_map}))
        return folder

    refused(with_map(places | {"ghost.weight": second}), second, "lacks tensor 'ghost.weight'", index.name)
    refused(with_map(places | {"ghost.weight": "../secret"}), index.name, "weight_map")
    refused(with_map({name: second for name in places}), second, "lacks tensor", index.name)
    one = next(name for name, file in places.items() if file == second)
    refused(with_map({name: file for name, file in places.items() if name != one}), second, one, "is not in", index.name)
    refused(with_map(7), index.name, "weight_map")
    index.write_text("{")
    refused(folder, index.name, "its JSON cannot be read")
    with_map(places)
    (folder / second).rename(tmp_path / "away")
    refused(folder, second, "is missing", index.name)
    index.unlink()
    refused(folder, "has neither model.safetensors nor")
    (folder / "config.json").unlink()
    refused(folder, "config.json", "cannot open")


@pytest.mark.parametrize("name", LAYOUTS)
def test_parts_of_quantized_weights(write, name):
    settings, make, _ = LAYOUTS[name]
    parts, _ = make(np.random.default_rng(0), 288, 384)
    config = {"quantization_config": settings, "num_hidden_layers": 2}
    stem = Q.removesuffix("weight")
    whole = {stem + suffix: part for suffix, part in parts.items()}
    refused(write(config, {Q: None} | whole), Q.removesuffix(".weight"), "has shape (288, 384)", "needs (288, 96)")
    for suffix, part in parts.items():
        if suffix in ("scales", "qzeros", "weight_scale", "weight_scale_inv", "weight_zero_point"):
            refused(write(config, {Q: None} | whole | {stem + suffix: None}), stem + suffix, "is missing")
        if suffix not in ("weight_shape", "qweight", "weight", "weight_packed", "blocks") and part.shape:
            cut = {stem + suffix: np.ascontiguousarray(part[:-1])}
            refused(write(config, {Q: None} | whole | cut), stem + suffix, "of shape")
        if suffix in ("scales", "weight_scale", "weight_scale_inv"):
            refused(write(config, {Q: None} | whole | {stem + suffix: part.astype(np.int32)}), stem + suffix, "I32")


def test_experts(tmp_path):
    config, tensors = folders.qwen3moe(tiny_qwen3moe.write(tmp_path / "tiny.gguf"))
    name = "model.layers.1.mlp.experts.7.up_proj.weight"
    lost = {key: value for key, value in tensors.items() if key != name}
    refused(folders.write(tmp_path / "folder", config, lost), name, "is missing")
    refused(folders.write(tmp_path / "folder", config, tensors | {name: tensors[name].astype(np.float16)}), name, "stored alike")
    refused(folders.write(tmp_path / "folder", config | {"num_experts": 9}, tensors), ".experts.10.", "is not part")
    refused(folders.write(tmp_path / "folder", config | {"num_experts": 12}, tensors), ".experts.11.", "is missing")


def test_orders_of_rows_are_bounded(tmp_path):
    config, tensors = folders.qwen3next(tiny_qwen3next.write(tmp_path / "tiny.gguf"))
    refused(folders.write(tmp_path / "folder", config | {"linear_num_key_heads": 1 << 30}, tensors), "config.json", "rows")
    refused(folders.write(tmp_path / "folder", config | {"linear_num_key_heads": 10}, tensors), "in_proj_qkvz", "has 960 rows")


def header(path, entries, length=None, data=b"\0" * 64):
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(dtype="F32", shape=(4,), begin=0, end=16):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("entries", "length", "words"),
    [
        ({}, 1 << 62, "it claims a header of"),
        ({}, 90_000_000, "the header needs bytes up to"),
        ({"x": entry(end=1 << 40)}, None, "has 1099511627776 bytes"),
        ({"x": entry(shape=(1 << 38,), end=1 << 40)}, None, "is described as"),
        ({"x": entry(shape=(1 << 30, 1 << 30, 1 << 30), end=16)}, None, "has 16 bytes"),
        ({"x": entry(shape=(32,), end=128)}, None, "tensor 'x' needs bytes up to"),
        ({"x": entry(shape=(-4,), end=-16)}, None, "is described as"),
        ({"x": entry(begin=16, end=0)}, None, "has -16 bytes"),
        ({"x": entry(shape=(4.0,))}, None, "is described as"),
        ({"x": entry(shape=(True, 4))}, None, "is described as"),
        ({"x": entry(dtype="F4")}, None, "has type 'F4'"),
        ({"x": entry(dtype=[])}, None, "has type []"),
        ({"x": 5}, None, "is described as 5"),
        ({"x": {}}, None, "is described as {}"),
        ({"x": entry(), "y": entry(begin=12, end=28)}, None, "overlap"),
        (b'{"x": {}, "x": {}}', None, "'x' is there twice"),
        (b"[" * 100_000, None, "its JSON cannot be read"),
        (b"\xff\xfe", None, "its JSON cannot be read"),
        (b'{"x": ' + b"9" * 5000 + b"}", None, "its JSON cannot be read"),
        (b"[]", None, "its JSON is no object"),
    ],
)
def test_hostile_headers(tmp_path, entries, length, words):
    path = header(tmp_path / "x.safetensors", entries, length)
    with pytest.raises(UserError) as caught:
        read_header(path)
    assert words in str(caught.value) and str(caught.value).startswith(f"{path}: ") and str(caught.value).isprintable()


def test_headers_are_read_as_the_safetensors_package_reads_them(tmp_path, llama):
    folders.write(tmp_path, {}, llama[1])
    infos, size = read_header(tmp_path / "model.safetensors")
    data, arrays = (tmp_path / "model.safetensors").read_bytes(), load_file(tmp_path / "model.safetensors")
    assert size == len(data) and infos.keys() == arrays.keys()
    for name, info in infos.items():
        assert info.shape == arrays[name].shape
        assert data[info.offset : info.offset + info.num_bytes] == arrays[name].tobytes()
    (tmp_path / "short").write_bytes(b"\0" * 7)
    with pytest.raises(UserError, match="7 bytes are no safetensors file"):
        read_header(tmp_path / "short")


def test_damaged_headers_end_in_one_line(tmp_path, llama):
    """Bytes of the header changed, cut out or repeated: an error, or tensors inside the file."""
    folders.write(tmp_path, {}, dict(list(llama[1].items())[:6]))
    original, rng = (tmp_path / "model.safetensors").read_bytes(), np.random.default_rng(0)
    (length,) = struct.unpack("<Q", original[:8])
    path, refusals = tmp_path / "damaged.safetensors", 0
    for _ in range(400):
        raw, first = bytearray(original[: 8 + length]), int(rng.integers(0, 8 + length))
        last = min(first + int(rng.integers(1, 20)), 8 + length)
        kind = rng.integers(3)
        raw[first:last] = (rng.bytes(last - first), b"", raw[first:last] * 2)[kind]
        if first >= 8:
            raw[:8] = struct.pack("<Q", len(raw) - 8)
        path.write_bytes(bytes(raw) + original[8 + length :])
        try:
            for info in read_header(path)[0].values():
                assert len(raw) <= info.offset and info.offset + info.num_bytes <= path.stat().st_size
        except UserError as error:
            refusals += 1
            assert str(error).startswith(f"{path}: ") and str(error).isprintable() and len(str(error)) < 400
    assert refusals > 100
