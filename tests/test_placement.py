"""numatp.machine.placement: who gets which cpus, compared as text; and binding for real."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.machines.sysfs import desktop, epyc, hybrid, make_machine, xeon

from numatp.errors import MachineError, UserError
from numatp.machine import policy
from numatp.machine.placement import Placement, bind, describe, mark_crowded, place, usable_nodes
from numatp.machine.policy import OURS, bound_nodes, current_policy, prefer_node
from numatp.machine.topology import Machine, format_cpulist, parse_cpulist, read_machine


def everything(machine: Machine) -> frozenset[int]:
    return frozenset(cpu for core in machine.cores for cpu in core.cpus)


def plan(root: Path, size: int, allowed: str = "", **wish: object) -> str:
    machine = read_machine(root)
    cpus = frozenset(parse_cpulist(allowed)) if allowed else everything(machine)
    return describe(place(machine, cpus, size, **wish))  # type: ignore[arg-type]


def masks(placements: list[Placement]) -> list[str]:
    return [format_cpulist(p.mask) for p in placements]


def test_desktop(tmp_path: Path) -> None:
    desktop(tmp_path)
    assert plan(tmp_path, 1) == "1 rank: rank 0 on node 0 (cpus 0-1); 2 threads"
    assert plan(tmp_path, 2) == "2 ranks: rank 0 on node 0 (cpus 0), rank 1 on node 0 (cpus 1); 1 thread each"


def test_two_sockets(tmp_path: Path) -> None:
    xeon(tmp_path)
    assert plan(tmp_path, 2) == "2 ranks: rank 0 on node 0 (cpus 0-31), rank 1 on node 1 (cpus 32-63); 32 threads each"
    assert plan(tmp_path, 1) == "1 rank: rank 0 on node 0 (cpus 0-31); 32 threads"
    assert plan(tmp_path, 3) == (
        "3 ranks: rank 0 on node 0 (cpus 0-15), rank 1 on node 0 (cpus 16-31), rank 2 on node 1 (cpus 32-63); 16, 16, 32 threads"
    )
    assert plan(tmp_path, 2, smt=True) == (
        "2 ranks: rank 0 on node 0 (cpus 0-31,64-95), rank 1 on node 1 (cpus 32-63,96-127); 64 threads each"
    )


def test_siblings_are_in_the_mask_only(tmp_path: Path) -> None:
    machine = read_machine(xeon(tmp_path))
    placements = place(machine, everything(machine), 4)
    assert masks(placements) == ["0-15,64-79", "16-31,80-95", "32-47,96-111", "48-63,112-127"]
    assert all(len(p.cpus) == len(p.l3) == 16 for p in placements)
    assert set(placements[3].l3) == {32}


def test_siblings_sit_side_by_side(tmp_path: Path) -> None:
    machine = read_machine(xeon(tmp_path))
    assert place(machine, everything(machine), 2, smt=True)[1].cpus[:4] == (32, 96, 33, 97)


def test_epyc_keeps_l3_groups_together(tmp_path: Path) -> None:
    machine = read_machine(epyc(tmp_path))
    first = place(machine, everything(machine), 2)[0]
    assert first.cpus == tuple(range(0, 64, 2))
    assert first.l3 == (0,) * 8 + (16,) * 8 + (32,) * 8 + (48,) * 8
    halves = place(machine, everything(machine), 4)
    assert [sorted(set(p.l3)) for p in halves] == [[0, 16], [32, 48], [1, 17], [33, 49]]


def test_sub_numa_clusters(tmp_path: Path) -> None:
    xeon(tmp_path, nodes_per_package=2)
    assert plan(tmp_path, 2) == "2 ranks: rank 0 on node 0 (cpus 0-15), rank 1 on node 2 (cpus 32-47); 16 threads each"
    assert plan(tmp_path, 4) == (
        "4 ranks: rank 0 on node 0 (cpus 0-15), rank 1 on node 1 (cpus 16-31), "
        "rank 2 on node 2 (cpus 32-47), rank 3 on node 3 (cpus 48-63); 16 threads each"
    )
    # Node 1 is lost: still one rank on each package.
    assert plan(tmp_path, 2, "0-15,32-63") == (
        "2 ranks: rank 0 on node 0 (cpus 0-15), rank 1 on node 2 (cpus 32-47); 16 threads each"
    )


def test_packages_before_nodes(tmp_path: Path) -> None:
    """Three of the four usable nodes are on the first package: r * 4 // 2 would put both ranks there."""
    make_machine(tmp_path, [(c,) for c in range(8)], packages=[0] * 6 + [1] * 2, nodes=[0, 0, 1, 1, 2, 2, 3, 3])
    assert plan(tmp_path, 2) == "2 ranks: rank 0 on node 0 (cpus 0-1), rank 1 on node 3 (cpus 6-7); 2 threads each"


