"""AMX, the tile registers of some x86-64 processors: the kernel's permission, and whether their instructions work here.

A processor may name them where nobody may use them (virtual machines, kernels before 5.16, sandboxes), and then they end a process.
"""

import ctypes
import mmap
import os
import resource
import signal
from functools import cache

from numatp.errors import MachineError
from numatp.machine import limits

ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18  # system call, its code, the component of the processor's state
CONFIGURATION_BYTES = 64
LONG_PROMPT = 32  # tokens of a prompt from which on its rows come first in a Step: other kernels compute them than other rows
# ldtilecfg (%rdi); tilezero %tmm0, %tmm1, %tmm2; tdpbf16ps and tdpbssd %tmm2, %tmm1, %tmm0; tilerelease; ret
TRIAL = bytes.fromhex("c4e2784907 c4e27b49c0 c4e27b49c8 c4e27b49d0 c4e26a5cc1 c4e26b5ec1 c4e27849c0 c3")


def configuration(shapes: list[tuple[int, int]]) -> bytes:
    """For ldtilecfg: (rows, 1 to 16, bytes of a row, 4 to 64) of each tile, up to 8 of them."""
    rows, row_bytes = bytes(rows for rows, _ in shapes), b"".join(n.to_bytes(2, "little") for _, n in shapes)
    # Palette 1, then bytes of a row of each, 16 bits each, and the rows.
    return bytes([1]) + bytes(15) + row_bytes.ljust(32, b"\0") + rows.ljust(16, b"\0")


def permit() -> bool:
    """Asks for the permission, which is the process's and its children's: True if all threads may use tiles from now on."""
    library = ctypes.CDLL(None)
    library.syscall.restype = ctypes.c_long
    return library.syscall(*map(ctypes.c_long, (ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA))) == 0


@cache
def work() -> bool:
    """Whether a child of this process could use them; tried once. MachineError where nothing can be tried."""
    try:
        return _try()
    except OSError as error:
        raise MachineError(limits.describe(error) or f"this processor's tiles cannot be tried: {error}") from error


def _try() -> bool:
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page[: CONFIGURATION_BYTES + len(TRIAL)] = configuration([(16, 64)] * 8) + TRIAL
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    trial = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address + CONFIGURATION_BYTES)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGILL, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if permit():
            trial(address)
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1] == 0
