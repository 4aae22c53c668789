"""What does the kernel let a process do here? Asked in a child, because a seccomp profile may answer by killing it.

python -m numatp.machine.probe NAME: status 0 and an empty line if it works, else the reason in a line.
"""

import ctypes
import errno
import mmap
import sys

from numatp.machine.policy import libnuma_fault

MBIND, SET_MEMPOLICY, MOVE_PAGES = 237, 238, 279  # x86-64
CALLS = ("set_mempolicy", "mbind", "move_pages")


def call(name: str) -> str:
    """ "" if the system call is granted, else the error's name. Each asks for what changes nothing: the default policy, a query."""
    library = ctypes.CDLL(None, use_errno=True)
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page[0] = 1
    address, null = ctypes.addressof(ctypes.c_char.from_buffer(page)), ctypes.c_void_p(None)
    pages, status = (ctypes.c_void_p * 1)(address), ctypes.c_int(0)
    zero, one = ctypes.c_ulong(0), ctypes.c_ulong(1)
    size = ctypes.c_ulong(mmap.PAGESIZE)
    number, arguments = {
        "set_mempolicy": (SET_MEMPOLICY, (zero, null, zero)),
        "mbind": (MBIND, (ctypes.c_void_p(address), size, zero, null, zero, zero)),
        "move_pages": (MOVE_PAGES, (zero, one, pages, null, ctypes.byref(status), zero)),
    }[name]
    library.syscall.restype = ctypes.c_long
    if library.syscall(ctypes.c_long(number), *arguments) == 0:
        return ""
    return errno.errorcode.get(ctypes.get_errno(), str(ctypes.get_errno()))


if __name__ == "__main__":
    print(libnuma_fault() if sys.argv[1] == "libnuma" else call(sys.argv[1]))
