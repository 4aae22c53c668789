"""Which files a kernel's machine code is kept under: all that it may depend on, and no others."""

import ast
import shutil

import pytest
from support.kernels import all_kernels

from numatp.errors import MachineError
from numatp.kernels import sources
from numatp.kernels.compile import compile_apart
from numatp.machine import isa

FILES = [file for folder in sources.FOLDERS for file in sorted(sources.PACKAGE.joinpath(folder).rglob("*.py"))]
MODULES = [".".join(file.relative_to(sources.PACKAGE.parent).with_suffix("").parts) for file in FILES]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of numatp that this process takes for its own. edit(file) changes one and forgets what was known."""
    copy = shutil.copytree(sources.PACKAGE, tmp_path / "numatp", ignore=shutil.ignore_patterns("__pycache__", "*.so"))

    def forget():
        for known in (sources.path_of, sources.text_of, sources.imports, sources.text_digest):
            known.cache_clear()

    def edit(file):
        text = (copy / file).read_text()
        (copy / file).write_text(f"{text}\n# edited\n")
        forget()

    monkeypatch.setattr(sources, "PACKAGE", copy)
    forget()
    yield edit
    monkeypatch.undo()
    forget()


def test_every_import_is_found():
    """As Python's own parser finds them. Names that are no modules do not matter."""
    for file, module in zip(FILES, MODULES, strict=True):
        wanted = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module, file
                wanted |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        wanted = {name for name in wanted if name.startswith("numatp") and sources.path_of(name)}
        assert wanted == sources.imports(module), file


def test_nobody_else_imports_by_a_name_that_is_made():
    """dot.py takes the file of the level, and specialize() that of a format or cache type: Kernel.path adds both."""
    ways = ("import_module", "__import__", "spec_from_file", "exec(", "sys.modules", "open(", "read_text", "read_bytes")
    found = {file.stem for file in FILES if any(way in file.read_text() for way in ways)}
    assert found == {"dot", "compile", "build", "jit", "sources", "__init__"}
    level = f"numatp.kernels.isa.{isa.level().name}"
    assert sources.path_of(level)
    for name in ("numatp.kernels", "numatp.kernels.isa", "numatp.kernels.caches"):
        assert not sources.imports(name), "packages of kernels hold text alone"


@pytest.mark.parametrize(
    ("file", "some", "others"),
    [
        ("quants/q4_0.py", {"quantizer_q4_0.quantize", "matmul_iq4_nl.embed"}, {"matmul_q4_1.matmul", "norm.rms_norm"}),
        ("kernels/caches/q8_0.py", {"append_q8_0.rotate_and_append"}, {"attention_f16.attention"}),
        ("kernels/softcap.py", {"softcap.cap_columns", "attention_f16.attention"}, {"norm.rms_norm", "gate.silu_gate"}),
        ("kernels/attention.py", {"attention_q8_0.attention", "sparse.sparse_attention"}, {"append_f16.rotate_and_append"}),
        ("kernels/norm.py", {"norm.rms_norm"}, {"matmul_f32.matmul", "gate.silu_gate"}),
        ("kernels/layout.py", {"attention_f16.attention", "matmul_f32.score"}, {"gate.silu_gate"}),
        ("machine/isa.py", {"norm.rms_norm", "matmul_f32.matmul"}, set()),
        (f"kernels/isa/{isa.level().name}.py", {"norm.rms_norm", "matmul_f32.matmul"}, set()),
        ("kernels/build.py", {"norm.rms_norm", "matmul_f32.matmul"}, set()),
        ("machine/topology.py", set(), {"norm.rms_norm", "matmul_f32.matmul"}),
    ],
)  # fmt: skip
def test_an_edit_changes_what_depends_on_it_and_nothing_else(package, file, some, others):
    kernels = {kernel.name: kernel for kernel in all_kernels()}
    before = {name: kernel.path for name, kernel in kernels.items()}
    package(file)
    changed = {name for name, kernel in kernels.items() if kernel.path != before[name]}
    assert some <= changed and not others & changed and (some | others) <= kernels.keys()


def test_files_that_change_while_a_kernel_is_compiled(package):
    """The process that compiles has loaded other files than this one knows: what it makes would be kept under a wrong name."""
    package("kernels/norm.py")
    kernel = next(kernel for kernel in all_kernels() if kernel.name == "norm.rms_norm")
    with pytest.raises(MachineError, match="the files of norm.rms_norm were changed meanwhile: start again$"):
        compile_apart([kernel])
