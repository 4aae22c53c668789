"""numatp.machine.isa: levels by flags, and what Numba makes of them."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from pkgutil import iter_modules

import pytest
from support.machines.sysfs import AVX2, AVX512, write

from numatp.errors import MachineError, UserError
from numatp.kernels import isa as kernels
from numatp.kernels.compile import compiler_environ
from numatp.machine import isa, tiles
from numatp.machine.isa import LEVELS, Level, choose

# A loop that LLVM vectorises by itself, and the cpu it compiled for.
LOOP = """
import json, numba, re
from numba import float32
@numba.njit(fastmath=True)
def axpy(a, x, y):
    for i in range(x.shape[0]):
        y[i] += a * x[i]
axpy.compile((float32, float32[::1], float32[::1]))
assembly = axpy.inspect_asm(axpy.signatures[0])
registers = {name: bool(re.search(r"vfmadd.*" + name, assembly)) for name in ("ymm", "zmm")}
print(json.dumps({"target": axpy.targetctx.codegen().magic_tuple()[1:], **registers}))
"""


def with_flags(root: Path, flags: str) -> Path:
    write(root, "proc/cpuinfo", f"processor : 0\nflags\t\t: {flags}\nvmx flags : x\n\nprocessor : 1\nflags\t\t: nothing")
    return root


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (f"{AVX512} avx512_vnni amx_bf16 amx_tile amx_int8", "amx"),
        (f"{AVX512} avx512_vnni amx_bf16 amx_tile", "avx512vnni"),
        (f"{AVX512} avx512_vnni amx_tile amx_int8", "avx512vnni"),
        (f"{AVX512} avx512_vnni", "avx512vnni"),
        (AVX512, "avx512bw"),
        (f"{AVX512} avx512_vnni".replace("avx512bw", ""), "avx2"),  # Knights Landing: no bytes and words
        (AVX2, "avx2"),
    ],
)
def test_strongest_level(tmp_path: Path, flags: str, name: str) -> None:
    assert choose({}, with_flags(tmp_path, flags)).name == name


def test_the_wish_counts(tmp_path: Path) -> None:
    root = with_flags(tmp_path, AVX512)
    assert choose({"NUMATP_ISA": "AVX2 "}, root).name == "avx2"
    assert choose({"NUMATP_ISA": ""}, root).name == "avx512bw"
    with pytest.raises(UserError, match="NUMATP_ISA=avx512vnni: this machine lacks it; possible here: avx512bw, avx2$"):
        choose({"NUMATP_ISA": "avx512vnni"}, root)
    with pytest.raises(UserError, match="NUMATP_ISA=sse: there is no such level; possible here: avx512bw, avx2$"):
        choose({"NUMATP_ISA": "sse"}, root)


def test_tiles_are_tried_and_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may name them where nobody may use them: its kernel may refuse, or the instruction end the process."""
    named = isa._cpu_flags("/") | LEVELS[0].flags
    monkeypatch.setattr(isa, "_cpu_flags", lambda root: named)
    for fault in (lambda monkeypatch: monkeypatch.setattr(tiles, "TILE_DATA", 63), forbid_tiles):
        with monkeypatch.context() as patched:
            fault(patched)
            works = tiles.work.__wrapped__
            assert not works()
            patched.setattr(isa, "LEVELS", (replace(LEVELS[0], work=works), *LEVELS[1:]))
            assert choose({}).name == "avx512vnni"
            assert choose({"NUMATP_ISA": "avx512vnni"}).name == "avx512vnni"
            with pytest.raises(UserError, match="NUMATP_ISA=amx: this machine lacks it"):
                choose({"NUMATP_ISA": "amx"})


def forbid_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """ud2 in place of the first tile instruction."""
    monkeypatch.setattr(tiles, "TRIAL", b"\x0f\x0b" + tiles.TRIAL)
    monkeypatch.setattr(tiles, "permit", lambda: True)


def test_too_old_a_machine(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="lack avx2, fma:"):
        choose({}, with_flags(tmp_path, AVX2.replace("avx2 fma", "")))
    with pytest.raises(MachineError, match="AVX2"):
        choose({}, tmp_path / "nothing")


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_a_level_is_a_row_and_a_file_of_kernels(level: Level, tmp_path: Path) -> None:
    with_flags(tmp_path, " ".join(LEVELS[0].flags))
    assert choose({"NUMATP_ISA": level.name}, tmp_path) is level
    assert {module.name for module in iter_modules(kernels.__path__)} == {level.name for level in LEVELS}


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_numba_compiles_for_the_level(level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The features are taken as they are: nothing of this host's is added, and AVX-512 loops are 512 bits wide."""
    monkeypatch.setattr(isa, "level", lambda: level)
    environ = compiler_environ() | {"NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", LOOP], env=environ, capture_output=True, text=True, check=True)
    seen = json.loads(run.stdout)
    assert seen["target"] == [level.numba_cpu, level.numba_features]
    assert (seen["ymm"], seen["zmm"]) == ((True, False) if level.name == "avx2" else (seen["ymm"], True))


def test_machine_code_is_loaded_before_numba() -> None:
    """Binding and the target come first, so nothing here may load numpy or numba."""
    modules = "topology, isa, launch, placement, policy"
    code = f"import sys\nfrom numatp.machine import {modules}\nprint([m for m in ('numpy', 'numba', 'numa') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["generate", "chat", "perplexity", "audit", "bench"])
def test_commands_that_load_begin_without_numpy(command: str) -> None:
    """A rank finds its place, and a limit is named, before numpy and Numba load."""
    code = f"import sys, numatp.cli.{command}\nprint([m for m in ('numpy', 'numba', 'numa') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
