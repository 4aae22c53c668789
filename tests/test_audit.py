"""Where the pages are, counted by the kernel and said in the exit status. On two nodes: test_two_sockets.py."""

import ctypes
import json
import mmap
import re
import sys
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
from support.commands import BIN, SCRIPTS, mpirun, run
from support.warm import numatp

from numatp import LLM, SamplingParams
from numatp.cli.audit import FINDING, audited, per_cent
from numatp.engine.load import check_pages
from numatp.machine import pages
from numatp.machine.pages import Region
from numatp.results import RankPages

PAGE = 4096
AUDIT = ("audit", "-n", 8, "-o", "json", "-c", 256)


@pytest.fixture(scope="module")
def touched():
    """(address, bytes) of memory of which every second huge page was written."""
    size = 4 << 21
    address = pages.reserve(size)
    for part in range(0, size, 2 << 21):
        ctypes.memset(address + part, 1, 1 << 21)
    yield address, size
    pages.release(address, size)


def test_pages_are_counted_once_whatever_the_regions(touched):
    address, size = touched
    whole = pages.count([Region("all", address, size)])
    assert sum(whole["all"].values()) == size // 2 // PAGE
    edges = [0, 100, PAGE, PAGE + 1, 5 * PAGE, (1 << 21) + 7, size]
    cut = pages.count([Region(f"{i % 3}", address + a, b - a) for i, (a, b) in enumerate(pairwise(edges))])
    assert sum(sum(nodes.values()) for nodes in cut.values()) == size // 2 // PAGE
    assert sum(cut["0"].values()) == 1 + 3  # [0, 100): the first page; [PAGE + 1, 5 PAGE): three that begin in it


def test_maps_say_the_same(touched):
    address, size = touched
    regions = [Region("a", address, 100), Region("b", address + 200, size - 200)]  # one mapping
    assert pages.count_in_maps(regions) == pages.count([Region("all", address, size)])["all"]


def test_quickly_is_the_same(monkeypatch):
    size = 2 << 21  # whole huge pages
    address = pages.reserve(size)
    try:
        ctypes.memset(address, 1, size)
        exact = pages.count([Region("all", address, size)])["all"]
        assert pages.count_quickly(Region("all", address, size)) == exact
        for useless in (None, {}, {0: 1}, {0: 4000}):  # what numa_maps may say that is not of this region alone
            monkeypatch.setattr(pages, "count_in_maps", lambda regions, said=useless: said if said is None else Counter(said))
            assert pages.count_quickly(Region("all", address, size)) == exact
    finally:
        pages.release(address, size)


def test_huge_pages_are_counted_of_what_was_touched(monkeypatch):
    size = 4 << 21
    small = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    small.madvise(mmap.MADV_NOHUGEPAGE)
    small.write(b"1" * size)
    first = ctypes.addressof(ctypes.c_char.from_buffer(small))
    assert pages.huge_share(Region("small", first, size)) == 0
    smaps = "7f0000000000-7f0000800000 rw-p 00000000 00:00 0 \nSize: 8192 kB\nRss:    4096 kB\nAnonHugePages:    2048 kB\n"
    other = "7f0000800000-7f0001000000 rw-p 00000000 00:00 0 \nRss:    4096 kB\nAnonHugePages:    0 kB\n"
    monkeypatch.setattr(pages.Path, "read_text", lambda path: smaps + other)
    assert pages.huge_share(Region("half", 0x7F0000000000, 8 << 20)) == 0.5
    assert pages.huge_share(Region("both", 0x7F0000000000, 9 << 20)) == 0.25
    assert pages.huge_share(Region("untouched", 0x7F0002000000, 1)) is None


def test_few_huge_pages_are_said_beside_where_the_weights_are(monkeypatch):
    loaded = SimpleNamespace(weights_at=0, layout=SimpleNamespace(weight_bytes=1))
    world = SimpleNamespace(gather=lambda mine: [mine])
    monkeypatch.setattr(pages, "count_quickly", lambda region: Counter({0: 10}))
    for share, said in ((None, ""), (0.95, ""), (0.12, " (12 % of it in huge pages)")):
        monkeypatch.setattr(pages, "huge_share", lambda region, share=share: share)
        line = check_pages(world, SimpleNamespace(node=0), loaded, allow_remote=False)
        assert line == f"weights rank 0: 100.0 % on node 0{said}"


