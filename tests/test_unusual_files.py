"""GGUF files as newer converters and other tools leave them: counts for each layer, layers that predict further tokens, factors of
the rotation that are no factors."""

import gguf
import numpy as np
import pytest
from support.models.golden import GOLDEN
from support.models.opening import opened, refused

from numatp import models
from numatp.files.gguf import read_gguf
from numatp.files.safetensors import read_bytes
from numatp.models.layers import Recurrent
from numatp.weights.rules import cut
from numatp.weights.splits import split

U32 = gguf.GGUFValueType.UINT32


def rewritten(path, name, metadata=None, tensors=None):
    """A golden model with other metadata (key -> (value, type) or None) and tensors (name -> array or None)."""
    reader, writer = gguf.GGUFReader(str(GOLDEN / f"{name}.gguf")), gguf.GGUFWriter(str(path), name)
    kept = {field.name: (field.contents(), field.types[0]) for field in reader.fields.values() if field.name.startswith(f"{name}.")}
    for key, value in (kept | (metadata or {})).items():
        if value and isinstance(value[0], list):
            writer.add_array(key, value[0])
        elif value:
            writer.add_key_value(key, *value)
    for tensor, values in ({tensor.name: tensor.data for tensor in reader.tensors} | (tensors or {})).items():
        if values is not None:
            writer.add_tensor(tensor, np.array(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("key", ["attention.head_count", "attention.head_count_kv", "feed_forward_length"])
def test_counts_for_each_layer(tmp_path, key):
    wanted = opened(GOLDEN / "llama.gguf")[1].sizes
    count = read_gguf(GOLDEN / "llama.gguf").integer(f"llama.{key}")
    assert opened(rewritten(tmp_path / "same.gguf", "llama", {f"llama.{key}": ([count, count], None)}))[1].sizes == wanted
    other = rewritten(tmp_path / "other.gguf", "llama", {f"llama.{key}": ([count, count // 2], None)})
    refused(other, f"'llama.{key}' differs between layers, which numatp cannot compute")
    none = rewritten(tmp_path / "none.gguf", "llama", {f"llama.{key}": ([0, 0], None)})
    refused(none, f"'llama.{key}' should be whole numbers from 1 to")


def test_layers_that_predict_further_tokens_are_left_out(tmp_path):
    wanted, spec = opened(GOLDEN / "qwen3next.gguf")
    layers = len(spec.layers)
    recurrent = [isinstance(layer, Recurrent) for layer in spec.layers]
    changes = {
        "qwen3next.block_count": (layers + 1, U32), "qwen3next.nextn_predict_layers": (1, U32),
        "qwen3next.attention.recurrent_layers": ([*recurrent, False], None),
    }  # fmt: skip
    further = {f"blk.{layers}.nextn.eh_proj.weight": np.ones((4, 8), np.float32), f"blk.{layers}.attn_norm.weight": np.ones(4)}
    path = rewritten(tmp_path / "mtp.gguf", "qwen3next", changes, further)
    file, found = opened(path)
    assert [isinstance(layer, Recurrent) for layer in found.layers] == recurrent and file.tensors.keys() == wanted.tensors.keys()
    assert file.notes == [f"{path}: 2 tensors of layers that predict further tokens are left out"]
    encoded = file.encoded_metadata()
    for key in ("block_count", "nextn_predict_layers"):
        wanted_bytes = U32.to_bytes(4, "little") + (layers if key == "block_count" else 0).to_bytes(4, "little")
        assert encoded[f"qwen3next.{key}"] == wanted_bytes
    assert encoded["qwen3next.attention.recurrent_layers"] == wanted.encoded_metadata()["qwen3next.attention.recurrent_layers"]
    changes["qwen3next.nextn_predict_layers"] = (layers + 1, U32)
    refused(rewritten(tmp_path / "all.gguf", "qwen3next", changes, further), "layers predict further tokens; convert")


def test_factors_of_the_rotation(tmp_path):
    pairs = len(opened(GOLDEN / "llama.gguf")[1].rope.frequencies)
    for bad in (0.0, -1.0, np.nan, np.inf):
        factors = np.ones(pairs, np.float32)
        factors[3] = bad
        for kept in (np.float32, np.float16):
            path = rewritten(tmp_path / "bad.gguf", "llama", tensors={"rope_freqs.weight": factors.astype(kept)})
            refused(path, "'rope_freqs.weight' divides the rotation by what is not above 0")
    path = rewritten(tmp_path / "short.gguf", "llama", tensors={"rope_freqs.weight": np.ones(pairs - 1, np.float32)})
    refused(path, "'rope_freqs.weight' has shape")
    assert opened(rewritten(tmp_path / "ones.gguf", "llama", tensors={"rope_freqs.weight": np.ones(pairs, np.float32)}))[1].factors


@pytest.mark.parametrize("kind", ["none", "linear", "yarn"])
def test_the_scale_of_the_rotation(tmp_path, kind):
    """llama.cpp multiplies the turned values by it, whatever the scaling."""
    metadata = {"qwen3.rope.scaling.type": (kind, gguf.GGUFValueType.STRING)}
    scales = []
    for factor in (1.0, 1.5):
        more = {"qwen3.rope.scaling.attn_factor": (factor, gguf.GGUFValueType.FLOAT32)}
        scales.append(opened(rewritten(tmp_path / "scale.gguf", "qwen3", metadata | more))[1].rope.scale)
    assert scales[1] == 1.5 * scales[0]


def parts_of(path, rank, ranks):
    """(what the model calls it, its numbers) of each weight that a rank loads."""
    file, model = models.open_model(path)
    spec, found = model.read_spec(file), {}
    for piece in cut(file, model.rules(spec), spec.sizes, split(spec.sizes, rank, ranks))[0]:
        info = piece.info
        kind = {"F16": np.float16, "F32": np.float32}[info.type]
        whole = read_bytes(info, 0, info.num_bytes).view(kind).reshape(-1, info.shape[-1])
        rows = [whole[rows.start : rows.stop, piece.columns.start : piece.columns.stop] for rows in piece.rows]
        found[piece.name] = np.concatenate([*rows, whole[:0, : len(piece.columns)]])
    return found


@pytest.mark.parametrize(("name", "parts", "fused"), [
    ("qwen2", [f"attn_{part}.weight" for part in "qkv"], "attn_qkv.weight"),
    ("qwen2", [f"attn_{part}.bias" for part in "qkv"], "attn_qkv.bias"),
    ("qwen3next", [f"attn_{part}.weight" for part in "qkv"], "attn_qkv.weight"),
    ("qwen3moe", ["ffn_gate_exps.weight", "ffn_up_exps.weight"], "ffn_gate_up_exps.weight"),
])  # fmt: skip
def test_tensors_that_are_stored_as_one(tmp_path, name, parts, fused):
    """As llama.cpp's converter does with --fuse-qkv and --fuse-gate-up-exps."""
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(str(GOLDEN / f"{name}.gguf")).tensors}
    changes = {}
    for first in [key for key in tensors if key.endswith(parts[0])]:
        block = first.removesuffix(parts[0])
        changes |= {block + part: None for part in parts}
        changes[block + fused] = np.concatenate([tensors[block + part] for part in parts], 1 if "exps" in fused else 0)
    path = rewritten(tmp_path / "fused.gguf", name, tensors=changes)
    for rank, ranks in ((0, 1), (0, 3), (1, 3), (2, 3)):
        wanted, got = parts_of(GOLDEN / f"{name}.gguf", rank, ranks), parts_of(path, rank, ranks)
        assert wanted.keys() == got.keys()
        assert all((wanted[key] == got[key]).all() and wanted[key].shape == got[key].shape for key in wanted)
    refused(rewritten(tmp_path / "both.gguf", name, tensors=changes | {first: tensors[first]}), "is not part of this architecture")
