"""Which cpus and which node each rank of this host gets, as a pure function of machine, allowed cpus and wish; and bind()."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from numatp.errors import MachineError, UserError
from numatp.machine import topology
from numatp.machine.policy import interleave_over, prefer_node
from numatp.machine.topology import Core, Machine, Node, format_cpulist, parse_cpulist

MAX_RANKS = 64  # of native/numatp.h


@dataclass(frozen=True)
class Placement:
    """Where one rank of this host runs and keeps its memory."""

    seat: int  # of this rank, among the ranks of this host
    seats: int  # ranks of this host
    node: int  # where its memory belongs
    cpus: tuple[int, ...]  # one per team thread
    mask: frozenset[int]  # all allowed cpus of the rank's cores: where the threads that are not pinned may run
    l3: tuple[int, ...]  # per team thread: its L3 group
    spans: bool  # its cores belong to more than one node
    crowded: bool  # somewhere in the job two threads share a cpu, so no thread of it may spin
    note: str  # a sentence worth showing, or ""


def place(
    machine: Machine,
    allowed: frozenset[int],
    size: int,
    *,
    threads: int | None = None,
    nodes: str | None = None,
    cpus: str | None = None,
    smt: bool = False,
    keep: bool = False,
) -> list[Placement]:
    """One placement for each of the `size` ranks of this host.

    `threads` is per rank; more than there are cores use the siblings, more than there are cpus share them. `nodes` is a list
    like "0,1", `cpus` one list per rank like "0-31|32-63". Slow cores are left out where the fast ones are enough, unless `cpus` or
    `keep` say which. With `keep`, `allowed` is this rank's own affinity and stays as it
    is: the other ranks' entries are copies, and `crowded` speaks of one rank only until the ranks `compare`.
    UserError, one line, when the wish cannot be met.
    """
    if not 1 <= size <= MAX_RANKS:
        raise UserError(f"{size} ranks: ask for 1 to {MAX_RANKS}")
    if threads is not None and threads < 1:
        raise UserError(f"--threads {threads}: ask for at least 1 thread per rank")
    if sum(option is not None for option in (nodes, cpus)) + keep > 1:
        raise UserError("--nodes, --cpus and --bind none exclude each other: give one of them")
    allowed &= {cpu for core in machine.cores for cpu in core.cpus}
    if not allowed:
        raise MachineError("none of the cpus given to this job is online")
    idle = "" if keep or cpus is not None else _slow_ones(machine, allowed, size * (threads or 1))
    if idle:
        allowed -= set(machine.slow)
    if keep:
        shares = [_cores_within(machine, allowed)] * size
    elif cpus is not None:
        shares = [_cores_within(machine, part) for part in _parse_cpus(machine, allowed, size, cpus)]
    else:
        shares = _spread(machine, allowed, size, _choose_nodes(machine, allowed, nodes))
    placements = [_placement(machine, seat, size, share, threads, smt, idle) for seat, share in enumerate(shares)]
    if keep:
        return [mark_crowded([placement])[0] for placement in placements]
    return mark_crowded(placements)


def _slow_ones(machine: Machine, allowed: frozenset[int], threads: int) -> str:
    """A sentence about the slow cores if the job can do without them: all threads would wait for those that are on them."""
    fast = _cores_within(machine, allowed - set(machine.slow))
    slow = allowed & set(machine.slow)
    if not slow or len(fast) < threads:
        return ""
    return f"the slow cores (cpus {format_cpulist(slow)}) are left alone; --cpus or a larger -t takes them too"


def usable_nodes(machine: Machine, allowed: frozenset[int]) -> list[Node]:
    """Those with memory and a cpu that this job may use."""
    return [node for node in machine.nodes if node.memory_bytes > 0 and not allowed.isdisjoint(node.cpus)]


def mark_crowded(placements: Sequence[Placement]) -> list[Placement]:
    """The same, with crowded set for all if any two threads of them share a cpu."""
    uses = Counter(cpu for placement in placements for cpu in placement.cpus)
    crowded = any(count > 1 for count in uses.values())
    return [replace(placement, crowded=crowded) for placement in placements]


def told(mine: Placement) -> tuple[int, str, int]:
    """What other ranks have to know of a kept binding: node, cpus, threads."""
    return mine.node, format_cpulist(mine.cpus), len(mine.cpus)


def compare(everybody: Sequence[tuple[int, str, int]], mine: Placement) -> list[Placement]:
    """The places of all ranks where each knew only its own: of the others, what they told."""
    places = []
    for seat, (node, text, threads) in enumerate(everybody):
        cpus = parse_cpulist(text)
        others = replace(mine, seat=seat, node=node, cpus=tuple(cpus[i * len(cpus) // threads] for i in range(threads)))
        places.append(mine if seat == mine.seat else others)
    return mark_crowded(places)


def describe(placements: Sequence[Placement], first: int = 0) -> str:
    """One line for people. first: the rank at seat 0."""
    ranks = ", ".join(f"rank {first + p.seat} on node {p.node} (cpus {format_cpulist(p.cpus)})" for p in placements)
    counts = [len(p.cpus) for p in placements]
    if len(set(counts)) == 1:
        threads = f"{counts[0]} thread{'s' * (counts[0] > 1)}{' each' * (len(counts) > 1)}"
    else:
        threads = f"{', '.join(map(str, counts))} threads"
    crowded = "; threads share cpus, so they do not spin" if any(p.crowded for p in placements) else ""
    return f"{len(counts)} rank{'s' * (len(counts) > 1)}: {ranks}; {threads}{crowded}"


def bind(placement: Placement, interleave: Sequence[int] | None = None) -> list[str]:
    """Confine this process to its rank's cpus and let its pages prefer the rank's node, or spread over `interleave`.
    Returns sentences worth showing.

    Call it before any other thread exists: threads take over the affinity and policy of the one that starts them.
    MachineError if the kernel does not grant the cpus.
    """
    try:
        os.sched_setaffinity(0, placement.mask)
    except OSError as error:
        cpus = format_cpulist(placement.mask)
        raise MachineError(f"cannot bind to cpus {cpus}: {error.strerror}; try --bind none") from error
    granted = os.sched_getaffinity(0)
    if granted != placement.mask:  # the kernel cuts the mask to the cgroup's cpuset without a word
        lost = format_cpulist(placement.mask - granted)
        raise MachineError(f"the kernel does not grant cpus {lost} to this job: leave them out of --cpus, or try --bind none")
    notes = [placement.note]
    if interleave:
        notes.append(interleave_over(interleave))
    elif not placement.spans:  # a rank over several nodes is better off with first touch
        notes.append(prefer_node(placement.node))
    return [note for note in notes if note]


def _placement(machine: Machine, seat: int, seats: int, share: list[Core], threads: int | None, smt: bool, idle: str) -> Placement:
    slots = [(core.cpus[0], core.l3) for core in share]
    if smt or (threads or 0) > len(slots):
        slots = [(cpu, core.l3) for core in share for cpu in core.cpus]
    count = threads or len(slots)
    # Fewer threads than slots spread over the share, so that all its L3 groups and their links to memory are used.
    chosen = [slots[i * len(slots) // count] for i in range(count)]
    owners = Counter(core.node for core in share)
    node, note = _memory_node(machine, owners)
    if len(owners) > 1:
        note = f"rank {seat} has cpus of nodes {format_cpulist(owners)}: part of its memory traffic crosses between them"
    mask = frozenset(cpu for core in share for cpu in core.cpus)
    cpus, groups = tuple(cpu for cpu, _ in chosen), tuple(l3 for _, l3 in chosen)
    note = "; ".join(filter(None, [note, idle]))
    return Placement(seat, seats, node, cpus, mask, groups, len(owners) > 1, False, note)


def _memory_node(machine: Machine, owners: Counter[int]) -> tuple[int, str]:
    """(the node that owns most of the cores and has memory, or else the nearest that has; a sentence in the latter case)."""
    with_memory = {node.id for node in machine.nodes if node.memory_bytes > 0}
    most = min(owners, key=lambda n: (n not in with_memory, -owners[n], n))
    if most in with_memory or not with_memory:
        return most, ""
    nearest = topology.nearest(machine, most, with_memory)
    return nearest, f"node {most} has no memory of its own: node {nearest} is the nearest that has"


def _cores_within(machine: Machine, allowed: frozenset[int]) -> list[Core]:
    """The cores as far as they are allowed, those that share an L3 side by side."""
    cut = (replace(core, cpus=tuple(cpu for cpu in core.cpus if cpu in allowed)) for core in machine.cores)
    return sorted((core for core in cut if core.cpus), key=lambda core: (core.l3, core.cpus[0]))


def _choose_nodes(machine: Machine, allowed: frozenset[int], wish: str | None) -> list[Node]:
    usable = {node.id: node for node in usable_nodes(machine, allowed)}
    if wish is None:
        if usable:
            return list(usable.values())
        # Only nodes without memory are left: their cores still work, with the nearest memory.
        return [node for node in machine.nodes if not allowed.isdisjoint(node.cpus)]
    chosen = parse_list(wish, "--nodes")
    for wanted in chosen:
        if wanted in usable:
            continue
        reason = "has no memory, or no cpu that this job may use"
        if all(node.id != wanted for node in machine.nodes):
            reason = "does not exist"
        raise UserError(f"--nodes {wish}: node {wanted} {reason}; choose from {format_cpulist(usable) or 'none'}")
    return [usable[n] for n in chosen]


def parse_list(text: str, option: str) -> tuple[int, ...]:
    """As parse_cpulist, for an option of that name, which may not be empty."""
    try:
        numbers = parse_cpulist(text)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
    if not numbers:
        raise UserError(f"{option} {text!r}: an empty list; write it like 0-3,8")
    return numbers


def _parse_cpus(machine: Machine, allowed: frozenset[int], size: int, wish: str) -> list[frozenset[int]]:
    parts = [frozenset(parse_list(part, "--cpus")) for part in wish.split("|")]
    if len(parts) != size:
        raise UserError(f"--cpus {wish!r} is for {len(parts)} ranks, this host has {size}: give one list per rank")
    refused = frozenset().union(*parts) - allowed
    if refused:
        text = format_cpulist(refused)
        raise UserError(f"--cpus {wish!r}: this job may not use {text}; choose from {format_cpulist(allowed)}")
    return parts


def _spread(machine: Machine, allowed: frozenset[int], size: int, nodes: list[Node]) -> list[list[Core]]:
    """The cores of each rank: ranks in order over nodes in order of package, cores of a node cut into contiguous runs."""
    package = {core.node: core.package for core in reversed(machine.cores)}
    nodes = sorted(nodes, key=lambda node: (package[node.id], node.id))
    if size <= len(nodes):
        homes = _spread_over_packages([package[node.id] for node in nodes], size)
    else:
        homes = [rank * len(nodes) // size for rank in range(size)]
    cores = _cores_within(machine, allowed)
    shares = []
    for rank, home in enumerate(homes):
        available = [core for core in cores if core.node == nodes[home].id]
        sharers = homes.count(home)
        place_in_line = rank - homes.index(home)
        total = len(available)
        first, end = place_in_line * total // sharers, (place_in_line + 1) * total // sharers
        shares.append(available[first : max(end, first + 1)])  # more ranks than cores: some share one
    return shares


def _spread_over_packages(packages: list[int], size: int) -> list[int]:
    """Indices of `size` nodes, given the package of each, ascending: packages take turns, within one they spread.

    On machines with as many nodes in each package this is rank * nodes // size or as good.
    """
    room = Counter(packages)
    taken: Counter[int] = Counter()
    while taken.total() < size:
        for p in sorted(room):
            if taken[p] < room[p] and taken.total() < size:
                taken[p] += 1
    return [packages.index(p) + i * room[p] // taken[p] for p in sorted(taken) for i in range(taken[p])]
