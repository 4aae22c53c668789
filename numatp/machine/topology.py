"""What this machine has: cores, NUMA nodes, caches and free memory, read from /sys and /proc below a root that tests choose.

It knows nothing of ranks, nor of which cpus this job may use.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from numatp.errors import MachineError, UserError

NO_LIMIT = 1 << 60  # bytes: cgroup v1 writes "no limit" as the largest multiple of a page


@dataclass(frozen=True)
class Core:
    cpus: tuple[int, ...]  # the online SMT siblings, ascending
    package: int
    node: int
    l3: int  # smallest cpu of the cores that share its level-3 cache


@dataclass(frozen=True)
class Node:
    id: int
    cpus: tuple[int, ...]  # empty for a node that is only memory
    memory_bytes: int  # 0 for a node that is only cpus
    distances: tuple[int, ...]  # to each of Machine.nodes in that order; 10 is itself


@dataclass(frozen=True)
class Machine:
    nodes: tuple[Node, ...]  # ascending id; ids may have gaps
    cores: tuple[Core, ...]  # ascending first cpu; online cpus only


def parse_cpulist(text: str) -> tuple[int, ...]:
    """The kernel's "0-3,8", also with a stride as in "0-6:2/4"; ascending, without doubles. UserError if it is not one."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6})(?::(\d{1,6})/(\d{1,6}))?)?\s*", part)
        first, last, used, group = (int(g) if g else None for g in match.groups()) if match else (None,) * 4
        if first is None or (last is not None and last < first) or group == 0:
            raise UserError(f"{text!r} is not a list of numbers: write it like 0-3,8")
        span = range(first, first + 1 if last is None else last + 1)
        numbers.update(n for n in span if group is None or used is None or (n - first) % group < used)
    return tuple(sorted(numbers))


