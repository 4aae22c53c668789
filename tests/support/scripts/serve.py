"""Runs other scripts of this folder, or numatp.cli.main, in forks of itself: Python, numpy and kernels are loaded once for all.

python serve.py — each line on standard input is JSON: "script" (its name), "arguments", "environ", "folder", "out", "err" (files),
"cpus", unless it may use all, and perhaps "policy" (policy.py's mode and node) and "cgroup" (a folder). For each it prints the exit
status. Local ranks are forks too; the rest of a rank's start is as in a fresh process. With --find-kernels-later each looks for the
kernels that it needs.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from runpy import run_module
from types import SimpleNamespace

sys.path.append(str(Path(__file__).parents[2]))

from policy import set_policy

from numatp import cli, engine, measure, models
from numatp.kernels import norm, sources
from numatp.ranks import alone, local  # noqa: F401

LATER = "--find-kernels-later" in sys.argv[1:]
# In emulation, where each import takes long, few models are opened.
PACKAGES = (cli, engine, measure) if LATER else (cli, engine, measure, models)
LOADED = [f"{package.__name__}.{module.name}" for package in PACKAGES for module in iter_modules(package.__path__)]


def fork(life):
    """The process that lives by life(), which returns an exit status."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 1
    try:
        status = life() or 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class ForkedRank:
    """What ranks/local.py uses of subprocess.Popen, for `python -P -m MODULE JOB`."""

    def __init__(self, command, **_):
        def life():
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            *_, module, job = command
            sys.argv = [module, job]
            sys.modules.pop(module, None)
            run_module(module, run_name="__main__")

        self.pid, self.returncode = fork(life), None

    def poll(self):
        return self._wait(os.WNOHANG)

    def wait(self, timeout=None):
        return self._wait(0)

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _wait(self, options):
        if self.returncode is None and os.waitpid(self.pid, options)[0]:
            self.returncode = 0
        return self.returncode


def run(case):
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(case[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(case["folder"])
    if "cpus" in case:
        os.sched_setaffinity(0, case["cpus"])
    if case.get("cgroup"):
        Path(case["cgroup"], "cgroup.procs").write_text("0")  # this process
    if case.get("policy"):
        set_policy(*case["policy"])
    os.environ.clear()
    os.environ.update(case["environ"])
    local.subprocess = SimpleNamespace(Popen=ForkedRank, DEVNULL=None, TimeoutExpired=subprocess.TimeoutExpired)
    sys.argv = [case["script"], *case["arguments"]]
    return import_module(case["script"]).main()


def main():
    for module in LOADED:
        import_module(module)
    # What every engine would find out for itself: which files there are, and what they hold.
    models.architectures()
    sources.whole()
    if LATER:
        kernels = [norm.rms_norm]
    else:
        from support.kernels import all_kernels

        kernels = all_kernels()
    gc.freeze()  # or collections in a fork would write to every object, and copy its page
    for line in os.fdopen(os.dup(0)):  # of which a case's own standard input is no part
        kernels = [kernel for kernel in kernels if not kernel.find()]  # what somebody has compiled
        case = json.loads(line)
        pid = fork(lambda case=case: run(case))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
