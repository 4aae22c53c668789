"""Barriers: enough of them, and not one too many."""

import json
import sys

import pytest
import tiny
from conftest import TESTS, run


@pytest.mark.parametrize("matrix_type", ["Q4_1", "F32"])
@pytest.mark.parametrize(("program", "rows"), [("one row", 1), ("many rows", 5), ("scores", 5)])
def test_each_barrier_is_needed_and_all_are_enough(tmp_path, rows, matrix_type, program):
    tiny.write(tmp_path / "tiny.gguf", matrix_type)
    result = run(sys.executable, TESTS / "interleave.py", tmp_path / "tiny.gguf", rows, program)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["any_order"]
    assert seen["barriers"] > 10
    assert seen["unneeded"] == []
