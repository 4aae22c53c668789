"""The library as scripts use it: texts, lists, streams, chats and scores, from one thread, several threads and under mpirun."""

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import psutil
import pytest
from support.commands import BIN, SCRIPTS, TESTS, mpirun, run
from support.models import tiny
from support.warm import numatp

import numatp as package
from numatp import LLM, MachineError, NumatpError, RankError, SamplingParams, UserError
from numatp.engine import engine
from numatp.engine.token import Token
from numatp.machine import isa

GREEDY = SamplingParams(temperature=0, max_tokens=12)
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def llm(model_path):
    cpus = os.sched_getaffinity(0)
    with LLM(model_path, ranks=2, ctx=1024, max_sequences=4, ubatch=64) as llm:
        assert os.sched_getaffinity(0) == cpus
        yield llm


def test_a_huge_step_is_refused_before_the_ranks_share_its_rows(tmp_path, monkeypatch):
    tiny.write(tmp_path / "tiny.gguf", sizes=tiny.SIZES | {"context": 1 << 26})
    monkeypatch.setattr(engine, "Window", lambda *arguments, **named: pytest.fail("the window was taken"))
    with pytest.raises(
        MachineError, match=r"GB free and its ranks \[0\] would need \d+\.\d GB there \(weights, cache, what a Step"
    ):
        LLM(tmp_path / "tiny.gguf", ranks=1, ctx=1 << 26, ubatch=1 << 26)


def test_generate_is_what_the_command_prints(llm, model_path):
    output = llm.generate(PROMPT, GREEDY)
    printed = numatp("generate", "-m", model_path, "-p", PROMPT, "-n", 12, "--temp", 0, "--ranks", 2).stdout
    assert output.text == printed.removesuffix("\n")
    assert output.finish_reason == "length" and len(output.token_ids) == 12 and output.prompt_tokens == 5
    assert output.decoded_tokens == 11 and output.decode_seconds > 0 and output.prompt_seconds > 0
    assert llm.generate(llm.tokenizer.encode(PROMPT), GREEDY).text == output.text


def test_the_tokens_of_float64(llm):
    """After each beginning of what the same weights say in float64, wherever rounding to 8 bits leaves no doubt."""
    recorded = json.loads((TESTS / "data/smollm2_text.json").read_text())  # data/make_smollm2_text.py
    ids, tokens = llm.tokenizer.encode(recorded["prompt"]), recorded["tokens"]
    beginnings = [ids + tokens[:i] for i in range(len(tokens))]
    found = [output.token_ids for output in llm.generate(beginnings, SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))]
    # Logits are about 10 in size; 8 bits cost 1 % of that in each of many products, and two logits are compared.
    certain = [i for i, gap in enumerate(recorded["gaps"]) if gap > 0.5]
    assert len(certain) > 10
    assert [found[i] for i in certain] == [[tokens[i]] for i in certain]


def test_a_list_is_generated_together(llm):
    prompts = [f"The number {i} is" for i in range(10)]  # more than max_sequences
    together = llm.generate(prompts, GREEDY)
    assert [output.text for output in together] == [llm.generate(prompt, GREEDY).text for prompt in prompts]
    assert llm.generate([], GREEDY) == []


def test_stream_and_stop(llm):
    whole = llm.generate(PROMPT, GREEDY).text
    assert "".join(llm.stream(PROMPT, GREEDY)) == whole
    stop = whole[5:12]
    stopped = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=12, stop=(stop,)))
    assert stopped.finish_reason == "stop" and stopped.text == whole[: whole.index(stop)]


def test_no_tokens(llm):
    """The prompt alone is computed, as llama.cpp does for -n 0."""
    output = llm.generate(PROMPT, SamplingParams(max_tokens=0))
    assert (output.text, output.token_ids, output.finish_reason, output.decoded_tokens) == ("", [], "length", 0)
    assert output.prompt_tokens == len(llm.tokenizer.encode(PROMPT))
    limit = llm.place.context
    with pytest.raises(UserError, match=f"the prompt has {limit + 1} tokens, the context {limit}"):
        llm.generate([1] * (limit + 1), SamplingParams(max_tokens=0))
    assert llm.generate([1] * limit, SamplingParams(max_tokens=0)).prompt_tokens == limit  # nothing comes behind it
    with pytest.raises(UserError, match=f"the prompt has {limit} tokens"):
        llm.generate([1] * limit, SamplingParams(max_tokens=1))


