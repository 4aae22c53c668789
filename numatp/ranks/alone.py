"""One rank: this process."""

from numatp.ranks.host import Host, make_window
from numatp.ranks.world import World


def alone(crowded: bool) -> World:
    return World.of_one(Host(0, 1, make_window(), [0], crowded, lambda: None))
