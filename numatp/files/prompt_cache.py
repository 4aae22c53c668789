"""Parts of the cache as files, so that they are found again after a restart.

    DIR/key                 32 bytes that nobody else knows: names of tokens are hashes with it
    DIR/MODEL/NAME.PART     a block of one pool of the cache, or a state, of all ranks; MODEL stands for all that must be alike

A file's time is when it was used last, and those that were not for the longest time make room for others. A file becomes visible
when it is whole, and has a digest of its bytes: one that is cut short, damaged or of something else is ignored, and a line says so.
"""

import heapq
import logging
import os
import re
import secrets
import struct
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from numatp.errors import UserError
from numatp.files.unfinished import unfinished_file

log = logging.getLogger("numatp")
MAGIC = b"numatp prompt 1\n"  # the number is of the form of these files
DIGEST, HEAD = 32, struct.Struct("<16s16s16sB")  # MAGIC, MODEL, NAME, exact; before them the digest, behind them tokens and bytes
NAME = re.compile(r"([0-9a-f]{32})\.(\d{1,3})")
OURS = re.compile(r"[0-9a-f]{32}\.\d{1,3}|\.[0-9a-f]{32}\.\d{1,3}\.[0-9a-f]{12}\.part")  # and what a killed process was writing
Name = tuple[bytes, int]  # of the tokens up to the end of the block; the part


@dataclass(frozen=True)
class Saved:
    """What one file holds."""

    name: bytes
    part: int
    tokens: bytes  # of the block, which are compared as well
    exact: bool  # as engine/prefixes.py has it
    used: int  # ns since 1970
    content: bytes


def open_key(folder: Path) -> bytes:
    """The folder's key; both are made where they are missing. UserError if nothing can be written there."""
    key = folder / "key"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if key.exists():
            found = key.read_bytes()
            if len(found) == 32:
                return found
            log.warning(f"{key}: damaged: what was kept with it is not used")
        made = secrets.token_bytes(32)
        with unfinished_file(key) as path:
            _write(path, made)
        return made
    except OSError as error:
        raise UserError(f"--prompt-cache-dir {folder}: cannot write there: {error.strerror or error}") from None


class PromptCache:
    """Used by one thread at a time."""

    def __init__(self, folder: Path, model: bytes, token_bytes: int, part_bytes: list[int], most: int):
        """model: 16 bytes, of all that must be alike. token_bytes: of the tokens of a block. part_bytes: of each part's content.
        most: bytes of all files, those of other models included."""
        self._folder, self._model, self._most = folder / model.hex(), model, most
        self._token_bytes, self._part_bytes = token_bytes, part_bytes
        self._files: dict[Path, tuple[int, int]] = {}  # used, bytes
        self._oldest: list[tuple[int, Path]] = []  # a heap; entries that _files says otherwise are void
        self._total = 0
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for path in folder.glob("*/*"):
            if OURS.fullmatch(path.name):
                with suppress(FileNotFoundError):  # another server has made room meanwhile
                    found = path.stat()
                    self._count(path, found.st_mtime_ns, found.st_size)
            elif path.parent == self._folder:
                log.warning(f"{path}: no file of this cache: ignored")

    def names(self) -> list[Name]:
        """Those of this model, what was used last first."""
        mine = [(used, path) for path, (used, _) in self._files.items() if path.parent == self._folder]
        found = [NAME.fullmatch(path.name) for _, path in sorted(mine, reverse=True)]
        return [(bytes.fromhex(one[1]), int(one[2])) for one in found if one and int(one[2]) < len(self._part_bytes)]

    def others(self) -> int:
        """Bytes of the files of other models, or of other settings."""
        return sum(size for path, (_, size) in self._files.items() if path.parent != self._folder)

    def used(self, name: Name) -> int | None:
        """When a file was used last; None if there is none."""
        found = self._files.get(self._path(name))
        return found[0] if found else None

    def read(self, name: Name) -> Saved | None:
        """None for what is not as it was written, with a line that says so."""
        path = self._path(name)
        try:
            return self._read(path, *name)
        except OSError as error:
            why = error.strerror or str(error)
        except ValueError as error:
            why = str(error)
        log.warning(f"{path}: {why}: ignored")
        self._forget(path)  # as if it were not there: it is written again when its tokens are computed again
        return None

    def _read(self, path: Path, name: bytes, part: int) -> Saved:
        """ValueError for what it is instead."""
        tokens = DIGEST + HEAD.size
        content = tokens + self._token_bytes
        if path.stat().st_size != content + self._part_bytes[part]:
            raise ValueError("cut short, or of another model")
        stored = path.read_bytes()
        if blake2b(memoryview(stored)[DIGEST:], digest_size=DIGEST).digest() != stored[:DIGEST]:
            raise ValueError("damaged")
        magic, model, said, exact = HEAD.unpack_from(stored, DIGEST)
        if (magic, model, said) != (MAGIC, self._model, name):
            raise ValueError("of another model, or of other settings")
        return Saved(name, part, stored[tokens:content], bool(exact), self._files[path][0], stored[content:])

    def write(self, saved: Saved) -> bool:
        """False if all else that is there was used later. OSError if it cannot be written."""
        path, size = self._path((saved.name, saved.part)), DIGEST + HEAD.size + len(saved.tokens) + len(saved.content)
        if not self._make_room(size, saved.used):
            return False
        head = HEAD.pack(MAGIC, self._model, saved.name, saved.exact)
        digest = blake2b(digest_size=DIGEST)
        for piece in (head, saved.tokens, saved.content):
            digest.update(piece)
        with unfinished_file(path) as partial:
            _write(partial, digest.digest(), head, saved.tokens, saved.content)
            os.utime(partial, ns=(saved.used, saved.used))
        self._count(path, saved.used, size)
        return True

    def touch(self, name: Name, used: int) -> None:
        """It was used again."""
        path = self._path(name)
        with suppress(OSError):
            os.utime(path, ns=(used, used))
            self._count(path, used, self._files[path][1])

    def _path(self, name: Name) -> Path:
        return self._folder / f"{name[0].hex()}.{name[1]}"

    def _count(self, path: Path, used: int, size: int) -> None:
        self._total += size - self._files.get(path, (0, 0))[1]
        self._files[path] = used, size
        heapq.heappush(self._oldest, (used, path))

    def _forget(self, path: Path) -> None:
        self._total -= self._files.pop(path)[1]

    def _make_room(self, size: int, used: int) -> bool:
        while self._total + size > self._most and self._oldest:
            oldest, path = self._oldest[0]
            if self._files.get(path, (0, 0))[0] != oldest:
                heapq.heappop(self._oldest)
                continue
            if oldest > used:
                return False
            path.unlink(missing_ok=True)
            self._forget(path)
        return self._total + size <= self._most


def _write(path: Path, *pieces: bytes) -> None:
    """For its owner alone."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        for piece in pieces:
            file.write(piece)
