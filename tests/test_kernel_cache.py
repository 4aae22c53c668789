"""The cache of compiled kernels: damaged files, processes that want the same kernels, another install of the same files."""

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numba
import pytest

from numatp.errors import UserError
from numatp.kernels import compile as compiling
from numatp.kernels import gate, norm
from numatp.kernels.compile import PACKAGE, Kernel, make_all_ready

pytestmark = pytest.mark.beside


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "kernel_cache", lambda: tmp_path)
    monkeypatch.setattr(Kernel, "compiled", [])
    return tmp_path


def fresh(kernel):
    """As a process has it that did not load it yet."""
    return Kernel(kernel.function, kernel.fields)


def damages(whole):
    half, flipped = len(whole) // 2, bytearray(whole)
    flipped[half] ^= 1
    return [b"", whole[:10], whole[:half], whole[:-1], bytes(len(whole)), b"x" * len(whole), bytes(flipped)]


def test_a_damaged_file_is_compiled_again_and_replaced(folder):
    assert fresh(gate.silu_gate).address
    file = folder / "gate.silu_gate.kernel"
    whole = file.read_bytes()
    for i, damaged in enumerate(damages(whole)):
        file.write_bytes(damaged)
        Kernel.compiled.clear()
        again, next_one = fresh(gate.silu_gate), fresh(gate.silu_gate)
        assert again.address and Kernel.compiled == ["gate.silu_gate"], i
        assert next_one.address and Kernel.compiled == ["gate.silu_gate"], i  # the file was replaced
    assert sorted(file.suffix for file in folder.iterdir()) == [".kernel", ".lock"]  # no unfinished file stays


def test_a_kernel_that_somebody_compiles_is_left_for_later(folder):
    """While one process holds the lock of the first kernel another compiles the second; then it takes what the first has made."""
    first, second = fresh(gate.silu_gate), fresh(norm.rms_norm)
    with open(folder / "gate.silu_gate.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(target=make_all_ready, args=([first, second],))
        other.start()
        while not (folder / "norm.rms_norm.kernel").exists():
            assert other.is_alive()
        assert not (folder / "gate.silu_gate.kernel").exists()
        file = compiling.KernelFile(folder / "gate.silu_gate.kernel")
        assert not file.read()
        fresh(gate.silu_gate)._take(file)
    other.join()
    assert Kernel.compiled == ["norm.rms_norm"]
    assert first.address and second.address


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


def test_without_numbas_compiler_there_is_one_line(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.raises(UserError, match="unset it"):
        compiling.kernel_cache.__wrapped__()


@pytest.mark.parametrize(("name", "value"), [("OPT", 0), ("DEBUGINFO_DEFAULT", 1), ("SLP_VECTORIZE", 2)])
def test_settings_of_numba_that_change_machine_code_have_a_folder_of_their_own(monkeypatch, tmp_path, name, value):
    monkeypatch.setattr(compiling, "kernels_dir", lambda: (tmp_path, ""))
    usual = compiling.kernel_cache.__wrapped__()
    monkeypatch.setattr(numba.config, name, value)
    assert compiling.kernel_cache.__wrapped__() != usual


def test_threads_of_a_process_load_kernels_one_after_another(folder, monkeypatch):
    """Numba's tables are not for several threads: `numatp quantize` asks for kernels of two formats at once."""
    inside, most = [], []

    def read(file):
        inside.append(file)
        time.sleep(0.02)
        most.append(len(inside))
        inside.remove(file)
        return True

    monkeypatch.setattr(compiling.KernelFile, "read", read)
    monkeypatch.setattr(Kernel, "_take", lambda kernel, file: setattr(kernel, "_cfunc", file))
    kernels = [fresh(kernel) for kernel in (gate.silu_gate, gate.gelu_gate, norm.rms_norm, norm.layer_norm)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(Kernel.make_ready, kernels * 2))
    assert most == [1] * 4