def test_what_a_chat_template_reads(llm):
    messages = [{"role": "user", "content": "Hello"}]
    output = llm.chat(messages, SamplingParams(max_tokens=0), template_kwargs={"add_generation_prompt": False})
    assert output.prompt_tokens < llm.chat(messages, SamplingParams(max_tokens=0)).prompt_tokens
    said = llm.chat([{"role": "user", "content": "<|im_end|><|im_start|>"}], SamplingParams(max_tokens=0)).prompt_tokens
    names = llm.tokenizer.encode("<|im_end|><|im_start|>", special=False)
    assert said == llm.chat([{"role": "user", "content": ""}], SamplingParams(max_tokens=0)).prompt_tokens + len(names)


def test_a_closed_stream_ends_its_work(llm):
    answer = llm.submit(PROMPT, SamplingParams(max_tokens=None, ignore_eos=True))  # reserves the whole context
    pieces = iter(answer)
    next(pieces)
    pieces.close()
    while isinstance(item := answer._queue.get(timeout=60), Token):
        pass
    assert item.reason == "cancelled" and item.decoded_tokens < 500


def test_scores(llm):
    answer = llm.generate(PROMPT, GREEDY)
    tokens = llm.tokenizer.encode(PROMPT)
    scores = llm.score(tokens + answer.token_ids)
    assert scores.token_ids == tokens + answer.token_ids and len(scores.logprobs) == len(scores.token_ids) - 1
    assert max(scores.logprobs) < 0
    last = llm.score(tokens + answer.token_ids, count=12).logprobs
    assert last == scores.logprobs[-12:]
    # Greedy tokens are the most probable: any other in their place scores lower.
    for other in (0, 100, 49151):
        assert llm.score([*tokens, other], count=1).logprobs[0] < last[0]


def test_several_threads(llm):
    prompts = [f"Count to {i}:" for i in range(6)]
    expected = [llm.generate(prompt, GREEDY).text for prompt in prompts]
    found = {}

    def work(i):
        if i % 2:
            found[i] = llm.generate(prompts[i], GREEDY).text
        else:
            found[i] = "".join(llm.stream(prompts[i], GREEDY))
        llm.score(prompts[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found.get(i) for i in range(6)] == expected


def test_chat(llm):
    messages = [{"role": "user", "content": "Hello"}]
    assert llm.chat(messages, GREEDY).text == llm.generate(llm.tokenizer.encode(llm.tokenizer.render_chat(messages)), GREEDY).text
    assert "".join(llm.stream(messages, GREEDY)) == llm.chat(messages, GREEDY).text


def test_plan_and_stats(llm, model_path):
    assert (llm.place.ranks, llm.place.threads, llm.place.context) == (2, 1, 1024)
    assert llm.place.model == str(model_path) and 0.4 < llm.place.weight_bytes / model_path.stat().st_size < 0.6
    assert llm.stats.load_seconds > 0 and "rank 1: 100.0 %" in llm.stats.pages


@pytest.mark.parametrize(
    ("work", "line"),
    [
        (lambda llm: llm.generate(""), "the prompt is empty"),
        (lambda llm: llm.generate("word " * 2000), "the prompt has 2001 tokens, the context 1024"),
        (lambda llm: llm.generate([1, 2, 1 << 20]), "token 1048576 is outside the model's vocabulary of 49152"),
        (lambda llm: llm.generate(["One", ""]), "the prompt is empty"),
        (lambda llm: llm.generate([1.0, 2.0]), r"token ids, which are whole numbers; this one holds '1.0' \(float\)"),
        (lambda llm: llm.generate(np.array([504.0, 2.0])), r"this one holds '504.0' \(float64\)"),
        (lambda llm: llm.generate([True, False]), r"this one holds 'True' \(bool\)"),
        (lambda llm: llm.generate([504, 2.5]), r"this one holds '2.5' \(float\)"),
        (lambda llm: llm.generate([[504], [2.5]]), r"this one holds '2.5' \(float\)"),
        (lambda llm: llm.stream([504, "a"]), r"this one holds 'a' \(str\)"),
        (lambda llm: llm.generate(None), "a text or a list of token ids, and not NoneType"),
        (lambda llm: llm.generate(b"bytes"), "a text or a list of token ids, and not bytes"),
        (lambda llm: llm.generate("a", {"temperature": 0}), "params are .* not dict"),
        (lambda llm: llm.chat("Hello"), "chat takes messages like"),
        (lambda llm: llm.chat([{"role": "user", "content": "a"}], template_kwargs="x"), "template_kwargs are a dict .* not str"),
        (lambda llm: llm.score("a"), "at least two tokens"),
        (lambda llm: llm.score(np.array([1.0, 2.0])), r"this one holds '1.0' \(float64\)"),
        (lambda llm: llm.score("a b c", count=1.0), "count is 1.0 and must be a whole number"),
        (lambda llm: SamplingParams(temperature=-1), "temperature is -1"),
        (lambda llm: SamplingParams(top_p=0), "top_p is 0"),
    ],
)
def test_bad_calls_in_one_line(llm, work, line):
    with pytest.raises(UserError, match=line) as refused:
        work(llm)
    assert "\n" not in str(refused.value)
    assert llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=1)).token_ids  # still at work


