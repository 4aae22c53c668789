"""`numatp bench`: llama-bench's columns, fields and sweeps; profiles that add up; no share where a result is impossible."""

import csv
import json
import re

import numpy as np
import pytest
from support.commands import BIN, mpirun
from support.models import tiny, tiny_cohere2, tiny_qwen3moe, tiny_qwen3next
from support.warm import numatp, run_script

from numatp.cli import bench_output
from numatp.cli.bench import numbers, pair
from numatp.measure.division import describe
from numatp.measure.instruments import OpInfo

TESTS = ("-p", "40", "-n", "6", "-r", "2")
SHORT, QUICK = (*TESTS, "--roofline", "8"), (*TESTS, "--roofline", "0")
LLAMA_FIELDS = [
    "build_commit", "build_number", "cpu_info", "gpu_info", "backends", "model_filename", "model_type", "model_size",
    "model_n_params", "n_batch", "n_ubatch", "n_threads", "type_k", "type_v", "n_prompt", "n_gen", "n_depth", "test_time",
    "avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts",
]  # fmt: skip
COLUMNS = ["model", "size", "params", "backend", "threads", "test", "t/s"]
OUR_FIELDS = ["ranks", "nodes", "read_gbs", "roofline_percent", "exchange_us", "peak_rss_mib"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    tiny.write(path, "Q4_1")
    return path


def bench(*arguments):
    return run_script("run_bench", "bench", *arguments)


def measured(*arguments):
    result = bench(*arguments, "-o", "json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def rates_of(results):
    return [(result["n_prompt"], result["n_gen"], result["n_depth"]) for result in results]


# ---------------------------------------------------------------- output


def test_the_table_is_llama_benchs(model):
    result = bench("-m", model, *SHORT, "-pg", "8,4", "-d", "0,20")
    assert result.returncode == 0, result.stderr
    header, line, *rows = result.stdout.splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        "model",
        "size",
        "params",
        "backend",
        "threads",
        "test",
        "t/s",
    ]
    assert re.fullmatch(r"\|( -+[-:] \|)+", line)
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[5] for row in cells] == ["pp40", "tg6", "pp8+tg4", "pp40 @ d20", "tg6 @ d20", "pp8+tg4 @ d20"]
    assert all(re.fullmatch(r"[\d.]+ ± [\d.]+", row[6]) for row in cells)
    assert all(row[0].startswith("llama 0M Q4_1") and row[3] == "CPU" for row in cells)
    assert "% of the roofline" in result.stderr
    # All columns but the last are as wide in each row; a tiny model's rate may need more room than its column has.
    assert len({row.rindex("|", 0, -1) for row in (header, line, *rows)}) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_json_has_llama_benchs_fields_and_ours(model, ranks):
    results = measured("-m", model, *SHORT, "-pg", "8,4", "--ranks", ranks)
    assert rates_of(results) == [(40, 0, 0), (0, 6, 0), (8, 4, 0)]
    for result in results:
        assert set(LLAMA_FIELDS + OUR_FIELDS) <= result.keys()
        assert result["ranks"] == ranks
        assert len(result["samples_ns"]) == len(result["samples_ts"]) == 2
        tokens = result["n_prompt"] + result["n_gen"]
        assert result["samples_ts"] == pytest.approx([1e9 * tokens / ns for ns in result["samples_ns"]])
        assert result["avg_ns"] == pytest.approx(sum(result["samples_ns"]) / 2, abs=1)
        assert 0 < result["roofline_percent"] <= 100
        assert result["read_gbs"] > 0 and result["peak_rss_mib"] > 10
        assert (result["exchange_us"] is None) == (ranks == 1)
    assert results[0]["model_n_params"] == sum_of_weights()
    assert results[0]["model_size"] < model.stat().st_size


def sum_of_weights():
    count = 0
    for shape in tiny.shapes_of(tiny.SIZES, tied=False).values():
        size = 1
        for extent in shape:
            size *= extent
        count += size
    return count


