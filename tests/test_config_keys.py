"""Every key of config.json that changes what transformers computes is computed or refused, for all architectures: one change after
another, as tests/data/make_config_keys.py recorded it. Nothing changes by keys that transformers does not know."""

import json
from functools import cache

import numpy as np
import pytest
from support.commands import TESTS
from support.logits import F16_ROUNDING, error
from support.models import golden_folders
from support.models.golden import GOLDEN
from support.warm import run_script

from numatp import models
from numatp.errors import UserError
from numatp.files import folder as folder_file
from numatp.weights.rules import cut
from numatp.weights.splits import split

RECORDED = json.loads((TESTS / "data/config_keys.json").read_text())
# As for the golden models: a cached float16 that rounds to its neighbour, and recorded logits that are float16.
PROMPT = 90  # tokens
# What transformers 5.24 loses: a scaling of Gemma 3 whose kind older folders call "type", which version 4 reads as numatp does.
LOST = {"gemma3": [{"rope_parameters": None, "rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}]}
# A change after which a row is so near to choosing another token (by 4e-5 of the highest score) that rounding decides.
NEAR = {"glm-dsa": [{"rope_parameters": {
    "rope_type": "yarn", "factor": None, "original_max_position_embeddings": 32, "rope_theta": 1000.0,
}}]}  # fmt: skip
ALLOWED = 2 * F16_ROUNDING


def read_once(read_header):
    """The header of a file of tensors, which no change of config.json changes."""
    known = cache(read_header)

    def read(path):
        tensors, size = known(path)
        return dict(tensors), size

    return read


def changed(config, changes):
    return {key: value for key, value in (config | changes).items() if value != "absent"}


def read(folder, config):
    """(how the model is computed, what is refused): one of them."""
    (folder / "config.json").write_text(json.dumps(config))
    try:
        file, model = models.open_model(folder)
        spec = model.read_spec(file)
        if spec.context < PROMPT:
            return None, f"{folder}: the prompt is longer than what the model was trained for"
        slices, _ = cut(file, model.rules(spec), spec.sizes, split(spec.sizes, 0, 1))
        floats = [info.values().tolist() for name, info in file.tensors.items() if name == "rope_freqs.weight"]
        cuts = [(piece.name, piece.rows, piece.columns) for piece in slices]
        return repr((spec, spec.rope.frequencies.tolist(), cuts, floats)), ""
    except UserError as refusal:
        return None, str(refusal)


@pytest.mark.parametrize("name", RECORDED)
def test_each_key(tmp_path, monkeypatch, name):
    monkeypatch.setattr(folder_file, "read_header", read_once(folder_file.read_header))
    golden = "llama" if name == "mistral" else name
    folder = golden_folders.write(tmp_path / "folder", golden, floats=True)
    config = json.loads((folder / "config.json").read_text())
    if name == "mistral":
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    whole, refusal = read(folder, config)
    assert whole, refusal
    logits = np.load(TESTS / "data/config_keys.npz")
    wrong, computed, refused = [], {}, []  # computed: what differs from the whole model, once, and the changes that lead to it
    for changes, what in RECORDED[name]:
        if changes in LOST.get(name, []) + NEAR.get(name, []):
            continue
        found, refusal = read(folder, changed(config, changes))
        if found is None:
            refused.append(changes)
            assert refusal.startswith(str(folder)) and refusal.isprintable() and len(refusal) < 400, refusal
        elif what is not None and found == whole:
            if what != "same":
                wrong.append(f"{changes}: nothing is made of it")
        elif what is not None:
            computed.setdefault(found, []).append((changes, logits[f"{name} base"] if what == "same" else logits[name][what]))
    assert not wrong, "\n".join(wrong)
    tokens = np.load(GOLDEN / f"{golden}.npz")["tokens0"].tolist()
    assert len(tokens) == PROMPT
    given = {"tokens": tokens, "configs": [changed(config, changes) for (changes, _), *_ in computed.values()]}
    (tmp_path / "given.json").write_text(json.dumps(given))
    result = run_script("run_configs", folder, tmp_path / "given.json", tmp_path / "out.npy")
    assert result.returncode == 0, result.stderr
    for got, alike in zip(np.load(tmp_path / "out.npy"), computed.values(), strict=True):
        for changes, wanted in alike:
            apart = error(got[None], wanted[None].astype(np.float64))
            if apart > ALLOWED:
                wrong.append(f"{changes}: {apart:.4f} apart")
    assert not wrong, "\n".join(wrong)
    assert len(computed) > 5 and len(refused) < len(RECORDED[name]) / 2
