"""Where are the pages? Asks the kernel which node holds each page of a piece of memory."""

import ctypes
import errno
from collections import Counter

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


def release(address: int, num_bytes: int) -> None:
    native.library().numatp_pages_release(address, max(num_bytes, 1))


def count_by_node(address: int, num_bytes: int) -> Counter[int] | None:
    """Pages by node, untouched ones left out; None where the kernel does not answer (move_pages refused)."""
    nodes, absent = np.zeros(MAX_NODES, np.int64), ctypes.c_int64()
    pointer = nodes.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
    status = native.library().numatp_pages_nodes(address, num_bytes, pointer, MAX_NODES, ctypes.byref(absent))
    if status != native.OK:
        return None
    return Counter({int(node): int(nodes[node]) for node in np.flatnonzero(nodes)})
