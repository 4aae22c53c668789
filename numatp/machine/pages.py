"""Where are the pages? Asks the kernel which node holds each page of a piece of memory."""

import ctypes
import errno
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from numatp.errors import MachineError
from numatp.machine import limits, native

MAX_NODES = 1024  # more than any kernel is built for
UNDIVIDED = "weights and cache"
HUGE_PAGE = 2 << 20  # bytes
SMALL = 4 << 20  # bytes of which asking for every page takes less than reading what /proc says of all mappings


def reserve(num_bytes: int) -> int:
    """Address of anonymous memory on a 2 MiB boundary that nobody has touched yet."""
    address = native.library().numatp_pages_reserve(max(num_bytes, 1))
    if not address:
        raise MachineError(f"cannot reserve {num_bytes / 1e6:.0f} MB: {limits.reason(errno.ENOMEM)}")
    return int(address)


def bind(address: int, num_bytes: int, node: int) -> bool:
    """Of reserved memory, before it is touched: all of it to one node. False where the kernel refuses: then first touch decides."""
    return native.library().numatp_pages_bind(address, max(num_bytes, 1), node) == native.OK


def release(address: int, num_bytes: int) -> None:
    """Gives back what reserve(num_bytes) has returned."""
    native.library().numatp_pages_release(address, max(num_bytes, 1))


@dataclass(frozen=True)
class Region:
    """Memory that is counted under a name; several regions may have the same."""

    name: str
    address: int
    num_bytes: int


def count(regions: Sequence[Region]) -> dict[str, Counter[int]] | None:
    """Pages of anonymous memory by node, for each name; untouched ones are nowhere. None where the kernel does not answer.

    A page counts for the region that its first byte belongs to. Where move_pages is refused, as in containers, /proc/self/numa_maps
    tells of whole mappings only: then there is one count, under UNDIVIDED, of all the mappings that the regions touch.
    """
    counted: dict[str, Counter[int]] = {}
    size = native.library().numatp_page_bytes()
    for region in regions:
        first, end = (-(-edge // size) * size for edge in (region.address, region.address + region.num_bytes))
        found = _ask(first, end - first)
        if found is None:
            whole = count_in_maps(regions)
            return None if whole is None else {UNDIVIDED: whole}
        counted[region.name] = counted.get(region.name, Counter()) + found
    return counted


def _ask(address: int, num_bytes: int) -> Counter[int] | None:
    nodes, absent = np.zeros(MAX_NODES, np.int64), ctypes.c_int64()
    pointer = nodes.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
    status = native.library().numatp_pages_nodes(address, num_bytes, pointer, MAX_NODES, ctypes.byref(absent))
    return None if status != native.OK else Counter({int(node): int(nodes[node]) for node in np.flatnonzero(nodes)})


def count_quickly(region: Region) -> Counter[int] | None:
    """Pages by node of a region from reserve() that was touched everywhere; None where the kernel does not answer.

    move_pages takes 0.15 us a page, a fifth of the time in which a large model loads. numa_maps is as good unless its mapping holds
    more than the region, which the number of pages shows.
    """
    found = None if region.num_bytes < SMALL else count_in_maps([region])
    if found is not None and 0 <= found.total() * native.library().numatp_page_bytes() - region.num_bytes <= HUGE_PAGE:
        return found
    counted = count([region])
    return None if counted is None else sum(counted.values(), Counter[int]())


def count_in_maps(regions: Sequence[Region]) -> Counter[int] | None:
    """Pages by node of all mappings that the regions touch, from /proc/self/numa_maps, each mapping once."""
    try:
        maps = Path("/proc/self/maps").read_text()
        numa_maps = Path("/proc/self/numa_maps").read_text()
    except OSError:
        return None
    ends = {int(start, 16): int(end, 16) for start, end in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) ", maps, re.MULTILINE)}
    pages: Counter[int] = Counter()
    for line in numa_maps.splitlines():
        start = int(line.split(maxsplit=1)[0], 16)
        end = ends.get(start, 0)
        if any(start < region.address + region.num_bytes and end > region.address for region in regions):
            kib = int(found[1]) if (found := re.search(r" kernelpagesize_kB=(\d+)", line)) else 4
            small = kib * 1024 // native.library().numatp_page_bytes()
            pages.update({int(node): int(number) * small for node, number in re.findall(r" N(\d+)=(\d+)", line)})
    return pages


def huge_share(region: Region) -> float | None:
    """How much of the touched anonymous memory of a region's mappings lies in huge pages, 0 to 1, from /proc/self/smaps. None where
    the kernel does not tell, and for a region that fills no huge page. (Kernel documentation, filesystems/proc.rst: Rss and
    AnonHugePages.)
    """
    if region.num_bytes < HUGE_PAGE:
        return None
    try:
        smaps = Path("/proc/self/smaps").read_text()
    except OSError:
        return None
    touched = huge = 0  # KiB
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.MULTILINE)[1:]:
        start, end = (int(edge, 16) for edge in mapping.split(maxsplit=1)[0].split("-"))
        if start < region.address + region.num_bytes and end > region.address:
            sizes = dict(re.findall(r"^(Rss|AnonHugePages): +(\d+) kB$", mapping, re.MULTILINE))
            touched += int(sizes.get("Rss", 0))
            huge += int(sizes.get("AnonHugePages", 0))
    return huge / touched if touched else None
