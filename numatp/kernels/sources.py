"""Which files a kernel is made of, so that an edit has what depends on it compiled anew and nothing else."""

import hashlib
import re
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
FOLDERS = ("kernels", "quants")  # of this package: where kernels and all their parts are
# "from numatp.x import name, (name, ...)" or "import numatp.x, ..." wherever they stand: a condition or a function may have them.
IMPORT = re.compile(r"^[ \t]*(?:from (numatp[\w.]*) import (\([^)]*\)|.*)|import (numatp.*))$", re.MULTILINE)


@cache
def path_of(module: str) -> Path | None:
    """Its file, or nothing if there is no module of that name."""
    place = PACKAGE.parent / module.replace(".", "/")
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


@cache
def text_of(module: str) -> str:
    """Of its file, as it is when somebody first asks."""
    path = path_of(module)
    assert path, module
    return path.read_text()


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of this package that its file names in imports. What lies elsewhere than kernels do (machine, files) has none: it
    counts for its constants.
    """
    if module.split(".")[1] not in FOLDERS:
        return frozenset()
    found = set[str]()
    for package, names, plain in IMPORT.findall(text_of(module)):
        if package:
            found |= {package, *(f"{package}.{name}" for name in re.findall(r"\w+", names))}
        else:
            found |= {*re.findall(r"numatp[\w.]*", plain)}
    return frozenset(name for name in found if path_of(name))


def closure(modules: list[str]) -> list[str]:
    """They and all that they import, sorted."""
    found, waiting = set[str](), {*modules}
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= imports(module) - found
    return sorted(found)


@cache
def text_digest(module: str) -> bytes:
    return hashlib.sha256(text_of(module).encode()).digest()


def digest(modules: list[str]) -> str:
    """Of the texts of modules. Where they are installed makes no difference."""
    return hashlib.sha256(b"".join(module.encode() + text_digest(module) for module in modules)).hexdigest()[:24]


@cache
def whole() -> str:
    """The digest of all files that kernels may be made of."""
    files = (file.relative_to(PACKAGE.parent) for folder in FOLDERS for file in PACKAGE.joinpath(folder).rglob("*.py"))
    return digest(sorted(".".join(file.with_suffix("").parts) for file in files))