def test_rank_pages():
    rank = RankPages(1, 1, {"weights": {1: 90, 0: 6}, "cache": {}, "window": {1: 4}})
    assert (rank.pages, rank.local, rank.percent_local, rank.by_node) == (100, 94, 94.0, {0: 6, 1: 94})


@pytest.mark.parametrize(("shares", "status"), [((100, 100), 0), ((99, 100), 0), ((100, 98.9), FINDING), ((98.9, 100), FINDING)])
def test_a_rank_below_the_limit_before_or_after_is_a_finding(shares, status, capsys):
    def count(share):
        local = round(10 * share)
        return [RankPages(0, 0, {"weights": {0: 1000}}), RankPages(1, 1, {"weights": {1: local, 0: 1000 - local}})]

    counts, work = iter([count(share) for share in shares]), []
    assert audited(lambda: next(counts), 99.0, lambda: work.append(1))[2] == status
    assert work == [1]
    assert ("rank 1 had 98.9 % of its pages on its node 1, less than --min-local 99" in capsys.readouterr().err) == bool(status)


@pytest.mark.parametrize("text", ["101", "-1", "nan", "many"])
def test_limits_that_mean_nothing(text):
    result = numatp("audit", "-m", "x", "--min-local", text)
    assert result.returncode == 2 and "is not a number from 0 to 100" in result.stderr.splitlines()[-1]
    assert per_cent("99.5") == 99.5


def check(found, ranks, tokens=8):
    assert found["passed"] and found["min_local"] == 99 and found["tokens"] == tokens
    assert [rank["rank"] for rank in found["ranks"]] == list(range(ranks))
    for before, after in zip(found["after_load"], found["ranks"], strict=True):
        for rank in (before, after):
            assert rank["local"] == rank["pages"] == sum(group["pages"] for group in rank["groups"].values())
            assert (rank["node"], rank["percent_local"]) == (0, 100.0)
        assert after["pages"] > before["pages"]  # the cache


@pytest.mark.parametrize("way", ["alone", "local", "mpirun"])
def test_the_command(model_path, way):
    arguments = (*AUDIT, "-m", model_path)
    result = mpirun(2, BIN / "numatp", *arguments) if way == "mpirun" else numatp(*arguments, "--ranks", 1 + (way == "local"))
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    check(found, 1 if way == "alone" else 2)
    groups = found["ranks"][0]["groups"]
    assert {"blk.*.ffn_gate.weight", "token_embd.weight", "cache", "window"} <= groups.keys()
    assert "cache" in found["after_load"][0]["groups"] and not found["after_load"][0]["groups"]["cache"]["pages"]
    weights = sum(group["pages"] for rank in found["ranks"] for name, group in rank["groups"].items() if "weight" in name)
    assert 0.95 < weights * PAGE / model_path.stat().st_size < 1.1 + 0.1 * len(found["ranks"])


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_more_tokens_than_the_cache_has_room_for(model_path, ranks):
    result = numatp("audit", "-m", model_path, "-c", "64", "-n", "64", "--ranks", ranks)
    assert (result.returncode, result.stdout) == (2, "")
    assert "-n 64: the cache has room for 64 tokens" in result.stderr.splitlines()[-1]


def test_where_move_pages_is_refused(model_path):
    result = run(sys.executable, SCRIPTS / "refuse.py", "move_pages", BIN / "numatp", *AUDIT, "-m", model_path, "--ranks", "2")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    check(found, 2)
    assert set(found["ranks"][1]["groups"]) == {"weights and cache", "window"}


def test_generate_with_an_audit(model_path):
    plain = ("generate", "-m", model_path, "-p", "The capital of France is", "-n", "8", "--temp", "0", "--ranks", "2")
    result = numatp(*plain, "--audit")
    assert result.returncode == 0, result.stderr
    assert result.stdout == numatp(*plain).stdout
    assert len(re.findall(r"numatp: pages after (?:load|the work): rank 0: 100.0 % of \d+ on node 0, rank 1:", result.stderr)) == 2


def test_library(model_path):
    with LLM(model_path, ranks=2, ctx=256) as llm:
        before = llm.audit()
        llm.generate([1, 2, 3], SamplingParams(temperature=0, max_tokens=4))
        after = llm.audit()
    assert [rank.node for rank in after] == [0, 0]
    assert all(rank.percent_local == 100 for rank in before + after)
    assert after[1].groups["cache"] and not before[1].groups["cache"]