def test_node_numbers_alternate_between_packages(tmp_path: Path) -> None:
    make_machine(tmp_path, [(c,) for c in range(4)], packages=[0, 1, 0, 1], nodes=[0, 1, 2, 3])
    assert plan(tmp_path, 2) == "2 ranks: rank 0 on node 0 (cpus 0), rank 1 on node 1 (cpus 1); 1 thread each"


def test_unequal_nodes(tmp_path: Path) -> None:
    xeon(tmp_path)
    assert plan(tmp_path, 2, "30-35") == "2 ranks: rank 0 on node 0 (cpus 30-31), rank 1 on node 1 (cpus 32-35); 2, 4 threads"


def test_nodes_without_memory_or_cpus(tmp_path: Path) -> None:
    make_machine(tmp_path, [(0,), (1,), (2,)], packages=[0, 0, 1], nodes=[0, 2, 4], memory_gib={2: 0, 9: 128})
    machine = read_machine(tmp_path)
    assert [node.id for node in usable_nodes(machine, everything(machine))] == [0, 4]
    assert plan(tmp_path, 2) == "2 ranks: rank 0 on node 0 (cpus 0), rank 1 on node 4 (cpus 2); 1 thread each"


def test_only_cpus_of_a_node_without_memory(tmp_path: Path) -> None:
    distances = {0: "10 21 31", 1: "21 10 12", 2: "31 12 10"}
    make_machine(tmp_path, [(0,), (1,), (2,)], packages=[0] * 3, nodes=[0, 1, 2], memory_gib={1: 0}, distances=distances)
    machine = read_machine(tmp_path)
    placement = place(machine, frozenset({1}), 1)[0]
    assert (placement.node, placement.cpus) == (2, (1,))
    assert placement.note == "node 1 has no memory of its own: node 2 is the nearest that has"
    assert usable_nodes(machine, frozenset({1})) == []


def test_allowed_sibling_stands_in(tmp_path: Path) -> None:
    xeon(tmp_path)
    assert plan(tmp_path, 1, "1,64") == "1 rank: rank 0 on node 0 (cpus 1,64); 2 threads"


def test_threads(tmp_path: Path) -> None:
    machine = read_machine(epyc(tmp_path))
    allowed = everything(machine)
    few = place(machine, allowed, 2, threads=4)[0]
    assert (few.cpus, few.l3) == ((0, 16, 32, 48), (0, 16, 32, 48))  # one per L3 group, not four on one
    assert len(few.mask) == 64
    siblings = place(machine, allowed, 2, threads=64)
    assert not siblings[0].crowded
    assert set(siblings[0].cpus) == set(siblings[0].mask)
    assert place(machine, allowed, 2, threads=65)[1].crowded


def test_more_ranks_than_cores(tmp_path: Path) -> None:
    desktop(tmp_path)
    assert plan(tmp_path, 3) == (
        "3 ranks: rank 0 on node 0 (cpus 0), rank 1 on node 0 (cpus 0), rank 2 on node 0 (cpus 1); "
        "1 thread each; threads share cpus, so they do not spin"
    )
    machine = read_machine(tmp_path)
    assert [p.crowded for p in place(machine, everything(machine), 3)] == [True] * 3


