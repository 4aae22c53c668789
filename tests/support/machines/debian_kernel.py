"""Debian's kernel, fetched once into the cache folder, and unpacked: an emulator would need 5 s for that at each boot."""

import lzma
import os
import re
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "numatp-test-kernel"
XZ = b"\xfd7zXZ\0"
ELF = b"\x7fELF"


def path():
    """Of the kernel, an ELF file; None where there is none."""
    return next(iter(CACHE.glob("boot/vmlinux-*")), None)


def fetch():
    """Whether it is there now."""
    if not next(iter(CACHE.glob("boot/vmlinuz-*")), None) and not _fetch_package():
        return False
    return bool(path()) or _unpack()


def _fetch_package():
    depends = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=False).stdout
    package = re.search(r"Depends: (linux-image-\S+)", depends)
    if not package:
        return False
    with tempfile.TemporaryDirectory() as folder:
        got = subprocess.run(["apt-get", "download", package[1]], cwd=folder, capture_output=True, check=False)
        files = list(Path(folder).glob("*.deb"))
        if got.returncode or not files:
            return False
        subprocess.run(["dpkg", "-x", files[0], CACHE], check=True)
    subprocess.run(["depmod", "-b", CACHE, _version()], check=True)
    return True


def _unpack():
    """vmlinuz has it packed by xz behind some code that unpacks it."""
    packed = next(iter(CACHE.glob("boot/vmlinuz-*")))
    data = packed.read_bytes()
    place = data.find(XZ)
    kernel = lzma.LZMADecompressor().decompress(data[place:]) if place >= 0 else b""
    if not kernel.startswith(ELF):
        return False
    unpacked = packed.with_name(packed.name.replace("vmlinuz", "vmlinux"))
    part = unpacked.with_name(f"part-{os.getpid()}")
    part.write_bytes(kernel)
    part.rename(unpacked)
    return True


def _version():
    return next((CACHE / "lib" / "modules").iterdir()).name


def modules(names):
    """Files of these and of all that they need, in the order in which they are inserted."""
    found = []
    for name in names:
        command = ["modprobe", "-d", CACHE, "-S", _version(), "--show-depends", name]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        found += [Path(line.split()[1]) for line in lines if line.startswith("insmod")]
    return list(dict.fromkeys(found))
