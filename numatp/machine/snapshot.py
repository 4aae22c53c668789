"""A machine and its state, as a plan needs it: read from /sys, from a file that was saved elsewhere, or made of a known server."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numatp.errors import UserError
from numatp.machine import policy, topology
from numatp.machine.launch import allowed_cpus
from numatp.machine.servers import SERVERS, machine_of, node_bandwidth
from numatp.machine.topology import Core, HugePages, Machine, Node, format_cpulist

VERSION = 1  # of the saved form
KEPT_FREE = 0.02  # of the memory of a machine that is not here: the kernel, daemons and MPI
UNKNOWN = "unknown: run numatp bandwidth"


@dataclass(frozen=True)
class Snapshot:
    """A machine, and what a job may use of it; memory in bytes, bandwidth in bytes per second."""

    name: str  # for people
    machine: Machine
    allowed: frozenset[int]  # cpus that this job may use
    free: Mapping[int, int]  # bytes that could be allocated on each node; none on nodes that this job may not use
    limit: int | None  # bytes that the job's memory limit leaves, None without one
    bandwidth: Mapping[int, float]  # bytes per second that each node's cores read from it; empty if unknown
    bandwidth_source: str
    numa_balancing: int | None = None  # as topology.numa_balancing
    huge_page_mode: str = ""
    bound: tuple[int, ...] = ()  # nodes that a memory policy from outside (numactl) confines all pages to

    @property
    def given(self) -> Machine:
        """As placement wants it: memory that this job may not use is not there."""
        return topology.with_memory_of(self.machine, frozenset(self.free))

    def holder(self, node: int) -> int:
        """The node that memory for `node` comes from: another one where pages are bound elsewhere, the nearest of those."""
        if not self.bound or node in self.bound:
            return node
        return topology.nearest(self.machine, node, self.bound)


def take(
    root: str | Path = "/",
    environ: Mapping[str, str] = os.environ,
    measured: Mapping[int, float] | None = None,
    pid: int | None = None,
) -> Snapshot:
    """This machine, as process `pid` (this one) may use it. measured: bytes per second by node, if somebody measured them.

    MachineError without /sys.
    """
    mems = topology.allowed_nodes(root, pid or "self")
    machine = topology.read_machine(root)
    rates, source = node_bandwidth(machine)
    if measured and all(node.id in measured for node in machine.nodes if node.memory_bytes and node.cpus):
        rates, source = dict(measured), "measured here by numatp bandwidth"
    return Snapshot(
        name="this machine",
        machine=machine,
        allowed=allowed_cpus(root, pid, environ)[0] & {cpu for core in machine.cores for cpu in core.cpus},
        free={node.id: topology.free_bytes(node.id, root) for node in machine.nodes if not mems or node.id in mems},
        limit=topology.memory_limit_bytes(root),
        bandwidth=rates,
        bandwidth_source=source or UNKNOWN,
        numa_balancing=topology.numa_balancing(root),
        huge_page_mode=topology.huge_page_mode(root),
        bound=policy.bound_nodes(policy.current_policy(root)),
    )


def load(name_or_path: str) -> Snapshot:
    """A known server, or what `save` wrote. UserError, one line, when it is neither."""
    if name_or_path in SERVERS:
        machine = machine_of(SERVERS[name_or_path])
        rates, source = node_bandwidth(machine)
        cpus = frozenset(cpu for core in machine.cores for cpu in core.cpus)
        free = {node.id: int(node.memory_bytes * (1 - KEPT_FREE)) for node in machine.nodes}
        return Snapshot(name_or_path, machine, cpus, free, None, rates, source)
    try:
        saved = json.loads(Path(name_or_path).read_bytes())
    except FileNotFoundError:
        known = ", ".join(SERVERS)
        raise UserError(f"--machine {name_or_path}: no such file, and no known server; known: {known}") from None
    except OSError as error:
        raise UserError(f"--machine {name_or_path}: cannot read it: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"--machine {name_or_path}: not JSON; write it with numatp plan --save-machine FILE") from None
    try:
        return _from_json(saved, name_or_path)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise UserError(
            f"--machine {name_or_path}: not a machine that numatp saved; write it with numatp plan --save-machine FILE"
        ) from None


def save(snapshot: Snapshot, path: str | Path) -> None:
    """JSON; UserError if it cannot be written there."""
    text = json.dumps(to_json(snapshot), indent=1)
    try:
        Path(path).write_text(f"{text}\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name a file in a folder that you may write in") from None


def to_json(snapshot: Snapshot) -> dict[str, Any]:
    """Sizes in bytes, rates in bytes per second, cpus as the kernel's lists."""
    machine = snapshot.machine
    return {
        "numatp_machine": VERSION,
        "cpu_model": machine.cpu_model,
        "cores": [[format_cpulist(core.cpus), core.package, core.node, core.l3] for core in machine.cores],
        "offline": format_cpulist(machine.offline),
        "slow": format_cpulist(machine.slow),
        "nodes": [
            {
                "id": node.id,
                "cpus": format_cpulist(node.cpus),
                "memory": node.memory_bytes,
                "free": snapshot.free.get(node.id),  # null: memory that the job may not use
                "distances": list(node.distances),
                "huge_pages": [asdict(pages) for pages in node.huge_pages],
                "bandwidth": snapshot.bandwidth.get(node.id),
            }
            for node in machine.nodes
        ],
        "allowed": format_cpulist(snapshot.allowed),
        "limit": snapshot.limit,
        "bandwidth_source": snapshot.bandwidth_source,
        "numa_balancing": snapshot.numa_balancing,
        "huge_page_mode": snapshot.huge_page_mode,
        "bound": format_cpulist(snapshot.bound),
    }


