"""What Numba makes of a kernel that raises and of one that allocates: LLVM's bitcode as JSON, in hex."""

import json

import numba
import numpy as np

from numatp.kernels import build  # before files of kernels, which are then those of a compiler
from numatp.kernels.compile import OPTIONS
from numatp.kernels.simd import fetch_add


def raising(args, thread, threads):
    if args.n > 1:
        raise ValueError


def allocating(args, thread, threads):
    memory = np.empty(args.n)
    for i in range(1, args.n):
        memory[i] = memory[i - 1] + thread
    fetch_add(args.out, np.int64(memory[args.n - 1]))


if __name__ == "__main__":
    signature, made = build.signature({"n": "int", "out": "pointer"}), {}
    for function in (raising, allocating):
        callback = numba.cfunc(signature, **OPTIONS)(function)
        made[function.__name__] = callback._library._get_module_for_linking().as_bitcode().hex()
    print(json.dumps(made))
