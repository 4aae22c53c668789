"""Scripts of tests/support/scripts in processes that have loaded everything already (scripts/serve.py): seconds become tenths.

What is started is an engine with its ranks. The start itself is tested where numatp is started as a command.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

from support.commands import SCRIPTS

_servers = {}  # by NUMATP_ISA, whose kernels they run all their life


def run_script(name, *arguments, env=None, timeout=240):
    """As commands.run does with the script of that name: its standard output and error as text."""
    environ = os.environ | (env or {})
    level = environ.get("NUMATP_ISA", "")
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        words = [str(argument) for argument in arguments]
        case = {"script": name, "arguments": words, "environ": environ, "folder": os.getcwd(), "out": str(out), "err": str(err)}
        case["cpus"] = list(os.sched_getaffinity(0))
        out.touch()
        err.touch()
        server = _server(level)
        server.stdin.write(json.dumps(case).encode() + b"\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], timeout)[0]:
            _end(level)
            raise subprocess.TimeoutExpired([name, *words], timeout, err.read_text())
        status = int(server.stdout.readline() or _end(level))
        return subprocess.CompletedProcess([name, *words], status, out.read_text(), err.read_text())


def numatp(*arguments, **options):
    """As commands.numatp, for what is asked of a command and not of its start."""
    return run_script("numatp.cli.main", *arguments, **options)


def _server(level):
    """One that lives."""
    if level in _servers and _servers[level].poll() is not None:
        _end(level)
    if level not in _servers:
        # A group of its own, which goes as a whole if a case hangs.
        _servers[level] = subprocess.Popen(
            [sys.executable, SCRIPTS / "serve.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env=os.environ | {"NUMATP_ISA": level, "OPENBLAS_NUM_THREADS": "1"},  # of the server alone
        )  # fmt: skip
    return _servers[level]


def _end(level):
    """The exit status of the server, killed with all that it started."""
    server = _servers.pop(level)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, 9)
    server.stdin.close()
    server.stdout.close()
    return server.wait()


def end():
    for level in [*_servers]:
        _end(level)