def test_csv_and_json_lines(model):
    lines = numatp("bench", "-m", model, *QUICK, "-o", "jsonl").stdout.splitlines()
    rows = list(csv.DictReader(numatp("bench", "-m", model, *QUICK, "-o", "csv").stdout.splitlines()))
    assert [json.loads(line)["n_prompt"] for line in lines] == [40, 0]
    assert [row["n_prompt"] for row in rows] == ["40", "0"]
    assert {*LLAMA_FIELDS, *OUR_FIELDS} - set(bench_output.LISTS) <= rows[0].keys()


def test_under_mpirun_with_an_audit(model):
    result = mpirun(2, "--oversubscribe", BIN / "numatp", "bench", "-m", model, *QUICK, "-o", "json", "--audit")
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout)
    assert [found["ranks"] for found in results] == [2, 2]
    for found in results:
        audit = found["audit"]
        assert audit["passed"] and audit["min_local"] == 99
        for rank, one in enumerate(audit["ranks"]):
            assert (one["rank"], one["node"], one["percent_local"]) == (rank, 0, 100)
            assert one["local"] == one["pages"] == one["by_node"]["0"] > audit["after_load"][rank]["pages"] > 0  # the cache


def test_the_same_work_in_several_ways(model):
    result = numatp("bench", "-m", model, "-p", 0, "-n", 4, "-r", 1, "--compare", "one-node,tp", "--ranks", 2, "-o", "json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    rounds = [(one["way"], one["state"], one["ranks"]) for one in found["rounds"]]
    one, two = ("one-node", 1), ("tp", 2)
    assert rounds == [(way, "cold" if i < 2 else "warm", ranks) for i, (way, ranks) in enumerate([one, two, two, one, one, two])]
    for each in found["rounds"]:
        assert [rank["node"] for rank in each["pages"]] == [0] * each["ranks"]
        assert all(rank["by_node"]["0"] > 0 for rank in each["pages"])
    assert re.fullmatch(r"tg4, warm: tp [\d.]+ t/s is [\d.]+ x one-node", found["gains"]["tg4"])


# ---------------------------------------------------------------- sweeps


def test_a_sweep_in_one_process(model, tmp_path):
    tiny.write(tmp_path / "other.gguf", "Q8_0")
    results = measured(
        "-m", f"{model},{tmp_path / 'other.gguf'}", "-t", "1,2", "-p", "20", "-p", "10", "-n", "0", "-ub", "16,32", "-r", "1",
        "--roofline", "0",
    )  # fmt: skip
    found = [(r["model_type"].split()[-1], r["n_threads"], r["n_ubatch"], r["n_prompt"]) for r in results]
    assert found == [(kind, t, ub, p) for kind in ("Q4_1", "Q8_0") for t in (1, 2) for ub in (16, 32) for p in (20, 10)]
    assert all(result["roofline_percent"] is None for result in results)


def test_lists_and_ranges():
    assert numbers("1,5-8,2") == [1, 5, 6, 7, 8, 2]
    assert numbers("1-8+3") == [1, 4, 7]
    assert numbers("1-10*2") == [1, 2, 4, 8]
    assert pair("512,128") == [(512, 128)]


@pytest.mark.parametrize("kind", [tiny_cohere2, tiny_qwen3next, tiny_qwen3moe])
def test_models_that_forget_or_mix_what_came_before(tmp_path, kind):
    """Repetitions at a depth must not run out of the cache's blocks, whatever the layers keep."""
    kind.write(tmp_path / "model.gguf", "Q4_1")
    results = measured("-m", tmp_path / "model.gguf", "-p", "20", "-n", "4", "-d", "100", "-r", "3", "--roofline", "0")
    assert rates_of(results) == [(20, 0, 100), (0, 4, 100)]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "-m/--model"),
        (("-m", "nothing"), "no such file, and no model of that name"),
        (("-m", "MODEL", "-p", "x"), "'x' is not a number or a range"),
        (("-m", "MODEL", "-p", "8-4"), "not a range that ends"),
        (("-m", "MODEL", "-p", "0-8*2"), "not a range that ends"),
        (("-m", "MODEL", "-pg", "512"), "'512' is not a pair like 512,128"),
        (("-m", "MODEL", "-p", "0", "-n", "0"), "nothing to measure"),
        (("-m", "MODEL", "-t", "0"), "0 is not a whole number above 0"),
        (("-m", "MODEL", "-r", "0"), "not a whole number above 0"),
        (("-m", "MODEL", "-p", "9000"), "pp9000 needs 9000 tokens, and .*tiny.gguf was trained for 256"),
        (("-m", "MODEL", "-p", "8", "-n", "8", "-ctk", "q2_k"), "the cache cannot be of type 'q2_k'"),
        (("-m", "MODEL", "-p", "8", "-n", "8", "--plot", "profile.txt"), "must end in .png"),
        (("-m", "MODEL", "-p", "8", "-n", "8", "--plot", "/nowhere/profile.png"), "cannot write there: No such file or directory"),
        (("-m", "MODEL", "-p", "8", "-n", "8", "--plot", ""), "must end in .png"),
        (("-m", "", "-p", "8", "-n", "8"), "the model's name is empty"),
        (("-m", "MODEL", "-p", "8", "-n", "8", "--compare", "both"), "'both' is nothing to compare"),
        (("-m", "MODEL", "-p", "8", "-n", "8", "--compare", "tp", "--ranks", "2", "-o", "csv"), "outputs md and json, not csv"),
        (("-m", "MODEL", "-p", "8", "-n", "8", "--ranks", "3", "-ts", "1,2"), "is for 2 ranks and this job has 3"),
        (("-m", "MODEL", "--rehearse", "7", "-t", "2"), "--rehearse takes one model and one cache type, and no -t"),
        (("-m", "MODEL", "--rehearse", "7", "-o", "csv"), "outputs md and json, not csv"),
        (("-m", "MODEL", "-o", "xml"), "invalid choice"),
    ],
)
def test_bad_arguments_in_one_line(model, arguments, line):
    result = numatp("bench", *(str(model) if a == "MODEL" else a for a in arguments))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and re.search(line, result.stderr), result.stderr
    assert result.stdout == ""


