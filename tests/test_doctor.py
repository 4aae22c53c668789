"""numatp doctor: a healthy machine, and one fault at a time, each found by its check alone; and the real commands."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
from support.commands import BIN, SCRIPTS, mpirun, numatp, run
from support.machines.sysfs import (
    AVX2,
    AVX512,
    GIB_IN_KB,
    hybrid,
    make_machine,
    write,
    write_huge_pages,
    write_node_memory,
    write_process,
    write_settings,
    xeon,
)

from numatp.advice import doctor
from numatp.machine import isa
from numatp.machine.doctor import CHECKS, Host, shared_memory

NAMES = {"probe": "numatp.machine.probe", "mpi4py": "numatp.ranks.library"}


class Answers:
    """What commands say on a made-up machine: by the last word of the command."""

    def __init__(self, **words):
        self.words = {"library": (1, "No module named 'mpi4py'"), **words}

    def __call__(self, *command):
        word = "library" if command[-1] == NAMES["mpi4py"] else "version" if command[-1] == "--version" else command[-1]
        return self.words.get(word, (0, ""))


def healthy(root):
    xeon(root, flags=f"{AVX512} avx512_vnni")
    write_process(root, 1, "numatp", 0, "0-127", "0-1")
    write_settings(root)
    write(root, "proc/1/cgroup", "0::/job")
    write(root, "proc/self/cgroup", "0::/job")
    write(root, "sys/fs/cgroup/job/cgroup.procs", 1)
    write(root, "proc/thread-self/numa_maps", "55d0 default file=/usr/bin/python3 mapped=2")
    write(root, "usr/lib/x86_64-linux-gnu/libnuma.so.1", "")
    write(root, "dev/shm/x", "")
    for cpu in (0, 1):
        write(root, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "performance")


def examined(root, environ=None, **answers):
    return {f.name: f for f in doctor.examine(Host(root, {"PATH": "", **(environ or {})}, 1, Answers(**answers)))}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMATP_CACHE_DIR", str(tmp_path / "cache"))


def test_offline_cpus_and_slow_cores_are_named(tmp_path):
    write_process(hybrid(tmp_path), 1, "numatp", 0, "0-15", "0")
    write(tmp_path, "sys/devices/system/cpu/present", "0-17,20")
    found = examined(tmp_path)
    offline, slow = found["offline cpus"], found["slow cores"]
    assert (offline.state, offline.what, offline.command) == ("note", "cpus 16-17,20", "chcpu -e 16-17,20")
    assert (slow.state, slow.what) == ("note", "cpus 8-15")
    assert "leaves them alone" in slow.why


def test_a_healthy_machine(tmp_path):
    healthy(tmp_path)
    found = examined(tmp_path)
    assert {name: f.state for name, f in found.items() if f.state != "fine"} == {"roofline": "note"}
    assert all(not f.why and not f.command for f in found.values() if f.state == "fine")
    assert len(found) == len(CHECKS) + 3


def fault(name, text, command, break_it=lambda root: None, environ=None, state="mend", **answers):
    return pytest.param(name, text, command, break_it, environ or {}, state, answers, id=f"{name}-{text[:20]}")


def kubernetes(root):
    write_process(root, 1, "numatp", 0, "0-31", "0-1")


def one_memory(root):
    write_process(root, 1, "numatp", 0, "0-127", "0")
    write(root, ".dockerenv", "")


def half_the_cpus(root):
    write_process(root, 1, "numatp", 0, "0-31", "0-1")
    write(root, "sys/fs/cgroup/job/cpuset.cpus.effective", "0-127")


def half_the_cpuset(root):
    write_process(root, 1, "numatp", 0, "0-31", "0-1")
    write(root, "sys/fs/cgroup/job/cpuset.cpus.effective", "0-31")


def no_nodes(root):
    for node in (0, 1):
        shutil.rmtree(root / f"sys/devices/system/node/node{node}")
    write(root, "proc/meminfo", f"MemTotal: {128 * GIB_IN_KB} kB\nMemAvailable: {100 * GIB_IN_KB} kB")
    write_process(root, 1, "numatp", 0, "0-127")


def numa_off(root):
    no_nodes(root)
    write(root, "proc/cmdline", "quiet numa=off")


def limited(root):
    write(root, "sys/fs/cgroup/job/memory.max", 8 << 30)
    write(root, "sys/fs/cgroup/job/memory.current", 1 << 30)


def throttled(root):
    write(root, "sys/fs/cgroup/job/cpu.max", "3200000 100000")
    write(root, "sys/fs/cgroup/job/pids.max", 100)
    write(root, "run/.containerenv", "")


def mpich_launcher(root):
    write(root, "bin/mpirun", "")
    (root / "bin/mpirun").chmod(0o755)


REFUSED = (0, "EPERM")
RANK_0_OF_1 = {"RANK": "0", "SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
FAULTS = [
    fault(
        "numa_balancing", "kernel.numa_balancing is 1", "sysctl -w kernel.numa_balancing=0", lambda root: write_settings(root, 1)
    ),
    fault("transparent huge pages", "never", "echo madvise > /sys/kernel/mm/", lambda root: write_settings(root, 0, "never")),
    fault(
        "reserved huge pages",
        "node 1: 20000 of 2 MiB, 19990 unused",
        "echo 10 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/",
        lambda root: write_huge_pages(root, 1, 2, 20000, 19990),
    ),
    fault("NUMA nodes", "2 packages, 1 nodes", "BIOS: Node Interleaving off", no_nodes),
    fault("NUMA nodes", "2 packages, 1 nodes", "take numa=off", numa_off),
    fault(
        "free memory",
        "node 1: 10.7 of 68.7 GB",
        "ps -eo rss",
        lambda root: write_node_memory(root, 1, total_kb=64 * GIB_IN_KB, free_kb=10 * GIB_IN_KB),
    ),
    fault(
        "even memory",
        "node 0: 68.7 GB, node 1: 51.5 GB",
        "dmidecode -t memory",
        lambda root: write_node_memory(root, 1, total_kb=48 * GIB_IN_KB, free_kb=40 * GIB_IN_KB),
    ),
    fault("cpus and nodes of this job", "no memory of nodes 1", "docker run --cpuset-cpus=0-127 --cpuset-mems=0-1", one_memory),
    fault("cpus and nodes of this job", "no cpu of nodes 1", "taskset -c 0-127 numatp", half_the_cpus),
    fault("cpus and nodes of this job", "no cpu of nodes 1", "systemd-run --scope -p AllowedCPUs=0-127", half_the_cpuset),
    fault(
        "cpus and nodes of this job",
        "no cpu of nodes 1",
        "topologyManagerPolicy",
        kubernetes,
        environ={"KUBERNETES_SERVICE_HOST": "x"},
    ),
    fault(
        "memory policy calls",
        "refused: set_mempolicy (EPERM), mbind (EPERM)",
        "docker run --cap-add SYS_NICE ...",
        set_mempolicy=REFUSED,
        mbind=REFUSED,
    ),
    fault("memory policy calls", "move_pages (killed by SIGSYS)", "seccomp=unconfined", move_pages=(-31, "")),
    fault(
        "libnuma",
        "libnuma.so is missing",
        "apt-get install libnuma1",
        lambda root: (root / "usr/lib/x86_64-linux-gnu/libnuma.so.1").unlink(),
    ),
    fault("libnuma", "py-libnuma is not installed", "pip install py-libnuma", libnuma=(0, "py-libnuma is not installed")),
    fault("libnuma", "py-libnuma ends with status -11", "pip install py-libnuma", libnuma=(-11, "")),
    fault(
        "memory policy",
        "bind:0",
        "start without numactl",
        lambda root: write(root, "proc/thread-self/numa_maps", "55d0 bind:0 file=/x"),
    ),
    fault("cgroup limits", "7.5 GB of memory left of 137.4", "systemd-run --scope -p MemoryMax=infinity numatp", limited),
    fault("cgroup limits", "32.0 cpus' time for 128 cpus, 100 processes", "without --cpus, --pids-limit", throttled),
    fault(
        "frequency governor",
        "performance, powersave",
        "cpupower frequency-set -g performance",
        lambda root: write(root, "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave"),
    ),
    fault("launcher", "PMI_RANK is set but not MPI_LOCALRANKID", "mpirun", environ={"PMI_RANK": "0", "PMI_SIZE": "2"}),
    fault("instruction set", "NUMATP_ISA=avx2, of avx512vnni", "unset NUMATP_ISA", environ={"NUMATP_ISA": "avx2"}),
    fault("instruction set", "NUMATP_ISA=sse, which this machine lacks", "unset NUMATP_ISA", environ={"NUMATP_ISA": "sse"}),
    fault(
        "instruction set",
        "avx2",
        "",
        lambda root: write(root, "proc/cpuinfo", f"flags\t\t: {AVX2}"),
        state="note",
    ),
    fault("instruction set", "this machine's cpus lack", "another", lambda root: write(root, "proc/cpuinfo", "flags\t\t: sse2")),
    fault(
        "MPI",
        "mpirun is MPICH, mpi4py uses Open MPI 5.0.11",
        "pip install 'numatp[mpich]'",
        mpich_launcher,
        environ={"PATH": "BIN"},
        version=(0, "HYDRA build details:"),
        library=(0, "Open MPI 5.0.11"),
    ),
    fault(
        "MPI",
        "mpirun is Open MPI 5.0.11, and mpi4py cannot be loaded",
        "pip install",
        mpich_launcher,
        environ={"PATH": "BIN"},
        version=(0, "mpirun (Open MPI) 5.0.11"),
    ),
    fault(
        "MPI",
        "mpirun of openmpi started this process, mpi4py uses MPICH 4.2",
        "pip install",
        mpich_launcher,
        environ={"PATH": "BIN", **{f"OMPI_COMM_WORLD_{name}": number for name, number in RANK_0_OF_1.items()}},
        version=(0, "HYDRA build details:"),
        library=(0, "MPICH 4.2"),
    ),
]


@pytest.mark.parametrize(("name", "text", "command", "break_it", "environ", "state", "answers"), FAULTS)
def test_one_fault(tmp_path, name, text, command, break_it, environ, state, answers):
    healthy(tmp_path)
    break_it(tmp_path)
    after = examined(
        tmp_path, {key: str(tmp_path / "bin") if value == "BIN" else value for key, value in environ.items()}, **answers
    )
    found = after[name]
    assert (found.state, text in found.what, command in found.command) == (state, True, True), found
    assert found.why and "\n" not in f"{found.what}{found.why}{found.command}"
    others = {other for other in after if after[other].state != ("note" if other == "roofline" else "fine")} - {name}
    assert not others, others


def test_one_node_needs_no_policies(tmp_path):
    """What only matters between nodes is not held against a machine that has one."""
    healthy(tmp_path)
    make_machine(tmp_path / "small", [(0,), (1,)], packages=[0, 0], nodes=[0, 0], flags=f"{AVX512} avx512_vnni")
    write_settings(tmp_path / "small", 1)
    write_process(tmp_path / "small", 1, "numatp", 0, "0-1")
    (tmp_path / "small/dev/shm").mkdir(parents=True)
    found = examined(tmp_path / "small", mbind=REFUSED, libnuma=(0, "gone"))
    assert [f.name for f in found.values() if f.state == "mend"] == ["free memory"]  # 2 of 64 GB
    assert found["memory policy calls"].state == found["libnuma"].state == "note"


def test_small_shared_memory(tmp_path):
    healthy(tmp_path)
    host = Host(tmp_path, {"container": "podman"}, 1, Answers())
    found = shared_memory(host, lambda path: SimpleNamespace(f_bavail=1000, f_frsize=4096))
    assert (found.state, found.what) == ("mend", "4 MB free") and "mount -o remount" not in found.command
    assert shared_memory(host).state == "fine"


def test_unwritable_cache(tmp_path, monkeypatch):
    doctor.kernels_dir.cache_clear()
    monkeypatch.setenv("NUMATP_CACHE_DIR", "/proc/nowhere")
    healthy(tmp_path)
    found = examined(tmp_path)["kernel cache"]
    doctor.kernels_dir.cache_clear()
    assert found.state == "mend" and found.command.startswith("export NUMATP_CACHE_DIR=")


def test_the_command(tmp_path):
    here = numatp("doctor", "-o", "json", env={"NUMATP_CACHE_DIR": str(tmp_path)})
    described = json.loads(here.stdout)
    assert here.returncode == (1 if described["mend"] else 0)
    assert described["mend"] == sum(f["state"] == "mend" for f in described["findings"])
    text = numatp("doctor", env={"NUMATP_CACHE_DIR": "/proc/nowhere"})
    assert text.returncode == 1 and "Traceback" not in text.stderr
    assert "do:  export NUMATP_CACHE_DIR=/some/writable/folder" in text.stdout
    assert text.stdout.splitlines()[-1].endswith("to mend")
    if isa.choose({}).name != "avx2":
        assert "unset NUMATP_ISA" in numatp("doctor", env={"NUMATP_ISA": "avx2"}).stdout
    wrong = numatp("doctor", "-o", "xml")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)


def test_refused_by_the_kernel():
    """For real: a seccomp filter as a container's."""
    refuse = (sys.executable, SCRIPTS / "refuse.py", "set_mempolicy,mbind")
    for name, answer in (("mbind", "EPERM"), ("set_mempolicy", "EPERM"), ("move_pages", "")):
        result = run(*refuse, sys.executable, "-m", NAMES["probe"], name)
        assert (result.returncode, result.stdout.strip()) == (0, answer), result.stderr
    result = run(*refuse, sys.executable, BIN / "numatp", "doctor", "-o", "json")
    found = {f["name"]: f for f in json.loads(result.stdout)["findings"]}
    assert found["memory policy calls"]["what"] == "refused: set_mempolicy (EPERM), mbind (EPERM)"


def test_under_mpirun():
    """Said once, and how the launcher bound this process is in it."""
    result = mpirun(2, BIN / "numatp", "doctor")
    assert result.stdout.count("instruction set") == 1
    assert "mpirun (rank 0 of 2); this process was bound to cpus" in result.stdout, result.stdout
    assert "MPI  " in result.stdout