def format_cpulist(cpus: Iterable[int]) -> str:
    """The shortest such text: "0-3,8"."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def read_machine(root: str | Path = "/") -> Machine:
    """MachineError when /sys does not even list the cpus."""
    cpu_folder = Path(root, "sys/devices/system/cpu")
    online = set(parse_cpulist(_text(cpu_folder / "online")))
    if not online:
        raise MachineError(f"cannot read {cpu_folder}/online: numatp needs /sys to see the machine")
    node_of, nodes = _read_nodes(root, online)
    cores = {}
    for cpu in sorted(online):
        topology = cpu_folder / f"cpu{cpu}" / "topology"
        siblings = parse_cpulist(_text(topology / "core_cpus_list") or _text(topology / "thread_siblings_list"))
        cpus = tuple(sorted({cpu, *siblings} & online))
        # Containers and some virtual machines say -1 or nothing.
        package = max(0, int(_text(topology / "physical_package_id") or 0))
        cores[cpus[0]] = Core(cpus, package, node_of.get(cpu, nodes[0].id), _l3(cpu_folder, cpu))
    # Without a level-3 cache to go by, the package is the group; its name must be a cpu all the same.
    first_of: dict[int, int] = {}
    for core in cores.values():
        first_of.setdefault(core.package, core.cpus[0])
    grouped = (c if c.l3 >= 0 else Core(c.cpus, c.package, c.node, first_of[c.package]) for c in cores.values())
    return Machine(nodes, tuple(grouped))


def l3_bytes(cpu: int, root: str | Path = "/") -> int:
    """Size of the level-3 cache above `cpu`, or of the largest cache that the kernel knows there; 0 if it knows none."""
    sizes = {}
    for index in Path(root, "sys/devices/system/cpu", f"cpu{cpu}", "cache").glob("index*"):
        size = re.fullmatch(r"(\d+)([KMG]?)", _text(index / "size"))
        if size:
            sizes[int(_text(index / "level") or 0)] = int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]]
    return sizes.get(3, max(sizes.values(), default=0))


def free_bytes(node: int, root: str | Path = "/") -> int:
    """What could be allocated on the node now.

    With one node, the kernel's own MemAvailable. With several there is no such number per node, so: free pages plus file pages
    on the LRU lists, which are dropped before anything swaps. Shared memory and locked pages are not on those lists; slab is
    left out because often little of it can be freed. The reserve that the kernel keeps (about 1 %) is the caller's margin.
    """
    stats = {n: _node_meminfo(root, n) for n in _node_ids(root)}
    with_memory = {n for n, s in stats.items() if s.get("MemTotal")}
    if len(with_memory) <= 1:
        machine = _meminfo(Path(root, "proc/meminfo"))
        return machine.get("MemAvailable", machine.get("MemFree", 0)) if with_memory <= {node} else 0
    mine = stats.get(node, {})
    pages = mine.get("FilePages", 0) - mine.get("Shmem", 0)
    if "Active(file)" in mine:
        pages = mine["Active(file)"] + mine.get("Inactive(file)", 0)
    return mine.get("MemFree", 0) + max(0, pages)


def unused_bytes(node: int, root: str | Path = "/") -> int:
    """Memory of the node that nothing lies in, not even file pages: what can be allocated without anything giving way."""
    with_memory = [n for n in _node_ids(root) if _node_meminfo(root, n).get("MemTotal")]
    if len(with_memory) <= 1:
        return _meminfo(Path(root, "proc/meminfo")).get("MemFree", 0)
    return _node_meminfo(root, node).get("MemFree", 0)


def memory_limit_bytes(root: str | Path = "/") -> int | None:
    """What the memory cgroups around this process would still let it allocate; None without a limit.

    The tightest of all levels. The group's file pages count as room: they are dropped before the limit kills anything.
    """
    rooms = []
    for folder, version in cgroup_folders("memory", root):
        if version == 2:
            limits = [_text(folder / "memory.max"), _text(folder / "memory.high")]
            usage, prefix = _text(folder / "memory.current"), ""
        else:
            limits = [_text(folder / "memory.limit_in_bytes")]
            usage, prefix = _text(folder / "memory.usage_in_bytes"), "total_"
        limit = min((int(text) for text in limits if text.isdigit()), default=NO_LIMIT)
        if limit < NO_LIMIT:
            stat = dict(line.split()[:2] for line in _text(folder / "memory.stat").splitlines() if " " in line)
            dropped = sum(int(stat.get(f"{prefix}{name}_file", 0)) for name in ("active", "inactive"))
            rooms.append(max(0, limit - int(usage or 0) + dropped))
    return min(rooms, default=None)


def cgroup_folders(controller: str, root: str | Path = "/", pid: int | str = "self") -> Iterator[tuple[Path, int]]:
    """(folder, 1 or 2) of the cgroup that holds `pid` and of those above it, nearest first, as far as they can be seen.

    In a container the path in /proc may be the host's; then only the top, which is the container's own group, exists here.
    """
    paths = dict[str, str]()
    for line in _text(Path(root, "proc", str(pid), "cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update((name, path) for name in controllers.split(","))
    version = 1 if controller in paths else 2
    top = Path(root, "sys/fs/cgroup", controller if version == 1 else "")
    parts = [part for part in paths.get(controller, paths.get("", "")).split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        folder = top.joinpath(*parts[:depth])
        if folder.is_dir():
            yield folder, version


def _read_nodes(root: str | Path, online: set[int]) -> tuple[dict[int, int], tuple[Node, ...]]:
    """(node of each cpu, nodes)."""
    total = _meminfo(Path(root, "proc/meminfo")).get("MemTotal", 0)
    ids = _node_ids(root)
    if not ids:
        return {}, (Node(0, tuple(sorted(online)), total, (10,)),)
    memory = {n: _node_meminfo(root, n).get("MemTotal", 0) for n in ids}
    if sum(1 for size in memory.values() if size) == 1:
        # The same number, except in virtual machines whose hypervisor adds memory on demand: there the node lags behind.
        memory = {n: total or size if size else 0 for n, size in memory.items()}
    nodes = []
    for n in ids:
        folder = _node_folder(root, n)
        cpus = tuple(cpu for cpu in parse_cpulist(_text(folder / "cpulist")) if cpu in online)
        distances = tuple(int(word) for word in _text(folder / "distance").split())
        nodes.append(Node(n, cpus, memory[n], distances))
    return {cpu: node.id for node in nodes for cpu in node.cpus}, tuple(nodes)


def _l3(cpu_folder: Path, cpu: int) -> int:
    """-1 without one."""
    for index in sorted((cpu_folder / f"cpu{cpu}" / "cache").glob("index*")):
        if _text(index / "level") == "3" and _text(index / "type") == "Unified":
            return min(parse_cpulist(_text(index / "shared_cpu_list")), default=-1)
    return -1


def _node_ids(root: str | Path) -> list[int]:
    folders = Path(root, "sys/devices/system/node").glob("node[0-9]*")
    return sorted(int(folder.name[4:]) for folder in folders if folder.name[4:].isdigit())


def _node_folder(root: str | Path, node: int) -> Path:
    return Path(root, "sys/devices/system/node", f"node{node}")


def _node_meminfo(root: str | Path, node: int) -> dict[str, int]:
    return _meminfo(_node_folder(root, node) / "meminfo")


def _meminfo(path: Path) -> dict[str, int]:
    """Bytes by name, from "MemFree: 12 kB" or "Node 0 MemFree: 12 kB"."""
    found = re.findall(r"([\w()]+):\s+(\d+) kB", _text(path))
    return {name: int(kib) * 1024 for name, kib in found}


def _text(path: Path) -> str:
    """Empty when it cannot be read: every caller has a fallback."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