def _from_json(saved: dict[str, Any], name: str) -> Snapshot:
    """KeyError, TypeError, ValueError and the like for anything that to_json does not write."""
    if saved["numatp_machine"] != VERSION:
        raise ValueError(saved["numatp_machine"])

    def cpus(text: str) -> tuple[int, ...]:
        try:
            return topology.parse_cpulist(text)
        except UserError as error:
            raise ValueError(text) from error

    def whole(value: Any) -> int:
        if type(value) is not int or value < 0:
            raise ValueError(value)
        return value

    cores = tuple(Core(cpus(text), whole(package), whole(node), whole(l3)) for text, package, node, l3 in saved["cores"])
    nodes = []
    free, rates = {}, {}
    for entry in saved["nodes"]:
        pages = tuple(HugePages(*(whole(p[key]) for key in ("page_bytes", "total", "free"))) for p in entry["huge_pages"])
        distances = tuple(whole(distance) for distance in entry["distances"])
        node = Node(whole(entry["id"]), cpus(entry["cpus"]), whole(entry["memory"]), distances, pages)
        nodes.append(node)
        if entry["free"] is not None:
            free[node.id] = whole(entry["free"])
        if entry["bandwidth"] is not None:
            rates[node.id] = float(entry["bandwidth"])
            if not (math.isfinite(rates[node.id]) and rates[node.id] > 0):
                raise ValueError(rates)
    if (
        not nodes
        or not cores
        or any(not core.cpus for core in cores)
        or {core.node for core in cores} - {node.id for node in nodes}
    ):
        raise ValueError(saved)
    if len({node.id for node in nodes}) < len(nodes) or any(len(node.distances) not in (0, len(nodes)) for node in nodes):
        raise ValueError(saved)
    machine = Machine(tuple(nodes), cores, str(saved["cpu_model"]), cpus(saved["offline"]), cpus(saved.get("slow", "")))
    online = {cpu for core in cores for cpu in core.cpus}
    limit, balancing = saved["limit"], saved["numa_balancing"]
    return Snapshot(
        name, machine, frozenset(cpus(saved["allowed"])) & online, free, None if limit is None else whole(limit), rates,
        str(saved["bandwidth_source"]), None if balancing is None else whole(balancing), str(saved["huge_page_mode"]),
        cpus(saved.get("bound", "")),
    )  # fmt: skip


