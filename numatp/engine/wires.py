"""How sums go between hosts: memory for them, and by how many ranks of each host."""

import time

import numpy as np

from numatp.engine.sections import Sections
from numatp.engine.team import Team
from numatp.program.builder import Builder, Program
from numatp.program.recorder import Wires
from numatp.program.values import Access, Buffer
from numatp.ranks.world import World

TRIES, EXCHANGES = 3, 48  # runs of so many exchanges, of which the fastest counts: a few ms, or some tens on a slow link


def wires_of(world: World, sections: Sections, partials: tuple[np.ndarray, np.ndarray], wires: int) -> Wires:
    """Memory for the sums, on each of the first `wires` ranks of a host, which exchange a slice each. Collective."""
    host, hosts = world.host, world.hosts
    assert hosts
    count = len(hosts.members.names)
    sizes = [sections.slice_bytes(wire, wires) for wire in range(wires)]
    own = sections.kept_apart(host.seats)  # after those of the others
    parts = host.map_shared(
        [sections.wire_bytes(wire, host.seats, wires, count) for wire in range(wires)] + [0] * (host.seats - wires)
    )
    sums = np.zeros((2, wires, count), np.uint64)
    for wire, size in enumerate(sizes):
        for place, other in enumerate(hosts.others):
            sums[:, wire, other] = parts[wire].ctypes.data + place * size
        for parity in (0, 1):
            sums[parity, wire, hosts.index] = parts[wire].ctypes.data + (count - 1) * size if own else partials[parity][host.seat]
    mine = sums[0, host.seat] if host.seat < wires else np.zeros(count, np.uint64)
    return Wires(wires, count, sections.half, int(mine[hosts.index]) if own else 0, mine, (sums[0], sums[1]))


def faster_for_one_row(
    world: World, team: Team, sections: Sections, partials: tuple[np.ndarray, np.ndarray], several: Wires
) -> tuple[Wires, str]:
    """By whom the sums of one row go: by those who exchange many rows, or all by the first rank of each host, which is tried here
    and now; and a sentence about it. Collective.
    """
    if several.count == 1:
        return several, ""
    one_row = sections.of_one_row
    first = wires_of(world, one_row, partials, 1)
    took = {wires.count: _seconds(world, team, one_row, wires) for wires in (first, several)}
    chosen = min((first, several), key=lambda wires: took[wires.count])
    each = ", ".join(f"{1e6 * seconds:.1f} us by {count} of each" for count, seconds in took.items())
    return chosen, f"sums of one row go between hosts by {chosen.count} rank{'s' * (chosen.count > 1)} of each: {each}"


def _seconds(world: World, team: Team, sections: Sections, wires: Wires) -> float:
    """Of one exchange of a row, on the rank where it takes longest; the same on all."""
    row_bytes = 0
    if world.host.seat < wires.count:
        row_bytes = sections.slice_bytes(world.host.seat, wires.count) // sections.step_rows
    return min(exchange_seconds(world, team, row_bytes, wires.outgoing, wires.incoming, TRIES, EXCHANGES))


def exchange_seconds(
    world: World, team: Team, num_bytes: int, outgoing: int, incoming: np.ndarray, tries: int, times: int
) -> list[float]:
    """Of one exchange with the other hosts, as the mean of `times` of them, on the rank where they take longest: in each try; the
    same on all ranks. num_bytes: that this rank sends to each of its counterparts; 0: it has none. outgoing: address. incoming:
    addresses by host, uint64. Collective.
    """
    begin, timed = (_exchanges(team, num_bytes, outgoing, incoming, count) for count in (4, times))
    found = []
    for _ in range(tries):
        world.gather("ready")
        began = ended = 0.0
        if num_bytes:
            team.run_program(begin)  # after which the hosts are as near to each other as they get
            began = time.perf_counter()
            team.run_program(timed)
            ended = time.perf_counter()
        found.append(max(world.gather(ended - began)) / times)
    return found


def _exchanges(team: Team, num_bytes: int, outgoing: int, incoming: np.ndarray, times: int) -> Program:
    rows, builder = np.ones(1, np.int64), Builder("exchanges", team.threads)
    sent, arrived = Access(Buffer("outgoing", address=0)), Access(Buffer("sums of hosts", address=0))
    for _ in range(times if num_bytes else 0):
        builder.cross(team.handle, rows.ctypes.data, num_bytes, outgoing, incoming, [sent], [arrived])
    return builder.finish([rows]).place()
