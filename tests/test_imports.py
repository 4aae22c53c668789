"""Imports point downwards, and each outside library has one door."""

import ast
from pathlib import Path

import numatp

PACKAGE = Path(numatp.__file__).parent
# A folder may import itself and what stands below it. errors.py and __init__.py stand at the bottom.
LAYERS = [
    {"cli"},
    {"engine"},
    {"models", "text"},
    {"ranks", "program"},
    {"weights"},
    {"quants"},
    {"kernels"},
    {"files"},
    {"machine"},
]
DOORS = {"mpi4py": "ranks", "numa": "machine", "psutil": "machine", "safetensors": "files", "tokenizers": "text", "jinja2": "text"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def level(folder):
    return next(i for i, layer in enumerate(LAYERS) if folder in layer)


def test_every_folder_has_a_place():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set().union(*LAYERS)


def test_imports_point_downwards():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).parts
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "numatp" or len(parts) < 2 or not (PACKAGE / parts[1]).is_dir():
                continue
            if len(place) == 1 or (parts[1] != place[0] and level(parts[1]) <= level(place[0])):
                wrong.append(f"{'/'.join(place)} imports {name}")
    assert not wrong


def test_one_door_per_library():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).parts
        for name in imports(path):
            door = DOORS.get(name.split(".")[0])
            if door and place[0] != door:
                wrong.append(f"{'/'.join(place)} imports {name}")
    assert not wrong
