"""GGUF files as older converters wrote them: those of latent attention from before 2025-04, with the matrices of keys and values in
one (numatp/weights/kv_b.py), and those of GLM-5.3-Flash with other names.
"""

import gguf
import numpy as np
import pytest
from support.models import golden_folders
from support.models.golden import GOLDEN
from support.models.opening import opened, refused

from numatp import quants

OLD = {"key_length": 48, "value_length": 32, "head_count_kv": 5}


def write_old(path, kind, cut=0):
    """(the matrix that has both (heads, rows, latent), as `kind` holds it) of each layer."""
    reader, writer, found = gguf.GGUFReader(GOLDEN / "deepseek2.gguf"), gguf.GGUFWriter(path, "deepseek2"), {}
    for field in reader.fields.values():
        last = field.name.rpartition(".")[2]
        if field.name.startswith("deepseek2.") and not last.endswith("_mla"):
            writer.add_key_value(field.name, OLD.get(last, field.contents()), field.types[0])
    floats = golden_folders.tensors_of(GOLDEN / "deepseek2.gguf")
    for tensor in reader.tensors:
        if tensor.name.endswith("k_b.weight"):
            name = tensor.name.replace("k_b", "kv_b")
            both = np.concatenate([floats[tensor.name].swapaxes(1, 2), floats[tensor.name.replace("k_b", "v_b")]], 1)
            raw = gguf.quants.quantize(both.reshape(-1, both.shape[-1])[cut:], gguf.GGMLQuantizationType[kind])
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
            found[name] = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
        elif not tensor.name.endswith("v_b.weight"):
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: values.reshape(5, 64, 64) if not cut else values for name, values in found.items()}


def numbers_of(info):
    """Of an Assembled, and the type of its rows."""
    (piece,) = info.pieces
    order = np.arange(piece.shape[0]) if info.order is None else info.order
    raw = piece.cut(order, range(piece.shape[1]))
    parts = [raw(slice(first, first + 50)) for first in range(0, len(order), 50)]
    return quants.kernels_of(piece.type).unpack(np.concatenate(parts)).reshape(info.shape)


@pytest.mark.parametrize(("kind", "keys"), [("F16", "F16"), ("Q8_0", "F32"), ("Q4_0", "F32")])
def test_keys_and_values_in_one_matrix_are_split(tmp_path, kind, keys):
    stored = write_old(tmp_path / "old.gguf", kind)
    file, spec = opened(tmp_path / "old.gguf")
    assert repr(spec) == repr(opened(GOLDEN / "deepseek2.gguf")[1])
    for layer in range(2):
        both = stored[f"blk.{layer}.attn_kv_b.weight"]
        k_b, v_b = (file.tensors[f"blk.{layer}.attn_{part}_b.weight"] for part in "kv")
        assert (k_b.type, v_b.type, v_b.note) == (keys, kind, "") and bool(k_b.note) == (kind != "F16")
        assert (numbers_of(k_b) == both[:, :32].swapaxes(1, 2)).all()
        assert (numbers_of(v_b) == both[:, 32:]).all()


def test_a_matrix_of_both_that_lacks_rows_is_refused(tmp_path):
    write_old(tmp_path / "old.gguf", "F16", cut=32)
    refused(tmp_path / "old.gguf", "'blk.0.attn_kv_b.weight' has shape (288, 64)", "5 heads' keys and values")


@pytest.mark.parametrize(("gate", "places"), [
    ("indexer_compressor_gate", "indexer_compressor_ape"), ("indexer.kpool_gate.weight", "indexer.kpool_ape.weight"),
])  # fmt: skip
def test_the_first_names_of_glm5_next(tmp_path, gate, places):
    """Of the architecture, and of two tensors; nor did those files say how many tokens have a key together."""
    reader, writer = gguf.GGUFReader(GOLDEN / "glm5-next.gguf"), gguf.GGUFWriter(tmp_path / "old.gguf", "glm5next")
    for field in reader.fields.values():
        if field.name.startswith("glm5-next.") and not field.name.endswith((".kpool", ".kpool_select_tail")):
            writer.add_key_value(field.name.replace("5-next", "5next"), field.contents(), *field.types)
    for tensor in reader.tensors:
        name = tensor.name.replace("indexer_compressor_gate.weight", gate).replace("indexer_compressor_ape.weight", places)
        writer.add_tensor(name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (file, spec), (now, wanted) = opened(tmp_path / "old.gguf"), opened(GOLDEN / "glm5-next.gguf")
    assert (repr(spec), file.tensors.keys()) == (repr(wanted), now.tensors.keys())
