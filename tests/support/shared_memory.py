"""What a job leaves in /dev/shm, beside others that work there at the same time."""

import contextlib
import os
import time
from pathlib import Path

SECONDS = 60  # a hang, on a machine however slow
OURS = f"NUMATP_TEST_PROCESS={os.getpid()}"  # in the environment of all that this process starts
os.environ |= [OURS.split("=")]


def shared_files():
    """Names in /dev/shm, but for what somebody else's living processes use."""
    names = set(os.listdir("/dev/shm"))
    return names - _others() if names else names


def nothing_left(before):
    """Waits until there is nothing that was not there before."""
    end = time.monotonic() + SECONDS
    while left := shared_files() - before:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def _others():
    """Names that are open or mapped in a process which none of our commands has started, even one that has ended since."""
    used = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if OURS.encode() not in (process / "environ").read_bytes().split(b"\0"):
                paths = [os.readlink(link) for link in (process / "fd").iterdir()]
                paths += [line.split(maxsplit=5)[-1] for line in (process / "maps").read_text().splitlines()]
                used |= {os.path.basename(path) for path in paths if path.startswith("/dev/shm/")}
    return used
