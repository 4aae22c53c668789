"""A plan says what a load then takes, is made without kernels, and never predicts less than what somebody has measured."""

import argparse
import json
import re
import sys
from dataclasses import replace
from functools import cache
from math import inf
from pkgutil import iter_modules
from types import SimpleNamespace

import numpy as np
import pytest
from support.commands import BIN, TESTS, mpirun, run
from support.machines.sysfs import xeon
from support.models import tiny
from support.models.golden import GOLDEN
from support.warm import numatp, run_script

from numatp import quants
from numatp.advice import plan
from numatp.cli import plan as command
from numatp.engine import draft, rehearsal, start
from numatp.engine.cache import CACHE_BLOCK
from numatp.engine.draft import (
    EXCHANGE_SECONDS,
    Hosts,
    best_threads,
    choose_ranks,
    read_header,
    read_per_token,
    read_seconds,
    seconds_per_token,
)
from numatp.engine.job import MARGIN, PROCESS_BYTES, Job
from numatp.engine.layout import lay_out
from numatp.engine.links import Link, read_link
from numatp.engine.sections import sections_of
from numatp.errors import UserError
from numatp.files.measured import keep_bandwidth
from numatp.machine import barrier, snapshot
from numatp.machine.servers import SERVERS
from numatp.models import shapes
from numatp.program.builder import Op, Program
from numatp.program.division import Tiles
from numatp.quants.table import FORMATS

MODELS = {
    "llama": {"matrix_type": "Q4_K", "sizes": tiny.SUPER_SIZES},
    "tied": {"matrix_type": "Q8_0", "tied": True, "sizes": tiny.SUPER_SIZES},
    **{path.stem: path for path in sorted(GOLDEN.glob("*.gguf"))},
}


def planned(model, machine="2x-epyc-7532", ranks=None, **job):
    return plan.make_plan(read_header(model), snapshot.load(machine), Job(model, **job), ranks)


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_takes_what_was_planned(tmp_path, name):
    """Of every architecture."""
    model, ranks = MODELS[name], 1 if name == "tied" else 3
    if isinstance(model, dict):
        tiny.write(tmp_path / "model.gguf", **model)
        model = tmp_path / "model.gguf"
    result = run_script("run_plan", model, ranks, 32)
    assert result.returncode == 0, result.stderr
    engine = json.loads(result.stdout)
    made = planned(str(model), ranks=ranks, context=32, threads=engine["threads"])
    first = made.ranks[0]
    assert (first.weight_bytes, first.cache_bytes, first.window_bytes) == (engine["weights"], engine["cache"], engine["window"])
    assert first.activation_bytes == engine["activations"]
    assert sum(rank.read_bytes for rank in made.ranks) == engine["read"]
    assert (made.exchanges if ranks > 1 else 0) == engine["exchanges"]


def test_floats_that_are_quantized_on_load(tmp_path):
    tiny.write(tmp_path / "model.gguf", sizes=tiny.SUPER_SIZES)
    sizes = [planned(str(tmp_path / "model.gguf"), ranks=1, quantize=kind).ranks[0].weight_bytes for kind in ("none", "q8", "q4")]
    assert sizes[1] < 0.3 * sizes[0] and sizes[2] < 0.8 * sizes[1]


def test_each_format_is_a_row_and_a_file():
    files = {module.name.upper() for module in iter_modules(quants.__path__)} - {"TABLE", "MIXES", "GRIDS"}
    assert files == set(quants.names())
    for row in FORMATS.values():
        assert row.bytes_of_tile(32) % 8 == row.super_bytes % 8 == 0, row
        assert hasattr(quants.kernels_of(row.name), "quantize") == (row.name in quants.writable())
    with pytest.raises(UserError, match="tensor 'x' has type Q9_9"):
        quants.format_of("Q9_9", "x")


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_plan_says_what_the_loader_would(tmp_path, monkeypatch, capsys, output):
    tiny.write(tmp_path / "tiny.gguf")
    header = read_header(str(tmp_path / "tiny.gguf"))
    header.file.notes.append("2 tensors are left out")
    monkeypatch.setattr(command, "read_header", lambda model: header)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args(["-m", "tiny", "--machine", "2x-epyc-7532", "-o", output])) == 0
    said = capsys.readouterr()
    assert said.err == "numatp: 2 tensors are left out\n" and "left out" not in said.out


LIGHT = """
import importlib, sys
from numatp import models
from numatp.cli.main import COMMANDS
from numatp.advice import plan
from numatp.engine import start
for name in models.architectures():
    importlib.import_module(f"numatp.models.{models.architectures()[name]}")
heavy = {"numba", "llvmlite", "mpi4py", "tokenizers", "huggingface_hub"}
loaded = {"numatp.kernels.compile", *heavy} & set(sys.modules)
assert not loaded, loaded
sys.argv[1:] = ["plan", "-m", "command-a", "--machine", "2x-epyc-9755"]
from numatp.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code
loaded = heavy & set(sys.modules)  # the ops that it records name kernels
assert not loaded, loaded
"""


