"""Known two-socket servers: the shape of their cpus and what their memory can deliver at most.

Bandwidth is channels x transfers per second x 8 bytes, from the makers' product pages (AMD: "System Memory Specification",
"Memory Channels"; Intel ARK: "Memory Types", "Max # of Memory Channels"), with every channel filled. No machine reaches it: on one
6980P with MRDIMM-8800, 553 of 844.8 GB/s were read (ik_llama.cpp discussion 201). What is predicted with it is a bound.
"""

from dataclasses import dataclass

from numatp.machine.topology import Core, Machine, Node

SOCKETS = 2
LOCAL, SAME_PACKAGE, OTHER_PACKAGE = 10, 12, 21  # ACPI distances as Xeons report them


@dataclass(frozen=True)
class Server:
    """One kind of two-socket server."""

    cpu: str  # part of the name in /proc/cpuinfo
    cores: int  # per socket, each with two threads
    l3_cores: int  # cores that share a level-3 cache
    channels: int  # of memory, per socket
    mega_transfers: int  # per second and channel
    memory_gb: int  # per socket: one common module per channel
    nodes: int = 1  # per socket

    @property
    def socket_bandwidth(self) -> float:
        """Bytes per second."""
        return self.channels * self.mega_transfers * 1e6 * 8


SERVERS = {
    "2x-epyc-9654": Server("EPYC 9654", 96, 8, 12, 4800, 768),  # DDR5-4800: 460.8 GB/s per socket
    "2x-epyc-9755": Server("EPYC 9755", 128, 8, 12, 6000, 768),  # DDR5-6000: 576 GB/s
    "2x-epyc-7532": Server("EPYC 7532", 32, 2, 8, 3200, 512),  # DDR4-3200: 204.8 GB/s
    "2x-xeon-6980p": Server("Xeon(R) 6980P", 128, 128, 12, 8800, 768),  # MRDIMM-8800: 844.8 GB/s
    "2x-xeon-6980p-snc3": Server("Xeon(R) 6980P", 128, 128, 12, 8800, 768, nodes=3),
    "2x-xeon-8480+": Server("Xeon(R) Platinum 8480+", 56, 56, 8, 4800, 512),  # DDR5-4800: 307.2 GB/s
    "2x-xeon-e5-2680v4": Server("Xeon(R) CPU E5-2680 v4", 14, 14, 4, 2400, 128),  # DDR4-2400: 76.8 GB/s
}


def machine_of(server: Server) -> Machine:
    """Cpus numbered as Linux does: first threads of all cores, then their siblings."""
    total, count = SOCKETS * server.cores, SOCKETS * server.nodes
    node_of = [core // server.cores * server.nodes + core % server.cores * server.nodes // server.cores for core in range(total)]
    first_of: dict[tuple[int, int], int] = {}  # core of each level-3 cache, which no node shares with another
    for core in range(total):
        first_of.setdefault((node_of[core], core // server.l3_cores), core)
    cores = tuple(
        Core((core, core + total), core // server.cores, node_of[core], first_of[node_of[core], core // server.l3_cores])
        for core in range(total)
    )
    nodes = []
    for node in range(count):
        mine = [core for core in range(total) if node_of[core] == node]
        near = [other // server.nodes == node // server.nodes for other in range(count)]
        distances = tuple(LOCAL if other == node else SAME_PACKAGE if near[other] else OTHER_PACKAGE for other in range(count))
        cpus = (*mine, *(core + total for core in mine))
        nodes.append(Node(node, cpus, server.memory_gb * 10**9 // server.nodes, distances))
    return Machine(tuple(nodes), cores, server.cpu)


def node_bandwidth(machine: Machine) -> tuple[dict[int, float], str]:
    """(bytes per second by node, where that is known from) for a machine whose cpus are those of a known server; else ({}, "").

    Nodes of a package share its channels evenly.
    """
    for server in SERVERS.values():
        if server.cpu in machine.cpu_model:
            rates: dict[int, float] = {}
            for package in machine.packages:
                nodes = [n for n in machine.nodes if n.memory_bytes and n.id in machine.nodes_of(package)]
                rates |= {node.id: server.socket_bandwidth / len(nodes) for node in nodes}
            source = f"{server.channels} channels of {server.mega_transfers} MT/s per socket, the most that {server.cpu} can have"
            return rates, source
    return {}, ""
