"""The doctor's whole round: the checks of the machine, and those of MPI and of numatp's own cache."""

import contextlib
import sys
from pathlib import Path

from numatp.errors import MachineError, UserError
from numatp.files.cache import kernels_dir
from numatp.files.measured import read_bandwidth
from numatp.machine.doctor import CHECKS, Finding, Host, launcher_version
from numatp.machine.launch import read_launch

FAMILIES = {"Open MPI": "openmpi", "MPICH": "hydra", "Intel": "hydra"}  # as Launch.kind; Intel MPI speaks MPICH's protocol
EXTRAS = {"openmpi": "openmpi", "hydra": "mpich"}


def mpi(host: Host) -> Finding:
    launcher = launcher_version(host)
    status, library = host.run(sys.executable, "-P", "-m", "numatp.ranks.library")
    without = "no MPI is needed for the ranks of one host: numatp --ranks N"
    if status and not launcher:
        return Finding("MPI", "fine", f"none; {without}")
    install = f"{sys.executable} -m pip install"
    if status:
        what = f"mpirun is {launcher}, and mpi4py cannot be loaded ({library})"
        return Finding("MPI", "mend", what, "ranks that it starts cannot meet", f"{install} 'numatp[openmpi]'")
    if not launcher:
        return Finding("MPI", "fine", f"mpi4py with {library}, no mpirun on the path; {without}")
    what = f"mpirun is {launcher}, mpi4py uses {library}"
    families = [next((kind for name, kind in FAMILIES.items() if name in text), text) for text in (launcher, library)]
    with contextlib.suppress(MachineError):
        launched = read_launch(host.environ)
        if launched and launched.kind in FAMILIES.values():  # whoever started us counts, not what is on the path
            families[0], what = launched.kind, f"{launched.starter} of {launched.kind} started this process, mpi4py uses {library}"
    if families[0] != families[1]:
        command = f"{install} 'numatp[{EXTRAS.get(families[0], 'openmpi')}]' && export PATH={Path(sys.executable).parent}:$PATH"
        return Finding("MPI", "mend", what, "each rank would take itself for the only one", command)
    return Finding("MPI", "fine", what)


def kernel_cache(host: Host) -> Finding:
    why, command = "every start would compile all kernels again", "export NUMATP_CACHE_DIR=/some/writable/folder"
    try:
        folder, note = kernels_dir()
    except UserError as error:
        return Finding("kernel cache", "mend", str(error), why, command)
    if note:
        return Finding("kernel cache", "mend", note, f"{why} once that folder is emptied", command)
    return Finding("kernel cache", "fine", str(folder))


def roofline(host: Host) -> Finding:
    rates = read_bandwidth()
    if not rates:
        return Finding("roofline", "note", "never measured here", "plans have no bandwidth to go by", "numatp bandwidth")
    return Finding("roofline", "fine", ", ".join(f"node {node}: {rate / 1e9:.1f} GB/s" for node, rate in rates.items()))


def examine(host: Host | None = None) -> list[Finding]:
    """All findings. MachineError where /sys cannot be read."""
    host = host or Host()
    return [check(host) for check in (*CHECKS, mpi, kernel_cache, roofline)]


def describe(findings: list[Finding]) -> list[str]:
    """Lines for people; what is fine in one line."""
    width, lines = max(len(finding.name) for finding in findings), []
    for finding in findings:
        mark = finding.state.upper() if finding.state == "mend" else finding.state
        lines.append(f"{mark:<4}  {finding.name:<{width}}  {finding.what}")
        indent = " " * (width + 8)
        lines += [f"{indent}why: {finding.why}"] if finding.why else []
        lines += [f"{indent}do:  {finding.command}"] if finding.command else []
    return lines