def test_a_sweep_that_needs_several_starts_is_refused_under_mpirun(model):
    result = mpirun(2, "--oversubscribe", BIN / "numatp", "bench", "-m", model, *QUICK, "-t", "1,2")
    assert result.returncode == 2
    assert "one model, one -t and one cache type at a time" in result.stderr


# ---------------------------------------------------------------- roofline and profile


DOUBT = r"numatp: pp40 came out at \d+ % of the roofline, which is impossible: .* left empty; .*"


def test_above_the_roofline_there_is_no_share(model):
    """A result that no machine can reach: the ceiling is a million times too low, however often it is measured."""
    results, stderr = impossible(1000, model)
    assert [(result["n_prompt"], result["roofline_percent"], result["roofline_gbs"]) for result in results] == [
        (40, None, None), (0, None, None),
    ]  # fmt: skip
    assert all(result["avg_ts"] > 0 for result in results)
    assert len([line for line in stderr.splitlines() if re.fullmatch(DOUBT, line)]) == 1


def test_a_roofline_that_came_out_too_low_is_measured_again(model):
    """Before and after the first test, and at two of three more tries."""
    results, stderr = impossible(4, model)
    assert all(0 < result["roofline_percent"] <= 100 for result in results)
    assert "impossible" not in stderr


def impossible(count, model):
    result = run_script("run_impossible_bench", count, "bench", "-m", model, *SHORT, "-o", "json")
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr
    return json.loads(result.stdout), result.stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_profile_adds_up(model, ranks):
    results = measured("-m", model, *QUICK, "-d", "16", "--ranks", ranks, "-t", 2, "--profile")
    assert [result["profile"]["rows"] for result in results] == [40, 1]
    for result in results:
        profile = result["profile"]
        assert len(profile["threads"]) == 2 * ranks
        busy = sum(kind["us"] for kind in profile["kinds"])
        assert busy == pytest.approx(profile["busy_us"])
        parts = busy + profile["barrier_us"] + profile["exchange_wait_us"] + profile["start_and_end_us"]
        assert parts == pytest.approx(profile["step_us"])
        # No thread is anywhere longer than the Step takes; what is left is its start and end.
        for thread in profile["threads"]:
            assert 0 < thread["busy_us"] <= thread["busy_us"] + thread["barrier_us"] + thread["exchange_wait_us"]
            assert thread["busy_us"] + thread["barrier_us"] + thread["exchange_wait_us"] <= profile["step_us"] * 1.000001
        if ranks == 1:  # thread 0 is there from the start to the end of a Step
            first = profile["threads"][0]
            assert first["busy_us"] + first["barrier_us"] > 0.5 * profile["step_us"]
            assert first["barrier_us"] > 0
        assert profile["straggler"]["busy_us"] == max(thread["busy_us"] for thread in profile["threads"])
        assert (profile["exchange_wait_us"] > 0) == (ranks > 1)
        layers = tiny.SIZES["layers"]
        kinds = {(kind["op"].split(".")[-1], kind["weights"]): kind for kind in profile["kinds"]}
        assert kinds["matmul", "ffn_down"]["count"] == layers
        assert kinds["attention", ""]["count"] == layers
        # Every weight matrix is read once, whatever the ranks hold of it (whole tiles and units).
        read = sum(kind["bytes"] for (name, _), kind in kinds.items() if name == "matmul")
        assert 0.9 * result["model_size"] < read + 0.9 * 200 * 96 * 20 / 32 < 1.6 * result["model_size"]