def test_numbers_of_numpy(llm):
    ids = llm.tokenizer.encode(PROMPT)
    params = SamplingParams(np.float32(0), top_k=np.int32(3), seed=np.int64(5), max_tokens=np.int64(4))
    assert llm.generate(np.array(ids), params).text == llm.generate(ids, GREEDY).text[: len(" Paris.\n\n")]
    assert llm.score(np.array(ids)) == llm.score(ids)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranks": "2"}, {"ranks": 0}, {"threads": 1.5}, {"ctx": "64"}, {"max_sequences": 0}, {"ubatch": -5}, {"nodes": 0},
        {"cpus": 0}, {"tensor_split": "3,1"}, {"tensor_split": 3}, {"quantize": "q3"}, {"cache_type": "q3"},
    ],
    ids=str,
)  # fmt: skip
def test_bad_arguments_in_one_line(words_path, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"{name} is {value!r}|cannot be of type {value!r}"):
        LLM(words_path, **{"ranks": 1, "ctx": 64} | wrong)


def test_a_step_has_no_more_rows_than_the_context(words_path):
    """Or memory for rows that can never come would be taken until the kernel kills."""
    with LLM(words_path, ranks=1, ctx=64, ubatch=10_000_000) as llm:
        assert llm.generate(PROMPT, GREEDY).token_ids
        assert llm._service.engine().loaded.layout.max_rows == 64


def test_start_for_who_waits_in_another_way(llm):
    events = SimpleQueue()
    llm.start(llm.encode(PROMPT), GREEDY, events.put)
    tokens = [events.get().id for _ in range(GREEDY.max_tokens)]
    assert llm.tokenizer.decode(tokens) == llm.generate(PROMPT, GREEDY).text
    assert events.get().reason == "length"
    endless = llm.start(llm.encode(PROMPT), SamplingParams(temperature=0, max_tokens=None, ignore_eos=True), events.put)
    assert isinstance(events.get(), Token) and llm.steps
    endless.cancelled.set()
    while isinstance(last := events.get(), Token):
        pass
    assert last.reason == "cancelled"
    with pytest.raises(UserError, match="outside the model's vocabulary"):
        llm.start([1 << 40], GREEDY, events.put)


def test_loading_while_something_else_is_done(words_path):
    llm = LLM(words_path, ranks=2, ctx=256, wait=False)
    try:
        assert len(llm.pids) == 2 and llm.pids[0] == os.getpid() and llm.step_seconds == 0
        llm.open()
        assert llm.generate(PROMPT, GREEDY).token_ids
        os.kill(llm.pids[1], signal.SIGKILL)
        with pytest.raises(RankError, match="rank 1"):
            llm.generate(PROMPT, GREEDY)
        with pytest.raises(RankError, match="rank 1"):
            llm.wait()
    finally:
        llm.close()


