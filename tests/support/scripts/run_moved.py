"""`numatp audit` on two local ranks, of which rank 1 finds its private memory on node 0 once it has loaded.

python run_moved.py audit ...
"""

import ctypes
import os
import re
import signal
import sys
import time
from pathlib import Path

from numatp.cli import main as numatp

MOVE_PAGES, TO_NODE = 279, 2  # x86-64's system call, MPOL_MF_MOVE
PAGE = os.sysconf("SC_PAGE_SIZE")
BATCH = 1 << 14  # pages
LOADED = "pages after load"  # what the command says then


def move(pid, addresses, node):
    """To the node; pages that nobody has touched stay nowhere."""
    count = len(addresses)
    pages, nodes, status = (ctypes.c_void_p * count)(*addresses), (ctypes.c_int * count)(*[node] * count), (ctypes.c_int * count)()
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(MOVE_PAGES, pid, ctypes.c_ulong(count), pages, nodes, status, TO_NODE) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def move_private(pid, node):
    """The process stands still meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    for start, end in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) rw-p", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE):
        addresses = range(int(start, 16), int(end, 16), PAGE)
        for first in range(0, len(addresses), BATCH):
            move(pid, addresses[first : first + BATCH], node)
    os.kill(pid, signal.SIGCONT)


def main():
    command, said = os.getpid(), Path("/proc/self/fd/2").resolve()
    if not os.fork():
        while LOADED not in said.read_text():
            time.sleep(0.05)
        # Its other child is rank 1.
        (rank,) = set(Path(f"/proc/{command}/task/{command}/children").read_text().split()) - {str(os.getpid())}
        move_private(int(rank), 0)
        os._exit(0)
    return numatp.main()


if __name__ == "__main__":
    sys.exit(main())
