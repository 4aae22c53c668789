"""What this machine has: cores, NUMA nodes, caches, memory and the kernel's settings for it, from /sys and /proc below a root.

It knows nothing of ranks, nor of which cpus this job may use.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from numatp.errors import MachineError, UserError

NO_LIMIT = 1 << 60  # bytes: cgroup v1 writes "no limit" as the largest multiple of a page


@dataclass(frozen=True)
class Core:
    """A physical core."""

    cpus: tuple[int, ...]  # the online SMT siblings, ascending
    package: int
    node: int
    l3: int  # smallest cpu of the cores that share its level-3 cache


@dataclass(frozen=True)
class HugePages:
    """Pages of one size that were reserved on a node (not those that the kernel makes by itself)."""

    page_bytes: int
    total: int
    free: int


@dataclass(frozen=True)
class Node:
    """A NUMA node."""

    id: int
    cpus: tuple[int, ...]  # empty for a node that is only memory
    memory_bytes: int  # 0 for a node that is only cpus
    distances: tuple[int, ...]  # to each of Machine.nodes in that order; 10 is itself
    huge_pages: tuple[HugePages, ...] = ()  # sizes of which some are reserved, ascending


@dataclass(frozen=True)
class Machine:
    """All nodes and online cores."""

    nodes: tuple[Node, ...]  # ascending id; ids may have gaps
    cores: tuple[Core, ...]  # ascending first cpu; online cpus only
    cpu_model: str = ""  # as /proc/cpuinfo spells it
    offline: tuple[int, ...] = ()  # cpus that exist and are switched off
    slow: tuple[int, ...] = ()  # cpus of the slow cores of a machine that has fast ones as well

    @property
    def packages(self) -> list[int]:
        """Numbers of the sockets, ascending."""
        return sorted({core.package for core in self.cores})

    def nodes_of(self, package: int) -> list[int]:
        """Ids of the nodes that its cores belong to: several with sub-NUMA clustering (SNC, NPS)."""
        return sorted({core.node for core in self.cores if core.package == package})


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
    online = set(parse_cpulist(read_text(cpu_folder / "online")))
    if not online:
        raise MachineError(f"cannot read {cpu_folder}/online: numatp needs /sys to see the machine")
    node_of, nodes = _read_nodes(root, online)
    cores = {}
    for cpu in sorted(online):
        topology = cpu_folder / f"cpu{cpu}" / "topology"
        siblings = parse_cpulist(read_text(topology / "core_cpus_list") or read_text(topology / "thread_siblings_list"))
        cpus = tuple(sorted({cpu, *siblings} & online))
        # Containers and some virtual machines say -1 or nothing.
        package = max(0, int(read_text(topology / "physical_package_id") or 0))
        cores[cpus[0]] = Core(cpus, package, node_of.get(cpu, nodes[0].id), _l3(cpu_folder, cpu))
    # Without a level-3 cache to go by, the package is the group; its name must be a cpu all the same.
    first_of: dict[int, int] = {}
    for core in cores.values():
        first_of.setdefault(core.package, core.cpus[0])
    grouped = (c if c.l3 >= 0 else Core(c.cpus, c.package, c.node, first_of[c.package]) for c in cores.values())
    present = parse_cpulist(read_text(cpu_folder / "present"))
    offline = tuple(cpu for cpu in present if cpu not in online)
    return Machine(nodes, tuple(grouped), _cpu_model(root), offline, _slow_cpus(root, online))


def l3_bytes(cpu: int, root: str | Path = "/") -> int:
    """Size of the level-3 cache above `cpu`, or of the largest cache that the kernel knows there; 0 if it knows none."""
    sizes = {}
    for index in Path(root, "sys/devices/system/cpu", f"cpu{cpu}", "cache").glob("index*"):
        size = re.fullmatch(r"(\d+)([KMG]?)", read_text(index / "size"))
        if size:
            sizes[int(read_text(index / "level") or 0)] = int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]]
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


def numa_balancing(root: str | Path = "/") -> int | None:
    """kernel.numa_balancing: 0 off, 1 moves pages to where they are used, 2 tiers of memory; None where the kernel has none."""
    text = read_text(Path(root, "proc/sys/kernel/numa_balancing"))
    return int(text) if text.isdecimal() else None


def huge_page_mode(root: str | Path = "/") -> str:
    """When the kernel makes transparent huge pages: "always", "madvise", "never", or "" where it cannot."""
    chosen = re.search(r"\[(\w+)\]", read_text(Path(root, "sys/kernel/mm/transparent_hugepage/enabled")))
    return chosen[1] if chosen else ""


def allowed_nodes(root: str | Path = "/", pid: int | str = "self") -> frozenset[int]:
    """Nodes whose memory the kernel lets this process use (its cpuset); empty where that cannot be read."""
    found = re.search(r"^Mems_allowed_list:\s*(\S+)", read_text(Path(root, "proc", str(pid), "status")), re.MULTILINE)
    return frozenset(parse_cpulist(found[1])) if found else frozenset()


def with_memory_of(machine: Machine, allowed: frozenset[int]) -> Machine:
    """The machine as a job sees it that may use the memory of these nodes only (of all, if none is named)."""
    if not allowed:
        return machine
    return replace(machine, nodes=tuple(n if n.id in allowed else replace(n, memory_bytes=0) for n in machine.nodes))


def nearest(machine: Machine, node: int, others: Iterable[int]) -> int:
    """Of the other nodes the one at the smallest distance from `node`; of equals the first."""
    distances = next((one.distances for one in machine.nodes if one.id == node), ())
    distance = dict(zip((one.id for one in machine.nodes), distances, strict=False))
    return min(others, key=lambda other: (distance.get(other, 255), other))


def memory_limit_bytes(root: str | Path = "/") -> int | None:
    """What the memory cgroups around this process would still let it allocate; None without a limit.

    The tightest of all levels. The group's file pages count as room: they are dropped before the limit kills anything.
    """
    rooms = []
    for folder, version in cgroup_folders("memory", root):
        if version == 2:
            limits = [read_text(folder / "memory.max"), read_text(folder / "memory.high")]
            usage, prefix = read_text(folder / "memory.current"), ""
        else:
            limits = [read_text(folder / "memory.limit_in_bytes")]
            usage, prefix = read_text(folder / "memory.usage_in_bytes"), "total_"
        limit = min((int(text) for text in limits if text.isdecimal()), default=NO_LIMIT)
        if limit < NO_LIMIT:
            stat = dict(line.split()[:2] for line in read_text(folder / "memory.stat").splitlines() if " " in line)
            dropped = sum(int(stat.get(f"{prefix}{name}_file", 0)) for name in ("active", "inactive"))
            rooms.append(max(0, limit - int(usage or 0) + dropped))
    return min(rooms, default=None)


def cgroup_folders(controller: str, root: str | Path = "/", pid: int | str = "self") -> Iterator[tuple[Path, int]]:
    """(folder, 1 or 2) of the cgroup that holds `pid` and of those above it, nearest first, as far as they can be seen.

    In a container the path in /proc may be the host's; then only the top, which is the container's own group, exists here.
    """
    paths = dict[str, str]()
    for line in read_text(Path(root, "proc", str(pid), "cgroup")).splitlines():
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
        cpus = tuple(cpu for cpu in parse_cpulist(read_text(folder / "cpulist")) if cpu in online)
        distances = tuple(int(word) for word in read_text(folder / "distance").split())
        nodes.append(Node(n, cpus, memory[n], distances, _huge_pages(folder)))
    return {cpu: node.id for node in nodes for cpu in node.cpus}, tuple(nodes)


def _huge_pages(node_folder: Path) -> tuple[HugePages, ...]:
    found = []
    for folder in (node_folder / "hugepages").glob("hugepages-*kB"):
        total, free = (int(read_text(folder / name) or 0) for name in ("nr_hugepages", "free_hugepages"))
        if total:
            found.append(HugePages(int(folder.name[10:-2]) * 1024, total, free))
    return tuple(sorted(found, key=lambda pages: pages.page_bytes))


def _cpu_model(root: str | Path) -> str:
    # The first cpu's only: with hundreds of cpus the kernel takes many milliseconds to write the whole file.
    try:
        with open(Path(root, "proc/cpuinfo")) as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return ""


def _slow_cpus(root: str | Path, online: set[int]) -> tuple[int, ...]:
    """Linux counts events of fast cores apart (perf's cpu_core) where there are others: cpu_atom, cpu_lowpower."""
    fast = set(parse_cpulist(read_text(Path(root, "sys/devices/cpu_core/cpus"))))
    return tuple(sorted(online - fast)) if fast & online else ()


def _l3(cpu_folder: Path, cpu: int) -> int:
    """-1 without one."""
    for index in sorted((cpu_folder / f"cpu{cpu}" / "cache").glob("index*")):
        if read_text(index / "level") == "3" and read_text(index / "type") == "Unified":
            return min(parse_cpulist(read_text(index / "shared_cpu_list")), default=-1)
    return -1


def _node_ids(root: str | Path) -> list[int]:
    folders = Path(root, "sys/devices/system/node").glob("node[0-9]*")
    return sorted(int(folder.name[4:]) for folder in folders if folder.name[4:].isdecimal())


def _node_folder(root: str | Path, node: int) -> Path:
    return Path(root, "sys/devices/system/node", f"node{node}")


def _node_meminfo(root: str | Path, node: int) -> dict[str, int]:
    return _meminfo(_node_folder(root, node) / "meminfo")


def _meminfo(path: Path) -> dict[str, int]:
    """Bytes by name, from "MemFree: 12 kB" or "Node 0 MemFree: 12 kB"."""
    found = re.findall(r"([\w()]+):\s+(\d+) kB", read_text(path))
    return {name: int(kib) * 1024 for name, kib in found}


def read_text(path: Path) -> str:
    """Empty when it cannot be read: every caller has a fallback."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
