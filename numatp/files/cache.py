"""Where numatp keeps what it makes or downloads."""

import contextlib
import hashlib
import os
import stat
import tempfile
import time
from functools import cache
from pathlib import Path

from numatp.errors import UserError

UNUSED_DAYS = 60


def cache_dir() -> Path:
    """The cache folder, absolute because ranks may run in other folders; it need not exist yet."""
    chosen, shared = os.environ.get("NUMATP_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME", "")
    if chosen:
        return Path(chosen).absolute()
    if os.path.isabs(shared):  # XDG says to ignore a relative one
        return Path(shared) / "numatp"
    try:
        return Path.home() / ".cache" / "numatp"
    except RuntimeError:
        raise UserError("this user has no home folder to keep a cache in; set NUMATP_CACHE_DIR to a writable folder") from None


def make_folder(folder: Path) -> Path:
    """Create `folder`, a part of the cache, unless it is there. UserError if nothing can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reason = "Permission denied"
    except OSError as error:
        reason = error.strerror or str(error)
    raise UserError(f"{folder}: cannot write there: {reason}; set NUMATP_CACHE_DIR to a writable folder")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def drop_unused(folder: Path) -> None:
    """Removes files one folder down that nobody has touched for UNUSED_DAYS: kernels of other versions, or of another machine."""
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for file in folder.glob("*/*"):
        with contextlib.suppress(OSError):  # somebody else removes it as well
            if file.lstat().st_mtime < oldest:
                file.unlink()
                file.parent.rmdir()  # if that was the last one


@cache
def kernels_dir() -> tuple[Path, str]:
    """(the folder for compiled kernels, a sentence worth showing or ""); the same on every rank.

    Without a writable home a folder in the temporary one serves. It must be this user's alone: what is in it will be executed.
    """
    try:
        return make_folder(cache_dir() / "kernels"), ""
    except UserError as refused:
        if os.environ.get("NUMATP_CACHE_DIR"):
            raise
        folder = Path(tempfile.gettempdir(), f"numatp-{os.getuid()}")
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
        except OSError:
            raise refused from None
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise refused
        return make_folder(folder / "kernels"), f"compiled kernels are kept in {folder}, because {refused}"
