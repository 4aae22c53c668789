"""Where are the pages? Asks the kernel which node holds each page of a piece of memory."""

import ctypes
import errno
import re
from collections import Counter
from pathlib import Path

import numpy as np

from numatp.errors import MachineError
from numatp.machine import limits, native

MAX_NODES = 1024  # more than any kernel is built for


def reserve(num_bytes: int) -> int:
    """Address of anonymous memory on a 2 MiB boundary that nobody has touched yet."""
    address = native.library().numatp_pages_reserve(max(num_bytes, 1))
    if not address:
        raise MachineError(f"cannot reserve {num_bytes / 1e9:.1f} GB: {limits.reason(errno.ENOMEM)}")
    return int(address)


def bind(address: int, num_bytes: int, node: int) -> bool:
    """Of reserved memory, before it is touched: all of it to one node. False where the kernel refuses: then first touch decides."""
    return native.library().numatp_pages_bind(address, max(num_bytes, 1), node) == native.OK


def release(address: int, num_bytes: int) -> None:
    native.library().numatp_pages_release(address, max(num_bytes, 1))


def count_by_node(address: int, num_bytes: int) -> Counter[int] | None:
    """Pages by node, untouched ones left out; None where the kernel does not answer."""
    nodes, absent = np.zeros(MAX_NODES, np.int64), ctypes.c_int64()
    pointer = nodes.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
    status = native.library().numatp_pages_nodes(address, num_bytes, pointer, MAX_NODES, ctypes.byref(absent))
    if status != native.OK:  # containers refuse move_pages
        return count_in_maps(address, num_bytes)
    return Counter({int(node): int(nodes[node]) for node in np.flatnonzero(nodes)})


def count_in_maps(address: int, num_bytes: int) -> Counter[int] | None:
    """The same from /proc/self/numa_maps, which knows whole mappings only: what lies in one mapping with it is counted too."""
    try:
        maps = Path("/proc/self/maps").read_text()
        numa_maps = Path("/proc/self/numa_maps").read_text()
    except OSError:
        return None
    ends = {int(start, 16): int(end, 16) for start, end in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) ", maps, re.MULTILINE)}
    pages: Counter[int] = Counter()
    for line in numa_maps.splitlines():
        start = int(line.split(maxsplit=1)[0], 16)
        if start < address + num_bytes and ends.get(start, 0) > address:
            pages.update({int(node): int(count) for node, count in re.findall(r" N(\d+)=(\d+)", line)})
    return pages
