"""Every architecture against logits that transformers computed, from GGUF files that llama.cpp wrote of the same weights
(tests/data/make_golden.py), and from folders as transformers wrote them: prompts, decoding and several sequences on several ranks.
Taking any feature out turns it red.
"""

import json
import shutil

import gguf
import numpy as np
import pytest
from support.engines import run_plan
from support.logits import F16_ROUNDING, TOLERANCE, error, log_probabilities
from support.models import golden_folders
from support.models.golden import FEATURES, GOLDEN
from support.warm import run_script

# Steps of [sequence, number of tokens]: prompts alone and side by side, beside a row that decodes, and decoding together.
STEPS = [[[0, 30]], [[0, 1], [1, 20]], *[[[0, 1], [1, 1]]] * 4, [[0, 40], [1, 5]], *[[[1, 1], [0, 1]]] * 12, [[0, 3]]]
# Once for a cached float16 that rounds to its neighbour, and once for the recorded logits, which are float16.
ALLOWED = 2 * F16_ROUNDING
VARIANTS = (
    "llama-linear",
    "command-r",
    "deepseek2-lite",
    "deepseek2-flash",
    "deepseek2-v2",
    "gemma4-dense",
)  # of an architecture that another model stands for


def run_golden(path, name, tmp_path, ranks, cache="f16"):
    """(what the engine makes of the recorded tokens, the tokens, the recorded logits)."""
    recorded = np.load(GOLDEN / f"{name}.npz")
    sequences = [recorded[f"tokens{i}"].tolist() for i in range(2)]
    got, _ = run_plan(path, tmp_path, ranks, STEPS, sequences, threads=2 if ranks == 1 else 1, cache=cache)
    return got, sequences, [recorded[f"logits{i}"].astype(np.float64) for i in range(2)]


def check(got, sequences, wanted, allowed=ALLOWED):
    for i, tokens in enumerate(sequences):
        positions = [int(key.split(",")[1]) for key in got if key.startswith(f"{i},")]
        assert max(positions) == len(tokens) - 1
        assert error(np.array([got[f"{i},{p}"] for p in positions]), wanted[i][positions]) < allowed
        scores = log_probabilities(wanted[i][:-1])[np.arange(len(tokens) - 1), tokens[1:]]
        assert np.abs(got[f"scores{i}"] - scores).max() < allowed * 4 * np.sqrt((wanted[i] ** 2).mean())


@pytest.mark.parametrize(
    ("name", "ranks"), [(name, ranks) for name in FEATURES for ranks in ((2,) if name in VARIANTS else (1, 2, 3, 5))]
)
def test_logits_are_what_transformers_computes(tmp_path, name, ranks):
    check(*run_golden(GOLDEN / f"{name}.gguf", name, tmp_path, ranks))


@pytest.mark.parametrize("name", FEATURES)
def test_folders_give_the_same_logits(tmp_path, name):
    check(*run_golden(golden_folders.write(tmp_path / "folder", name, floats=True), name, tmp_path, 1))


def test_latent_rows_of_8_bits(tmp_path):
    """At most twice as far off as transformers is with latent rows so rounded: queries and the softmax's weights have 8 bits too.
    Where a row is near to choosing another expert, that is far.
    """
    recorded = np.load(GOLDEN / "deepseek2-lite.npz")
    got, sequences, wanted = run_golden(GOLDEN / "deepseek2-lite.gguf", "deepseek2-lite", tmp_path, 2, cache="q8_0")
    for i in range(len(sequences)):
        positions = [int(key.split(",")[1]) for key in got if key.startswith(f"{i},")]
        rows, rounded = np.array([got[f"{i},{p}"] for p in positions]), recorded[f"rounded{i}"].astype(np.float64)
        assert ALLOWED < error(rows, wanted[i][positions]) < 2 * error(rounded, wanted[i])
        apart, usual = (
            np.median(np.linalg.norm(one - wanted[i][positions], axis=1)) for one in (rows, rounded[positions])
        )  # of most positions
        assert apart < 2 * usual


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", golden_folders.QUANTIZED)
def test_experts_in_mxfp4(tmp_path, name, ranks):
    """Folder and GGUF file have the same bits; against the same numbers in F16 only the rows' rounding to 8 bits is left."""
    from_folder, sequences, _ = run_golden(golden_folders.write(tmp_path / "folder", name), name, tmp_path, ranks)
    exact = {}
    for kind in ("MXFP4", "F16"):
        write_experts(tmp_path / f"{kind}.gguf", name, kind)
        exact[kind] = run_golden(tmp_path / f"{kind}.gguf", name, tmp_path, ranks)[0]
    for key, row in from_folder.items():
        if "," in key:
            assert (row == exact["MXFP4"][key]).all()
            assert error(row[None], exact["F16"][key][None]) < TOLERANCE["Q4_0"]
    assert len(sequences) == 2


def test_a_table_of_experts_that_are_not_there(tmp_path):
    shutil.copy(GOLDEN / "deepseek4.gguf", tmp_path / "a.gguf")
    (table,) = (one for one in gguf.GGUFReader(tmp_path / "a.gguf", "r+").tensors if "tid2eid" in one.name)
    table.data[5, 1] = 8
    with pytest.raises(AssertionError, match=r"'blk.0.ffn_gate_tid2eid.weight' holds numbers outside 0 to 7; download it again"):
        run_golden(tmp_path / "a.gguf", "deepseek4", tmp_path, 1)


def write_experts(path, name, kind):
    """A model with the numbers of MXFP4 in its experts, stored as `kind`."""
    reader, writer = gguf.GGUFReader(str(GOLDEN / f"{name}.gguf")), gguf.GGUFWriter(str(path), name)
    for field in reader.fields.values():
        if field.name.startswith(f"{name}."):
            writer.add_key_value(field.name, field.contents(), *field.types)
    mxfp4 = gguf.GGMLQuantizationType.MXFP4
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if "_exps.weight" in tensor.name:
            data = gguf.quants.quantize(data.astype(np.float32), mxfp4)
            if kind == "F16":
                data = gguf.quants.dequantize(data, mxfp4).astype(np.float16)
            writer.add_tensor(tensor.name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_counts(name):
    result = run_script("run_golden", name)
    assert result.returncode == 0, result.stderr
    errors = json.loads(result.stdout)
    assert errors.pop("") < ALLOWED
    assert errors.keys() == FEATURES[name].keys()
    assert {feature: size for feature, size in errors.items() if size < 10 * ALLOWED} == {}
