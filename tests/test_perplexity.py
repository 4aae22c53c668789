"""Perplexity on 50 KB of text, whatever the number of ranks, against a float64 evaluation of the same weights."""

import json

import pytest
from support.commands import BIN, TESTS, mpirun, numatp

FLOAT64 = json.loads((TESTS / "data/perplexity.json").read_text())
COMMAND = ("perplexity", "-f", TESTS / "data/text.txt", "-c", 512)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_perplexity_is_that_of_float64(model_path, ranks):
    result = numatp(*COMMAND, "-m", model_path, "--ranks", ranks, "-o", "json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["windows"], found["tokens"]) == (FLOAT64["windows"], FLOAT64["tokens"])
    # Activations of 8 bits cost some; an error in the computation costs more.
    assert abs(found["perplexity"] / FLOAT64["perplexity"] - 1) < 0.005


def test_perplexity_in_words_from_standard_input_and_under_mpirun(model_path, tmp_path):
    (tmp_path / "text").write_text((TESTS / "data/text.txt").read_text()[:8000])
    result = mpirun(2, BIN / "numatp", "perplexity", "-m", model_path, "-f", tmp_path / "text", "-c", 256)
    assert result.returncode == 0 and result.stdout.startswith("perplexity "), result.stderr
    assert "windows of 256" in result.stdout and result.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("-c", 3), "a window needs at least 4 tokens"),
        (("-f", "absent.txt"), "absent.txt"),
        (("-c", 8000), "one window 8000: a longer text or a smaller -c"),
    ],
)
def test_bad_wishes(model_path, tmp_path, options, line):
    (tmp_path / "text").write_text("A few words.")
    result = numatp("perplexity", "-m", model_path, "-f", tmp_path / "text", *options)
    assert result.returncode == 2 and line in result.stderr and "Traceback" not in result.stderr
