"""What is asked of one host, asked of several: every kind of layer, the commands, the library, prompts in files.

Hosts are namespaces of this machine (support/hosts). A start over hosts takes seconds, so each answers many questions
(scripts/run_many.py).
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.commands import BIN, SCRIPTS
from support.hosts import cluster
from support.logits import F16_ROUNDING, error
from support.models.golden import GOLDEN
from support.server import Server
from support.warm import numatp, run_script

from numatp import LLM, SamplingParams

pytestmark = [pytest.mark.cores, pytest.mark.skipif(bool(cluster.reason()), reason=str(cluster.reason()))]

# Steps of [sequence, number of tokens]: prompts alone and side by side, beside a row that decodes, and decoding together.
STEPS = [[[0, 30]], [[0, 1], [1, 20]], [[0, 1], [1, 1]], [[0, 40], [1, 5]], [[1, 1], [0, 1]]]
# Dense, windows and two norms, experts, recurrent, latent rows, choices of tokens, layers in parallel, sinks of attention, chunks,
# layers that read another's cache, a residual of several rows.
KINDS = (
    "llama", "gemma3", "qwen3moe", "qwen3next", "deepseek2-flash", "glm-dsa", "command-r", "gpt-oss", "llama4", "gemma4-e2b",
    "glm5-next",
)  # fmt: skip
GENERATE = ["generate", "-p", "1, 2, 3, 4, 5,", "-n", "16", "--temp", "0", "--check-ranks", "-m"]


def sequences(name, out, ranks, steps=STEPS, **job):
    """The arguments of run_sequences.py."""
    recorded = np.load(GOLDEN / f"{name}.npz")
    plan = {"sequences": [recorded[f"tokens{i}"].tolist() for i in range(2)], "steps": steps, "cache": "f16", **job}
    return [str(GOLDEN / f"{name}.gguf"), str(out), str(ranks), "1", json.dumps(plan)]


def ask(hosts, bin, each, folder, names, pipeline=False, **questions):
    """({what a model computed on all hosts}, the other answers)."""
    questions["sequences"] = [sequences(name, folder / f"{name}.npz", 0, pipeline=pipeline) for name in names]
    words = hosts.mpirun(bin, each, bin / "python", SCRIPTS / "run_many.py", json.dumps(questions))
    result = hosts.run("a", *words)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    statuses = [line for line in result.stderr.splitlines() if line.startswith("rank ")]
    zeros = " 0" * len(questions.get("commands", ()))
    assert sorted(statuses) == [f"rank {rank}:{zeros}" for rank in range(each * len(hosts.names))], said
    return {name: dict(np.load(folder / f"{name}.npz")) for name in names}, said


def on_one_host(folder, name, ranks):
    result = run_script("run_sequences", *sequences(name, folder / "one-host.npz", ranks))
    assert result.returncode == 0, result.stderr
    return dict(np.load(folder / "one-host.npz"))


def same_bits(got, folder, ranks):
    for name, rows in got.items():
        wanted = on_one_host(folder, name, ranks)
        assert rows.keys() == wanted.keys() and len(rows) > 8
        assert all(np.array_equal(rows[key], wanted[key]) for key in wanted), name


@pytest.fixture(scope="module")
def hosts():
    with cluster.Cluster("a", "b") as made:
        yield made


@pytest.fixture(scope="module")
def alone(model_path):
    """The text of one host."""
    return numatp(*GENERATE, model_path, "--ranks", 2).stdout


def test_two_hosts(hosts, alone, tmp_path, model_path, words_path):
    """One rank on each: where the cut is the same, so are the bits."""
    model, text = str(words_path), tmp_path / "text"
    text.write_text("The capital of France is Paris. " * 20)
    perplexity = ["perplexity", "-m", model, "-f", str(text), "-c", "128", "-o", "json"]
    commands = {
        "generate": [*GENERATE, str(model_path)], "audit": ["audit", "-m", model, "-n", "2", "-o", "json"],
        "plan": ["plan", "-m", model, "-o", "json"], "perplexity": perplexity,
        "measured": ["plan", "-m", model, "-o", "json", "--link", "measured"],
        "bench": ["bench", "-m", model, "-p", "16", "-n", "4", "-r", "1", "--roofline", "16", "-o", "json"],
    }  # fmt: skip
    got, said = ask(
        hosts, BIN, 1, tmp_path, KINDS, library=[model], kept=[model, str(tmp_path / "kept")], commands=commands
    )  # fmt: skip
    same_bits(got, tmp_path, 2)
    assert said["generate"][1] == alone and "2 hosts; host a: " in said["generate"][2]
    on_one = json.loads(numatp(*perplexity, "--ranks", 2).stdout)
    assert json.loads(said["perplexity"][1])["perplexity"] == on_one["perplexity"]
    assert [rank["rank"] for rank in json.loads(said["audit"][1])["ranks"]] == [0, 1]
    assert {row["ranks"] for row in json.loads(said["bench"][1])} == {2}
    planned = json.loads(said["plan"][1])
    assert (planned["hosts"]["hosts"], [rank["host"] for rank in planned["ranks"]]) == (2, [0, 1])
    measured = json.loads(said["measured"][1])["hosts"]
    assert re.match(r"a link that was measured \(8 B [\d.]+ us, .* 2097152 B [\d.]+ us\)", measured["link"])
    assert measured["crossing_seconds"] > measured["exchanges"] * measured["exchange_seconds"] > 0
    library = said["library"]
    assert (library["rank"], library["ranks"]) == (0, 2)
    assert library["text"] == library["streamed"] and library["text"].startswith(" Paris")
    assert len(library["several"]) == 2 and library["chat"] and len(library["logprobs"]) == 6
    before, after = said["kept"]
    assert after[0] == before[0] and (before[1], after[1]) == (0, 192)


@pytest.mark.parametrize(("library", "each", "wires"), [("openmpi", 2, None), ("mpich", 1, None), ("mpich", 2, 1)])
def test_other_launchers_and_more_ranks(hosts, alone, tmp_path, model_path, mpich, library, each, wires):
    """With two ranks on each host its sums come first: the same numbers, rounded elsewhere. One row goes by one rank or by both."""
    bin, names = BIN if library == "openmpi" else mpich, ("llama", "qwen3moe", "qwen3next")
    got, said = ask(hosts, bin, each, tmp_path, names, wires=wires, commands={"generate": [*GENERATE, str(model_path)]})
    assert said["generate"][1] == alone
    chosen = re.search(
        r"sums of one row go between hosts by (\d) ranks? of each: [\d.]+ us by 1 of each, [\d.]+ us by 2 of each",
        said["generate"][2],
    )
    assert bool(chosen) == (each > 1) and (not wires or int(chosen[1]) == wires)
    for name in names:
        wanted = on_one_host(tmp_path, name, 2 * each)
        assert all(error(got[name][key], wanted[key]) < (2 * F16_ROUNDING if each > 1 else 1e-12) for key in wanted)


def test_layers_on_hosts(hosts, tmp_path, model_path, words_path):
    """One rank on each, which computes as the one rank of one host does, and hands its rows on."""
    model, text = str(words_path), tmp_path / "text"
    text.write_text("The capital of France is Paris. " * 20)
    scores = ["perplexity", "-m", model, "-f", str(text), "-c", "128", "-o", "json"]
    commands = {
        "generate": [*GENERATE, str(model_path), "--pipeline"], "perplexity": [*scores, "--pipeline", "-t", "1"],
        "audit": ["audit", "-m", model, "-n", "2", "-o", "json", "--pipeline"],
        "bench": ["bench", "-m", model, "-p", "16", "-n", "4", "-r", "1", "--roofline", "16", "-o", "json", "--pipeline"],
    }  # fmt: skip
    names = [name for name in KINDS if name != "gemma4-e2b"]  # whose layers read what is made of the embedding
    questions = {"kept": [model, str(tmp_path / "kept"), {"pipeline": True}], "library": [model, {"pipeline": True}]}
    got, said = ask(hosts, BIN, 1, tmp_path, names, pipeline=True, commands=commands, **questions)
    same_bits(got, tmp_path, 1)
    assert said["generate"][1] == numatp(*GENERATE, model_path, "--ranks", 1).stdout
    assert "layers 0 to 14; host b: layers 15 to 29" in said["generate"][2]
    on_one = json.loads(numatp(*scores, "--ranks", 1, "-t", 1).stdout)  # threads add up parts of a score
    assert json.loads(said["perplexity"][1])["perplexity"] == on_one["perplexity"]
    groups = [set(rank["groups"]) for rank in json.loads(said["audit"][1])["ranks"]]
    assert "token_embd.weight" in groups[0] - groups[1] and "output.weight" in groups[1] - groups[0]
    assert {row["ranks"] for row in json.loads(said["bench"][1])} == {2}
    before, after = said["kept"]
    assert after[0] == before[0] and (before[1], after[1]) == (0, 192)
    library = run_script("run_many", json.dumps({"library": [model, {"ranks": 1}]}))
    assert said["library"] == json.loads(library.stdout)["library"] | {"ranks": 2}


def test_serving_with_layers_on_hosts(hosts, tmp_path, words_path):
    """Streams side by side, long prompts among them, whose rows share Steps: each says what it says alone on one host."""
    words, counted = "The capital of France is Paris. " * 20, "one, two, three, four, "
    prompts = [words, "The sun is", counted * 9, "The capital of France is", words + counted, counted]
    launcher, address = hosts.words("a", *hosts.mpirun(BIN, 1)), tmp_path / "numatp.sock"
    server = Server(words_path, "--no-auth", "--host", address, "--pipeline", "-t", 1, launcher=launcher)

    def ask_for(prompt):
        body = {"prompt": prompt, "max_tokens": 12, "temperature": 0}
        return "".join(choice["text"] for chunk in server.chunks("/v1/completions", body) for choice in chunk["choices"])

    try:
        server.ready()
        with ThreadPoolExecutor(len(prompts)) as pool:
            together = list(pool.map(ask_for, prompts))
    finally:
        server.close()
    with LLM(words_path, ranks=1, threads=1) as llm:
        alone = [output.text for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=12))]
    assert together == alone and len(set(alone)) > 3


@pytest.mark.parametrize(
    ("library", "each", "pipeline", "kinds"),
    [
        ("openmpi", 1, False, (*KINDS, "minimax-m2", "deepseek4", "kimi-linear", "glm5-next")),  # also more than one sum a product
        ("mpich", 2, False, ("llama", "qwen3moe", "qwen3next")),
        ("openmpi", 1, True, [*(name for name in KINDS if name != "gemma4-e2b"), "deepseek4"]),
    ],
    ids=["1 each", "2 each", "layers"],
)
def test_steps_in_halves(hosts, tmp_path, mpich, library, each, pipeline, kinds):
    """A long Step is computed in two halves, of which one's sums travel meanwhile: with the same bits as in one piece."""
    bin, steps = BIN if library == "openmpi" else mpich, [[[0, 48]], [[0, 1], [1, 37]], [[0, 40], [1, 1]], [[0, 1], [1, 1]]]
    plans = [
        sequences(name, tmp_path / f"{name}{halves}.npz", 0, steps, pipeline=pipeline, halves=bool(halves))
        for name in kinds
        for halves in (0, 1)
    ]
    words = hosts.mpirun(bin, each, bin / "python", SCRIPTS / "run_many.py", json.dumps({"sequences": plans}))
    result = hosts.run("a", *words)
    assert result.returncode == 0, result.stderr
    for name in kinds:
        whole, halved = (dict(np.load(tmp_path / f"{name}{halves}.npz")) for halves in (0, 1))
        assert whole.keys() == halved.keys() and len(whole) > 6
        assert all(np.array_equal(whole[key], halved[key]) for key in whole), name


def test_layers_on_hosts_of_several_ranks(hosts, tmp_path, mpich):
    """Two ranks cut the layers of each host."""
    got, _ = ask(
        hosts, mpich, 2, tmp_path, ("llama", "qwen3moe", "qwen3next", "deepseek2-flash", "deepseek4", "glm5-next"), pipeline=True
    )
    same_bits(got, tmp_path, 2)


def test_three_hosts(tmp_path, mpich):
    with cluster.Cluster("a", "b", "c") as three:
        got, _ = ask(three, mpich, 1, tmp_path, ("llama", "deepseek2-flash"))
        dealt, _ = ask(three, mpich, 1, tmp_path, ("gemma3", "qwen3next"), pipeline=True)
    same_bits(got, tmp_path, 3)
    same_bits(dealt, tmp_path, 1)
