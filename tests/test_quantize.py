"""`numatp quantize`: what the gguf package reads of it, and what stays when it does not end well."""

import json
import re
import signal
import subprocess
import time

import gguf
import numpy as np
import pytest
from support.commands import BIN, run
from support.models import folders, golden_folders, tiny
from support.models.golden import FEATURES, GOLDEN
from support.models.quantized_folders import write_llama
from support.warm import numatp

from numatp import quants
from numatp.cli import quantize
from numatp.errors import MachineError, UserError
from numatp.files.gguf import read_gguf
from numatp.weights import convert
from numatp.weights.rules import FUSED


def convert_file(source, out, wanted, threads=2):
    file = read_gguf(source)
    changes = convert.choose_types(file, wanted)
    convert.convert(file.encoded_metadata(), changes, wanted, out, threads, lambda done, total: None)
    return gguf.GGUFReader(out)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "f32.gguf"
    return path, tiny.write(path, sizes=tiny.SUPER_SIZES)


# Bits of the codes. The largest of 32 normal weights is about 2.2 deviations, a step 2 / 2**bits of it, the error step / sqrt(12).
BITS = {"F16": 11, "BF16": 8, "Q8_0": 8, "Q6_K": 6, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q3_K": 3, "Q2_K": 2, "MXFP4": 3}


def bits_of(format_name):
    """Of a weight in the file."""
    block, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format_name]]
    return 8 * num_bytes / block


@pytest.mark.parametrize("format_name", quants.writable())
def test_every_type_as_the_gguf_package_reads_it(source, tmp_path, format_name):
    path, tensors = source
    reader = convert_file(path, tmp_path / "out.gguf", format_name)
    before = gguf.GGUFReader(path)
    for key, field in before.fields.items():
        if not key.startswith("GGUF."):
            assert reader.fields[key].contents() == field.contents(), key
    assert {t.name for t in reader.tensors} == tensors.keys()
    for tensor in reader.tensors:
        values = tensors[tensor.name]
        small = bits_of(format_name) < bits_of("Q6_K")
        head = "Q6_K" if small and tensor.name == "output.weight" else format_name
        assert tensor.tensor_type.name == (head if values.ndim > 1 else "F32")
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)
        ours = quants.kernels_of(tensor.tensor_type.name).unpack(tensor.data.view(np.uint8).reshape(len(values), -1))
        assert (ours.reshape(values.shape) == found).all()
        rmse = np.sqrt(np.mean((found - values) ** 2)) / np.sqrt(np.mean(values**2))
        assert rmse < 1.4 / 2 ** BITS.get(format_name, 4) if format_name != "F32" else rmse == 0


def test_factors_beside_blocks_are_part_of_the_weights(tmp_path):
    tensors = tiny.write(tmp_path / "nvfp4.gguf", "NVFP4", sizes=tiny.SUPER_SIZES, factors=True)
    reader = convert_file(tmp_path / "nvfp4.gguf", tmp_path / "out.gguf", "Q8_0")
    assert {t.name for t in reader.tensors} == tensors.keys()
    for tensor in reader.tensors:
        found, values = gguf.quants.dequantize(tensor.data, tensor.tensor_type), tensors[tensor.name]
        assert np.linalg.norm(found.reshape(values.shape) - values) < 0.01 * np.linalg.norm(values)


@pytest.mark.parametrize("name", FEATURES)
def test_what_a_tensor_is_by_its_rule_and_by_its_name(name):
    """The rules of the architecture count; names, which are all that a file of an unknown one has, say the same of those known."""
    file = read_gguf(GOLDEN / f"{name}.gguf")
    kinds = quantize._open_file(GOLDEN / f"{name}.gguf")[2]
    unnamed = {tensor for tensor in file.tensors if tensor.endswith("weight")} - kinds.keys()
    assert all(tensor.split(".")[2] in FUSED for tensor in unnamed)
    by_rules, by_names = convert.choose_types(file, "Q4_K_M", kinds), convert.choose_types(file, "Q4_K_M")
    if name == "glm5-next":  # another architecture has a matrix of this name that may be quantised
        by_rules, by_names = ([one for one in both if "compressor_gate" not in one.name] for both in (by_rules, by_names))
    assert by_rules == by_names
    matrix, norm = "token_embd.weight", "output_norm.weight"
    types = {c.name: c.type for c in convert.choose_types(file, "Q8_0", kinds | {matrix: "router"})}
    assert (types[matrix], types[norm]) == ("F32", "F32")