def test_work_between_barriers_is_that_of_the_busiest_thread():
    """Of each op the least of all Steps; waiting for other ranks is no work."""
    ops = [OpInfo(name, "", 0, 0, False, barrier) for name, barrier in (("a", False), ("sync", True), ("b", False), ("a", True))]
    first, second = np.array([[4.0, 90, 3, 5], [2, 90, 1, 7]]), np.array([[3.0, 1, 9, 5], [2, 1, 9, 8]])
    found = describe(ops, [first, second])
    assert (found["barriers"], found["busiest_us"], found["mean_us"]) == (3, 3 + 3 + 7, (3 + 2 + 3 + 1 + 5 + 7) / 2)
    assert found["imbalance_percent"] == pytest.approx(100 * (13 / 10.5 - 1))
    assert [(kind["op"], kind["count"], kind["busiest_us"], kind["mean_us"]) for kind in found["kinds"]] == [
        ("a", 2, 10, 8.5), ("b", 1, 3, 2)
    ]  # fmt: skip


def test_a_rehearsal_with_more_threads_than_cores(model):
    def rehearsed(threads):
        result = numatp("bench", "-m", model, "--rehearse", threads, "-o", "json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    found, alone = rehearsed(7), rehearsed(1)
    (rank,), (one,) = found["ranks"], alone["ranks"]
    assert (found["threads"], alone["threads"], one["imbalance_percent"], alone["weights_imbalance_percent"]) == (7, 1, 0, 0)
    assert found["weights_imbalance_percent"] > 0  # six tiles of a matrix for seven threads
    assert rank["mean_us"] == pytest.approx(sum(kind["mean_us"] for kind in rank["kinds"]))
    assert rank["mean_us"] < rank["busiest_us"] <= sum(kind["busiest_us"] for kind in rank["kinds"]) * 1.000001
    kinds = {(kind["op"].split(".")[-1], kind["weights"]): kind for kind in rank["kinds"]}
    assert kinds["attention", ""]["count"] == tiny.SIZES["layers"]
    table = numatp("bench", "-m", model, "--rehearse", 3)
    assert table.returncode == 0 and table.stdout.startswith("rank 0, 3 threads: between "), table.stderr


def test_a_profile_as_a_table_and_a_picture(model, tmp_path):
    pytest.importorskip("matplotlib")
    result = numatp("bench", "-m", model, *QUICK, "--profile", "--plot", tmp_path / "profile.png")
    assert result.returncode == 0, result.stderr
    tables = result.stdout.split("us a Step, mean of")
    assert len(tables) == 3
    for table in tables[1:]:
        assert re.search(r"\| matmul_q4_1.matmul ffn_gate \+ ffn_up +\| +2 \|", table)
        assert "| barriers" in table and re.search(r"busiest: thread [01] of rank 0 on cpu", table)
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")
