"""numatp.machine.topology on made-up /sys trees."""

from pathlib import Path

import pytest
from support.machines.sysfs import GIB, desktop, epyc, make_machine, write, write_node_memory, xeon

from numatp.errors import MachineError, UserError
from numatp.machine.topology import Core, format_cpulist, free_bytes, memory_limit_bytes, parse_cpulist, read_machine


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", ()), ("0", (0,)), ("0-3,8\n", (0, 1, 2, 3, 8)), ("8,0-1,1", (0, 1, 8)), ("0-7:2/4", (0, 1, 4, 5))],
)
def test_parse_cpulist(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpulist(text) == cpus


@pytest.mark.parametrize("text", ["a", "3-1", "-1", "1-", "0-3:1/0", "0;1", "99999999999"])
def test_bad_cpulist(text: str) -> None:
    with pytest.raises(UserError, match="write it like 0-3,8"):
        parse_cpulist(text)


def test_format_cpulist() -> None:
    assert format_cpulist([8, 3, 0, 1, 2, 2, 10, 11]) == "0-3,8,10-11"
    assert format_cpulist([]) == ""


def test_desktop(tmp_path: Path) -> None:
    machine = read_machine(desktop(tmp_path))
    assert machine.cores == (Core((0,), 0, 0, 0), Core((1,), 0, 0, 0))
    assert [(n.id, n.cpus, n.memory_bytes, n.distances) for n in machine.nodes] == [(0, (0, 1), 64 * GIB, (10,))]


def test_two_sockets_with_siblings(tmp_path: Path) -> None:
    machine = read_machine(xeon(tmp_path))
    assert len(machine.cores) == 64
    assert machine.cores[33] == Core((33, 97), package=1, node=1, l3=32)
    assert [format_cpulist(n.cpus) for n in machine.nodes] == ["0-31,64-95", "32-63,96-127"]
    assert [n.distances for n in machine.nodes] == [(10, 21), (21, 10)]


def test_epyc_numbers_alternate(tmp_path: Path) -> None:
    machine = read_machine(epyc(tmp_path))
    assert machine.cores[17] == Core((17, 81), package=1, node=1, l3=17)
    assert sorted({core.l3 for core in machine.cores if core.node == 0}) == [0, 16, 32, 48]


def test_four_nodes(tmp_path: Path) -> None:
    machine = read_machine(xeon(tmp_path, nodes_per_package=2))
    assert [format_cpulist(n.cpus) for n in machine.nodes] == ["0-15,64-79", "16-31,80-95", "32-47,96-111", "48-63,112-127"]
    assert [machine.cores[c].package for c in (0, 16, 32, 48)] == [0, 0, 1, 1]


def test_nodes_of_only_memory_or_only_cpus(tmp_path: Path) -> None:
    make_machine(tmp_path, [(0,), (1,)], packages=[0, 1], nodes=[0, 2], memory_gib={2: 0, 5: 128})
    machine = read_machine(tmp_path)
    assert [(n.id, n.cpus, n.memory_bytes // GIB) for n in machine.nodes] == [(0, (0,), 64), (2, (1,), 0), (5, (), 128)]
    assert [core.node for core in machine.cores] == [0, 2]


def test_offline_cpus_are_left_out(tmp_path: Path) -> None:
    machine = read_machine(xeon(tmp_path, offline=[0, 65, 3, 67]))
    assert [core.cpus for core in machine.cores[:3]] == [(1,), (2, 66), (4, 68)]
    assert machine.cores[-1].cpus == (64,)  # ascending by first cpu
    assert machine.cores[0].l3 == 1
    assert 0 not in machine.nodes[0].cpus


def test_no_node_folder_and_no_l3(tmp_path: Path) -> None:
    machine = read_machine(make_machine(tmp_path, [(0,), (1,), (2,), (3,)], packages=[0, 0, 1, 1], nodes=None))
    assert [(n.id, n.cpus, n.memory_bytes) for n in machine.nodes] == [(0, (0, 1, 2, 3), 64 * GIB)]
    assert [core.l3 for core in machine.cores] == [0, 0, 2, 2]  # the package stands in
    assert free_bytes(0, tmp_path) == 2 * GIB


def test_no_sys(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="needs /sys"):
        read_machine(tmp_path)


def test_single_node_believes_proc_meminfo(tmp_path: Path) -> None:
    write_node_memory(desktop(tmp_path), 0, total_kb=1 << 20, free_kb=5)
    assert read_machine(tmp_path).nodes[0].memory_bytes == 64 * GIB
    assert free_bytes(0, tmp_path) == 2 * GIB


def test_free_bytes_of_a_node(tmp_path: Path) -> None:
    xeon(tmp_path, memory_gib={7: 0})
    files = {"file_pages_kb": 500, "shmem_kb": 400}
    write_node_memory(tmp_path, 0, total_kb=9999, free_kb=1000, active_file_kb=30, inactive_file_kb=40, **files)
    write_node_memory(tmp_path, 1, total_kb=9999, free_kb=2000, **files)
    assert free_bytes(0, tmp_path) == 1070 * 1024  # shared memory counts as file pages, but cannot be dropped
    assert free_bytes(1, tmp_path) == 2100 * 1024
    assert free_bytes(7, tmp_path) == 0


def test_memory_only_node_beside_an_empty_one(tmp_path: Path) -> None:
    make_machine(tmp_path, [(0,)], packages=[0], nodes=[0], memory_gib={0: 0, 1: 64})
    assert (free_bytes(0, tmp_path), free_bytes(1, tmp_path)) == (0, 2 * GIB)


def test_memory_limit_v2_is_the_tightest_level(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/job/step")
    for folder, limit, used in [("", "max", 0), ("job", 10000, 4000), ("job/step", 9000, 2500)]:
        write(tmp_path, f"sys/fs/cgroup/{folder}/memory.max", limit)
        write(tmp_path, f"sys/fs/cgroup/{folder}/memory.current", used)
        write(tmp_path, f"sys/fs/cgroup/{folder}/memory.stat", "anon 7\nactive_file 100\ninactive_file 20\nfile 999")
    assert memory_limit_bytes(tmp_path) == 10000 - 4000 + 120
    write(tmp_path, "sys/fs/cgroup/job/step/memory.high", 3000)
    assert memory_limit_bytes(tmp_path) == 3000 - 2500 + 120
    write(tmp_path, "sys/fs/cgroup/job/step/memory.high", 100)
    assert memory_limit_bytes(tmp_path) == 0


def test_memory_limit_v1(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "9:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/")
    here = "sys/fs/cgroup/memory"  # the container's own group: the path above exists on the host only
    write(tmp_path, f"{here}/memory.limit_in_bytes", 5000)
    write(tmp_path, f"{here}/memory.usage_in_bytes", 3000)
    write(tmp_path, f"{here}/memory.stat", "total_active_file 10\ntotal_inactive_file 5\nactive_file 999")
    assert memory_limit_bytes(tmp_path) == 2015
    write(tmp_path, f"{here}/memory.limit_in_bytes", 9223372036854771712)
    assert memory_limit_bytes(tmp_path) is None


def test_no_memory_limit(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path) is None


def test_this_machine() -> None:
    machine = read_machine()
    assert machine.cores
    assert all(core.node in {node.id for node in machine.nodes} for core in machine.cores)
    assert any(0 < free_bytes(node.id) <= node.memory_bytes for node in machine.nodes)
