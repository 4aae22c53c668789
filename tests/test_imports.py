"""Imports point downwards, and each outside library has one door."""

import ast
from pathlib import Path

import numatp

PACKAGE = Path(numatp.__file__).parent
# A folder may import itself and what stands below it. errors.py stands at the bottom, and the table of formats, which is plain data
# for all; __init__.py hands out names of llm.py.
TABLE = "numatp.quants.table"
LAYERS = [
    {"cli"},
    {"server"},
    {"llm.py"},
    {"results.py"},
    {"measure", "advice"},
    {"engine"},
    {"models", "text"},
    {"ranks", "program"},
    {"weights"},
    {"quants"},
    {"kernels"},
    {"files"},
    {"machine"},
]
DOORS = {
    "mpi4py": "ranks",
    "numa": "machine",
    "psutil": "machine",
    "safetensors": "files",
    "tokenizers": "text",
    "jinja2": "text",
    "llguidance": "text",
}
DOORS |= dict.fromkeys(("starlette", "uvicorn", "msgspec", "prometheus_client"), "server")
COMPILERS = {"numba", "llvmlite"}  # which only a process that compiles may load


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
    places = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    places |= {path.name for path in PACKAGE.glob("*.py")} - {"errors.py", "__init__.py"}
    assert places == set().union(*LAYERS)


def test_imports_point_downwards():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).parts
        if place in (("errors.py",), ("__init__.py",)):
            continue
        for name in imports(path):
            parts = name.split(".")
            target = parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else f"{parts[1]}.py" if len(parts) > 1 else ""
            if parts[0] != "numatp" or target == "errors.py" or not (PACKAGE / target).exists() or not target:
                continue
            if place == ("quants", "table.py"):
                wrong.append(f"{'/'.join(place)} imports {name}")
            elif f"{name}.".startswith(f"{TABLE}."):
                continue
            elif target != place[0] and level(target) <= level(place[0]):
                wrong.append(f"{'/'.join(place)} imports {name}")
    assert not wrong


def test_the_compiler_has_one_door():
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if COMPILERS & {n.split(".")[0] for n in imports(path)}
    }
    assert found == {"kernels/jit.py", "kernels/build.py", "kernels/passes.py"}


def test_one_door_per_library():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).parts
        for name in imports(path):
            door = DOORS.get(name.split(".")[0])
            if door and place[0] != door:
                wrong.append(f"{'/'.join(place)} imports {name}")
    assert not wrong
