"""Is there room for the ranks on their nodes? Asked before anything large is touched."""

from numatp.errors import MachineError
from numatp.machine import policy, topology
from numatp.machine.placement import Placement
from numatp.machine.topology import format_cpulist
from numatp.ranks.world import World


def check_room(world: World, place: Placement, allow_remote: bool, needed: int) -> bool:
    """MachineError on every rank of this host if a node cannot hold what its ranks need. needed: bytes of this rank.

    True if the room is there only once the kernel drops files from its page cache. Collective.
    """
    mine = _possible_nodes(place, allow_remote)
    asked = world.host.gather([mine, needed, sum(map(topology.free_bytes, mine))])
    first = world.rank - world.host.seat
    wanted_of = {tuple(nodes): sum(size for own, size, _ in asked if set(own) <= set(nodes)) for nodes, _, _ in asked}
    for nodes, wanted in sorted(wanted_of.items()):
        ranks = [first + seat for seat, (own, _, _) in enumerate(asked) if set(own) <= set(nodes)]
        free = next(size for own, _, size in asked if tuple(own) == nodes)
        if wanted > free:
            where = f"node {nodes[0]} has" if len(nodes) == 1 else f"nodes {format_cpulist(nodes)} together have"
            outside = policy.from_outside(place.node)
            why = f"; the memory policy {outside} was set from outside" if outside else ""
            raise MachineError(
                f"{where} {free / 1e9:.1f} GB free and its ranks {ranks} would need {wanted / 1e9:.1f} GB there "
                f"(weights, cache, what a Step computes with, and a margin{why}): use more nodes, a smaller -c or a smaller model"
            )
    limit, total = topology.memory_limit_bytes(), sum(size for _, size, _ in asked)
    if limit is not None and total > limit:
        raise MachineError(
            f"this job's memory limit leaves {limit / 1e9:.1f} GB and the ranks need {total / 1e9:.1f} GB: raise the limit, "
            "or use a smaller -c or model"
        )
    return sum(map(topology.unused_bytes, mine)) < wanted_of[tuple(mine)]


def _possible_nodes(place: Placement, allow_remote: bool) -> list[int]:
    """Nodes that this rank's pages may lie on: its own, unless a policy from outside binds them elsewhere or any will do."""
    bound = policy.bound_nodes(policy.from_outside(place.node))
    if not (place.spans or allow_remote or (bound and place.node not in bound)):
        return [place.node]
    machine = topology.with_memory_of(topology.read_machine(), frozenset(bound) or topology.allowed_nodes())
    return [node.id for node in machine.nodes if node.memory_bytes] or [place.node]
