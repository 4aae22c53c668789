"""`numatp bandwidth`: complete tables of positive numbers, and loops that do what they claim. On two nodes: test_two_sockets.py."""

import ctypes
import json
import os

import numpy as np
import pytest
from support.commands import BIN, mpirun
from support.warm import numatp

from numatp.cli import bandwidth as command
from numatp.files.measured import keep_bandwidth, read_bandwidth
from numatp.kernels import roofline as loops
from numatp.machine import pages, topology
from numatp.measure import bandwidth
from numatp.measure.roofline import Area

SIZE = 4 << 20
pytestmark = pytest.mark.cores
ALLOWED = frozenset(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def found():
    steps = []
    measured = bandwidth.measure(
        topology.read_machine(), ALLOWED, area_bytes=SIZE, progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(i + 1, len(steps)) for i in range(len(steps))]
    return measured


def test_every_pair_and_number_of_threads(found):
    wanted = [
        (own, node, count) for node in found.nodes for own, cores in found.cores.items() for count in bandwidth.thread_counts(cores)
    ]
    assert [(pair.threads_node, pair.memory_node, pair.threads) for pair in found.pairs] == wanted
    for pair in found.pairs:
        assert min(pair.read_gbs, pair.copy_gbs, pair.gemv_gbs) > 0
    assert [(one.threads_node, one.memory_node) for one in found.latencies] == [(o, n) for n in found.nodes for o in found.cores]
    assert all(one.ns > 0 for one in found.latencies)
    assert found.area_bytes == SIZE and found.together_gbs > 0 and found.notes == []
    assert found.local_gbs[0] == max(pair.read_gbs for pair in found.pairs if pair.threads_node == pair.memory_node == 0)


@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two cores")
def test_exchanges(found):
    assert [exchange.nodes for exchange in found.exchanges] == [(0, 0)]
    assert 0 < found.exchanges[0].short_us < found.exchanges[0].long_us


@pytest.mark.parametrize(
    ("cores", "wanted", "counts"),
    [(1, [], [1]), (6, [], [1, 2, 4, 6]), (8, [], [1, 2, 4, 8]), (6, [1, 3], [1, 3]), (6, [4, 64, 8], [4, 6])],
)
def test_thread_counts(cores, wanted, counts):
    assert bandwidth.thread_counts(cores, wanted) == counts


def test_threads_are_spread_over_the_l3_caches():
    seats = [(cpu, cpu // 4 * 4) for cpu in range(16)]
    assert {l3 for _, l3 in bandwidth._spread(seats, 4)} == {0, 4, 8, 12}


@pytest.fixture
def area():
    size = 1 << 20
    area = Area(pages.reserve(size), size, 1)
    yield area
    area.release()


def on_one_thread(work):
    return bandwidth._on([(min(ALLOWED), 0)], work)


def test_the_chain_goes_through_every_line(area):
    bandwidth._make_chain(area)
    lines, last = area.num_bytes // 64, np.zeros(1, np.int64)
    words = np.ctypeslib.as_array((ctypes.c_int64 * (lines * 8)).from_address(area.address))
    places = [0]
    while (place := int(words[places[-1]])) != 0:
        places.append(place)
    assert len(places) == lines
    record = loops.chase.record(memory=area.address, steps=1000, last=last.ctypes.data)
    on_one_thread(lambda team: team.run(loops.chase, record))
    assert last[0] == places[1001]  # the first load is no step


def test_copy_copies(area):
    words = np.ctypeslib.as_array((ctypes.c_int64 * (area.num_bytes // 8)).from_address(area.address))
    half = len(words) // 2
    words[:half], words[half:] = np.arange(half), 0
    record = loops.copy.record(memory=area.address, part_bytes=area.num_bytes, rounds=1)
    on_one_thread(lambda team: team.run(loops.copy, record))
    assert (words[half:] == np.arange(half)).all()


def test_outputs(found, tmp_path, monkeypatch):
    described = command.describe(found)
    text, markdown, table, parsed = (command.PRINTERS[form](found, described) for form in ("text", "md", "csv", "json"))
    assert json.loads(parsed) == json.loads(json.dumps(described))
    assert len(table.splitlines()) == 1 + len(found.pairs) and table.startswith("threads_node,memory_node,threads,read_gbs")
    for form in (text, markdown):
        assert "latency, ns" in form and "all nodes at once" in form and f"{found.pairs[0].read_gbs:.1f}" in form
    monkeypatch.setenv("NUMATP_CACHE_DIR", str(tmp_path))
    keep_bandwidth(found.local_gbs, described)
    assert read_bandwidth() == {node: rate * 1e9 for node, rate in found.local_gbs.items()}


def test_plot(found, tmp_path):
    from numatp.cli import bandwidth_plot

    bandwidth_plot.check(str(tmp_path / "plot.png"))(found)
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_under_mpirun_one_rank_measures():
    result = mpirun(2, BIN / "numatp", "bandwidth", "--size", 1, "-t", 1, "-o", "csv", "--no-keep")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("-t", "0"), "not a whole number above 0"),
        (("--size", "x"), "not a whole number"),
        (("--plot", "x.txt"), "must end in"),
        (("--plot", ""), "must end in"),
        (("--plot", "/proc/x.png"), "cannot write there"),
    ],
)
def test_bad_arguments_in_one_line(arguments, line):
    result = numatp("bandwidth", *arguments)
    assert result.returncode == 2 and line in result.stderr and len(result.stderr.splitlines()) == 1
