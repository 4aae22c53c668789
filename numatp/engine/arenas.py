"""The large pieces of memory of one rank, on its node wherever that may be said."""

from numatp.machine import pages, policy
from numatp.machine.placement import Placement


class Arenas:
    def __init__(self, place: Placement, allow_remote: bool):
        # A policy from outside, as numactl's, is kept.
        self._node = None if place.spans or allow_remote or policy.from_outside(place.node) else place.node
        self._held: list[tuple[int, int]] = []

    def reserve(self, num_bytes: int) -> int:
        """Address of memory that nobody has touched yet."""
        address = pages.reserve(num_bytes)
        self.keep(address, num_bytes)
        if self._node is not None:
            pages.bind(address, num_bytes, self._node)
        return address

    def keep(self, address: int, num_bytes: int) -> None:
        """Memory of pages.reserve that is given back with the rest."""
        self._held.append((address, num_bytes))

    def release(self) -> None:
        for address, num_bytes in self._held:
            pages.release(address, num_bytes)
        self._held.clear()
