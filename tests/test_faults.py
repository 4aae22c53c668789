"""What can happen to a job from outside: signals, killed processes, limits, refused system calls. It must end within seconds,
with one line where there is somebody to say it, and leave nothing behind."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.commands import BIN, SCRIPTS, run
from support.shared_memory import SECONDS, nothing_left, shared_files

WAYS = {
    "alone": ([], ["--ranks", "1"]),
    "local": ([], ["--ranks", "2"]),
    "mpirun": ([BIN / "mpirun", "-np", "2"], []),
    "mpirun, abort off": ([BIN / "mpirun", "-np", "3", "--enable-recovery"], []),
}
PROMPT = ["-p", "The capital of France is", "-n", "8", "--temp", "0"]
LONG = ["-n", "60000", "-c", "65536", "--ignore-eos"]  # half a minute and more


def each_once(things, ids=str):
    """Parameters (way, thing): every thing with local ranks, and the first one in the other ways too."""
    pairs = [("local", thing) for thing in things] + [(way, things[0]) for way in ("alone", "mpirun")]
    return [pytest.param(way, thing, id=f"{way}-{ids(thing)}") for way, thing in pairs]


def command(model, way, *options):
    launcher, ranks = WAYS[way]
    return [str(part) for part in [*launcher, BIN / "numatp", "generate", "-m", model, *ranks, *options]]


@contextmanager
def started(words):
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@contextmanager
def generating(model, way):
    """A long run, in the middle of it."""
    with started(command(model, way, "-p", "Once upon a time", *LONG)) as process:
        assert process.stderr
        for line in process.stderr:
            if "numatp: weights" in line:
                break
        time.sleep(0.3)
        assert process.poll() is None
        yield process


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def family(pid):
    """pid and all processes below it."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in table.splitlines()]
    found = [pid]
    for above in found:
        found += [child for child, parent in parents if parent == above]
    return found


def ranks_of(pid):
    """Process of each rank."""
    ranks = {}
    for member in family(pid):
        words = Path(f"/proc/{member}/cmdline").read_text()
        launched = re.search(r"OMPI_COMM_WORLD_RANK=(\d+)", Path(f"/proc/{member}/environ").read_text())
        worker = re.search(r'"seat": (\d+)', words)
        if launched and "numatp" in words:
            ranks[int(launched[1])] = member
        elif worker:
            ranks[int(worker[1])] = member
    return ranks if 0 in ranks else ranks | {0: pid}


def ended(process, members):
    """(exit status, stderr), once all of them have gone."""
    error = process.communicate(timeout=SECONDS)[1]
    end = time.monotonic() + SECONDS
    while any(alive(pid) for pid in members):
        assert time.monotonic() < end, f"left running: {[pid for pid in members if alive(pid)]}"
        time.sleep(0.02)
    assert "Traceback" not in error
    return process.returncode, error


def one_line(result, status=1):
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    lines = [
        line
        for line in result.stderr.splitlines()
        if line.startswith("numatp: ") and not re.match(r"numatp: (\d+ ranks?:|weights rank)", line)
    ]
    assert len(lines) == 1, result.stderr
    return lines[0]


# ---------------------------------------------------------------- signals


