"""Which instructions kernels may use: a few fixed levels, so that compiled kernels can be shared between hosts.

A level is a row of LEVELS and the file of kernels/isa of its name.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from numatp.errors import MachineError, UserError
from numatp.machine import tiles


@dataclass(frozen=True)
class Level:
    """Instructions that kernels may use, and how Numba is told so."""

    name: str
    flags: frozenset[str]  # as /proc/cpuinfo spells them
    numba_cpu: str  # NUMBA_CPU_NAME
    numba_features: str  # NUMBA_CPU_FEATURES
    lacks: str = ""  # what is slower than on the strongest level, for people
    work: Callable[[], bool] | None = None  # tries what this machine may name and not have, or not let this process use


# The LLVM cpu name x86-64-v3 lets the compiler use all of these; it implies them and avx2, fma, f16c.
V3_FLAGS = frozenset({"avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe", "popcnt"})
V4_FLAGS = V3_FLAGS | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"}

# Numba takes the features as they are, in place of the host's. x86-64-v4 comes tuned to prefer 256-bit vectors (early Skylake
# lowered its clock); explicit 512-bit vectors stay whole all the same, but loops that LLVM vectorises itself would get half of it.
V3_FEATURES = "+avx2,+fma,+f16c"
V4_FEATURES = f"{V3_FEATURES},+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512cd,-prefer-256-bit"

VNNI_FLAGS, VNNI_FEATURES = V4_FLAGS | {"avx512_vnni"}, f"{V4_FEATURES},+avx512vnni"
AMX_FLAGS, AMX_FEATURES = VNNI_FLAGS | {"amx_tile", "amx_bf16", "amx_int8"}, f"{VNNI_FEATURES},+amx-tile,+amx-bf16,+amx-int8"

LEVELS = (  # strongest first
    Level("amx", AMX_FLAGS, "x86-64-v4", AMX_FEATURES, work=tiles.work),
    Level(
        "avx512vnni", VNNI_FLAGS, "x86-64-v4", VNNI_FEATURES,
        lacks="multiplies prompts without tile registers, in twice the time",
    ),
    Level(
        "avx512bw", V4_FLAGS, "x86-64-v4", V4_FEATURES,
        lacks="needs three instructions for the 8-bit dot product, which long prompts feel",
    ),
    Level(
        "avx2", V3_FLAGS, "x86-64-v3", V3_FEATURES,
        lacks="needs three instructions for the 8-bit dot product and has half the vector width: prompts are slower, and it takes "
        "more cores to read at the memory's speed",
    ),
)  # fmt: skip


def choose(environ: Mapping[str, str] = os.environ, root: str | Path = "/") -> Level:
    """The level that NUMATP_ISA names, or the strongest of this machine.

    UserError if the machine lacks the one asked for, MachineError if it has none.
    """
    flags = _cpu_flags(root)
    here = Path(root) == Path("/")  # another machine's folder says what it names, no more
    possible = [level for level in LEVELS if level.flags <= flags and not (here and level.work and not level.work())]
    if not possible:
        missing = ", ".join(sorted(LEVELS[-1].flags - flags))
        raise MachineError(f"this machine's cpus lack {missing}: numatp needs an x86-64 cpu with AVX2, FMA and F16C")
    wish = environ.get("NUMATP_ISA", "").strip().lower()
    if not wish:
        return possible[0]
    for level in possible:
        if level.name == wish:
            return level
    reason = "this machine lacks it" if any(level.name == wish for level in LEVELS) else "there is no such level"
    names = ", ".join(level.name for level in possible)
    raise UserError(f"NUMATP_ISA={wish}: {reason}; possible here: {names}")


@cache
def level() -> Level:
    """Whose instructions the kernels of this process use: what choose() says when it is first asked for."""
    return choose()


def _cpu_flags(root: str | Path) -> frozenset[str]:
    # The first cpu's only: with hundreds of cpus the kernel takes many milliseconds to write the whole file.
    try:
        with open(Path(root, "proc/cpuinfo")) as lines:
            for line in lines:
                if line.startswith("flags"):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()
