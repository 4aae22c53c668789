"""The cache of compiled kernels: damaged files, processes that want the same kernels, another install of the same files."""

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.commands import run

from numatp.errors import MachineError
from numatp.files.cache import UNUSED_DAYS, kernels_dir
from numatp.kernels import compile as compiling
from numatp.kernels import gate, norm
from numatp.kernels.compile import Kernel, compiler_environ, make_all_ready
from numatp.kernels.sources import PACKAGE


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The kernels' folder in an empty cache."""
    monkeypatch.setenv("NUMATP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(Kernel, "compiled", [])
    for known in (kernels_dir, compiling.kernel_cache):
        known.cache_clear()
    yield compiling.kernel_cache()
    for known in (kernels_dir, compiling.kernel_cache):
        known.cache_clear()


def fresh(kernel):
    """As a process has it that did not load it yet."""
    return Kernel(kernel.function, kernel.fields)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The kernels' folder of another cache, with what a process has made that compiled no other one before."""
    cache = tmp_path_factory.mktemp("elsewhere")
    code = "from numatp.kernels import gate; gate.silu_gate.address"
    compiled = run(sys.executable, "-c", code, env={"NUMATP_CACHE_DIR": str(cache)})
    assert compiled.returncode == 0, compiled.stderr
    return cache / "kernels"


def damages(whole):
    half, flipped = len(whole) // 2, bytearray(whole)
    flipped[half] ^= 1
    return [b"", whole[:10], whole[:half], whole[:-1], bytes(len(whole)), b"x" * len(whole), bytes(flipped)]


# In a process that compiles: each damaged file is compiled again and replaced.
REPLACED = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
from numatp.kernels import build, gate
from numatp.kernels.compile import Kernel, read
from test_kernel_cache import damages
kernel = gate.silu_gate
whole = kernel.path.read_bytes()
for i, damaged in enumerate(damages(whole)):
    kernel.path.write_bytes(damaged)
    Kernel.compiled.clear()
    assert build.build([kernel], wait=True) and build.build([kernel], wait=True)
    assert Kernel.compiled == ["gate.silu_gate"], i
    assert read(kernel.path).code, i
"""


def test_a_damaged_file_is_compiled_again_and_replaced(folder):
    kernel = fresh(gate.silu_gate)
    assert kernel.address and Kernel.compiled == ["gate.silu_gate"]
    whole = kernel.path.read_bytes()
    for i, damaged in enumerate(damages(whole)):
        kernel.path.write_bytes(damaged)
        assert not fresh(gate.silu_gate).find(), i
    assert fresh(gate.silu_gate).address and Kernel.compiled == ["gate.silu_gate"] * 2
    assert fresh(gate.silu_gate).find()  # the file was replaced
    again = run(sys.executable, "-c", REPLACED, os.path.dirname(__file__), env=compiler_environ())
    assert again.returncode == 0, again.stderr
    assert sorted(file.suffix for file in folder.iterdir()) == [".kernel", ".lock"]  # no unfinished file stays


def test_a_kernel_that_somebody_compiles_is_left_for_later(folder, elsewhere):
    """While one process holds the lock of the first kernel another compiles the second; then it takes what the first has made."""
    first, second = fresh(gate.silu_gate), fresh(norm.rms_norm)
    made = elsewhere / folder.name / first.path.name
    with open(first.lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(target=make_all_ready, args=([first, second],))
        other.start()
        while not second.path.exists():
            assert other.is_alive()
            time.sleep(0.01)
        assert not first.path.exists()
        shutil.copy(made, first.path.with_suffix(".copy")).rename(first.path)
    other.join()
    assert Kernel.compiled == ["norm.rms_norm"]
    assert first.address and second.address


COMPILER = """
import os
from numatp.kernels import build
build.build_all = lambda kernels: print(len(os.sched_getaffinity(0)))
build.main()
"""


def test_a_pinned_thread_has_kernels_compiled_on_all_cores_of_the_process(folder, monkeypatch):
    """As the engine's is, which asks for most of them."""
    cpus, start, started = os.sched_getaffinity(0), subprocess.Popen, []

    def ask():
        os.sched_setaffinity(0, {min(cpus)})
        compiler = run(sys.executable, "-c", COMPILER, str(os.getpid()), "[]", env=compiler_environ())
        monkeypatch.setattr(subprocess, "Popen", lambda command, **pipes: started.append(command) or start(["echo", "[]"], **pipes))
        compiling.compile_apart([fresh(norm.rms_norm)] * 8)
        return compiler

    with ThreadPoolExecutor(1) as pool:
        compiler = pool.submit(ask).result()
    assert compiler.stdout.split() == [str(len(cpus)), "[]"], compiler.stderr
    assert len(started) == min(len(cpus), 2)


def test_what_nobody_has_used_for_long_is_dropped(folder, elsewhere):
    """When something is compiled: of the same folder, and of one for another machine, which goes with its last file."""
    long_ago = time.time() - (UNUSED_DAYS + 1) * 24 * 3600
    kernel, other = fresh(gate.silu_gate), folder.with_name("0" * 24)
    other.mkdir()
    shutil.copy(elsewhere / folder.name / kernel.path.name, kernel.path)
    unused = [folder / "old-0.kernel", other / "old-1.kernel", other / "old-1.lock"]
    for file in (*unused, recent := folder / "new-0.kernel"):
        file.touch()
    for file in (*unused, kernel.path):
        os.utime(file, (long_ago, long_ago))
    assert kernel.address and not Kernel.compiled  # a process uses it
    assert fresh(norm.rms_norm).address and Kernel.compiled == ["norm.rms_norm"]
    assert kernel.path.exists() and recent.exists() and not any(file.exists() for file in unused) and not other.exists()


SCRIPT = """
import sys
from numatp.kernels import compile as compiling
from numatp.kernels import gate, norm
assert compiling.__file__.startswith(sys.argv[1]), compiling.__file__
compiling.make_all_ready([norm.rms_norm, gate.silu_gate])
print(*compiling.Kernel.compiled)
"""


def test_another_install_of_the_same_files_compiles_nothing(tmp_path):
    """And several processes that start with an empty cache compile each kernel once."""
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        shutil.copytree(PACKAGE, place / "numatp", ignore=shutil.ignore_patterns("__pycache__"))
    processes = []
    for place in places:
        environ = os.environ | {"NUMATP_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(place)}
        command = [sys.executable, "-c", SCRIPT, place]
        processes.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True, cwd=place))
    said = " ".join(process.communicate(timeout=200)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(said.split()) == ["gate.silu_gate", "norm.rms_norm"]


@pytest.mark.parametrize(
    ("name", "value"), [("DISABLE_JIT", "1"), ("OPT", "0"), ("DEBUGINFO", "1"), ("SLP_VECTORIZE", "2"), ("CPU_NAME", "generic")]
)
def test_settings_of_the_users_numba_change_no_kernel(folder, elsewhere, monkeypatch, name, value):
    code = compiling.read(elsewhere / folder.name / fresh(gate.silu_gate).path.name).code
    monkeypatch.setenv(f"NUMBA_{name}", value)
    compiling.kernel_cache.cache_clear()
    assert compiling.kernel_cache() == folder
    again = fresh(gate.silu_gate)
    assert again.address and Kernel.compiled == ["gate.silu_gate"] and compiling.read(again.path).code == code


def test_what_cannot_be_compiled_is_one_line(folder, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho some trace >&2; echo 'out of memory' >&2; exit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(compiling.sys, "executable", str(python))
    with pytest.raises(MachineError, match="^kernels cannot be compiled: out of memory$"):
        make_all_ready([fresh(gate.silu_gate)])


def test_threads_of_a_process_load_kernels_one_after_another(folder, monkeypatch):
    """`numatp quantize` asks for kernels of two formats at once."""
    inside, most = [], []

    def read(path):
        inside.append(path)
        time.sleep(0.02)
        most.append(len(inside))
        inside.remove(path)
        return compiling.MachineCode("entry", b"", b"")

    monkeypatch.setattr(compiling, "read", read)
    monkeypatch.setattr(compiling.object_file, "load", lambda code, entry: 1)
    kernels = [fresh(kernel) for kernel in (gate.silu_gate, gate.gelu_gate, norm.rms_norm, norm.layer_norm)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(Kernel.find, kernels * 2))
    assert most == [1] * 4