def test_more_threads_than_cores(tmp_path: Path) -> None:
    desktop(tmp_path)
    assert plan(tmp_path, 1, threads=3).endswith("(cpus 0-1); 3 threads; threads share cpus, so they do not spin")


def test_nodes_by_hand(tmp_path: Path) -> None:
    xeon(tmp_path, nodes_per_package=2)
    by_hand = plan(tmp_path, 2, nodes="1,3")
    assert by_hand == "2 ranks: rank 0 on node 1 (cpus 16-31), rank 1 on node 3 (cpus 48-63); 16 threads each"
    assert plan(tmp_path, 2, nodes="2") == "2 ranks: rank 0 on node 2 (cpus 32-39), rank 1 on node 2 (cpus 40-47); 8 threads each"


def test_cpus_by_hand(tmp_path: Path) -> None:
    xeon(tmp_path)
    assert plan(tmp_path, 2, cpus="40-43|0-1,64-65") == (
        "2 ranks: rank 0 on node 1 (cpus 40-43), rank 1 on node 0 (cpus 0-1); 4, 2 threads"
    )
    machine = read_machine(tmp_path)
    assert masks(place(machine, everything(machine), 2, cpus="40-43|0-1,64")) == ["40-43", "0-1,64"]
    assert [p.crowded for p in place(machine, everything(machine), 2, cpus="0-3|3-5")] == [True, True]


def test_cpus_by_hand_over_two_nodes(tmp_path: Path) -> None:
    machine = read_machine(xeon(tmp_path))
    placement = place(machine, everything(machine), 1, cpus="30-40")[0]
    assert (placement.node, placement.spans) == (1, True)
    assert placement.note == "rank 0 has cpus of nodes 0-1: part of its memory traffic crosses between them"
    assert not place(machine, everything(machine), 1, cpus="32-40")[0].spans


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"size": 0}, "0 ranks: ask for 1 to 64"),
        ({"size": 65}, "65 ranks: ask for 1 to 64"),
        ({"threads": 0}, "--threads 0: ask for at least 1 thread per rank"),
        ({"nodes": "7"}, "--nodes 7: node 7 does not exist; choose from 0-1"),
        ({"nodes": "2"}, "--nodes 2: node 2 has no memory, or no cpu that this job may use; choose from 0-1"),
        ({"nodes": ""}, "--nodes '': an empty list; write it like 0-3,8"),
        ({"nodes": "first"}, "--nodes: 'first' is not a list of numbers: write it like 0-3,8"),
        ({"cpus": "0-3"}, "--cpus '0-3' is for 1 ranks, this host has 2: give one list per rank"),
        ({"cpus": "0-3|"}, "--cpus '': an empty list; write it like 0-3,8"),
        ({"cpus": "0-3|x"}, "--cpus: 'x' is not a list of numbers: write it like 0-3,8"),
        ({"cpus": "0-3|62-65"}, "--cpus '0-3|62-65': this job may not use 64-65; choose from 0-63"),
        ({"cpus": "0|1", "nodes": "0"}, "--nodes, --cpus and --bind none exclude each other: give one of them"),
        ({"keep": True, "nodes": "0"}, "--nodes, --cpus and --bind none exclude each other: give one of them"),
    ],
)
def test_bad_wishes(tmp_path: Path, wish: dict[str, object], message: str) -> None:
    machine = read_machine(xeon(tmp_path, memory_gib={2: 64}))
    with pytest.raises(UserError) as caught:
        place(machine, frozenset(range(64)), **{"size": 2, **wish})  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_nothing_allowed(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="none of the cpus"):
        place(read_machine(desktop(tmp_path)), frozenset({5}), 1)


