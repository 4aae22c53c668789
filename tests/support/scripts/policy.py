"""Runs a command under a memory policy for one node, as `numactl` does.

python policy.py bind|interleave NODE COMMAND ...
"""

import ctypes
import os
import sys

SET_MEMPOLICY = 238  # x86-64
MODES = {"bind": 2, "interleave": 3}


def main():
    mode, node, *command = sys.argv[1:]
    library, nodes = ctypes.CDLL(None, use_errno=True), ctypes.c_ulong(1 << int(node))
    if library.syscall(SET_MEMPOLICY, MODES[mode], ctypes.byref(nodes), 64):
        raise OSError(ctypes.get_errno(), "set_mempolicy")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
