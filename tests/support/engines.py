"""Tiny models through the engine, in processes of their own, and what the naive passes say of the same tokens."""

import json
import sys

import numpy as np
from support.commands import SCRIPTS, mpirun
from support.logits import F16_ROUNDING, eight_bits, error, log_probabilities
from support.models import tiny, tiny_cohere2, tiny_qwen3, tiny_qwen3moe, tiny_qwen3next
from support.reference import naive, naive_cohere2, naive_qwen3, naive_qwen3moe, naive_qwen3next
from support.warm import run_script

TOKENS = [int(t) for t in np.random.default_rng(1).integers(0, tiny.SIZES["vocab"], 70)]
CHUNKS = (64, 1, 4, 1)  # across a cache block of 64; both programs

# name: (tiny model, its naive forward)
MODELS = {
    "cohere2": (tiny_cohere2, naive_cohere2), "qwen3": (tiny_qwen3, naive_qwen3), "qwen3moe": (tiny_qwen3moe, naive_qwen3moe),
    "qwen3next": (tiny_qwen3next, naive_qwen3next),
}  # fmt: skip
LENGTHS = (230, 41, 150)  # more than three times the window, less than it, more than twice; windows of 70, cache blocks of 64
SEQUENCES = [np.random.default_rng(i).integers(0, 200, length).tolist() for i, length in enumerate(LENGTHS)]

ALONE = [[[0, n]] for n in (1, 2, 40, *[1] * 20, 48, 48, *[1] * 60, 11)]


def engine_logits(path, tmp_path, ranks, threads=0, chunks=CHUNKS, launcher=(), shares=()):
    out = tmp_path / "logits.npy"
    arguments = [path, out, 0 if launcher else ranks, threads, ",".join(map(str, TOKENS)), ",".join(map(str, chunks))]
    arguments += [",".join(map(str, shares))] if shares else []
    if launcher:
        result = mpirun(ranks, sys.executable, SCRIPTS / "run_engine.py", *arguments)
    else:
        result = run_script("run_engine", *arguments)
    assert result.returncode == 0, result.stderr
    return np.load(out)


def expected(tensors, chunks=CHUNKS, sizes=tiny.SIZES):
    return naive.logits(sizes, tensors, TOKENS)[np.cumsum(chunks) - 1]


def run_plan(path, tmp_path, ranks, steps, sequences, threads=0, cache="f16", job=None, **environ):
    plan = json.dumps({"sequences": sequences, "steps": steps, "cache": cache, **(job or {})})
    out = tmp_path / "rows.npz"
    result = run_script("run_sequences", path, out, ranks, threads, plan, env=environ)
    assert result.returncode == 0, result.stderr
    return dict(np.load(out)), json.loads(result.stdout)


def check(model, got, sequences, tensors, matrix_type="F32"):
    module, reference = MODELS[model]
    for sequence, tokens in enumerate(sequences):
        wanted = reference.logits(module.SIZES, tensors, tokens)
        allowed = F16_ROUNDING
        if matrix_type != "F32":  # the same noise in other places: twice what rounding does to the naive pass
            allowed = 2 * error(reference.logits(module.SIZES, tensors, tokens, eight_bits), wanted)
        positions = [int(name.split(",")[1]) for name in got if name.startswith(f"{sequence},")]
        assert max(positions) == len(tokens) - 1
        assert error(np.array([got[f"{sequence},{p}"] for p in positions]), wanted[positions]) < allowed
        scores = log_probabilities(wanted[:-1])[np.arange(len(tokens) - 1), tokens[1:]]
        # Logits' errors are bounded as norms; a single one may be as large as the largest logits are above the typical one.
        size = 4 * np.sqrt((wanted**2).mean())
        assert np.abs(got[f"scores{sequence}"] - scores).max() < allowed * size