def test_keep_what_was_given(tmp_path: Path) -> None:
    """Only this rank's affinity is known, so the copies for the others do not make it crowded."""
    machine = read_machine(xeon(tmp_path))
    placements = place(machine, frozenset({3, 4, 40, 104}), 2, keep=True)
    assert [p.cpus for p in placements] == [(3, 4, 40)] * 2
    assert masks(placements) == ["3-4,40,104"] * 2
    assert not placements[0].crowded
    assert all(p.crowded for p in mark_crowded(placements))


def test_every_cpu_is_used_once(tmp_path: Path) -> None:
    """On uneven machines too: as long as cores last, no two ranks share one, and each rank stays on one node."""
    machine = read_machine(xeon(tmp_path, nodes_per_package=2, offline=[3, 5, 69, 40, 41, 42]))
    node_of = {cpu: core.node for core in machine.cores for cpu in core.cpus}
    for size in range(1, 50):
        placements = place(machine, everything(machine), size)
        used = [cpu for p in placements for cpu in p.mask]
        assert len(used) == len(set(used)), size
        assert all({node_of[cpu] for cpu in p.mask} == {p.node} for p in placements), size
        assert size < 4 or set(used) == everything(machine), size


def test_slow_cores_are_left_alone(tmp_path: Path) -> None:
    """Unless there are more threads than fast cores, the user names them, or nothing else was given."""
    hybrid(tmp_path)
    assert plan(tmp_path, 1) == "1 rank: rank 0 on node 0 (cpus 0,2,4,6); 4 threads"
    assert plan(tmp_path, 2) == "2 ranks: rank 0 on node 0 (cpus 0,2), rank 1 on node 0 (cpus 4,6); 2 threads each"
    assert plan(tmp_path, 1, threads=4) == plan(tmp_path, 1)
    assert plan(tmp_path, 1, "0-9", nodes="0") == plan(tmp_path, 1)
    assert plan(tmp_path, 1, threads=12).endswith("(cpus 0,2,4,6,8-15); 12 threads")
    assert plan(tmp_path, 2, threads=3).endswith("3 threads each")
    assert plan(tmp_path, 1, cpus="0-1,8-9") == "1 rank: rank 0 on node 0 (cpus 0,8-9); 3 threads"
    assert plan(tmp_path, 1, "6-9", keep=True) == "1 rank: rank 0 on node 0 (cpus 6,8-9); 3 threads"
    assert plan(tmp_path, 1, "8-15").endswith("(cpus 8-15); 8 threads")
    machine = read_machine(tmp_path)
    assert [p.note for p in place(machine, everything(machine), 2)] == [
        "the slow cores (cpus 8-15) are left alone; --cpus or a larger -t takes them too"
    ] * 2
    assert not place(machine, everything(machine), 1, threads=12)[0].note
    (tmp_path / "sys/devices/cpu_core/cpus").unlink()
    assert read_machine(tmp_path).slow == ()


BIND = """
import os, sys, threading
from numatp.machine.placement import bind, place
from numatp.machine.topology import read_machine
notes = bind(place(read_machine(), os.sched_getaffinity(0), 1, cpus=sys.argv[1])[0])
seen = []
thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
thread.start(); thread.join()
print(os.sched_getaffinity(0), seen[0])
"""