def handles(pid, number):
    """Whether the process has a handler of its own for the signal: Python's start, before, is not ours."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize(("way", "number"), each_once([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], lambda number: number.name))
def test_signal_at_any_moment(words_path, way, number):
    dice = random.Random(f"{way}{number}")
    before = shared_files()
    for latest in (0.1, 0.4, 0.8, 2.0):  # imports, load, prompt, decode
        with started(command(words_path, way, "-p", "Once upon a time", *LONG)) as process:
            while way != "mpirun" and not handles(process.pid, signal.SIGTERM):
                assert process.poll() is None
                time.sleep(0.001)
            moment = dice.uniform(0, latest)
            time.sleep(moment)
            members = family(process.pid)
            process.send_signal(number)
            status, error = ended(process, members)
            if way == "mpirun":  # which has its own
                assert status != 0, (moment, error)
            else:
                assert status == 128 + number, (moment, error)
    nothing_left(before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_ignored_signal_stays_ignored(words_path, number):
    name = number.name.removeprefix("SIG")
    words = ["sh", "-c", f'trap "" {name}; exec "$@"', "sh", *command(words_path, "alone", *PROMPT)]
    with started(words) as process:
        while not any(handles(process.pid, other) for other in {signal.SIGTERM, signal.SIGHUP} - {number}):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(number)
        output, error = process.communicate(timeout=240)
    assert (process.returncode, output[:6]) == (0, " Paris"), error


def test_signal_during_a_download(tmp_path):
    """pip and what it has written go too, and it takes no network to see that."""
    words = [str(BIN / "numatp"), "pull", "smollm2"]
    environ = os.environ | {"NUMATP_CACHE_DIR": str(tmp_path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        while len(members := family(process.pid)) < 2:
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        status, _ = ended(process, members)
    assert status == 143
    assert not list(tmp_path.glob("models/.*"))


# ---------------------------------------------------------------- killed processes


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("way", ["local", "mpirun, abort off"])
def test_killed_rank_is_named_by_another(words_path, way, victim):
    before = shared_files()
    with generating(words_path, way) as process:
        members, pid = family(process.pid), ranks_of(process.pid)[victim]
        os.kill(pid, signal.SIGKILL)
        status, error = ended(process, members)
    assert status != 0
    assert error.count(f"numatp: rank {victim} (process {pid}) died") == 1
    assert error.count("numatp: rank") == 1
    nothing_left(before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_stopped_worker_ends_with_rank_0(words_path, number):
    """As a scheduler or a debugger stops a process: it cannot see that rank 0 has gone."""
    with generating(words_path, "local") as process:
        members = family(process.pid)
        os.kill(ranks_of(process.pid)[1], signal.SIGSTOP)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(number)
        ended(process, members)


CLOSED = """
import os, signal, sys, threading
from numatp import LLM, SamplingParams
llm = LLM(sys.argv[1], ranks=2, ctx=65536)
next(iter(llm.stream("Once upon a time", SamplingParams(max_tokens=60000, ignore_eos=True))))
worker = llm._service.started.workers.processes[0]
worker.send_signal(signal.SIGSTOP)
llm.close()
print(worker.poll())
"""


def test_a_model_is_closed_though_a_worker_is_stopped(words_path):
    result = run(sys.executable, "-c", CLOSED, words_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{-signal.SIGKILL}\n", "")


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_rank_under_mpirun(words_path, victim):
    before = shared_files()
    with generating(words_path, "mpirun") as process:
        members, pid = family(process.pid), ranks_of(process.pid)[victim]
        os.kill(pid, signal.SIGKILL)
        status, error = ended(process, members)
    assert status != 0
    assert str(pid) in error  # mpirun's text, or ours
    nothing_left(before)


@pytest.mark.parametrize("way", ["local", "mpirun"])
def test_killed_while_loading(words_path, way):
    for moment in (0.3, 0.5, 0.7):
        with started(command(words_path, way, *PROMPT[:2], *LONG)) as process:
            time.sleep(moment)
            members = family(process.pid)
            words = {member: Path(f"/proc/{member}/cmdline").read_text() for member in members}
            ranks = [member for member in members if "numatp" in words[member]]  # not a tool that one of them calls
            os.kill(ranks[-1], signal.SIGKILL)
            assert ended(process, members)[0] != 0


def test_killed_launcher_takes_its_ranks_along(words_path, monkeypatch):
    """Also where no write to it can fail, because the text goes elsewhere."""
    quiet = [BIN / "mpirun", "-np", "2", "sh", "-c", 'exec "$@" >/dev/null', "sh"]
    monkeypatch.setitem(WAYS, "mpirun", (quiet, []))
    before = shared_files()
    with generating(words_path, "mpirun") as process:
        members = family(process.pid)
        process.kill()
        ended(process, members)
    nothing_left(before)


# ---------------------------------------------------------------- limits


LIMITS = {
    "--as=100000000": r"RLIMIT_AS \(ulimit -v\) is 100 MB; numatp needs \d+ MB, and more for a large model",
    "--as=600000000": r"out of memory: RLIMIT_AS \(ulimit -v\) is 600 MB",
    "--data=100000000": r"RLIMIT_DATA \(ulimit -d\) is 100 MB",
    "--nofile=40": r"RLIMIT_NOFILE \(ulimit -n\) allows 40 open files and numatp needs 64",
    "--fsize=5000000": r"RLIMIT_FSIZE \(ulimit -f\) is 5 MB",
}


@pytest.mark.parametrize(("way", "limit"), each_once([*LIMITS]))
def test_limit_is_named(model_path, way, limit):
    launcher, ranks = WAYS[way]
    before = shared_files()
    words = [BIN / "numatp", "generate", "-m", model_path, *ranks, *PROMPT, "-c", "8192", "-b", "8192", "-ub", "8192"]
    result = run(*launcher, "prlimit", limit, *words)
    assert re.search(LIMITS[limit], one_line(result))
    nothing_left(before)


def test_soft_limit_of_files_is_raised(words_path):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    result = run("prlimit", f"--nofile=12:{most}", *command(words_path, "local", *PROMPT))
    assert result.stdout.startswith(" Paris"), result.stderr


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("way", ["alone", "local"])
def test_limit_of_processes_is_named(words_path, way, most):
    words = ["prlimit", f"--nproc={most}", *command(words_path, way, *PROMPT, "-t", "4")]
    if os.geteuid() == 0:  # whom the limit does not concern; the ordinary user keeps root's right to read this tree
        rights = "--inh-caps=+dac_override,+dac_read_search", "--ambient-caps=+dac_override,+dac_read_search"
        words = ["setpriv", "--reuid=54321", "--clear-groups", *rights, *words]
        if run(*words[:5], "true").returncode:
            pytest.skip("this container lets root not become another user")
    with tempfile.TemporaryDirectory() as folder:  # which that user can reach
        Path(folder).chmod(0o777)
        result = run(*words, env={"NUMATP_CACHE_DIR": folder})
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]  # libnuma, whose place is found by a process, may be missing for the same reason
    assert re.search(rf"no thread or process can be started: RLIMIT_NPROC \(ulimit -u\) is {most}", line)


@contextmanager
def cgroup(controller, setting, value):
    """A shell prefix that runs a command in a new cgroup with a limit; skipped where none can be made."""
    for top, name in ((Path("/sys/fs/cgroup", controller), setting[0]), (Path("/sys/fs/cgroup"), setting[1])):
        folder = top / f"numatp-test-{os.getpid()}"
        if not (top / "cgroup.procs").exists():
            continue
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / name).write_text(str(value))
            yield ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]
            return
        except FileNotFoundError:  # version 2 without this controller
            continue
        finally:
            for _ in range(100):
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.05)
    pytest.skip(f"this machine lets nobody make a cgroup with a limit of {controller}")


@pytest.mark.parametrize("way", ["alone", "local", "mpirun"])
def test_memory_limit_of_a_cgroup_is_named(model_path, way):
    with cgroup("memory", ("memory.limit_in_bytes", "memory.max"), 300_000_000) as prefix:
        line = one_line(run(*prefix, *command(model_path, way, *PROMPT)))
    assert re.search(r"this job's memory limit leaves 0\.\d GB and the ranks need \d\.\d GB", line)


def test_process_limit_of_a_cgroup_is_named(words_path):
    with cgroup("pids", ("pids.max", "pids.max"), 3) as prefix:
        line = one_line(run(*prefix, *command(words_path, "alone", *PROMPT, "-t", "4")))
    assert "no thread or process can be started" in line
    assert "the cgroup's pids.max is 3" in line


# ---------------------------------------------------------------- refused system calls, full or missing folders


def refused(calls, *words):
    return [sys.executable, SCRIPTS / "refuse.py", calls, *words]


REFUSED = {
    "set_mempolicy,mbind,get_mempolicy,move_pages": "the kernel refuses memory policies here",
    "move_pages": "",
    "memfd_create": "",
    "pidfd_open": "",
}


@pytest.mark.parametrize(("way", "calls"), each_once([*REFUSED]))
def test_refused_system_calls_do_not_matter(words_path, way, calls):
    before = shared_files()
    result = run(*refused(calls, *command(words_path, way, *PROMPT)))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(" Paris")
    assert REFUSED[calls] in result.stderr
    assert re.search(r"weights rank 0: 100.0 % on node", result.stderr)
    assert "Traceback" not in result.stderr
    nothing_left(before)


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_rank_is_noticed_without_pidfd(words_path, victim, monkeypatch):
    monkeypatch.setitem(WAYS, "local", (refused("pidfd_open"), ["--ranks", "2"]))
    with generating(words_path, "local") as process:
        members, pid = family(process.pid), ranks_of(process.pid)[victim]
        os.kill(pid, signal.SIGKILL)
        _, error = ended(process, members)
    assert f"numatp: rank {victim} (process {pid}) died" in error


def with_shm(options, *words):
    """The command with another /dev/shm, which takes root and a mount of its own."""
    fill = "head -c 65536 /dev/zero >/dev/shm/fill" if "size" in options else "true"
    prefix = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o {options} none /dev/shm && {fill} && exec "$@"', "sh"]
    if os.geteuid() or run(*prefix, "true").returncode:
        pytest.skip("nobody but root can mount another /dev/shm")
    return [*prefix, *words]


SHM = {"size=64k": "No space left on device", "ro": "Read-only file system"}  # full; read-only


@pytest.mark.parametrize(("way", "options"), each_once([*SHM]))
def test_dev_shm_is_not_needed(words_path, way, options):
    result = run(*with_shm(options, *command(words_path, way, *PROMPT)))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(" Paris")
    assert all(line.startswith("numatp: ") for line in result.stderr.splitlines()), result.stderr


@pytest.mark.parametrize(("way", "options"), each_once([*SHM]))
def test_nowhere_to_share_memory(words_path, way, options):
    result = run(*with_shm(options, *refused("memfd_create", *command(words_path, way, *PROMPT))))
    assert f"memfd_create: Operation not permitted; a file in /dev/shm: {SHM[options]}" in one_line(result)
