"""Limits that were set on this process (setrlimit, cgroup): what an error of the system means in their terms."""

import errno
import os
import resource
from pathlib import Path

from numatp.errors import MachineError
from numatp.machine.topology import cgroup_folders, memory_limit_bytes

# Address space for interpreter, numpy, LLVM and tokenizer, before any weight; files for what ranks share, MPI's included.
START_BYTES = {"AS": 1 << 29, "DATA": 1 << 29, "FSIZE": 1 << 25}
START_FILES = 64
UNLIMITED = resource.RLIM_INFINITY


def check() -> None:
    """Before anything slow: MachineError if the libraries that numatp needs could not even be loaded."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != UNLIMITED and files < START_FILES:
        if most != UNLIMITED and most < START_FILES:
            raise MachineError(f"RLIMIT_NOFILE (ulimit -n) allows {most} open files and numatp needs {START_FILES}: raise it")
        resource.setrlimit(resource.RLIMIT_NOFILE, (START_FILES, most))
    for name, needed in START_BYTES.items():
        size = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
        if size != UNLIMITED and size < needed:
            raise MachineError(
                f"RLIMIT_{name} (ulimit -{OPTIONS[name]}) is {size / 1e6:.0f} MB; numatp needs {needed / 1e6:.0f} MB, and more for "
                "a large model: raise it"
            )


def describe(error: BaseException) -> str | None:
    """One line if the error says that something has run out, with the limits that may be behind it; else None."""
    if isinstance(error, MemoryError):
        return reason(errno.ENOMEM)
    if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError) and _limited("AS"):
        return reason(errno.ENOMEM)  # numba's own text hides why its libraries could not be mapped
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return reason(errno.EAGAIN)
    if isinstance(error, OSError) and error.errno in FULL:
        place = f" for {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}: make room for the output and the cache, or set NUMATP_CACHE_DIR to a folder with some"
    if isinstance(error, OSError) and error.errno in TEXTS:
        return reason(error.errno)
    return None


def reason(number: int) -> str:
    """What an errno means, in words."""
    if number not in TEXTS:
        return os.strerror(number)
    text, names = TEXTS[number]
    limits = []
    for name in names:
        value = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
        if value != UNLIMITED:
            size = f"{value / 1e6:.0f} MB" if name in ("AS", "DATA", "FSIZE") else str(value)
            limits.append(f"RLIMIT_{name} (ulimit -{OPTIONS[name]}) is {size}")
    if number == errno.ENOMEM and (room := memory_limit_bytes()) is not None:
        limits.append(f"the cgroup's memory limit leaves {room / 1e6:.0f} MB")
    if number == errno.EAGAIN and (most := _pids_max()):
        limits.append(f"the cgroup's pids.max is {most}")
    return f"{text}: {', '.join(limits) or 'no limit of this process, so the machine has no more'}"


def _limited(name: str) -> bool:
    return resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0] != UNLIMITED


def _pids_max() -> str:
    for folder, _ in cgroup_folders("pids"):
        try:
            text = Path(folder, "pids.max").read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            return text
    return ""


OPTIONS = {"AS": "v", "DATA": "d", "FSIZE": "f", "NOFILE": "n", "NPROC": "u"}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
TEXTS = {
    errno.ENOMEM: ("out of memory", ("AS", "DATA")),
    errno.EAGAIN: ("no thread or process can be started", ("NPROC",)),
    errno.EMFILE: ("too many open files", ("NOFILE",)),
    errno.ENFILE: ("too many open files on this machine", ()),
    errno.EFBIG: ("a file, or memory shared by the ranks, may not be that large", ("FSIZE",)),
}