def describe(snapshot: Snapshot) -> list[str]:
    """Lines for people: packages, and below them nodes with cores, memory and bandwidth; what is unusual is said."""
    machine = snapshot.machine
    everything = {cpu for core in machine.cores for cpu in core.cpus}
    threads = max(len(core.cpus) for core in machine.cores)
    lines = [
        f"{snapshot.name}{f' ({machine.cpu_model})' if machine.cpu_model else ''}: {_count(machine.packages, 'package')}, "
        f"{_count(machine.nodes, 'node')}, {_count(machine.cores, 'core')}, {_count(everything, 'cpu')}"
        f"{f' ({threads} per core)' if threads > 1 else ''}"
    ]
    shown: set[int] = set()
    for package in machine.packages:
        mine = machine.nodes_of(package)
        lines.append(f"  package {package}{f': {len(mine)} nodes (SNC or NPS)' if len(mine) > 1 else ''}")
        lines += [f"    {_node(snapshot, node)}" for node in machine.nodes if node.id in mine and node.id not in shown]
        shown.update(mine)
    lines += [f"  {_node(snapshot, node)}" for node in machine.nodes if node.id not in shown]
    if snapshot.allowed != everything:
        lines.append(f"  this job may use cpus {format_cpulist(snapshot.allowed) or 'none'}")
    if machine.offline:
        lines.append(f"  offline: cpus {format_cpulist(machine.offline)}")
    if machine.slow:
        lines.append(f"  slow cores: cpus {format_cpulist(machine.slow)}")
    if snapshot.bound:
        lines.append(f"  a memory policy from outside (numactl?) binds all pages to node {format_cpulist(snapshot.bound)}")
    if snapshot.limit is not None:
        lines.append(f"  memory limit: {snapshot.limit / 1e9:.1f} GB left")
    if len(machine.nodes) > 1 and snapshot.numa_balancing:
        lines.append(f"  numa_balancing {snapshot.numa_balancing}")
    if snapshot.huge_page_mode:
        lines.append(f"  transparent huge pages: {snapshot.huge_page_mode}")
    lines.append(f"  bandwidth {snapshot.bandwidth_source}")
    return lines


def _node(snapshot: Snapshot, node: Node) -> str:
    machine = snapshot.machine
    cores = [core for core in machine.cores if core.node == node.id]
    parts = [f"{_count(cores, 'core')} (cpus {format_cpulist(node.cpus)})" if node.cpus else "no cpus"]
    if len(groups := {core.l3 for core in cores}) > 1:
        parts.append(f"{len(groups)} L3 groups")
    if not node.memory_bytes:
        parts.append("no memory")
    elif node.id not in snapshot.free:
        parts.append(f"{node.memory_bytes / 1e9:.1f} GB, which this job may not use")
    else:
        parts.append(f"{node.memory_bytes / 1e9:.1f} GB, {snapshot.free[node.id] / 1e9:.1f} free")
    if node.id in snapshot.bandwidth:
        parts.append(f"{snapshot.bandwidth[node.id] / 1e9:.1f} GB/s")
    if len(machine.nodes) > 1 and node.distances:
        parts.append(f"distances {' '.join(map(str, node.distances))}")
    for pages in node.huge_pages:
        parts.append(f"{pages.total} huge pages of {pages.page_bytes >> 20} MiB reserved, {pages.free} free")
    return f"node {node.id}: {', '.join(parts)}"


def _count(things: Iterable[Any], name: str) -> str:
    number = len(list(things))
    return f"{number} {name}{'s' * (number != 1)}"
