"""Ranks on several hosts, which are namespaces of this machine (support/hosts)."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import BIN, TESTS
from support.hosts import cluster
from support.shared_memory import OURS

SECONDS = 60  # a hang, on a machine however slow

pytestmark = [pytest.mark.cores, pytest.mark.skipif(bool(cluster.reason()), reason=str(cluster.reason()))]


@pytest.fixture(scope="module")
def hosts():
    with cluster.Cluster("a", "b") as made:
        yield made


MEETING = """
import json, os, sys
import numpy as np
from mpi4py import MPI
world = MPI.COMM_WORLD
open(f"/dev/shm/rank-{sys.argv[1]}-{world.rank}", "w").close()
total = np.full(1000, world.rank + 1.0)
world.Allreduce(MPI.IN_PLACE, total)
mine = sorted(name for name in os.listdir("/dev/shm") if name.startswith(f"rank-{sys.argv[1]}"))
inside = world.Split_type(MPI.COMM_TYPE_SHARED).size
told = world.gather((os.uname().nodename, open("/proc/sys/kernel/random/boot_id").read(), inside, len(mine), set(total) == {10.0}))
if not world.rank:
    print(json.dumps(told))
"""


@pytest.mark.parametrize("library", ["openmpi", "mpich"])
def test_hosts_are_apart_and_reach_each_other(hosts, mpich, library):
    """Two ranks on each: they share memory with their neighbour only, and add with all."""
    bin = BIN if library == "openmpi" else mpich
    result = hosts.run("a", *hosts.mpirun(bin, 2, bin / "python", "-c", MEETING, library))
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert [name for name, *_ in told] == ["a", "a", "b", "b"]
    assert len({boot for _, boot, *_ in told}) == 2
    assert all(rest == [2, 2, True] for _, _, *rest in told)


def test_a_command_on_a_host_keeps_its_words_its_folder_and_its_status(hosts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = hosts.run("b", "sh", "-c", 'hostname; pwd; echo "$WORD" "$1"; exit 7', "sh", "two words", env={"WORD": "*"})
    assert (result.returncode, result.stdout.splitlines()) == (7, ["b", str(tmp_path), "* two words"])
    assert hosts.run("b", "sh", "-c", "kill -15 $$").returncode == 128 + 15


MAKE = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
from support.hosts.cluster import Cluster
with Cluster("a", "b") as hosts:
    sleeping = subprocess.Popen(hosts.words("b", "sh", "-c", "echo sleeping; exec sleep 1000"))
    sleeping.wait()
"""


def of_ours(word):
    """Processes, started by this one or its children, whose command line has the word."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            environment, line = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
            if word.encode() in environment + line and OURS.encode() in environment.split(b"\0"):
                found.append(line)
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_hosts_whose_maker_was_killed(tmp_path, number):
    marked = os.environ | {"TMPDIR": str(tmp_path)}  # the folder that the hosts are made in is in all of their command lines
    made = subprocess.Popen(
        [sys.executable, "-c", MAKE, TESTS], env=marked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )  # fmt: skip
    with made:
        assert made.stdout.readline() == "sleeping\n"
        assert len(of_ours(str(tmp_path))) > 5
        made.send_signal(number)
    end = time.monotonic() + SECONDS
    while left := of_ours(str(tmp_path)) or os.listdir(tmp_path):
        assert time.monotonic() < end, left
        time.sleep(0.05)