def test_a_plan_loads_no_compiler():
    result = run(sys.executable, "-c", LIGHT)
    assert result.returncode == 0, result.stderr


# GB of files that llama-quantize made of those models, as the tables of their uploader (bartowski) on the hub list them.
FILES = {
    "llama-3.1-70b:q8_0": 74.98, "llama-3.1-70b:q6_k": 57.89, "llama-3.1-70b:q5_k_m": 49.95, "llama-3.1-70b:q4_k_m": 42.52,
    "qwen3-30b-a3b:bf16": 61.10, "qwen3-30b-a3b:q8_0": 32.48, "qwen3-30b-a3b:q6_k": 25.10, "qwen3-30b-a3b:q5_k_m": 21.74,
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_shapes_have_the_size_of_their_files(name):
    """The files also hold tokenizers, some MB."""
    size = shapes.header(name).size / 1e9
    assert FILES[name] - 0.03 < size < FILES[name] + 0.005


@pytest.mark.parametrize(
    ("name", "parameters", "active"),  # 1e9, as the model cards say; active: without the embedding, of which one row is read
    [
        ("qwen2.5-72b", 72.7, 72.7 - 1.2), ("qwen3-235b-a22b", 235, 22), ("qwen3-30b-a3b", 30.5, 3.3 - 0.3),
        ("command-a", 111, 111), ("llama-3.1-8b", 8.03, 8.03 - 0.53), ("llama-3.1-70b", 70.6, 70.6 - 1.05),
        ("deepseek-v3", 671, 37), ("kimi-k2", 1026, 32), ("deepseek-v2-lite", 15.7, 2.4), ("glm-4.6", 353, 32),
        ("glm-4.5-air", 107, 12.5), ("glm-4.7-flash", 29.9, 3.6), ("minimax-m2", 229, 10),
        ("glm-5", 744, 40), ("mistral-large-3", 673, 39), ("mistral-small-4", 119, 6),
        ("deepseek-v3.2", 671 + 0.8, 37), ("qwen3.5-397b-a17b", 397, 17),
        ("qwen3.5-122b-a10b", 122, 10 - 0.76), ("qwen3.5-35b-a3b", 35, 3), ("qwen3.5-27b", 27, 27 - 1.27),
        ("smollm3-3b", 3.08, 3.08), ("olmo-3-32b", 32.2, 32.2 - 0.5), ("granite-3.3-8b", 8.17, 8.17), ("phi-4", 14.7, 14.7 - 0.5),
        ("ministral-3-14b", 13.5, 13.5 - 0.7), ("gemma-4-31b", 30.7, 30.7), ("gemma-4-26b-a4b", 25.2, 3.8),
        ("deepseek-v2", 236, 21), ("mimo-v2-flash", 309, 15), ("ling-mini-2.0", 16.26, 1.43 - 0.32),
        ("kimi-linear-48b-a3b", 49.1, 3), ("ling-3.0-flash", 124, 5.1), ("deepseek-v4-flash", 284, 13),
        ("glm-5.3-flash", 313, 17),  # 320 with images and what predicts further tokens
        ("ling-flash-2.0", 103, 6.1 - 0.64),
        ("ling-1t", 1000, 50), ("llama-4-scout", 108, 17), ("llama-4-maverick", 400, 17), ("gemma-4-e2b", 4.63, 2.28),
        ("gemma-4-e4b", 7.46, 4.6),
    ],
)  # fmt: skip
def test_shapes_have_the_parameters_of_their_models(name, parameters, active):
    model = read_header(f"{name}:f16")
    assert model.file.size / 2e9 == pytest.approx(parameters, rel=0.01)
    assert read_by_one_rank(f"{name}:f16") / 2e9 == pytest.approx(active, rel=0.06)


@pytest.mark.parametrize(("given", "meant"), [
    ("qwen3-235b", "qwen3-235b-a22b"), ("GLM-4.7", "glm-4.6"), ("glm4.6", "glm-4.6"), ("minimax_m2.5", "minimax-m2"),
    ("qwen3.5-397b", "qwen3.5-397b-a17b"), ("kimi-k2.6", "kimi-k2"), ("Kimi-Linear", "kimi-linear-48b-a3b"), ("GLM-5.2", "glm-5"),
    ("GLM-5.3", "glm-5"), ("glm5.3-flash", "glm-5.3-flash"),
    ("llama3.1-8b", "llama-3.1-8b"), ("Llama-4-Scout", "llama-4-scout"), ("MiMo-V2.5", "mimo-v2-flash"),
    ("qwen3", None), ("llama-3.1", None),
    ("qwen3.5-3", None), ("", None), ("a/glm-4.6", None),
])  # fmt: skip
def test_other_spellings_of_shapes(given, meant):
    assert shapes.find(given) == meant
    header = shapes.header(f"{given}:q8_0")
    assert (header and header.path.name) == (meant and f"{meant}:q8_0")


def test_qwen3_next_has_its_parameters():
    """80B, of which 3B are active without the 0.3B of the output matrix."""
    made = planned("qwen3-next-80b-a3b:f16", ranks=1)
    assert made.file_bytes / 2e9 == pytest.approx(80, rel=0.01)
    assert round(made.ranks[0].read_bytes / 2e9 - 151936 * 2048 / 1e9) == 3


def test_one_formula(recorded_once):
    """Bytes over bandwidth of the slowest node, and every exchange its price."""
    made = planned("qwen2.5-72b:q4_k_m", "2x-epyc-9654")
    one, two = made.predictions
    assert (one.ranks, one.nodes, two.ranks, two.nodes) == (1, (0,), 2, (0, 1))
    slowest = max(rank.read_bytes for rank in made.ranks)
    waits = 161 * EXCHANGE_SECONDS + made.ranks[0].barrier_seconds + made.ranks[0].waiting_seconds
    assert 0 < made.ranks[0].barrier_seconds < 2e-3 and 0 <= made.ranks[0].waiting_seconds < 0.03 * slowest / 460.8e9
    assert two.tokens_per_second == pytest.approx(1 / (slowest / 460.8e9 + waits))
    full = slowest + made.ranks[0].cache_read_bytes
    assert made.ranks[0].cache_read_bytes == 80 * 4 * 128 * 2 * 2 * 8192  # float16 keys and values of 4 KV heads in 80 layers
    assert two.tokens_per_second_full == pytest.approx(1 / (full / 460.8e9 + waits))
    alone = planned("qwen2.5-72b:q4_k_m", "2x-epyc-9654", ranks=1).ranks[0]
    assert alone.read_bytes == pytest.approx(sum(rank.read_bytes for rank in made.ranks), rel=1e-3)
    assert one.tokens_per_second == pytest.approx(1 / (alone.read_bytes / 460.8e9 + alone.barrier_seconds + alone.waiting_seconds))
    assert len(made.ranks) == 2  # the faster


@pytest.fixture(scope="module")
def recordings():
    return {}


@pytest.fixture
def recorded_once(monkeypatch, recordings):
    """What a rank of a model runs is the same whatever joins the hosts."""
    record = rehearsal.rehearse

    def rehearse(kind, model, layout, sections, *where):
        asked = kind, model.file.path, layout.context, layout.max_rows, str(layout.split), str(layout.segments), *where
        if asked not in recordings:
            recordings[asked] = record(kind, model, layout, sections, *where)
        return recordings[asked]

    monkeypatch.setattr(rehearsal, "rehearse", rehearse)


def over_hosts(model, link, count=2, machine="2x-epyc-9654", **changes):
    return plan.make_plan(
        read_header(model), replace(snapshot.load(machine), **changes), Job(model), None, Hosts(count, read_link(link))
    )


def test_a_link_costs_what_was_seen():
    """Exchanges between namespaces, and what is said of cards (ms of 160 exchanges of 32 KB, from and to)."""
    for link, seen in {
        "20us:10gbit": (35, 42, 48, 86), "100us:10gbit": (116, 123, 129, 162), "50us:1gbit": (66, 91, 146, 415)
    }.items():  # fmt: skip
        for size, us in zip((8, 2304, 8192, 38000), seen, strict=True):
            assert read_link(link).seconds(size, 2) == pytest.approx(us * 1e-6, rel=0.2)
    assert read_link("20us:10gbit").seconds(32768, 2) == pytest.approx(80e-6, rel=0.2)
    for name, (low, high) in {"10gbe": (6.6, 9), "25gbe": (3.6, 6), "100gbe": (2, 4), "ib": (0.6, 0.9)}.items():
        assert low <= 160e3 * read_link(name).seconds(32768, 2) <= high
    assert read_link("ib").seconds(8192, 3) == pytest.approx(2e-6 + 2 * 8192 / 12.5e9)  # to two others
    measured = Link.measured([(8, 10e-6), (1000, 20e-6), (100_000, 120e-6)])
    assert [measured.seconds(size, 2) for size in (0, 1000, 50_500)] == pytest.approx([10e-6, 20e-6, 70e-6])
    assert measured.seconds(50_000, 3) == pytest.approx(120e-6) and measured.seconds(1_000_000, 2) == pytest.approx(1200e-6)


def test_one_formula_over_hosts(recorded_once):
    made = over_hosts("qwen2.5-72b:q4_k_m", "10GbE")
    hosts = made.hosts
    assert [(rank.host, rank.node) for rank in made.ranks] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert (hosts.exchanges, hosts.message_bytes, hosts.sent_bytes) == (161, 8192 * 4, 161 * 8192 * 4)
    told = sections_of(read_header("qwen2.5-72b:q4_k_m").spec, Job("qwen2.5-72b:q4_k_m"), 8192, 1).step.num_bytes
    step, logits = 15e-6 + told * (0.8e-9 + 0.3e-9), 3 * 15e-6 + 152064 / 2 * 4 * (0.8e-9 + 0.3e-9)  # go out, come back
    assert hosts.crossing_seconds == pytest.approx(161 * hosts.exchange_seconds + step + logits)
    slowest = max(rank.read_bytes for rank in made.ranks)
    waits = max(rank.barrier_seconds + rank.waiting_seconds for rank in made.ranks)
    seconds = slowest / 460.8e9 + 161 * EXCHANGE_SECONDS + waits + hosts.crossing_seconds
    assert hosts.cut.tokens_per_second == pytest.approx(1 / seconds)
    assert sum(hosts.read_bytes) == sum(rank.read_bytes for rank in made.ranks)
    assert hosts.alone.tokens_per_second == planned("qwen2.5-72b:q4_k_m", "2x-epyc-9654").predictions[-1].tokens_per_second
    assert hosts.pipeline.layers == ((0, 40), (40, 80))  # the first host has the embedding too, the last the output matrix
    assert hosts.alone.tokens_per_second > hosts.pipeline.tokens_per_second > 0.95 * hosts.alone.tokens_per_second
    passed = hosts.exchange_seconds + step + 3 * 15e-6 + 152064 * 4 * (0.8e-9 + 0.3e-9)
    assert hosts.pipeline.crossing_seconds == pytest.approx(passed)
    assert 1 / hosts.pipeline.tokens_per_second == pytest.approx(1 / hosts.alone.tokens_per_second + passed)
    assert json.loads(json.dumps(plan.to_json(made)))["hosts"]["cut"]["ranks"] == 4


def test_what_is_recommended_over_hosts(recorded_once):
    assert over_hosts("qwen2.5-72b:q4_k_m", "ib").hosts.recommended == "cut"
    assert over_hosts("qwen3-30b-a3b", "10gbe").hosts.recommended == "alone"
    small = {"free": {0: 20e9, 1: 20e9}}
    slow = over_hosts("qwen2.5-72b:q4_k_m", "2ms:1gbit", **small)
    assert not slow.hosts.alone.fits and slow.fits and slow.hosts.pipeline.fits and slow.hosts.recommended == "pipeline"
    assert over_hosts("qwen2.5-72b:q4_k_m", "ib", **small).hosts.recommended == "cut"
    assert over_hosts("qwen3-30b-a3b", "ib", bandwidth={}).hosts.recommended is None
    three = over_hosts("qwen2.5-72b:q4_k_m", "ib", count=3, free={0: 1e9, 1: 1e9})
    assert not three.fits and three.hosts.recommended == "cut"
    starts = [start for start, _ in three.hosts.pipeline.layers]
    assert [*starts, 80] == [0, *(stop for _, stop in three.hosts.pipeline.layers)]
    lines = plan.describe(three)
    assert "pipeline of 3 hosts, layers 0-" in "\n".join(lines)
    lines[-1:] = plan.describe(over_hosts("gemma-4-e2b", "ib"))[-2:-1] + lines[-1:]
    assert lines[-2].startswith("  pipeline of 2 hosts: not with this model")
    assert lines[-1] == "recommended: the model cut over all hosts" and "node 1 of each host" in "\n".join(lines)


def test_windows_and_states_read_what_they_hold():
    short, long = (planned("command-a", ranks=1, context=context).ranks[0] for context in (4096, 131072))
    token = 2 * 8 * 128 * 2
    assert short.cache_read_bytes == 64 * token * 4096
    assert long.cache_read_bytes == token * (48 * 4096 + 16 * 131072)
    state = planned("qwen3-next-80b-a3b", ranks=1).ranks[0].state_read_bytes
    piece = 8 * ((16 + 32) * 128 + 32)  # of tokens that do not fill one: keys, values, gates
    inputs = (3 + 7) * (2 * 16 + 32) * 128  # of a convolution, also where all but the last token of a piece are taken back
    assert state == 36 * 4 * (inputs + 32 * 128 * 128 + piece)


# What was published: (tokens per second, bytes read per token at least, bytes per second of a socket at most, sockets, exchanges).
# 2x Xeon 6980P: LMSYS blog of 2025-07-14, SGLang and llama.cpp on one machine, 1000 tokens in and out. One 6980P with R1 Q8_0:
# ik_llama.cpp discussion 201. Xeon 6454S: tutorial of KTransformers. EPYC 9004: README of fastllm ("9004/9005": the slower counts).
# EPYC 9175F: llama.cpp issue 11744. E5-2690 v3: ik_llama.cpp pull request 2396. EPYC 7742: anthony-chaudhary/fak issue 4623.
# INT8 and FP8 count as 8 bits where there is no shape, MXFP4 as 4.25, Q4_K as 4.5. Left out because machine, format or rate is not
# said: xFasterTransformer (arXiv 2407.00029), KTransformers issues 797 and 1730, llama.cpp 12289, 14969 and 27986, vLLM 32792.
R1 = 37e9  # active parameters of DeepSeek-V3 and R1 (their report)
ROUTED = 58 * 8 * 3 * 7168 * 2048  # of those: 8 routed experts in 58 layers, where a GPU computed the rest
XEON_6980P, XEON_6454S, EPYC_9004 = 12 * 8800e6 * 8, 8 * 4800e6 * 8, 12 * 4800e6 * 8
PUBLISHED = {
    "SGLang, R1 INT8, 2x Xeon 6980P": (1 / 0.0680, R1, XEON_6980P, 2, 123),
    "llama.cpp, R1 INT8, 2x Xeon 6980P": (1 / 0.172, R1, XEON_6980P, 2, 123),
    "SGLang, Qwen3-235B INT8, 2x Xeon 6980P": (1 / 0.0518, "qwen3-235b-a22b:q8_0", XEON_6980P, 2, 189),
    "llama.cpp, Qwen3-235B INT8, 2x Xeon 6980P": (1 / 0.2149, "qwen3-235b-a22b:q8_0", XEON_6980P, 2, 189),
    "SGLang, R1-Distill-70B INT8, 2x Xeon 6980P": (1 / 0.0765, "llama-3.1-70b:q8_0", XEON_6980P, 2, 161),
    "llama.cpp, R1-Distill-70B INT8, 2x Xeon 6980P": (1 / 0.195, "llama-3.1-70b:q8_0", XEON_6980P, 2, 161),
    "SGLang, Llama-3.2-3B BF16, one Xeon 6980P": (1 / 0.0170, 3.21e9 * 2, XEON_6980P, 1, 0),
    "llama.cpp, Llama-3.2-3B BF16, one Xeon 6980P": (1 / 0.0554, 3.21e9 * 2, XEON_6980P, 1, 0),
    "ik_llama.cpp, R1 Q8_0, one Xeon 6980P": (6.60, R1 * 34 / 32, XEON_6980P, 1, 0),
    "KTransformers + GPU, R1 Q4_K_M, one Xeon 6454S": (8.73, ROUTED * 4.5 / 8, XEON_6454S, 1, 0),
    "KTransformers + GPU, R1 Q4_K_M, 2x Xeon 6454S": (12.2, ROUTED * 4.5 / 8, XEON_6454S, 2, 123),
    "fastllm + GPU, R1 FP8, 2x EPYC 9004": (20, ROUTED, EPYC_9004, 2, 123),
    "fastllm + GPU, R1 INT4, 2x EPYC 9004": (30, ROUTED / 2, EPYC_9004, 2, 123),
    "llama.cpp, 70B F16, 2x EPYC 9175F": (4.31, "llama-3.1-70b:f16", 12 * 6000e6 * 8, 2, 161),
    "ik_llama.cpp, gpt-oss-120b MXFP4, 2x Xeon E5-2690 v3": (23.22, 5.1e9 * 17 / 32, 4 * 2133e6 * 8, 2, 73),
    "llama.cpp, 27B Q4_K, 2x EPYC 7742": (1.395, 27e9 * 4.5 / 8, 8 * 3200e6 * 8, 2, 129),
}  # fmt: skip


@cache
def read_by_one_rank(model):
    """As a Draft has it, which would record a program besides."""
    header = read_header(model)
    layout = lay_out(header, Job(model), 0, [0], {})
    return sum(read_per_token(piece, header.spec) for piece in layout.slices)


def predicted(read, bandwidth, sockets, exchanges):
    if isinstance(read, str):
        read = read_by_one_rank(read)
    return 1 / seconds_per_token(dict.fromkeys(range(sockets), read / sockets), dict.fromkeys(range(sockets), bandwidth), exchanges)


@pytest.mark.parametrize("name", PUBLISHED)
def test_never_less_than_what_was_published(name):
    rate, *facts = PUBLISHED[name]
    bound = predicted(*facts)
    assert bound >= rate
    row = f"| {name} | {rate:.1f} | {bound:.1f} | {100 * rate / bound:.0f} % |"
    assert row in (TESTS.parent / "bench/README.md").read_text(), row


# A plan records the programs of each rank whose part has another size, a second for a large model. So each model is recorded for
# one rank and laid out for two as well; two models, of dense layers and of experts, are planned for every server.
ON_SERVERS = [(model, "2x-epyc-9654", 1) for model in shapes.SHAPES]
ON_SERVERS += [(model, server, None) for server in SERVERS for model in ("llama-3.1-8b", "ling-mini-2.0")]


@pytest.mark.parametrize(("model", "server", "ranks"), ON_SERVERS)
def test_every_known_model_and_every_known_server(model, server, ranks):
    made = planned(model, server, ranks)
    assert all(p.tokens_per_second and p.tokens_per_second_full <= p.tokens_per_second for p in made.predictions)
    assert made.fits == all(room.needed_bytes <= room.free_bytes for room in made.rooms)
    described = json.loads(json.dumps(plan.to_json(made)))
    assert described["ranks"][0]["heads"][0] == 0
    assert described["ranks"][0]["activation_bytes"] > 0
    assert ranks != 1 or made.stored_twice == {}
    assert len(plan.describe(made)) > len(made.ranks)


def test_threads_divide_a_token_evenly():
    """64 threads, 128 experts: were a router's 8 tiles its only pieces, 8 threads would read all of it while the others wait."""
    made = planned("qwen3-30b-a3b", "2x-epyc-9654", threads=64)
    assert 0 < made.ranks[0].thread_imbalance < 0.1
    assert planned("llama-3.1-8b", "2x-epyc-9654", threads=16).ranks[0].thread_imbalance < 0.01


def products_of_one_row(count, tiles, num_bytes):
    op = Op("", 0, np.zeros(1), [], [], tiles=Tiles(tiles, int(num_bytes)), num_bytes=int(num_bytes), barrier=True)
    return Program("", [op] * count, 0)


def test_those_who_still_read_share_the_bandwidth():
    even, uneven = products_of_one_row(2, 4, 4e6), products_of_one_row(2, 3, 3e6)
    assert read_seconds(even, 2, 12e9, 10e9) == pytest.approx(2 * 4e6 / 12e9)
    assert read_seconds(even, 2, 50e9, 10e9) == pytest.approx(2 * 2e6 / 10e9)  # more than two cores can draw
    assert read_seconds(uneven, 2, 12e9, 10e9) == pytest.approx(2 * (1e6 / 6e9 + 1e6 / 10e9))  # a tile by both, then one by one
    assert read_seconds(uneven, 2, inf, 10e9) == 0
    few = planned("llama-3.1-8b", "2x-epyc-9654", ranks=1, threads=2).ranks[0]  # who divide it evenly: a bound says no less
    assert few.waiting_seconds < 1e-3 * few.read_bytes / 460.8e9


def test_threads_that_barriers_leave_worth_having():
    """Where products are long all threads are best; where they take as long as the barriers that are between them, fewer."""
    place = SimpleNamespace(cpus=range(96), l3=[thread // 8 for thread in range(96)])
    assert best_threads(products_of_one_row(100, 96, 100e6), 101, place, 460e9) == 96
    assert best_threads(products_of_one_row(100, 96, 0.1e6), 101, place, 460e9) in (48, 56)
    assert best_threads(products_of_one_row(100, 96, 0.1e6), 101, place, inf) == 96
    assert best_threads(products_of_one_row(100, 96, 100e6), 101, place, 100e9) == 96  # as good as fewer, and prompts want them
    assert len(planned("qwen2.5-72b", "2x-epyc-9654").ranks[0].cpus) == 96


def test_a_start_has_as_many_threads_as_are_recommended(monkeypatch):
    """Unless somebody says how many, or there are few cores."""
    places = [SimpleNamespace(cpus=range(24))]
    monkeypatch.setattr(start, "find_places", lambda job, ranks: places)
    monkeypatch.setattr(draft, "choose_threads", lambda job, ranks: 20)
    assert start.with_threads(Job(""), 1).threads == 20
    assert start.with_threads(Job("", threads=5), 1).threads == 5
    places[:] = [SimpleNamespace(cpus=range(16))]
    assert start.with_threads(Job(""), 1).threads is None


def test_a_barrier_of_more_threads_costs_more_and_most_between_caches():
    ccds = [thread // 8 for thread in range(96)]
    assert barrier.seconds([0]) == 0 < barrier.seconds([0, 0]) < barrier.seconds(ccds[:8]) < barrier.seconds(ccds[:16])
    assert barrier.seconds(ccds[:16]) < barrier.seconds(ccds) < 2e-6
    # 8 at a counter and all read what the last one wrote, within; then 12 caches by sixes, and two of these.
    assert barrier.seconds(ccds) == pytest.approx(9 * 25e-9 + (7 + 3) * 95e-9)


@pytest.mark.parametrize("name", SERVERS)
def test_nodes_share_the_channels_of_their_socket(name):
    server, machine = SERVERS[name], snapshot.load(name)
    assert len(machine.machine.nodes) == len(machine.bandwidth) == 2 * server.nodes
    assert sum(machine.bandwidth.values()) == pytest.approx(2 * server.channels * server.mega_transfers * 1e6 * 8)


def test_what_is_stored_twice():
    made = planned("qwen3-235b-a22b", "2x-xeon-6980p-snc3")
    assert made.kv_heads_twice == (0, 1, 2, 3)  # 64 heads on 4 KV heads, cut in six
    norms = 94 * 4096 * 4 * 5
    assert made.stored_twice["attn_norm"] == made.stored_twice["ffn_norm"] == norms
    assert made.stored_twice["ffn_gate_inp"] == 94 * 128 * 4096 * 4 * 5
    key_heads = 94 * 128 * 2  # rows of two further KV heads, 1 and 3 half and half with others
    assert made.stored_twice["attn_k"] >= key_heads * 4096 * 4.5 / 8
    assert made.imbalance == pytest.approx(0.1, abs=0.05)


def test_a_memory_limit_counts_the_processes_too():
    """Before a rank asks whether its slice fits it has used some of the limit itself."""
    header, machine = read_header("llama-3.1-8b:q4_k_m"), snapshot.load("2x-epyc-7532")
    needed = sum(room.needed_bytes for room in plan.make_plan(header, machine, Job(""), 2).rooms)
    for limit, fits in ((needed, False), (needed + 2 * PROCESS_BYTES - 1, False), (needed + 2 * PROCESS_BYTES, True)):
        made = plan.make_plan(header, replace(machine, limit=limit), Job(""), 2)
        assert made.fits == fits == next(p.fits for p in made.predictions if p.ranks == 2)
        assert any("DOES NOT FIT" in line for line in plan.describe(made)) != fits


def test_the_fastest_count_that_fits():
    machine = snapshot.load("2x-epyc-7532")
    header = read_header("llama-3.1-8b")

    def ranks(**changes):
        return len(plan.make_plan(header, replace(machine, **changes), Job("")).ranks)

    assert ranks() == 2
    assert ranks(bandwidth={0: 204.8e9, 1: 60e9}) == 1  # the second node would only be waited for
    whole = planned("llama-3.1-8b", ranks=1).rooms[0].needed_bytes
    assert ranks(bandwidth={0: 204.8e9, 1: 60e9}, free={0: whole - 1, 1: whole}) == 2
    assert ranks(bandwidth={0: 204.8e9, 1: 60e9}, free={0: whole, 1: whole}) == 1
    assert ranks(bandwidth={}) == 2  # nothing is known: all nodes
    made = plan.make_plan(header, replace(machine, free={0: MARGIN, 1: MARGIN}), Job(""))
    assert (made.fits, len(made.ranks)) == (False, 2)


def test_start_asks_for_the_fastest(tmp_path, monkeypatch):
    """A tiny model is faster on one node of a machine whose bandwidth is known."""
    monkeypatch.setenv("NUMATP_CACHE_DIR", str(tmp_path / "cache"))
    tiny.write(tmp_path / "tiny.gguf", "Q8_0", sizes=tiny.SUPER_SIZES)
    taken = snapshot.take(xeon(tmp_path / "root"), {}, pid=1)
    monkeypatch.setattr(snapshot, "take", lambda measured: replace(taken, allowed=frozenset(range(128)), bandwidth=measured))
    job = Job(str(tmp_path / "tiny.gguf"))
    assert choose_ranks(job) == 2
    keep_bandwidth({0: 100.0, 1: 100.0})
    assert choose_ranks(job) == 1
    assert choose_ranks(replace(job, cpus="0-3|4-7|8")) == 3
    with pytest.raises(UserError, match="no such file"):
        choose_ranks(Job("absent.gguf"))


def test_a_measured_roofline_comes_first(tmp_path):
    root = xeon(tmp_path)
    (tmp_path / "proc/cpuinfo").write_text("model name\t: AMD EPYC 7532 32-Core Processor\n")
    assert snapshot.take(root, {}).bandwidth == {0: 204.8e9, 1: 204.8e9}
    assert snapshot.take(root, {}, measured={0: 1e9, 1: 2e9}).bandwidth == {0: 1e9, 1: 2e9}
    assert snapshot.take(root, {}, measured={0: 1e9}).bandwidth == {0: 204.8e9, 1: 204.8e9}  # of another state of this machine
    (tmp_path / "proc/cpuinfo").write_text("model name\t: something else\n")
    assert snapshot.take(root, {}).bandwidth_source == "unknown: run numatp bandwidth"


def test_command(tmp_path):
    shown = numatp("plan", "-m", "llama-3.1-70b:q4_k_m", "--machine", "2x-epyc-9654", "-c", CACHE_BLOCK, "-o", "json")
    assert shown.returncode == 0, shown.stderr
    described = json.loads(shown.stdout)
    assert described["machine"] == "2x-epyc-9654" and described["fits"] and len(described["ranks"]) == 2
    assert [p["ranks"] for p in described["predictions"]] == [1, 2]
    text = numatp("plan", "-m", "llama-3.1-70b:q4_k_m", "--machine", "2x-epyc-9654", "--ranks", 3)
    assert text.returncode == 0
    assert re.search(r"^ *3 ranks on nodes 0-1: [\d.]+ and [\d.]+ tok/s, as planned above$", text.stdout, re.M), text.stdout
    kept = tmp_path / "machine.json"
    here = numatp("plan", "--save-machine", kept)
    assert here.returncode == 0
    there = numatp("plan", "--machine", kept)
    assert there.stdout.splitlines()[1:] == here.stdout.splitlines()[1:]
    started = mpirun(2, BIN / "numatp", "plan", "-m", "llama-3.1-8b", "-o", "json")
    assert len(json.loads(started.stdout)["ranks"]) == 2  # said once
    too_large = numatp("plan", "-m", "qwen3-235b-a22b:f16", "--machine", "2x-xeon-e5-2680v4")
    assert too_large.returncode == 1 and "DOES NOT FIT" in too_large.stdout and too_large.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("-m", "nothing"), "no such file, and no model of that name; known names: smollm2; shapes that need no file: qwen2.5-72b"),
        (("-m", "qwen2.5-72b:q9"), "no type 'q9' is known; known types: f16, bf16"),
        (("-m", ""), "the model's name is empty"),
        (("-m", "x" * 300), "no such file, and no model of that name"),
        (("-m", "BROKEN"), "not a GGUF file"),
        (("-m", "command-a", "-c", "999999"), "trained for 1 to 131072"),
        (("-m", "command-a", "--ranks", "65"), "65 ranks: ask for 1 to 64"),
        (("-m", "command-a", "--ranks", "0"), "'0' is not a whole number above 0"),
        (("-m", "command-a", "--hosts", "2", "--ranks", "3"), "3 ranks: 2 hosts that are alike have as many each"),
        (
            ("-m", "command-a", "--hosts", "2", "--link", "20us"),
            "no link '20us' is known; known: 10gbe, 25gbe, 100gbe, ib, or a delay",
        ),
        (("-m", "command-a", "--hosts", "2", "--link", "measured"), "--link measured: there is none between ranks of one host"),
        (("-m", "command-a", "--hosts", "2", "--link", "1us:1.2.3gbit"), "no link '1us:1.2.3gbit' is known"),
        (("--machine", "toaster"), "no such file, and no known server; known: 2x-epyc-9654"),
        (("--machine", "BROKEN"), "not JSON"),
        (("--machine", "/"), "cannot read it: Is a directory"),
        (("--save-machine", ""), "Is a directory"),
        (("--save-machine", "/nowhere/machine.json"), "cannot write /nowhere/machine.json: No such file or directory"),
    ],
)
def test_bad_input_in_one_line(tmp_path, arguments, line):
    (tmp_path / "broken").write_text("hello")
    result = numatp("plan", *(tmp_path / "broken" if a == "BROKEN" else a for a in arguments))
    assert (result.returncode, result.stdout) == (2, "")
    assert line in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved.pop("cores"), lambda saved: saved.update(numatp_machine=2), lambda saved: saved.update(cores=[]),
        lambda saved: saved.update(cores=[["0", 0, 7, 0]]), lambda saved: saved["nodes"].append(dict(saved["nodes"][0])),
        lambda saved: saved["nodes"][0].update(memory=-1), lambda saved: saved["nodes"][0].update(bandwidth=float("nan")),
        lambda saved: saved["nodes"][0].update(distances=[1, 2, 3]), lambda saved: saved["nodes"][0].update(cpus="0-x"),
        lambda saved: saved.update(nodes=5), lambda saved: saved.update(limit="much"), lambda saved: saved.update(allowed=None),
    ],
)  # fmt: skip
def test_a_damaged_machine_file_is_refused(tmp_path, change):
    saved = snapshot.to_json(snapshot.load("2x-epyc-7532"))
    change(saved)
    (tmp_path / "machine.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="not a machine that numatp saved") as refused:
        snapshot.load(str(tmp_path / "machine.json"))
    assert "\n" not in str(refused.value)


def test_a_saved_machine_comes_back(tmp_path):
    for name in SERVERS:
        machine = snapshot.load(name)
        snapshot.save(machine, tmp_path / "machine.json")
        assert replace(snapshot.load(str(tmp_path / "machine.json")), name=name) == machine
