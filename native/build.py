"""Builds the C runtime during `pip install`: one compiler call, warnings are errors."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-fPIC", "-shared", "-pthread"]


class BuildNative(build_ext):
    """Compiles without Python's headers or libraries: the result is loaded with ctypes."""

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
