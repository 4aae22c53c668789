"""Runs a command under a memory policy for one node, as `numactl` does.

python policy.py bind|interleave NODE COMMAND ...
"""

import ctypes
import os
import sys

SET_MEMPOLICY = 238  # x86-64
MODES = {"bind": 2, "interleave": 3}


def set_policy(mode, node):
    """Of this process and all that it starts, from now on."""
    library, nodes = ctypes.CDLL(None, use_errno=True), ctypes.c_ulong(1 << node)
    if library.syscall(SET_MEMPOLICY, MODES[mode], ctypes.byref(nodes), 64):
        raise OSError(ctypes.get_errno(), "set_mempolicy")


if __name__ == "__main__":
    mode, node, *command = sys.argv[1:]
    set_policy(mode, int(node))
    os.execv(command[0], command)
