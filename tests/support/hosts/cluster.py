"""Several hosts of one machine: namespaces that a bridge joins, for tests of what ranks on several hosts do.

Each host has its own network (eth0), name, /dev/shm, System V IPC, process ids, boot and machine id, TMPDIR and, where there are
cores enough, its own share of them. Files are shared, as with a network file system. The caller's network is left alone.
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
SPACES = ("--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child")


@functools.cache
def reason():
    """Why there can be no hosts here, or None."""
    if missing := [tool for tool in ("unshare", "nsenter", "ip", "taskset", "mountpoint") if not shutil.which(tool)]:
        return f"no {', '.join(missing)}"
    words = ["unshare", *SPACES, "--uts", "--ipc", "sh", "-c", "mount -t tmpfs x /dev/shm && ip link add name x type bridge"]
    tried = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


def shares(count):
    """The caller's cpus, dealt to so many hosts; all to each where there are too few."""
    cpus = sorted(os.sched_getaffinity(0))
    dealt = [cpus[len(cpus) * i // count : len(cpus) * (i + 1) // count] for i in range(count)]
    return [",".join(map(str, share if len(cpus) >= count else cpus)) for share in dealt]


class Cluster:
    """`with Cluster("a", "b") as cluster:`; mpirun starts on the first host. Nothing is left, also when the process is killed."""

    def __init__(self, *names):
        self.names = names

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="numatp-hosts-"))
        for name in ("own", "sys"):
            (self.folder / name).mkdir()
        self.agent = self.folder / "reach"
        self.agent.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {FOLDER}/reach.py {self.folder}/socket "$@"\n')
        self.agent.chmod(0o700)
        hosts = [f"{name}={cpus}" for name, cpus in zip(self.names, shares(len(self.names)), strict=True)]
        words = ["unshare", *SPACES, sys.executable, "-IS", FOLDER / "switch.py", self.folder, *hosts]
        self._switch = subprocess.Popen(list(map(str, words)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        answer = self._switch.stdout.readline()
        if not answer:
            self.__exit__()
            raise RuntimeError("the hosts could not be made")
        return self

    def __exit__(self, *_):
        self._switch.stdin.close()
        self._switch.wait(60)
        self._switch.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def words(self, host, *command):
        """A command line that runs `command` on a host, to be started from outside."""
        return [str(self.agent), "--exec", host, *map(str, command)]

    def run(self, host, *command, timeout=240, env=None):
        """Runs a command on a host with a time limit; standard output and error as text."""
        return subprocess.run(
            self.words(host, *command), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout,
            env=os.environ | (env or {}), check=False,
        )  # fmt: skip

    def mpirun(self, bin, ranks, *command):
        """The command line of an MPI's launcher in the folder `bin`. ranks: a host, e.g. 2 for --host a:2,b:2."""
        # Each host sees the machine's cores: bound to cores, the first ranks of all hosts would share one.
        places = ",".join(f"{name}:{ranks}" for name in self.names)
        total = str(ranks * len(self.names))
        if Path(bin, "prterun").exists():
            agent = ["--prtemca", "plm_ssh_agent", str(self.agent)]
            return [f"{bin}/mpirun", *agent, "--bind-to", "none", "--host", places, "-np", total, *map(str, command)]
        agent = ["-launcher", "ssh", "-launcher-exec", str(self.agent)]
        return [f"{bin}/mpiexec", *agent, "-hosts", places, "-n", total, *map(str, command)]

    def link(self, host, state):
        """state: up or down, what a pulled cable does."""
        assert not self.run(host, "ip", "link", "set", "eth0", state).returncode

    def power_off(self, host):
        """Every process of the host ends at once, and no farewell reaches the others."""
        subprocess.run([self.agent, "--off", host], check=True)
