"""What of this machine, or of how a job was started, keeps a model from its full speed; why; and the command that mends it.

Every check is a function of a Host: a root below which /sys and /proc lie, an environment, and `ask`, which runs a command there.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from numatp.errors import MachineError, NumatpError
from numatp.machine import isa, launch, policy, topology
from numatp.machine.probe import CALLS
from numatp.machine.topology import Machine, format_cpulist

PATIENCE = 20  # seconds for a command
FULL_SHARE = 0.25  # of a node's memory that should be free
UNEVEN = 0.10  # difference of the nodes' memory that matters
SHARED_MEMORY = 64 << 20  # bytes in /dev/shm that an MPI may want
THREADS_PER_CPU = 4  # processes and threads that a job may need
LIBRARIES = ("lib", "lib64", "usr/lib", "usr/lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/local/lib")
State = Literal["fine", "note", "mend"]


@dataclass(frozen=True)
class Finding:
    """What one check says."""

    name: str
    state: State  # note: worth knowing, nothing to mend
    what: str
    why: str = ""
    command: str = ""  # a shell command, or what to set in the BIOS or the container's options


def run_command(environ: Mapping[str, str], *command: str) -> tuple[int, str]:
    """(exit status, first line of standard output); 127 if there is no such command, negative for a signal."""
    try:
        done = subprocess.run(command, env=dict(environ), capture_output=True, text=True, timeout=PATIENCE, check=False)
    except OSError:
        return 127, ""
    except subprocess.TimeoutExpired:
        return -signal.SIGALRM, ""
    return done.returncode, (done.stdout.splitlines() or [""])[0].strip()


@dataclass
class Host:
    """The machine and process that are examined: files below `root`, an environment, and commands."""

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    pid: int = field(default_factory=os.getpid)
    ask: Callable[..., tuple[int, str]] | None = None  # ask(command, arguments...) as run_command

    def __post_init__(self) -> None:
        self.machine: Machine = topology.read_machine(self.root)
        try:
            self.allowed, self.allowed_source = launch.allowed_cpus(self.root, self.pid, self.environ)
        except MachineError:  # `binding` says so
            self.allowed, self.allowed_source = launch.allowed_cpus(self.root, self.pid, {})
        self.mems = topology.allowed_nodes(self.root, self.pid)

    def run(self, *command: str) -> tuple[int, str]:
        """(exit status, first line of standard output), as run_command has it."""
        return self.ask(*command) if self.ask else run_command(self.environ, *command)

    @property
    def several_nodes(self) -> bool:
        """Whether more than one node has memory: with one nothing can be remote."""
        return sum(1 for node in self.machine.nodes if node.memory_bytes) > 1

    @property
    def container(self) -> str:
        """Which kind of container this is, or ""."""
        if "KUBERNETES_SERVICE_HOST" in self.environ:
            return "kubernetes"
        for name, mark in (("docker", ".dockerenv"), ("podman", "run/.containerenv")):
            if Path(self.root, mark).exists():
                return name
        return self.environ.get("container", "")

    @property
    def outside(self) -> str:
        """Before a command that a container may not run."""
        return "on the host: " if self.container else ""


Check = Callable[[Host], Finding]


def numa_balancing(host: Host) -> Finding:
    """Kernel documentation, admin-guide/sysctl/kernel.rst: numa_balancing unmaps pages to see who touches them."""
    value = topology.numa_balancing(host.root)
    if not value or not host.several_nodes:
        return Finding("numa_balancing", "fine", "off" if not value else f"{value}, and there is one node")
    return Finding(
        "numa_balancing", "mend", f"kernel.numa_balancing is {value}",
        "the kernel unmaps pages now and then to see who uses them, and threads stall on the faults",
        f"{host.outside}sysctl -w kernel.numa_balancing=0",
    )  # fmt: skip


def transparent_huge_pages(host: Host) -> Finding:
    """Kernel documentation, admin-guide/mm/transhuge.rst; numatp asks for them by madvise."""
    mode = topology.huge_page_mode(host.root)
    if mode in ("always", "madvise"):
        return Finding("transparent huge pages", "fine", mode)
    why = "the weights then lie in 512 times as many pages of 4 KiB, whose addresses must be looked up"
    if not mode:
        return Finding("transparent huge pages", "note", "this kernel has none", why)
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    return Finding("transparent huge pages", "mend", mode, why, f"{host.outside}echo madvise > {path}")


def reserved_huge_pages(host: Host) -> Finding:
    """Kernel documentation, admin-guide/mm/hugetlbpage.rst: a reserved page serves nobody else."""
    idle, commands = [], []
    size = 0
    for node in host.machine.nodes:
        for pages in node.huge_pages:
            unused = pages.free * pages.page_bytes
            idle.append(f"node {node.id}: {pages.total} of {pages.page_bytes >> 20} MiB, {pages.free} unused")
            if unused > UNEVEN / 2 * node.memory_bytes:
                folder = f"/sys/devices/system/node/node{node.id}/hugepages/hugepages-{pages.page_bytes >> 10}kB"
                commands.append(f"echo {pages.total - pages.free} > {folder}/nr_hugepages")
                size += unused
    if not commands:
        return Finding("reserved huge pages", "fine", "; ".join(idle) or "none")
    why = f"numatp uses transparent huge pages, so {size / 1e9:.1f} GB of reserved ones are lost to it"
    return Finding("reserved huge pages", "mend", "; ".join(idle), why, host.outside + "; ".join(commands))


def smt(host: Host) -> Finding:
    """Threads per core, from topology/core_cpus_list in /sys."""
    most = max(len(core.cpus) for core in host.machine.cores)
    return Finding("SMT", "fine", f"{most} threads per core; numatp uses one" if most > 1 else "one thread per core")


def offline_cpus(host: Host) -> Finding:
    """Kernel documentation, core-api/cpu_hotplug.rst."""
    offline = format_cpulist(host.machine.offline)
    if not offline:
        return Finding("offline cpus", "fine", "none")
    why = "nothing runs on them; siblings that were switched off with SMT are not missed, since numatp uses one thread per core"
    return Finding("offline cpus", "note", f"cpus {offline}", why, f"{host.outside}chcpu -e {offline}")


def slow_cores(host: Host) -> Finding:
    """Of a hybrid cpu: Linux counts events of its kinds of cores apart (perf's cpu_core, cpu_atom)."""
    slow = format_cpulist(host.machine.slow)
    if not slow:
        return Finding("slow cores", "fine", "all cores are of one kind")
    why = "all threads would wait for those on them, so numatp leaves them alone; --cpus or a larger -t takes them too"
    return Finding("slow cores", "note", f"cpus {slow}", why)


def clusters(host: Host) -> Finding:
    """Packages against nodes: fewer nodes than packages means that the BIOS interleaves or numa=off was given."""
    machine = host.machine
    nodes = {package: machine.nodes_of(package) for package in machine.packages}
    shape = f"{len(nodes)} packages, {len(machine.nodes)} nodes"
    if len(nodes) > 1 and len(machine.nodes) < len(nodes):
        off = "numa=off" in topology.read_text(Path(host.root, "proc/cmdline")).split()
        return Finding(
            "NUMA nodes", "mend", shape, "the kernel does not know which memory is whose, so nothing can be kept local",
            "take numa=off from the kernel's command line" if off else "BIOS: Node Interleaving off (AMD: NPS1)",
        )  # fmt: skip
    several = max((len(found) for found in nodes.values()), default=1)
    more = f", {several} per package (SNC or NPS): one rank per node uses them" if several > 1 else ""
    return Finding("NUMA nodes", "fine", f"{shape}{more}" if len(nodes) > 1 or several > 1 else "one package, one node")


def free_memory(host: Host) -> Finding:
    """Of each node, as topology.free_bytes counts it."""
    shares, full = [], []
    for node in host.machine.nodes:
        if node.memory_bytes:
            free = topology.free_bytes(node.id, host.root)
            shares.append(f"node {node.id}: {free / 1e9:.1f} of {node.memory_bytes / 1e9:.1f} GB")
            full += [node.id] if free < FULL_SHARE * node.memory_bytes else []
    if not full:
        return Finding("free memory", "fine", "; ".join(shares))
    why = f"a slice that does not fit on node {format_cpulist(full)} would lie on another; who holds it:"
    return Finding("free memory", "mend", "; ".join(shares), why, "ps -eo rss,pid,args --sort=-rss | head")


def even_memory(host: Host) -> Finding:
    """Memory of the nodes that have cpus, compared."""
    sizes = {node.id: node.memory_bytes for node in host.machine.nodes if node.cpus}
    text = ", ".join(f"node {node}: {size / 1e9:.1f} GB" for node, size in sizes.items())
    if min(sizes.values()) >= (1 - UNEVEN) * max(sizes.values()):
        return Finding("even memory", "fine", "all nodes have as much" if len(sizes) > 1 else "one node")
    why = "a node with fewer or smaller modules has fewer channels, and all ranks wait for the slowest; which slots are filled:"
    return Finding("even memory", "mend", text, why, "dmidecode -t memory | grep -E 'Locator|Size|Speed'")


def cpuset(host: Host) -> Finding:
    """What Cpus_allowed, Mems_allowed (proc(5)) and the launcher leave of the machine's nodes."""
    machine = host.machine
    online = {cpu for core in machine.cores for cpu in core.cpus}
    no_cpus = [n.id for n in machine.nodes if n.cpus and host.allowed.isdisjoint(n.cpus)] if host.allowed else []
    no_memory = [n.id for n in machine.nodes if n.memory_bytes and host.mems and n.id not in host.mems]
    what = f"cpus {format_cpulist(host.allowed) or 'unknown'}, by {host.allowed_source}"
    if not no_cpus and not no_memory:
        return Finding("cpus and nodes of this job", "fine", f"all, by {host.allowed_source}" if host.allowed >= online else what)
    hidden = [*(f"no cpu of nodes {format_cpulist(no_cpus)}" for _ in no_cpus[:1])]
    hidden += [f"no memory of nodes {format_cpulist(no_memory)}" for _ in no_memory[:1]]
    cpus, mems = format_cpulist(online), format_cpulist(node.id for node in machine.nodes)
    if host.container in ("docker", "podman"):
        command = f"{host.container} run --cpuset-cpus={cpus} --cpuset-mems={mems} ..."
    elif host.container:
        command = "request the cpus of all nodes, and no topologyManagerPolicy single-numa-node in the kubelet's configuration"
    elif no_memory or not launch.cpuset(host.root, host.pid) >= online:
        command = f"systemd-run --scope -p AllowedCPUs={cpus} -p AllowedMemoryNodes={mems} numatp ..."
    else:
        command = f"taskset -c {cpus} numatp ..."
    why = "memory and cores of a node that is hidden from the job stay unused"
    return Finding("cpus and nodes of this job", "mend", f"{what}; {', '.join(hidden)}", why, command)


def memory_policies(host: Host) -> Finding:
    """Whether the kernel grants the calls of numa(7); containers' default seccomp profiles refuse them without CAP_SYS_NICE."""
    refused = {}
    for name in CALLS:
        status, reason = host.run(sys.executable, "-P", "-m", "numatp.machine.probe", name)
        if status or reason:
            refused[name] = reason or (f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}")
    if not refused:
        return Finding("memory policy calls", "fine", f"{', '.join(CALLS)} are granted")
    text = ", ".join(f"{name} ({reason})" for name, reason in refused.items())
    why = "pages still go to the node that touches them first, but " + (
        "nothing keeps numa_balancing away from them" if refused.keys() - {"move_pages"} else "only whole mappings can be audited"
    )
    options = "--cap-add SYS_NICE" if "move_pages" not in refused else "--cap-add SYS_NICE --security-opt seccomp=unconfined"
    command = f"{host.container or 'docker'} run {options} ..."
    return Finding("memory policy calls", "mend" if host.several_nodes else "note", f"refused: {text}", why, command)


def libnuma(host: Host) -> Finding:
    """Whether libnuma.so is there and py-libnuma can call it."""
    extra = filter(None, host.environ.get("LD_LIBRARY_PATH", "").split(":"))
    folders = [*(Path(host.root, name) for name in LIBRARIES), *map(Path, extra)]
    state: State = "mend" if host.several_nodes else "note"
    why = "without it no memory policy is set, and numa_balancing may move pages"
    if not any(any(folder.glob("libnuma.so*")) for folder in folders):
        return Finding("libnuma", state, "libnuma.so is missing", why, "apt-get install libnuma1 || dnf install numactl-libs")
    status, fault = host.run(sys.executable, "-P", "-m", "numatp.machine.probe", "libnuma")
    if status or fault:
        what, command = fault or f"py-libnuma ends with status {status}", f"{sys.executable} -m pip install py-libnuma"
        return Finding("libnuma", state, what, why, command)
    return Finding("libnuma", "fine", "libnuma and py-libnuma work")


def memory_policy(host: Host) -> Finding:
    """The policy that this process was started with, from numa_maps (proc(5))."""
    found = policy.current_policy(host.root)
    if found in ("", "default", "local") or not host.several_nodes:
        return Finding("memory policy", "fine", found or "unknown")
    why = "it was set from outside and is kept: pages may go to other nodes than the ranks that use them"
    return Finding("memory policy", "mend", found, why, "start without numactl --membind, --preferred or --interleave")


def shared_memory(host: Host, statvfs: Callable[[Path], os.statvfs_result] = os.statvfs) -> Finding:
    """Room in /dev/shm, where MPICH and Open MPI share memory."""
    try:
        found = statvfs(Path(host.root, "dev/shm"))
    except OSError:
        return Finding("/dev/shm", "note", "not there", "MPICH needs it; numatp's own ranks do not")
    free = found.f_bavail * found.f_frsize
    if free >= SHARED_MEMORY:
        return Finding("/dev/shm", "fine", f"{free / 1e6:.0f} MB free")
    contained = host.container in ("docker", "podman")
    command = f"{host.container} run --shm-size=1g ..." if contained else "mount -o remount,size=1G /dev/shm"
    return Finding("/dev/shm", "mend", f"{free / 1e6:.0f} MB free", "an MPI that finds no room there dies of SIGBUS", command)


def cgroup_limits(host: Host) -> Finding:
    """Memory, cpu time and number of threads that the cgroups around this process leave (kernel: admin-guide/cgroup-v2.rst)."""
    faults, options = [], []
    properties, parts = [], []
    room = topology.memory_limit_bytes(host.root)
    total = sum(node.memory_bytes for node in host.machine.nodes)
    if room is not None and room < total:
        parts.append(f"{room / 1e9:.1f} GB of memory left of {total / 1e9:.1f}")
        if room < FULL_SHARE * total:
            faults.append("the weights of all ranks count against one memory limit")
            options.append("--memory")
            properties.append("MemoryMax=infinity")
    cpus = len(host.allowed) or 1
    for folder, version in topology.cgroup_folders("cpu", host.root, host.pid):
        quota, period = _quota(folder, version)
        if quota and period and quota < cpus * period:
            parts.append(f"{quota / period:.1f} cpus' time for {cpus} cpus")
            faults.append("a quota stops all threads of a rank in the middle of a token")
            options.append("--cpus")
            properties.append("CPUQuota=")
            break
    for folder, _ in topology.cgroup_folders("pids", host.root, host.pid):
        text = topology.read_text(folder / "pids.max")
        if text.isdecimal() and int(text) < THREADS_PER_CPU * cpus:
            parts.append(f"{text} processes and threads")
            faults.append("a thread per core and those of the libraries need more")
            options.append("--pids-limit")
            properties.append("TasksMax=infinity")
            break
    if not faults:
        return Finding("cgroup limits", "fine", ", ".join(parts) or "none")
    command = f"systemd-run --scope {' '.join(f'-p {name}' for name in properties)} numatp ..."
    if host.container:
        command = f"start the container without {', '.join(options)}"
    return Finding("cgroup limits", "mend", ", ".join(parts), "; ".join(faults), command)


def governor(host: Host) -> Finding:
    """Kernel documentation, admin-guide/pm/cpufreq.rst."""
    folders = Path(host.root, "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    found = sorted({topology.read_text(file) for file in folders} - {""})
    if not found:
        return Finding("frequency governor", "fine", "none is visible here")
    if found == ["performance"]:
        return Finding("frequency governor", "fine", "performance")
    why = "clocks fall while threads wait for memory or for each other, and rise late"
    return Finding("frequency governor", "mend", ", ".join(found), why, f"{host.outside}cpupower frequency-set -g performance")


def binding(host: Host) -> Finding:
    """Who started this process, what it was bound to, and the cpus that ranks will be spread over."""
    try:
        launched = launch.read_launch(host.environ)
    except MachineError as error:
        return Finding("launcher", "mend", str(error), "ranks of this host must know each other", "mpirun -np 2 numatp ...")
    own = launch.affinity(host.root, host.pid)
    where = f"this process was bound to cpus {format_cpulist(own) or 'unknown'}"
    if launched is None:
        return Finding("launcher", "fine", f"none; {where}; numatp starts its own ranks")
    return Finding(
        "launcher", "fine",
        f"{launched.starter} (rank {launched.rank} of {launched.size}); {where}; numatp spreads its ranks over cpus "
        f"{format_cpulist(host.allowed) or 'unknown'}, {host.allowed_source}",
    )  # fmt: skip


def container(host: Host) -> Finding:
    return Finding("container", "fine", host.container or "none")


def isa_level(host: Host) -> Finding:
    """The strongest level of instructions (isa.LEVELS), and the one that NUMATP_ISA asks for."""
    try:
        best = isa.choose({}, host.root)
    except NumatpError as error:
        return Finding("instruction set", "mend", str(error), "numatp cannot compute without them", "run it on another machine")
    wish = host.environ.get("NUMATP_ISA", "").strip().lower()
    level = next((level for level in isa.LEVELS if level.name == wish), best)
    if isa.LEVELS.index(level) < isa.LEVELS.index(best) or (wish and level.name != wish):
        what = f"NUMATP_ISA={wish}, which this machine lacks"
        return Finding("instruction set", "mend", what, "nothing can start", "unset NUMATP_ISA")
    if level is not best:
        return Finding("instruction set", "mend", f"NUMATP_ISA={wish}, of {best.name}", f"{wish} {level.lacks}", "unset NUMATP_ISA")
    if not level.flags >= isa.VNNI_FLAGS:  # tiles are few machines' and no sign of health
        return Finding("instruction set", "note", level.name, f"below avx512vnni: it {level.lacks}")
    return Finding("instruction set", "fine", level.name)


CHECKS: tuple[Check, ...] = (
    clusters, cpuset, container, binding, memory_policy, numa_balancing, memory_policies, libnuma, transparent_huge_pages,
    reserved_huge_pages, free_memory, even_memory, cgroup_limits, shared_memory, offline_cpus, slow_cores, smt, governor,
    isa_level,
)  # fmt: skip


def launcher_version(host: Host) -> str:
    """The first mpirun on the path, as "Open MPI 5.0.11", "MPICH 4.2"; "" if there is none."""
    command = shutil.which("mpirun", path=host.environ.get("PATH", ""))
    status, line = host.run(command, "--version") if command else (127, "")
    if status:
        return ""
    for name in ("Open MPI", "Intel(R) MPI"):
        if name in line:
            return f"{name} {line.split()[-1] if name == 'Open MPI' else ''}".strip()
    return "MPICH" if "HYDRA" in line or "mpich" in line.lower() else line


def _quota(folder: Path, version: int) -> tuple[int, int]:
    if version == 2:
        words = topology.read_text(folder / "cpu.max").split()
    else:
        words = [topology.read_text(folder / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    return (int(words[0]), int(words[1])) if len(words) == 2 and all(word.isdecimal() for word in words) else (0, 0)
