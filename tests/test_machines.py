"""Machines of many shapes, made up and recorded, and the whole plan that numatp makes for each, as text.

The texts in data/machines were written by `python tests/test_machines.py --write` and then read by a human, as all changes to
them should be.
"""

import sys
import tempfile
from pathlib import Path

import pytest
from support.machines import trees
from support.machines.sysfs import desktop, epyc, make_machine, write, write_huge_pages, write_process, write_settings, xeon

from numatp.advice.plan import describe, make_plan
from numatp.engine.draft import read_header
from numatp.engine.job import Job
from numatp.machine import snapshot

FOLDER = Path(__file__).parent / "data/machines"


def process(root, cpus, mems):
    """The process that a plan is made for."""
    write_process(root, 1, "numatp", 0, cpus, mems)
    write_settings(root)
    return root


def numa_settings(root):
    process(xeon(root), "0-127", "0-1")
    write_settings(root, numa_balancing=1, huge_page_mode="never")
    write_huge_pages(root, 0, 2, 1000, 10)
    write_huge_pages(root, 0, 1024, 8, 8)
    return root


def far_memory(root):
    """A third node of memory alone, as CXL cards are, and a package without memory."""
    packages, nodes = [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 4, 4]
    distances = {0: "10 21 14 21", 1: "21 10 24 12", 2: "14 24 10 31", 4: "21 12 31 10"}
    make_machine(
        root, [(c,) for c in range(6)], packages=packages, nodes=nodes, l3=packages, memory_gib={2: 256, 4: 0}, distances=distances
    )
    return process(root, "0-5", "0-2")


def alternating_quarters(root):
    """EPYC in NPS4, its cpus numbered across all nodes."""
    nodes = [c % 8 for c in range(64)]
    packages = [node // 4 for node in nodes]
    make_machine(
        root, [(c, c + 64) for c in range(64)], packages=packages, nodes=nodes, l3=nodes, memory_gib=dict.fromkeys(range(8), 32)
    )
    return process(root, "0-127", "0-7")


def limited(root):
    process(xeon(root), "0-127", "0-1")
    write(root, "proc/self/cgroup", "0::/job")
    write(root, "sys/fs/cgroup/job/memory.max", 12 << 30)
    write(root, "sys/fs/cgroup/job/memory.current", 1 << 30)
    return root


def bound(root):
    """As `numactl --membind=0` starts a process."""
    write(root, "proc/thread-self/numa_maps", "55d0 bind:0 file=/usr/bin/python3 mapped=2")
    return process(xeon(root), "0-127", "0-1")


MADE = {
    "made-desktop": lambda root: process(desktop(root), "0-1", "0"),
    "made-xeon": lambda root: process(xeon(root), "0-127", "0-1"),
    "made-xeon-snc": lambda root: process(xeon(root, nodes_per_package=2), "0-127", "0-3"),
    "made-xeon-uneven": lambda root: process(xeon(root, memory_gib={0: 128, 1: 16}), "0-127", "0-1"),
    "made-xeon-offline": lambda root: process(xeon(root, offline=[*range(64, 128), 3]), "0-127", "0-1"),
    "made-xeon-part": lambda root: process(xeon(root), "16-47", "0-1"),
    "made-xeon-one-memory": lambda root: process(xeon(root), "0-127", "0"),
    "made-xeon-limit": limited,
    "made-xeon-bound": bound,
    "made-xeon-settings": numa_settings,
    "made-epyc": lambda root: process(epyc(root), "0-127", "0-1"),
    "made-epyc-nps4": alternating_quarters,
    "made-far-memory": far_memory,
    "made-no-nodes": lambda root: process(
        make_machine(root, [(c,) for c in range(4)], packages=[0, 0, 1, 1], nodes=None), "0-3", ""
    ),
}
RECORDED = sorted(path.stem for path in FOLDER.glob("*.tree"))


def text_of(name, root):
    root = MADE[name](root) if name in MADE else trees.unpack(FOLDER / f"{name}.tree", root)
    machine = snapshot.take(root, {}, pid=1)
    assert snapshot.load(saved(machine, root)).machine == machine.machine
    return "\n".join(describe(make_plan(read_header("llama-3.1-8b:f16"), machine, Job("", context=4096)))) + "\n"


def saved(machine, root):
    snapshot.save(machine, root / "saved.json")
    return str(root / "saved.json")


@pytest.mark.parametrize("name", [*MADE, *RECORDED])
def test_plan(tmp_path, name):
    assert text_of(name, tmp_path) == (FOLDER / f"{name}.txt").read_text()


def test_enough_shapes():
    assert len(MADE) >= 8 and len(RECORDED) >= 4
    assert {path.stem for path in FOLDER.glob("*.txt")} == {*MADE, *RECORDED}


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    for name in [*MADE, *RECORDED]:
        with tempfile.TemporaryDirectory() as folder:
            (FOLDER / f"{name}.txt").write_text(text_of(name, Path(folder)))
