"""The engine against naive.py on tiny models, for any number of ranks, threads and any way to cut the prompt."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.commands import SCRIPTS, mpirun, run
from support.engines import CHUNKS, TOKENS, engine_logits, expected
from support.kernels import seed
from support.logits import TOLERANCE, error
from support.models import tiny
from support.reference import naive


@pytest.mark.parametrize("matrix_type", sorted(TOLERANCE))
@pytest.mark.parametrize("tied", [False, True])
def test_formats_agree_with_naive(tmp_path, matrix_type, tied):
    tensors = tiny.write(tmp_path / "tiny.gguf", matrix_type, tied)
    got = engine_logits(tmp_path / "tiny.gguf", tmp_path, ranks=1)
    assert error(got, expected(tensors)) < TOLERANCE[matrix_type]


@pytest.mark.cores
@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
@pytest.mark.parametrize("matrix_type", ["F32", "Q4_1"])
def test_ranks_agree_with_naive(tmp_path, ranks, matrix_type):
    tensors = tiny.write(tmp_path / "tiny.gguf", matrix_type)
    got = engine_logits(tmp_path / "tiny.gguf", tmp_path, ranks)
    assert error(got, expected(tensors)) < TOLERANCE[matrix_type]
    scores = np.load(tmp_path / "logits.scores.npy")
    assert np.abs(scores - expected_scores(tensors)).max() < TOLERANCE[matrix_type] * LOGIT_SIZE


@pytest.mark.parametrize("shares", [(3, 1), (1, 20), (1, 1, 6)])  # also with ranks that have no head, or no part of the FFN
def test_uneven_ranks_agree_with_naive(tmp_path, shares):
    tensors = tiny.write(tmp_path / "tiny.gguf", "Q4_1")
    got = engine_logits(tmp_path / "tiny.gguf", tmp_path, len(shares), shares=shares)
    assert error(got, expected(tensors)) < TOLERANCE["Q4_1"]
    scores = np.load(tmp_path / "logits.scores.npy")
    assert np.abs(scores - expected_scores(tensors)).max() < TOLERANCE["Q4_1"] * LOGIT_SIZE


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("matrix_type", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_M", "NVFP4"])
def test_super_blocks_are_cut_between_ranks(tmp_path, ranks, matrix_type):
    tensors = tiny.write(tmp_path / "tiny.gguf", matrix_type, sizes=tiny.SUPER_SIZES, factors=matrix_type == "NVFP4")
    got = engine_logits(tmp_path / "tiny.gguf", tmp_path, ranks)
    assert error(got, expected(tensors, sizes=tiny.SUPER_SIZES)) < TOLERANCE["Q8_0"]


# A rank's columns begin inside of blocks, and its rows inside of four that are interleaved.
@pytest.mark.parametrize(
    ("matrix_type", "ranks"), [("IQ4_KS", 1), ("IQ4_KS", 3), ("IQ2_KL", 2), ("IQ3_K", 3), ("IQ4_KS_R4", 3), ("IQ1_S_R4", 2)]
)
def test_types_of_ik_llama_cpp_agree_with_naive(tmp_path, matrix_type, ranks):
    tensors = tiny.write(tmp_path / "tiny.gguf", matrix_type, sizes=tiny.SUPER_SIZES)
    got = engine_logits(tmp_path / "tiny.gguf", tmp_path, ranks)
    assert error(got, expected(tensors, sizes=tiny.SUPER_SIZES)) < TOLERANCE["Q8_0"]


def expected_scores(tensors):
    """Log-probability of each token after the first."""
    logits = naive.logits(tiny.SIZES, tensors, TOKENS)[:-1]
    top = logits.max(-1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
    return logits[np.arange(len(logits)), TOKENS[1:]] - log_sum


LOGIT_SIZE = 4.0  # logits of the tiny model have a standard deviation of 1; the largest errors are of the largest


def test_threads_agree_with_naive(tmp_path):
    tensors = tiny.write(tmp_path / "tiny.gguf")
    for threads in (1, 3):
        got = engine_logits(tmp_path / "tiny.gguf", tmp_path, ranks=2, threads=threads)
        assert error(got, expected(tensors)) < TOLERANCE["F32"]


def test_mpi_ranks_agree_with_naive(tmp_path):
    tensors = tiny.write(tmp_path / "tiny.gguf")
    got = engine_logits(tmp_path / "tiny.gguf", tmp_path, ranks=2, launcher="mpirun")
    assert error(got, expected(tensors)) < TOLERANCE["F32"]


def test_ranks_with_unequal_threads_agree_with_naive(tmp_path):
    tensors = tiny.write(tmp_path / "tiny.gguf")
    commands = [
        [sys.executable, SCRIPTS / "run_engine.py", tmp_path / "tiny.gguf", tmp_path / "logits.npy", 0, threads,
         ",".join(map(str, TOKENS)), ",".join(map(str, CHUNKS))]
        for threads in (3, 1, 2)
    ]  # fmt: skip
    result = mpirun(1, *commands[0], ":", "-np", 1, *commands[1], ":", "-np", 1, *commands[2])
    assert result.returncode == 0, result.stderr
    assert error(np.load(tmp_path / "logits.npy"), expected(tensors)) < TOLERANCE["F32"]


def test_steps_may_be_cut_anywhere(tmp_path):
    tensors = tiny.write(tmp_path / "tiny.gguf")
    for chunks in ((1,) * 70, (1, 2, 30, 37), (63, 7)):
        got = engine_logits(tmp_path / "tiny.gguf", tmp_path, ranks=2, chunks=chunks)
        assert error(got, expected(tensors, chunks)) < TOLERANCE["F32"]


def test_a_second_process_compiles_nothing(tmp_path):
    tiny.write(tmp_path / "tiny.gguf")  # of floats, whose matmul compiles soonest
    command = [sys.executable, SCRIPTS / "run_engine.py", tmp_path / "tiny.gguf", tmp_path / "out.npy", 0, 1, "5,6", "1,1"]
    seed(tmp_path / "cache/kernels", "matmul_f32.matmul-", "norm.rms_norm-", "gate.silu_gate-")
    first = mpirun(2, *command, env={"NUMATP_CACHE_DIR": str(tmp_path / "cache")})
    second = run(*command, env={"NUMATP_CACHE_DIR": str(tmp_path / "cache")})
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    compiled = first.stdout.replace("compiled", "").split()
    assert {"matmul_f32.matmul", "norm.rms_norm", "gate.silu_gate"} <= set(compiled)
    assert len(compiled) == len(set(compiled))  # by one rank, while the other waited
    assert second.stdout.split() == ["compiled"]


TWO_KERNELS = """
from numatp.kernels import gate, norm
from numatp.kernels.compile import Kernel
assert norm.rms_norm.address and gate.silu_gate.address
print("compiled", *Kernel.compiled)
"""


def compiler(process, state):
    """The process that compiles for it, if /proc/locks says of its flock that it is "held", or "waiting"."""
    lines = Path("/proc/locks").read_text().splitlines()
    for child in psutil.Process(process.pid).children():
        for line in lines:
            words = line.split()[1:]
            waiting = words[0] == "->"
            if words[waiting] == "FLOCK" and words[waiting + 3] == str(child.pid) and waiting == (state == "waiting"):
                return child
    return None


def until(seen, process):
    end = time.monotonic() + 60
    while not (found := seen()):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    return found


def test_who_is_killed_while_compiling_blocks_nobody(tmp_path):
    """A second process waits for the one that compiles, and goes on when that has gone."""
    command = [sys.executable, "-c", TWO_KERNELS]
    environ = {"NUMATP_CACHE_DIR": str(tmp_path)}
    start = partial(subprocess.Popen, command, env=os.environ | environ, stdout=subprocess.PIPE, text=True)
    with start() as first:
        try:
            while True:
                holder = until(lambda: compiler(first, "held"), first)
                holder.suspend()
                until(lambda: holder.status() == psutil.STATUS_STOPPED, first)  # noqa: B023
                if compiler(first, "held"):
                    break
                holder.resume()
            with start() as second:
                try:
                    until(lambda: compiler(second, "waiting"), second)
                    first.kill()
                    holder.kill()
                    compiled = second.communicate(timeout=120)[0].split()
                finally:
                    second.kill()
        finally:
            first.kill()
    assert (second.returncode, compiled) == (0, ["compiled", "norm.rms_norm", "gate.silu_gate"])
    again = run(*command, env=environ)
    assert (again.returncode, again.stdout.split()) == (0, ["compiled"])
