"""Perplexity of 50 KB of text, and of its beginning on several ranks, against a float64 evaluation of the same weights."""

import argparse
import json
from math import inf

import pytest
from support.commands import BIN, TESTS, mpirun
from support.warm import numatp

from numatp.cli import perplexity
from numatp.text.tokenizer import open_tokenizer

FLOAT64 = json.loads((TESTS / "data/perplexity.json").read_text())
TEXT = (TESTS / "data/text.txt").read_text()


@pytest.mark.parametrize(("ranks", "part"), [(1, "whole"), (2, "beginning"), (3, "start"), (5, "start")])
def test_perplexity_is_that_of_float64(model_path, tmp_path, ranks, part):
    wanted = FLOAT64[part]
    (tmp_path / "text").write_text(TEXT[: wanted["characters"]])
    result = numatp("perplexity", "-f", tmp_path / "text", "-c", 512, "-m", model_path, "--ranks", ranks, "-o", "json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["windows"], found["tokens"]) == (wanted["windows"], wanted["tokens"])
    # Activations of 8 bits cost some; an error in the computation costs more.
    assert abs(found["perplexity"] / wanted["perplexity"] - 1) < 0.005


def test_perplexity_in_words_from_standard_input_and_under_mpirun(model_path, tmp_path):
    (tmp_path / "text").write_text(TEXT[:4000])
    result = mpirun(2, BIN / "numatp", "perplexity", "-m", model_path, "-f", tmp_path / "text", "-c", 256)
    assert result.returncode == 0 and result.stdout.startswith("perplexity "), result.stderr
    assert "windows of 256" in result.stdout and result.stdout.count("\n") == 1


def test_names_of_special_tokens_are_text(model_path, tmp_path):
    """As llama-perplexity takes them, unless it is told otherwise."""
    text = 12 * "<|im_start|>user says hello<|im_end|> and goes on with a few words more.\n"
    (tmp_path / "text").write_text(text)
    tokenizer = open_tokenizer(model_path)
    as_text, as_names = (len(tokenizer.encode(text[:-1], special)) // 32 for special in (False, True))
    assert as_text > as_names
    for options, windows in (((), as_text), (("--parse-special",), as_names)):
        run = numatp("perplexity", "-m", model_path, "-f", tmp_path / "text", "-c", 32, "-o", "json", *options)
        assert json.loads(run.stdout)["windows"] == windows, run.stderr


def test_hopeless_models(capsys):
    """A loss whose exponential is no float64 any more is said as it is, and JSON stays JSON."""

    class Hopeless:
        def score(self, tokens, count):
            return argparse.Namespace(logprobs=[-1000.0] * (count - 1) + [-1200.0])

        tokenizer = argparse.Namespace(bos=None)

    found = perplexity.perplexity(Hopeless(), list(range(64)), 32)
    assert found["perplexity"] == found["error"] == inf and 1000 < found["loss"] < 1200
    for output in ("json", "text"):
        perplexity.show(found, output)
    said, line = capsys.readouterr().out.splitlines()
    assert json.loads(said, parse_constant=pytest.fail)["perplexity"] is None and json.loads(said)["loss"] == found["loss"]
    assert line.startswith("perplexity inf +/- inf, mean loss 1013.3")


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