@pytest.mark.cores
def test_bind_holds_for_later_threads() -> None:
    cpu = max(os.sched_getaffinity(0))
    run = subprocess.run([sys.executable, "-c", BIND, str(cpu)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"{ {cpu} } { {cpu} }"
    assert run.stderr == ""


def test_bind_does_not_shrink_in_silence() -> None:
    """The kernel would cut a mask with unknown cpus to the rest."""
    machine = read_machine()
    before = os.sched_getaffinity(0)
    real = place(machine, frozenset(before), 1)[0]
    try:
        with pytest.raises(MachineError, match="does not grant cpus 1000 to this job"):
            bind(replace(real, mask=real.mask | {1000}))
        with pytest.raises(MachineError, match="cannot bind to cpus 1000: Invalid argument; try --bind none"):
            bind(replace(real, mask=frozenset({1000})))
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("line", "policy", "nodes"),
    [
        ("55d0 default file=/usr/bin/python3 mapped=2", "default", ()),
        ("55d0 bind:0-1 file=/usr/bin/python3", "bind:0-1", (0, 1)),
        ("55d0 bind=static:1 anon=1", "bind=static:1", (1,)),
        ("55d0 prefer (many):0,2 anon=1", "prefer (many):0,2", ()),
        ("55d0 weighted interleave:0-1 anon=1", "weighted interleave:0-1", ()),
        ("55d0 local anon=1", "local", ()),
        ("", "", ()),
    ],
)
def test_policy_words(tmp_path: Path, line: str, policy: str, nodes: tuple[int, ...]) -> None:
    maps = tmp_path / "proc/thread-self/numa_maps"
    maps.parent.mkdir(parents=True)
    maps.write_text(f"{line}\n")
    assert current_policy(tmp_path) == policy and bound_nodes(policy) == nodes
    assert current_policy(tmp_path / "nothing") == ""


class Libnuma:
    """Stands in for py-libnuma and the kernel behind it, which needs a second node to say anything of interest."""

    def __init__(self, policy: str = "default", refused: bool = False, nodes: tuple[int, ...] = (0, 1), deaf: bool = False):
        self.policy, self.deaf, self.nodes, self.set_to = policy, deaf, nodes, list[int]()
        self.LIBNUMA = SimpleNamespace(get_mempolicy=lambda *_: -1 if refused else 0)
        self.memory = SimpleNamespace(get_allocation_allowed_nodes=lambda: list(nodes))
        self.schedule = SimpleNamespace(set_preferred_node=self.prefer, get_preferred_node=self.preferred)

    def prefer(self, node: int) -> None:
        self.set_to.append(node)
        if not self.deaf:
            self.policy = f"prefer:{node}"

    def preferred(self) -> int:
        return int(self.policy.partition(":")[2] or 0)  # 0 when none is set, as older libnuma says


@pytest.mark.parametrize(
    ("numa", "environ", "note", "final"),
    [
        (Libnuma(), {}, "", "prefer:1"),
        (Libnuma("bind:0"), {}, "the memory policy bind:0 was set from outside", "bind:0"),
        (Libnuma("prefer:0"), {}, "the memory policy prefer:0 was set from outside", "prefer:0"),
        (Libnuma("prefer:0"), {OURS: "prefer:0"}, "", "prefer:1"),  # handed down by rank 0
        (Libnuma("bind:0"), {OURS: "prefer:0"}, "the memory policy bind:0 was set from outside", "bind:0"),
        (Libnuma(refused=True), {}, "the kernel refuses memory policies here", "default"),
        (Libnuma(nodes=(0,)), {}, "this job may not allocate on node 1", "default"),
        (Libnuma(deaf=True), {}, "node 1 could not be made the preferred one", "default"),
    ],
)
def test_prefer_node(numa: Libnuma, environ: dict[str, str], note: str, final: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numa", numa)
    monkeypatch.setattr(policy, "current_policy", lambda: numa.policy)
    said = prefer_node(1, environ)
    assert (said.startswith(note), bool(said)) == (True, bool(note))
    assert numa.policy == final
    assert environ.get(OURS) == ("prefer:1" if not note else environ.get(OURS))
    assert numa.set_to == ([1] if not note or numa.deaf else [])


def test_an_unread_failure_is_seen_on_node_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older libnuma says "node 0" when nothing is preferred; only /proc tells the difference."""
    numa = Libnuma(deaf=True)
    monkeypatch.setitem(sys.modules, "numa", numa)
    monkeypatch.setattr(policy, "current_policy", lambda: numa.policy)
    assert prefer_node(0, {}) == "node 0 could not be made the preferred one: pages go to the node whose thread touches them first"


def test_without_libnuma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numa", None)
    monkeypatch.setattr(policy, "current_policy", lambda: "default")
    assert prefer_node(0, {}).startswith("libnuma is missing")
