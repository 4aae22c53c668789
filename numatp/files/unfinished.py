"""What is still being made: it gets its name when it is whole, and nothing of it stays otherwise, also when a signal ends it all.

A signal's exception may come up between any two lines. So a thing has its unfinished name before it is there, inside the block that
removes it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from numatp.machine.uninterrupted import uninterrupted


@contextmanager
def unfinished_file(path: Path) -> Iterator[Path]:
    """The name, beside `path`, of a new file that becomes `path` when all went well."""
    partial = _name(path)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with uninterrupted(), suppress(FileNotFoundError):
            partial.unlink()
        raise


@contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` in which it is made; whoever made it moves it to its place."""
    folder = _name(path)
    try:
        folder.mkdir()
        yield folder
        shutil.rmtree(folder)
    except BaseException:  # a signal may come up in the removal too
        with uninterrupted():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _name(path: Path) -> Path:
    """A name that nobody else has."""
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}.part")
