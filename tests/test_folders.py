"""Models from Hugging Face folders."""

import json

import numpy as np
import pytest
from support.engines import ALONE, MODELS, SEQUENCES, check, engine_logits, expected, run_plan
from support.logits import F16_ROUNDING, TOLERANCE, error
from support.models import folders, golden_folders, tiny, tiny_qwen3moe, tiny_words
from support.models.golden import GOLDEN
from support.warm import numatp

from numatp import models, quants
from numatp.errors import UserError
from numatp.files.gguf import read_gguf
from numatp.text.tokenizer import Tokenizer
from numatp.weights.rules import cut, notes
from numatp.weights.splits import split


@pytest.fixture(scope="module")
def words_folder(words_path, tmp_path_factory):
    """The model of words as a folder of BF16."""
    config, tensors = folders.llama(golden_folders.tensors_of(words_path), tiny_words.SIZES)
    stored = {name: folders.bf16(values) for name, values in tensors.items()}
    folder = folders.write(tmp_path_factory.mktemp("words") / "folder", config | {"eos_token_id": 2}, stored, shards=2)
    folders.write_tokenizer(folder, Tokenizer.from_gguf(read_gguf(words_path)))
    return folder


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_folders_agree_with_naive(tmp_path, model, ranks):
    tensors = MODELS[model][0].write(tmp_path / "tiny.gguf")
    folder = folders.write(tmp_path / "folder", *folders.FOLDERS[model](tensors), shards=3)
    got, _ = run_plan(folder, tmp_path, ranks, ALONE, SEQUENCES[:1])
    check(model, got, SEQUENCES[:1], tensors)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_llama_agrees_with_naive(tmp_path, monkeypatch, ranks):
    monkeypatch.setenv("QUANTIZE", "none")
    tensors = tiny.write(tmp_path / "tiny.gguf", tied=ranks == 2)
    folder = folders.write(tmp_path / "folder", *folders.llama(tensors))
    got = engine_logits(folder, tmp_path, ranks)
    assert error(got, expected(tensors)) < F16_ROUNDING


def test_sixteen_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTIZE", "none")
    exact = tiny.write(tmp_path / "tiny.gguf", "BF16")
    config, tensors = folders.llama(exact)
    for kept in (folders.bf16, lambda values: values.astype(np.float16)):
        rounded = {name: kept(values) if values.ndim > 1 else values for name, values in tensors.items()}
        got = engine_logits(folders.write(tmp_path / "folder", config, rounded), tmp_path, 2)
        assert error(got, expected(exact)) < F16_ROUNDING


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(("quantize", "sizes"), [("q8", tiny.SIZES), ("q4", tiny.SUPER_SIZES)])
def test_quantized_on_load(tmp_path, monkeypatch, ranks, quantize, sizes):
    """q4: rows of 256 and 512 values become super-blocks, which ranks cut between."""
    config, tensors = folders.llama(tiny.write(tmp_path / "tiny.gguf", sizes=sizes), sizes)
    folder = folders.write(tmp_path / "folder", config, {name: folders.bf16(values) for name, values in tensors.items()})
    monkeypatch.setenv("QUANTIZE", quantize)
    got = engine_logits(folder, tmp_path, ranks)
    kinds = {"q8": {"": "Q8_0"}, "q4": {"": "Q4_K", "embed_tokens": "Q8_0", "lm_head": "Q8_0"}}[quantize]
    kept = {}
    for name, values in tensors.items():
        rounded = (folders.bf16(values).astype(np.uint32) << 16).view(np.float32)
        if values.ndim > 1:
            kind = next((kind for part, kind in kinds.items() if part and part in name), kinds[""])
            format = quants.kernels_of(kind)
            rounded = format.unpack(quants.quantize(kind, rounded))
        kept[name] = rounded
    wanted = expected(folders.to_gguf_llama(kept, sizes), sizes=sizes)
    assert error(got, wanted) < TOLERANCE["Q8_0"]


def test_what_is_quantized(tmp_path):
    """Matrices of floats, but not those that choose experts; GGUF files where they are told to."""
    tensors = tiny_qwen3moe.write(tmp_path / "tiny.gguf")
    folder = folders.write(tmp_path / "folder", *folders.qwen3moe(tensors))
    for path, quantize, kinds in (
        (folder, "q8", {"Q8_0", "F32"}), (folder, "q4", {"Q4_0", "Q8_0", "F32"}), (folder, "none", {"F32"}),
        (tmp_path / "tiny.gguf", "q4", {"Q4_0", "Q8_0", "F32"}),
    ):  # fmt: skip
        file, model = models.open_model(path)
        spec = model.read_spec(file)
        slices, _ = cut(file, model.rules(spec), spec.sizes, split(spec.sizes, 0, 1), quantize)
        found = {piece.name: piece.format.name for piece in slices}
        assert set(found.values()) == kinds
        assert found["blk.0.ffn_gate_inp.weight"] == found["output_norm.weight"] == "F32"
        counts = [int(note.split()[0]) for note in notes(slices)]
        assert sum(counts) == (0 if quantize == "none" else 2 * 7 + 2)


