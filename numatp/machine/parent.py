"""A rank makes no sense without the process that started it, and ends with it. The only file that imports psutil."""

import contextlib
import ctypes
import os
import signal
import threading

PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with(pid: int) -> None:
    """From now on this process ends at once, with exit status 1, when process `pid` has gone: even in the middle of an import.

    A thread waits for that, because the kernel's parent-death signal would come as soon as the *thread* ends that started us. But a
    stopped process has no thread that runs: if `pid` is our parent the kernel makes us go on then, which does no harm before.
    """
    if os.getppid() == pid:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)
    with contextlib.suppress(RuntimeError):  # no more threads: the load, which needs some too, will say so
        threading.Thread(target=_wait, args=(pid,), name="numatp-parent", daemon=True).start()


def _wait(pid: int) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait()
    os._exit(1)
