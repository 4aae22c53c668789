"""Runs a command whose kernel refuses some system calls with EPERM, as a container's seccomp profile does.

python refuse.py mbind,move_pages COMMAND ...
"""

import ctypes
import errno
import os
import struct
import sys

X86_64 = {"mbind": 237, "set_mempolicy": 238, "get_mempolicy": 239, "move_pages": 279, "memfd_create": 319, "pidfd_open": 434}
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF: load a word, jump if equal, return
NUMBER = 0  # where seccomp_data has the number of the call
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER = 22, 38, 2


def refuse(names):
    """In this process and all that it starts, from now on."""
    program = [(LOAD, 0, 0, NUMBER)]
    for name in names:
        program += [(EQUAL, 0, 1, X86_64[name]), (RETURN, 0, 0, REFUSE)]
    program.append((RETURN, 0, 0, ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    record = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    library = ctypes.CDLL(None, use_errno=True)
    for option, value, pointer in ((PR_SET_NO_NEW_PRIVS, 1, None), (PR_SET_SECCOMP, FILTER, record)):
        if library.prctl(option, ctypes.c_ulong(value), ctypes.c_char_p(pointer), 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    refuse(sys.argv[1].split(","))
    os.execv(sys.argv[2], sys.argv[2:])
