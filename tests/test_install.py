"""`pip install` where something is missing says so in one line."""

import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from support.commands import run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what pip would install from: a build leaves files beside it."""
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "*.so", "tests", "bench")
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("install") / "source", ignore=ignored)


def build(source, folder, **environ):
    options = ["--no-deps", "--disable-pip-version-check", "--wheel-dir", folder]
    return run(sys.executable, "-m", "pip", "wheel", *options, source, env=environ, timeout=600)


def test_no_c_compiler(source, tmp_path):
    result = build(source, tmp_path, CC="nope -m64")
    if "Could not find a version that satisfies the requirement setuptools" in result.stderr:
        pytest.skip("pip cannot fetch setuptools here")
    assert result.returncode != 0
    lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if "numatp: " in line]
    assert lines == [
        "numatp: no C compiler found ('nope'): install one (Debian, Ubuntu: apt install gcc; Fedora: dnf install gcc) "
        "or name it in CC"
    ]
    assert not list(tmp_path.iterdir())


def test_wheel_is_complete(source, tmp_path):
    result = build(source, tmp_path)
    if "Could not find a version that satisfies the requirement setuptools" in result.stderr:
        pytest.skip("pip cannot fetch setuptools here")
    assert result.returncode == 0, result.stderr
    names = set(zipfile.ZipFile(next(tmp_path.iterdir())).namelist())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "numatp").rglob("*.py")}
    assert sources <= names
    assert any(name.startswith("numatp/_native") and name.endswith(".so") for name in names)
    assert not [name for name in names if name.startswith(("tests", "native", "bench"))]
    assert "numatp/py.typed" in names