def test_bad_models_and_machines(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        LLM(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match="--ranks|ranks"):
        LLM("smollm2", ranks=0)
    assert issubclass(UserError, NumatpError) and issubclass(MachineError, NumatpError) and issubclass(RankError, NumatpError)


def test_two_models_and_a_closed_one(words_path):
    with LLM(words_path, ranks=1, threads=1, ctx=256) as first, LLM(words_path, ranks=1, threads=1, ctx=256) as second:
        assert first.generate(PROMPT, GREEDY).text == second.generate(PROMPT, GREEDY).text
    with pytest.raises(UserError, match="closed"):
        first.generate(PROMPT, GREEDY)
    first.close()


def script(model, *arguments, **environment):
    return run(sys.executable, SCRIPTS / "run_llm.py", model, *arguments, env=environment)


@pytest.mark.cores
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_script_that_uses_numba_itself(words_path, ranks):
    result = script(words_path, "numba", ranks)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # a library logs, it does not print
    said = json.loads(result.stdout)
    assert said["affinity"] and said["settings"] and said["sum"] == 1000
    command = ("generate", "-m", words_path, "-p", PROMPT, "-n", 12, "--temp", 0, "--ranks", ranks)
    assert said["text"] == said["streamed"] == numatp(*command).stdout.removesuffix("\n")
    assert "empty" in said["refused"] and said["ranks"] == ranks
    logged = script(words_path, "short", ranks, SHOW_LOG="1")
    assert "INFO:numatp:weights rank 0: 100.0 %" in logged.stderr


def test_under_mpirun_every_rank_gets_the_results(words_path):
    result = mpirun(2, sys.executable, SCRIPTS / "run_llm.py", words_path, "everything")
    assert result.returncode == 0, result.stderr
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert first == second
    with LLM(words_path, ranks=2, ctx=1024) as llm:
        assert first["text"] == first["streamed"] == llm.generate(PROMPT, GREEDY).text
        assert first["logprobs"] == llm.score("The capital of France is Paris.").logprobs
    assert "empty" in first["refused"] and first["ranks"] == 2


def test_under_mpirun_calls_that_differ(words_path):
    result = mpirun(2, sys.executable, SCRIPTS / "run_llm.py", words_path, "differing")
    assert result.returncode == 0, result.stderr
    for line in result.stdout.splitlines():
        assert "rank 0: generate, rank 1: score" in json.loads(line)["refused"]


def test_under_mpirun_an_error_of_one_rank_ends_all(words_path):
    result = mpirun(2, sys.executable, SCRIPTS / "run_llm.py", words_path, "failing", timeout=60)
    assert result.returncode != 0
    assert "my own mistake" in result.stderr


def test_a_script_that_forgets_to_close(words_path):
    code = "from numatp import LLM; import sys; llm = LLM(sys.argv[1], ranks=2, ctx=256); print(llm.generate('Hello').text)"
    result = run(sys.executable, "-c", code, words_path, timeout=60)
    assert result.returncode == 0 and result.stdout, result.stderr


def test_in_a_process_with_its_own_event_loop(words_path):
    """A notebook calls from inside a running asyncio loop."""
    code = (
        "import asyncio, sys\nfrom numatp import LLM\n"
        "async def cell():\n    with LLM(sys.argv[1], ranks=2, ctx=256) as llm:\n        return llm.generate('Hello').text\n"
        "print(asyncio.run(cell()))"
    )
    assert run(sys.executable, "-c", code, words_path, timeout=60).stdout


def of_script(model, code):
    imports = "import os, sys, threading\nfrom numatp import LLM, RankError, SamplingParams\n"
    result = run(sys.executable, "-c", imports + code, model)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_a_forked_child_is_refused(words_path):
    said = of_script(
        words_path,
        """
llm, params = LLM(sys.argv[1], ranks=2, ctx=256), SamplingParams(max_tokens=4, ignore_eos=True)
if not (child := os.fork()):
    try:
        llm.generate("Hello", params)
    except RankError as error:
        print(error, flush=True)
    llm.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(len(llm.generate("Hello", params).token_ids))
""",
    )
    assert said == ["numatp was used in a forked child of the process that loaded the model: load it in the child", "4"]


def test_ctrl_c_in_a_long_prompt(model_path):
    """The terminal sends it to the whole group of processes: those of other ranks are not in it, and go on."""
    said = of_script(
        model_path,
        """
os.setpgid(0, 0)
with LLM(sys.argv[1], ranks=2, ctx=8192) as llm:
    threading.Timer(0.3, os.killpg, (0, 2)).start()
    try:
        llm.generate([5] * 8000)
    except KeyboardInterrupt:
        print("interrupted")
    print(llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=2)).text)
""",
    )
    assert said == ["interrupted", " Paris."]


def threads(process, name=""):
    """/proc/PID/task/*/status of the threads with such a name."""
    found = [task.read_text() for task in Path(f"/proc/{process}/task").glob("*/status")]
    return [status for status in found if re.match(rf"Name:\s+{name}", status)]


def workers():
    """Of the threads that C started in this process."""
    return threads("self", r"numatp-0-\d+\n")


def count_switches(status):
    return sum(map(int, re.findall(r"ctxt_switches:\s*(\d+)", status)))


def test_workers_take_no_signals_and_sleep_when_there_is_no_work(words_path):
    before = len(workers())
    with LLM(words_path, ranks=1, threads=3, ctx=256) as llm:
        llm.generate(PROMPT, GREEDY)
        mine = workers()
        assert len(mine) == before + 2
        for status in mine:
            blocked = int(re.search(r"SigBlk:\s*(\w+)", status)[1], 16)
            assert all(blocked >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM))
        end = time.monotonic() + 60
        while seen := [status for status in workers() if "State:\tS" not in status]:
            assert time.monotonic() < end, seen
            time.sleep(0.01)
        switches = [count_switches(status) for status in workers()]
        time.sleep(0.3)
        assert [count_switches(status) for status in workers()] == switches  # and did not wake in between
    assert len(workers()) == before


