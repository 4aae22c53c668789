"""Moves the private memory of the process whose number comes on standard input with move_pages, as soon as a text stands in a file:
python move_pages.py NODE FILE TEXT. The process stands still meanwhile.
"""

import ctypes
import os
import re
import signal
import sys
import time
from pathlib import Path

MOVE_PAGES, TO_NODE = 279, 2  # x86-64's system call, MPOL_MF_MOVE
PAGE = os.sysconf("SC_PAGE_SIZE")
BATCH = 1 << 14  # pages


def move(pid, addresses, node):
    """How many of the pages are on the node afterwards; those that nobody has touched are nowhere."""
    count = len(addresses)
    pages, nodes, status = (ctypes.c_void_p * count)(*addresses), (ctypes.c_int * count)(*[node] * count), (ctypes.c_int * count)()
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(MOVE_PAGES, pid, ctypes.c_ulong(count), pages, nodes, status, TO_NODE) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return sum(found == node for found in status)


def main(node, file, text):
    """How many pages are there then."""
    pid, moved = int(input()), 0
    while text not in Path(file).read_text():
        time.sleep(0.01)
    os.kill(pid, signal.SIGSTOP)
    for start, end in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) rw-p", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE):
        addresses = range(int(start, 16), int(end, 16), PAGE)
        for first in range(0, len(addresses), BATCH):
            moved += move(pid, addresses[first : first + BATCH], int(node))
    os.kill(pid, signal.SIGCONT)
    return moved


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
