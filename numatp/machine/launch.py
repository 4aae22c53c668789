"""Who started this process, and which cpus the job was given: from the environment and /proc, before MPI loads."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from numatp.errors import MachineError
from numatp.machine.topology import cgroup_folders, format_cpulist, parse_cpulist

MPI_LAUNCHERS = ("mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun", "prte", "prted")
LAUNCHERS = (*MPI_LAUNCHERS, "hydra_pmi_proxy", "hydra_bstrap_proxy", "slurmstepd")
REMEDY = "start with mpirun, mpiexec or srun, or unset it"
NAME_BYTES = 15  # the kernel cuts process names
SLURM_SPECIAL_STEPS = 0xFFFFFFF0  # from here on: batch script, interactive shell, extern
OWN_AFFINITY = "this process's own affinity"

# Launchers under which ranks cannot meet, by the variable with which each marks its ranks: (the variable that holds their number,
# or "", and the launcher's name). mpirun and srun set some of these as well, so these are looked at last.
OTHER_LAUNCHERS = {
    "PMIX_RANK": ("", "prterun, or another server of PMIx,"),
    "PALS_RANKID": ("", "PALS (mpiexec of Cray)"),
    "FLUX_TASK_RANK": ("FLUX_JOB_SIZE", "flux run"),
    "JSM_NAMESPACE_RANK": ("JSM_NAMESPACE_SIZE", "jsrun"),
    "ALPS_APP_PE": ("", "aprun"),
    "MV2_COMM_WORLD_RANK": ("MV2_COMM_WORLD_SIZE", "mpirun_rsh"),
    "MVP_COMM_WORLD_RANK": ("MVP_COMM_WORLD_SIZE", "mpirun_rsh"),
    "MPT_LRANK": ("", "mpiexec_mpt"),
    "TORCHELASTIC_RUN_ID": ("WORLD_SIZE", "torchrun"),
}


@dataclass(frozen=True)
class Launch:
    """This process among the ranks that a launcher started."""

    kind: str  # openmpi, hydra or slurm
    rank: int
    size: int
    local_rank: int  # among the ranks of this host
    local_size: int

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.size and 0 <= self.local_rank < self.local_size <= self.size):
            raise MachineError(
                f"{self.starter} says that this is rank {self.rank} of {self.size}, on this host {self.local_rank} of "
                f"{self.local_size}, which cannot be: unset its variables, or start anew"
            )

    @property
    def starter(self) -> str:
        """For people: the command that started the ranks."""
        return {"openmpi": "mpirun", "hydra": "mpiexec", "slurm": "srun"}[self.kind]


def read_launch(environ: Mapping[str, str] = os.environ) -> Launch | None:
    """None when nobody launched us as a rank. MachineError for a launcher that does not say which ranks share this host.

    The innermost launcher counts: mpirun works inside a Slurm job, so Slurm comes last.
    """
    if "OMPI_COMM_WORLD_RANK" in environ:
        names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
        return Launch("openmpi", *(_number(environ, f"OMPI_COMM_WORLD_{name}") for name in names))
    if "PMI_RANK" in environ and "MPI_LOCALRANKID" in environ:
        names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
        return Launch("hydra", *(_number(environ, name) for name in names))
    if _is_slurm_task(environ):
        size = _number(environ, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS")
        local_size = _slurm_tasks_here(environ, size)
        return Launch("slurm", _number(environ, "SLURM_PROCID"), size, _number(environ, "SLURM_LOCALID"), local_size)
    if "PMI_RANK" in environ and _number(environ, "PMI_SIZE") > 1:
        raise MachineError("PMI_RANK is set but not MPI_LOCALRANKID: set it and MPI_LOCALNRANKS, or start with mpirun or srun")
    for name, (size_name, starter) in OTHER_LAUNCHERS.items():
        if name not in environ or environ.get("PMIX_NAMESPACE", "").startswith("slurm."):  # Slurm's own variables have told more
            continue
        if not size_name or _number(environ, size_name) > 1:
            raise MachineError(
                f"{starter} started this process as a rank ({name}={environ[name]}), and numatp cannot meet its others: start with "
                f"mpirun, mpiexec or srun, or start one process with --ranks N and without {name}"
            )
    return None


def allowed_cpus(
    root: str | Path = "/", pid: int | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[frozenset[int], str]:
    """The cpus this job may use on this host, and where that is known from, in words.

    Launchers narrow each rank they start (Open MPI: to one core when there are two ranks) but not themselves, so a rank takes
    the affinity of the nearest launcher above it. When no such launcher can be trusted the text starts with OWN_AFFINITY, and
    the set may then differ from rank to rank.
    """
    pid = os.getpid() if pid is None else pid
    own = affinity(root, pid)
    launch = read_launch(environ)
    if launch is None:  # a batch script also has slurmstepd above it, but taskset may stand between
        return own, OWN_AFFINITY
    found = find_launcher(root, pid)
    if found is None:
        return own, f"{OWN_AFFINITY} (no launcher is visible above it)"
    launcher_pid, name = found
    given = affinity(root, launcher_pid)
    source = f"the affinity of {name}, process {launcher_pid}"
    granted = cpuset(root, pid)
    if granted and not given <= granted:
        given, source = given & granted, f"{source}, within the cpuset {format_cpulist(granted)} of this process's cgroup"
    promised = _number(environ, "SLURM_CPUS_ON_NODE", len(given))
    if name == "slurmstepd" and len(given) > promised:
        # Without the cgroup plugin slurmstepd itself runs anywhere; only the tasks are narrowed.
        return own, f"{OWN_AFFINITY} (slurmstepd has more than the {promised} cpus of this job)"
    if not given:
        return own, f"{OWN_AFFINITY} (that of {name}, process {launcher_pid}, cannot be read or lies outside our cgroup)"
    return given, source


def find_launcher(root: str | Path = "/", pid: int | None = None) -> tuple[int, str] | None:
    """(pid, name) of the nearest launcher above `pid`."""
    short = {name[:NAME_BYTES]: name for name in LAUNCHERS}
    pid = os.getpid() if pid is None else pid
    _, pid = _name_and_parent(root, pid)
    while pid > 0:  # the parent of process 1, and of one whose parent lies outside our pid namespace, is 0
        name, parent = _name_and_parent(root, pid)
        if name in short:
            return pid, short[name]
        pid = parent
    return None


def _is_slurm_task(environ: Mapping[str, str]) -> bool:
    """A batch script has SLURM_PROCID=0 and SLURM_NTASKS=n too, but is one process outside any step that srun started."""
    name = "SLURM_STEP_ID" if "SLURM_STEP_ID" in environ else "SLURM_STEPID"
    return "SLURM_PROCID" in environ and _number(environ, name, SLURM_SPECIAL_STEPS) < SLURM_SPECIAL_STEPS


def _slurm_tasks_here(environ: Mapping[str, str], size: int) -> int:
    """From "2(x3),1": two tasks on each of three hosts, one on the next."""
    name = "SLURM_STEP_TASKS_PER_NODE" if "SLURM_STEP_TASKS_PER_NODE" in environ else "SLURM_TASKS_PER_NODE"
    host = _number(environ, "SLURM_NODEID", 0)
    for part in environ.get(name, str(size)).split(","):
        count = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", part)
        if not count:
            raise MachineError(f"the launcher set {name}={environ[name]!r}, not numbers of tasks: {REMEDY}")
        host -= int(count[2] or 1)
        if host < 0:
            return min(int(count[1]), size)
    return size


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Of a launcher's variable; `default` if it is not set. MachineError for anything but a number."""
    text = environ.get(name, "")
    if name not in environ and default is not None:
        return default
    if not re.fullmatch("[0-9]{1,10}", text):
        raise MachineError(f"the launcher set {name}={text!r}, not a number: {REMEDY}")
    return int(text)


def affinity(root: str | Path, pid: int) -> frozenset[int]:
    """Cpus that process `pid` may run on (Cpus_allowed_list); empty if it cannot be read."""
    status = _read(Path(root, "proc", str(pid), "status"))
    match = re.search(r"^Cpus_allowed_list:\s*(\S+)", status, re.MULTILINE)
    return frozenset(parse_cpulist(match[1])) if match else frozenset()


def cpuset(root: str | Path, pid: int) -> frozenset[int]:
    """What sched_setaffinity will at most grant; empty if it cannot be read."""
    for folder, version in cgroup_folders("cpuset", root, pid):
        text = _read(folder / ("cpuset.cpus.effective" if version == 2 else "cpuset.effective_cpus")).strip()
        if text:
            return frozenset(parse_cpulist(text))
    return frozenset()


def _name_and_parent(root: str | Path, pid: int) -> tuple[str, int]:
    # "123 (name) S 122 ...": a name may itself hold spaces and brackets.
    before, _, after = _read(Path(root, "proc", str(pid), "stat")).rpartition(")")
    fields = after.split()
    return before.partition("(")[2], int(fields[1]) if len(fields) > 1 else 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
