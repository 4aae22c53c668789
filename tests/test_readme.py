"""What the README shows must work: its Python runs, its commands and options exist."""

import re
import shlex
import sys

import pytest
from support.commands import BIN, TESTS, mpirun, run

from numatp import models, quants

README = (TESTS.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LINES = re.findall(r"^    ((?:numatp|(?:cat|mpirun) .*numatp) [^:\n]*)$", README, re.MULTILINE)
COMMANDS = [line.split("#")[0].strip() for line in LINES]


@pytest.mark.parametrize("ranks", [None, 2])
@pytest.mark.parametrize("snippet", PYTHON)
def test_python(snippet, ranks, tmp_path, model_path):
    (tmp_path / "script.py").write_text(snippet)
    command = [sys.executable, tmp_path / "script.py"]
    result = mpirun(ranks, *command) if ranks else run(*command)
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if not {"pull", "doctor"} & set(c.split())])
def test_commands(command, model_path, tmp_path):
    """As they stand, with a short answer, in the project's folder."""
    words = command.replace(" -n 100", " -n 8").replace("notes.txt", "pyproject.toml")
    words = words.replace("smollm2-q4_k_m.gguf", str(tmp_path / "out.gguf"))
    if " bandwidth " in words:  # neither the user's cache nor the project's folder gets what a test measured
        words = f"{words.replace('bandwidth.png', str(tmp_path / 'bandwidth.png'))} --size 1 --no-keep"
    if " chat " in words:
        words = f"echo Hello | {words}"
    if " bench " in words:  # as it stands it takes minutes
        words += " -r 1 --roofline 64" if "-d" not in words else " --help"
    if words.startswith("cat") or "--chat" in words:
        words += " -n 8"
    result = run("sh", "-c", f"cd {shlex.quote(str(TESTS.parent))} && PATH={shlex.quote(str(BIN))}:$PATH && {words}")
    assert result.returncode == 0 and result.stdout.strip(), result.stderr


def test_the_lists_of_formats_and_architectures_are_whole():
    line = next(line for line in README.splitlines() if line.startswith("| formats |"))
    assert set(re.findall(r"[A-Z]+\d+(?:_\w+)?", line)) == set(quants.names())
    line = next(line for line in README.splitlines() if line.startswith("| architectures |"))
    assert set(re.findall(r"`([\w-]+)`", line)) == set(models.architectures())