def test_of_an_unknown_architecture_there_are_names(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "mamba9")
    for name in ("blk.0.ffn_gate_inp.weight", "blk.0.x.weight", "output.weight"):
        writer.add_tensor(name, np.ones((4, 256), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file, _, kinds = quantize._open_file(tmp_path / "a.gguf")
    assert kinds == {} and [c.type for c in convert.choose_types(file, "Q4_K")] == ["F32", "Q4_K", "Q6_K"]


def test_what_is_already_of_the_type_keeps_its_bytes(tmp_path):
    tiny.write(tmp_path / "a.gguf", "Q4_0")
    reader = convert_file(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q4_0")
    for one, other in zip(gguf.GGUFReader(tmp_path / "a.gguf").tensors, reader.tensors, strict=True):
        assert one.name == other.name and (one.name == "output.weight" or (one.data == other.data).all())


def test_rows_that_are_no_super_blocks_get_another_type(tmp_path):
    tiny.write(tmp_path / "a.gguf")
    changes = convert.choose_types(read_gguf(tmp_path / "a.gguf"), "Q4_K")
    assert {c.type for c in changes if len(c.info.shape) > 1} == {"Q5_0", "Q8_0"}  # the output matrix would be Q6_K
    assert "rows of 96 are no multiple of 256, as Q4_K needs" in "\n".join(convert.describe(changes, "Q4_K"))


def test_a_mix_spends_more_where_it_matters(tmp_path):
    sizes = tiny.SUPER_SIZES | {"layers": 16}
    tiny.write(tmp_path / "a.gguf", sizes=sizes)
    types = {c.info.name: c.type for c in convert.choose_types(read_gguf(tmp_path / "a.gguf"), "Q4_K_M")}
    assert types["output.weight"] == "Q6_K" and types["token_embd.weight"] == "Q4_K"
    better = [i for i in range(16) if types[f"blk.{i}.ffn_down.weight"] == "Q6_K"]
    assert better == [0, 1, 4, 7, 10, 13, 14, 15] == [i for i in range(16) if types[f"blk.{i}.attn_v.weight"] == "Q6_K"]
    assert all(types[f"blk.{i}.attn_q.weight"] == "Q4_K" for i in range(16))


def test_a_split_model_becomes_one_file(tmp_path):
    tiny.write(tmp_path / "whole.gguf")
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama", split_max_tensors=7)
    for tensor in gguf.GGUFReader(tmp_path / "whole.gguf").tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("part-*.gguf"))
    assert len(parts) > 2
    reader = convert_file(parts[0], tmp_path / "out.gguf", "Q8_0")
    assert not [key for key in reader.fields if key.startswith("split.")]
    whole = convert_file(tmp_path / "whole.gguf", tmp_path / "other.gguf", "Q8_0")
    there = {t.name: t.data for t in reader.tensors}
    assert all((there[t.name] == t.data).all() for t in whole.tensors) and len(there) == len(whole.tensors)


@pytest.mark.parametrize(("value", "wanted", "message"), [
    (np.nan, "Q8_0", r"blk.1.ffn_up.weight' holds weights that are no finite numbers"),
    (np.inf, "Q4_K", r"blk.1.ffn_up.weight' holds weights that are no finite numbers"),
    (np.nan, "F32", r"blk.1.ffn_up.weight' holds weights that are no finite numbers; download it again"),
    (1e5, "F16", r"blk.1.ffn_up.weight' holds 100000, too large for F16; use BF16"),
])  # fmt: skip
def test_weights_that_no_type_holds(tmp_path, value, wanted, message):
    tiny.write(tmp_path / "a.gguf", sizes=tiny.SUPER_SIZES)
    info = read_gguf(tmp_path / "a.gguf").tensors["blk.1.ffn_up.weight"]
    with open(tmp_path / "a.gguf", "r+b") as file:
        file.seek(info.offset + 400)
        file.write(np.float32(value).tobytes())
    with pytest.raises(UserError, match=message):
        convert_file(tmp_path / "a.gguf", tmp_path / "out.gguf", wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_blocks_that_stay_as_they_are_are_looked_at(tmp_path):
    """A scale that is no number, in a matrix of the type that is wanted."""
    tiny.write(tmp_path / "a.gguf", "Q8_0", sizes=tiny.SUPER_SIZES)
    info = read_gguf(tmp_path / "a.gguf").tensors["blk.1.ffn_up.weight"]
    with open(tmp_path / "a.gguf", "r+b") as file:
        file.seek(info.offset + 34 * 5)
        file.write(np.float16(np.nan).tobytes())
    with pytest.raises(UserError, match="blk.1.ffn_up.weight' holds weights that are no finite numbers; download it again"):
        convert_file(tmp_path / "a.gguf", tmp_path / "out.gguf", "Q8_0")


@pytest.mark.parametrize(
    ("name", "floats"), [*((name, False) for name in FEATURES), *((name, True) for name in golden_folders.QUANTIZED)]
)
def test_a_folder_becomes_what_llama_cpp_makes_of_it(tmp_path, name, floats):
    """As its converter: metadata, names, shapes and types, and every number."""
    folder, out = golden_folders.write(tmp_path / name, name, floats), tmp_path / "out.gguf"
    config = json.loads((folder / "config.json").read_text(), parse_float=lambda text: int(f) if (f := float(text)) % 1 == 0 else f)
    (folder / "config.json").write_text(json.dumps(config))  # people write 10000 for 10000.0
    folders.write_small_tokenizer(folder, 100)
    result = numatp("quantize", folder, out, "--type", "f16")
    assert result.returncode == 0, result.stderr
    wanted, reader = gguf.GGUFReader(GOLDEN / f"{name}.gguf"), gguf.GGUFReader(out)
    for key, field in wanted.fields.items():
        # Names of the model, and what llama.cpp takes for granted: no scaling, rotation of whole heads, a vocabulary of all tokens.
        if key.startswith("GGUF.") or key in ("general.type", "general.name", "general.size_label"):
            continue
        granted = key.endswith((".vocab_size", ".full_attention_interval")) or field.contents() == "none"
        granted |= key.endswith(".dimension_count") and "partial_rotary_factor" not in config.get("rope_parameters", {})
        if key in reader.fields or not granted:
            assert (reader.fields[key].types, reader.fields[key].contents()) == (field.types, field.contents()), key
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == 100
    ours, theirs = ({tensor.name: tensor for tensor in one.tensors} for one in (reader, wanted))
    numbers = {key: tensor.data for key, tensor in theirs.items()}
    for key in [key for key in theirs if "ffn_gate_up_exps" in key]:  # the converter leaves them in one tensor
        parts = [key.replace("gate_up", part) for part in ("gate", "up")]
        numbers |= dict(zip(parts, np.split(numbers.pop(key), 2, axis=1), strict=True))
        theirs |= dict.fromkeys(parts, theirs[key])
    assert ours.keys() == numbers.keys()
    for key, values in numbers.items():
        assert (ours[key].tensor_type, values.size) == (theirs[key].tensor_type, ours[key].data.size), key
        if name in golden_folders.QUANTIZED and not floats and "exps.weight" in key:  # of 4 bits in the folder
            mxfp4 = gguf.GGMLQuantizationType.MXFP4
            values = gguf.quants.dequantize(gguf.quants.quantize(values.astype(np.float32), mxfp4), mxfp4)
        rounding = 4 * np.finfo(np.float32).eps if key.endswith("ssm_a") else 0  # logarithms come back from exp
        assert np.abs(ours[key].data.ravel() - values.ravel()).max() <= rounding, key


@pytest.mark.parametrize(("name", "wanted", "note"), [
    ("awq", "q4_1", ""), ("gptq with zeros in activation order", "f32", ""), ("fp8", "q8_0", "FP8"), ("w4a16", "q8_0", "Q4_0"),
])  # fmt: skip
def test_a_quantized_folder(tmp_path, name, wanted, note):
    config, tensors = folders.llama(tiny.write(tmp_path / "tiny.gguf"))
    folder, weights = write_llama(tmp_path / "folder", name, config, tensors)
    folders.write_small_tokenizer(folder, tiny.SIZES["vocab"])
    result = numatp("quantize", folder, tmp_path / "out.gguf", "--type", wanted)
    assert result.returncode == 0, result.stderr
    assert (f"quantised before ({note})" in result.stderr) == bool(note), result.stderr
    exact = folders.to_gguf_llama(weights)
    for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors:
        if ".attn_" in tensor.name or ".ffn_" in tensor.name:
            found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(exact[tensor.name].shape)
            # Scales, and minima of 16 of them at most, are float16.
            allowed = {"f32": 0, "q4_1": 0, "q8_0": 2 / 254}[wanted] + 16 * 2**-11
            assert np.abs(found - exact[tensor.name]).max() <= allowed * np.abs(exact[tensor.name]).max(), tensor.name


@pytest.mark.parametrize(("change", "message"), [
    (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json; download it"),
    (lambda folder: folders.write_small_tokenizer(folder, 201), "has 201 tokens, and the embedding 200 rows"),
    (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), "model-00002-of-00002.safetensors: is missing"),
    (lambda folder: edit(folder, "config.json", '"hidden_size": 96', '"hidden_size": 64'), "has shape (200, 96), its architecture"),
    (lambda folder: edit(folder, "config.json", "LlamaForCausalLM", "T5Model"), "architecture 'T5Model' is not supported"),
    (lambda folder: edit(folder, "tokenizer.json", '"type":"BPE"', '"type":"Unigram"'), "tokenizer.json: "),
])  # fmt: skip
def test_folders_that_cannot_be_converted(tmp_path, change, message):
    folder = folders.write(tmp_path / "folder", *folders.llama(tiny.write(tmp_path / "tiny.gguf")), shards=2)
    folders.write_small_tokenizer(folder, 200)
    change(folder)
    result = numatp("quantize", folder, tmp_path / "out.gguf", "--type", "q8_0")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1) and message in result.stderr, result.stderr
    assert not (tmp_path / "out.gguf").exists()


def edit(folder, name, old, new):
    text = (folder / name).read_text().replace('"type": "', '"type":"')
    assert old in text, text[:300]
    (folder / name).write_text(text.replace(old, new, 1))


def test_a_folder_that_takes_no_file(source, tmp_path):
    with pytest.raises(MachineError, match="cannot be written: No such file or directory"):
        convert_file(source[0], tmp_path / "absent" / "out.gguf", "Q8_0")


def test_the_command(source, tmp_path):
    out = tmp_path / "out.gguf"
    result = numatp("quantize", source[0], out, "--type", "q4_k")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{out}\n"
    assert re.search(r"^numatp: .* MB to .* MB, \d\.\d\d bits per weight$", result.stderr, re.M)
    written = out.read_bytes()
    again = numatp("quantize", source[0], out, "--type", "q8_0")
    assert (again.returncode, again.stderr) == (2, f"numatp: {out}: is there already; remove it, or give another name\n")
    assert out.read_bytes() == written
    unknown = numatp("quantize", source[0], tmp_path / "other.gguf", "--type", "q4_z")
    assert unknown.returncode == 2 and "there is no such type; possible: bf16, f16" in unknown.stderr
    only_read = numatp("quantize", source[0], tmp_path / "other.gguf", "--type", "iq2_xxs")
    assert only_read.returncode == 2 and only_read.stderr.count("\n") == 1
    assert "numatp reads IQ2_XXS and does not write it, for which an importance matrix is needed" in only_read.stderr
    full = run("bash", "-c", f"ulimit -f 20; exec '{BIN}/numatp' quantize '{source[0]}' '{tmp_path}/full.gguf' --type q8_0")
    assert (full.returncode, full.stderr.count("\n")) == (1, 1) and "cannot be written: File too large" in full.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_ctrl_c_leaves_nothing(tmp_path):
    source, out = tmp_path / "a.gguf", tmp_path / "out"
    tiny.write(source, sizes=tiny.SUPER_SIZES | {"ffn": 1 << 15, "layers": 3})
    out.mkdir()
    command = [BIN / "numatp", "quantize", source, out / "q5_k.gguf", "--type", "q5_k", "-t", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(out.iterdir()) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not list(out.iterdir())


def test_a_mix_of_a_real_model_still_knows_paris(model_path, tmp_path):
    out = tmp_path / "q4_k_m.gguf"
    result = numatp("quantize", model_path, out, "--type", "q4_k_m")
    assert result.returncode == 0 and "quantised before (Q4_1)" in result.stderr, result.stderr
    said = numatp("generate", "-m", out, "-p", "The capital of France is", "-n", "4", "--temp", "0")
    assert said.stdout.startswith(" Paris"), said.stderr