def spec_of(path, **changes):
    if changes:
        config = json.loads((path / "config.json").read_text()) | changes
        (path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    file, model = models.open_model(path)
    return model.read_spec(file)


@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_older_keys_of_gemma3(tmp_path, kind):
    """As its released folders have them: the golden one has what transformers 5 writes."""
    folder, wanted = golden_folders.write(tmp_path / "folder", "gemma3"), spec_of(GOLDEN / "gemma3.gguf")
    got = spec_of(
        folder, rope_parameters=None, layer_types=None, sliding_window_pattern=6, rope_theta=5000.0, rope_local_base_freq=300.0,
        rope_scaling={kind: "linear", "factor": 8.0},
    )  # fmt: skip
    assert (got.layers, got.window_base, got.score_scale) == (wanted.layers, wanted.window_base, wanted.score_scale)
    assert (got.rope.frequencies == wanted.rope.frequencies).all()


def test_mimo2_as_released(tmp_path):
    """By the words of the vendor's own code; its window counts the tokens before a row's own."""
    folder, wanted = golden_folders.write(tmp_path / "folder", "mimo2"), spec_of(GOLDEN / "mimo2.gguf")
    config = json.loads((folder / "config.json").read_text())
    for key in ("rope_parameters", "layer_types", "mlp_layer_types", "rms_norm_eps", "sliding_window"):
        del config[key]
    config |= {
        "rope_theta": 1000.0, "swa_rope_theta": 300.0, "partial_rotary_factor": 0.5, "hybrid_layer_pattern": [0, 1],
        "swa_num_key_value_heads": 4, "moe_layer_freq": [0, 1], "layernorm_epsilon": 1e-5, "sliding_window_size": 19,
        "routed_scaling_factor": None, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_shared_experts": None,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    found = spec_of(folder)
    assert (found.layers, found.sizes, found.router) == (wanted.layers, wanted.sizes, wanted.router)
    assert (found.window_base, found.dense_layers, found.full_sinks, found.window_sinks) == (300.0, 1, False, True)
    assert np.allclose(found.rope.frequencies, wanted.rope.frequencies)
    assert (found.epsilon, found.attended_scale) == pytest.approx((wanted.epsilon, wanted.attended_scale))


@pytest.mark.parametrize(("name", "keys"), [
    ("gemma2", {"attn_logit_softcapping": "score_cap", "final_logit_softcapping": "logit_cap"}),
    ("gemma3", {"final_logit_softcapping": "logit_cap"}),
])  # fmt: skip
def test_soft_caps(tmp_path, name, keys):
    """A cap, none, and what is none; which keys change the logits is in test_config_keys.py."""
    folder = golden_folders.write(tmp_path / "folder", name)
    config = json.loads((folder / "config.json").read_text())

    def read(key, cap):
        (folder / "config.json").write_text(json.dumps(config | {key: cap}))
        file, model = models.open_model(folder)
        return getattr(model.read_spec(file), keys[key])

    for key in keys:
        assert (read(key, 50.0), read(key, 30), read(key, None)) == (50.0, 30.0, 0.0)
        for bad in (-2.0, 1e-9, 1e9, "30"):
            with pytest.raises(UserError, match=f"config.json: .*{key}"):
                read(key, bad)


def test_weights_that_are_no_numbers(tmp_path):
    config, tensors = folders.llama(tiny.write(tmp_path / "tiny.gguf"))
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][3, 5] = np.nan
    folders.write_small_tokenizer(folders.write(tmp_path / "folder", config, tensors), tiny.SIZES["vocab"])
    result = numatp("generate", "-m", tmp_path / "folder", "-p", "a", "-n", 1, "--ranks", 2)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert f"tensor '{name}' holds weights that are no finite numbers" in result.stderr


def test_text_from_a_folder(words_folder):
    """Its matrices are rounded twice more than the file's. Its own sampling counts where no option does."""
    options = ["-p", "The capital of France is", "-n", 2, "--ranks", 2]
    result = numatp("generate", "-m", words_folder, *options, "--temp", 0)
    assert (result.returncode, result.stdout) == (0, " Paris.\n"), result.stderr
    assert "16 matrices of BF16 are quantized to Q8_0 on load" in result.stderr
    (words_folder / "generation_config.json").write_text('{"temperature": 1e-6, "top_k": 7}')
    result = numatp("generate", "-m", words_folder, *options, "--top-p", "0.9", "--quantize", "none")
    assert (result.returncode, result.stdout) == (0, " Paris.\n") and "quantized" not in result.stderr, result.stderr
    assert ", temperature 1e-06, top_k 7, top_p 0.9, seed " in result.stderr


def test_an_option_counts_more_than_the_folder_s_own_sampling(tmp_path):
    folder = folders.write(tmp_path / "folder", *folders.llama(tiny.write(tmp_path / "tiny.gguf")))
    folders.write_small_tokenizer(folder, tiny.SIZES["vocab"])
    (folder / "generation_config.json").write_text('{"temperature": 1e-6, "top_k": 7}')
    options = ["-p", "a", "-n", 2, "--ranks", 1, "--top-p", "0.9", "--top-k", "40", "--temp", "0.5"]
    result = numatp("generate", "-m", folder, *options)
    assert result.returncode == 0 and ", temperature 0.5, top_p 0.9, seed " in result.stderr, result.stderr