def test_another_rank_sleeps_when_there_is_no_work(words_path):
    """Its workers until they are needed; its first thread looks now and then whether rank 0 still lives; the kernel counts."""
    others = set(psutil.Process().children())
    with LLM(words_path, ranks=2, threads=2, ctx=256) as llm:
        llm.generate(PROMPT, GREEDY)
        (rank,) = set(psutil.Process().children()) - others
        end = time.monotonic() + 60
        while seen := [status for status in threads(rank.pid) if "State:\tS" not in status]:
            assert time.monotonic() < end, seen
            time.sleep(0.01)
        sleeping = threads(rank.pid, "numatp-1-")
        assert len(sleeping) == 1
        before, began = rank.num_ctx_switches().voluntary, time.monotonic()
        time.sleep(0.6)
        looks = (rank.num_ctx_switches().voluntary - before) / (time.monotonic() - began)
        assert looks < 50  # a second; it looks 5 times, and whoever naps while it waits does so thousands of times
        assert [count_switches(status) for status in threads(rank.pid, "numatp-1-")] == [count_switches(s) for s in sleeping]


def test_the_users_numba_and_numatp_have_targets_of_their_own(words_path):
    """NUMATP_ISA counts, whatever the script's Numba was loaded with."""
    result = run(sys.executable, SCRIPTS / "run_llm.py", words_path, "numba", 2, env={"NUMATP_ISA": "avx2", "SHOW_LOG": "1"})
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["text"].startswith(" Paris")
    assert "NUMATP_ISA has no effect" not in result.stderr


def test_other_ranks_run_the_kernels_of_rank_0(words_path):
    """Not those of what its environment says by now."""
    said = of_script(
        words_path,
        """
import logging, numba
from numatp.kernels import dot
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
os.environ |= {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c", "NUMATP_ISA": "avx2"}
with LLM(sys.argv[1], ranks=2, ctx=256) as llm:
    print(llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=2)).text)
""",
    )
    assert said[-1] == " Paris."
    if isa.level().name != "avx2":
        assert "WARNING:numatp:NUMATP_ISA has no effect: this process had chosen before" in said


def test_a_full_context_ends_the_text(words_path):
    with LLM(words_path, ranks=1, ctx=40) as llm:
        output = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
        assert (output.finish_reason, output.prompt_tokens + len(output.token_ids)) == ("length", 40)
        with pytest.raises(UserError, match="the prompt has 40 tokens, the context 40"):
            llm.generate([5] * 40)
        assert len(llm.generate([5] * 39, GREEDY).token_ids) == 1


def test_the_library_is_documented():
    things = [getattr(package, name) for name in package.__all__]
    things += [method for name, method in vars(LLM).items() if callable(method) and not name.startswith("_")]
    undocumented = [thing.__qualname__ for thing in things if not thing.__doc__ or thing.__doc__.startswith(f"{thing.__name__}(")]
    assert not undocumented  # or only what dataclass writes


def test_types_are_part_of_the_package(tmp_path):
    script = tmp_path / "user.py"
    script.write_text(
        "from numatp import LLM, SamplingParams\n"
        "def one(llm: LLM) -> str:\n    return llm.generate('a', SamplingParams(top_k=3)).text\n"
        "def several(llm: LLM) -> list[str]:\n    return [output.text for output in llm.generate(['a', 'b'])]\n"
        "def wrong(llm: LLM) -> int:\n    return llm.generate('a').text\n"
    )
    cache, known = tmp_path / "cache", TESTS.parent / ".mypy_cache"
    if known.exists():  # from `make lint`: seconds less
        shutil.copytree(known, cache)
    found = run(BIN / "mypy", "--cache-dir", cache, script, env={"MYPYPATH": str(TESTS.parent)}).stdout
    assert "user.py:7" in found and found.count("error") == 2, found  # the line, and the summary
