"""Every architecture against logits that transformers computed, from GGUF files that llama.cpp wrote of the same weights
(tests/data/make_golden.py): prompts, decoding and several sequences on several ranks. Taking any feature out turns it red.
"""

import json
import sys

import numpy as np
import pytest
from conftest import TESTS, run
from golden import FEATURES, GOLDEN
from test_model import F16_ROUNDING, error
from test_sequences import log_probabilities, run_plan

# Steps of [sequence, number of tokens]: prompts alone and side by side, beside a row that decodes, and decoding together.
STEPS = [[[0, 30]], [[0, 1], [1, 20]], *[[[0, 1], [1, 1]]] * 4, [[0, 40], [1, 5]], *[[[1, 1], [0, 1]]] * 12, [[0, 3]]]


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_logits_are_what_transformers_computes(tmp_path, name, ranks):
    recorded = np.load(GOLDEN / f"{name}.npz")
    sequences = [recorded[f"tokens{i}"].tolist() for i in range(2)]
    got, _ = run_plan(GOLDEN / f"{name}.gguf", tmp_path, ranks, STEPS, sequences, threads=2 if ranks == 1 else 1)
    for i, tokens in enumerate(sequences):
        wanted = recorded[f"logits{i}"].astype(np.float64)
        positions = [int(key.split(",")[1]) for key in got if key.startswith(f"{i},")]
        assert max(positions) == len(tokens) - 1
        assert error(np.array([got[f"{i},{p}"] for p in positions]), wanted[positions]) < F16_ROUNDING
        scores = log_probabilities(wanted[:-1])[np.arange(len(tokens) - 1), tokens[1:]]
        assert np.abs(got[f"scores{i}"] - scores).max() < F16_ROUNDING * 4 * np.sqrt((wanted**2).mean())


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_counts(name):
    result = run(sys.executable, TESTS / "run_golden.py", name)
    assert result.returncode == 0, result.stderr
    errors = json.loads(result.stdout)
    assert errors.pop("") < F16_ROUNDING
    assert errors.keys() == FEATURES[name].keys()
    assert {feature: size for feature, size in errors.items() if size < 10 * F16_ROUNDING} == {}
