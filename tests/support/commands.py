"""How tests start commands."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
SCRIPTS = TESTS / "support/scripts"
BIN = Path(sys.executable).parent


def run(*command, timeout=240, env=None):
    """Runs a command with a time limit; standard output and error as text."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout, env=os.environ | (env or {}), check=False
    )


def numatp(*arguments, **options):
    return run(BIN / "numatp", *arguments, **options)


def mpirun(ranks, *arguments, **options):
    return run(BIN / "mpirun", "-np", ranks, *arguments, **options)
