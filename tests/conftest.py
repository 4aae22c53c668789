import os
import shutil
import signal
import sys
from pathlib import Path
from unittest.mock import patch

# Before anything loads numpy: on a worker's one core threads of BLAS would only take turns. Commands that tests start are not told.
with patch.dict(os.environ, OPENBLAS_NUM_THREADS="1"):
    import numpy  # noqa: F401

import pytest
from support import warm
from support.commands import numatp, run
from support.machines import emulated_machine
from support.models import tiny_words

# Started in the background of a shell or by nohup this process ignores signals, and so would all commands that it starts, the
# tests of signals with them. A handler that does nothing goes on ignoring here, and a command that is started gets the default.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda number, frame: None)

# mpirun refuses to start as root unless both are set; slots are not what is tested.
os.environ |= {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
# Commands hold back what they write as they do for users, whatever is set where the suite is started.
os.environ.pop("PYTHONUNBUFFERED", None)


ROOT = Path(__file__).parent.parent
CPUS = sorted(os.sched_getaffinity(0))


# Files that take longest, which begin first, so that all workers end together (pytest -n 4 --dist loadfile --no-loadscope-reorder).
LONGEST = (
    "kernels", "plan", "golden", "faults", "launching", "faults_on_hosts", "over_hosts", "config_keys", "same_bits", "readme",
    "llm", "cli", "server_life", "perplexity", "sequences", "model", "quantize", "drafts", "prefixes", "costs", "kernel_cache",
    "folders", "wrong_folders", "sampling", "install", "bench", "fuzz_gguf", "saved", "server",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """A worker of pytest-xdist and what it starts keep one core: ranks that share it nap while they wait, and disturb nobody."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        own = {CPUS[int(worker.removeprefix("gw")) % len(CPUS)]}
        os.sched_setaffinity(0, CPUS if item.get_closest_marker("cores") else own)


@pytest.fixture(scope="session")
def model_path():
    """SmolLM2, pulled once; NUMATP_TEST_MODEL names another place."""
    if "NUMATP_TEST_MODEL" in os.environ:
        return Path(os.environ["NUMATP_TEST_MODEL"])
    pulled = numatp("pull", "smollm2")
    if pulled.returncode:
        pytest.skip(f"SmolLM2 cannot be had: {pulled.stderr.strip()}")
    return Path(pulled.stdout.strip())


@pytest.fixture(scope="session")
def words_path(tmp_path_factory):
    """A tiny model that says what SmolLM2 would (support/models/tiny_words.py), and starts in half the time."""
    path = tmp_path_factory.mktemp("words") / "words.gguf"
    tiny_words.write(path)
    return path


@pytest.fixture(scope="session")
def mpich(tmp_path_factory):
    """The bin folder of an environment with numatp[mpich]; NUMATP_TEST_MPICH names one that exists."""
    if "NUMATP_TEST_MPICH" in os.environ:
        return Path(os.environ["NUMATP_TEST_MPICH"]).absolute()
    folder = tmp_path_factory.mktemp("mpich")
    copy = shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
    run(sys.executable, "-m", "venv", folder / "venv")
    installed = run(folder / "venv/bin/pip", "install", "--quiet", f"{copy}[mpich]", timeout=900)
    if installed.returncode:
        pytest.skip(f"pip cannot install numatp[mpich]: {installed.stderr.splitlines()[-1:]}")
    return folder / "venv/bin"


def pytest_terminal_summary(terminalreporter):
    for line in emulated_machine.said:
        terminalreporter.write_line(f"emulated machine: {line}")


def pytest_unconfigure():
    warm.end()
