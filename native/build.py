"""Builds the C runtime during `pip install` or `pip wheel`: one compiler call, warnings are errors. It also names the wheel."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-fPIC", "-shared", "-pthread"]


class BuildNative(build_ext):
    """Compiles without Python's headers or libraries: the result is loaded with ctypes."""

    def get_ext_filename(self, fullname: str) -> str:
        """numatp/_native.so: no Python's version is in its name, because any may load it."""
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        compiler = shlex.split(os.environ.get("CC", "cc"))
        if not shutil.which(compiler[0]):
            raise SystemExit(
                f"numatp: no C compiler found ('{compiler[0]}'): install one (Debian, Ubuntu: apt install gcc; "
                "Fedora: dnf install gcc) or name it in CC"
            )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        result = subprocess.run([*compiler, *FLAGS, "-o", str(target), *ext.sources], check=False)
        if result.returncode:
            raise SystemExit(f"numatp: the C compiler '{compiler[0]}' failed on native/*.c, see above")

    def get_source_files(self) -> list[str]:
        """For the source distribution."""
        return [*super().get_source_files(), "native/build.py"]


class NameWheel(bdist_wheel):
    """Tags the wheel by what its runtime needs: any Python 3, and glibc of at least the newest symbol that it asks for."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        runtime = Path(self.get_finalized_command("build_ext").get_ext_fullpath("numatp._native"))
        # An editable install asks before anything is built; a C library other than glibc has no such symbols.
        versions = re.findall(rb"\0GLIBC_2\.(\d+)", runtime.read_bytes()) if runtime.exists() else []
        if versions:
            platform = platform.replace("linux", f"manylinux_2_{max(map(int, versions))}")
        return "py3", "none", platform
