"""What one server gives, without another beside it: `python bench/server.py MODEL QUESTION... [-r 3] [--serve OPTIONS]`

turn    the first token of a conversation's second turn beside that of its first, of --prompt tokens; and after a restart
gap     between two tokens of a stream while a prompt of --prompt tokens comes in, 99th percentile
form    tokens per second of an answer that follows a JSON schema beside one that does not
guess   tokens per second with --spec ngram and auto beside off: greedy text, which repeats itself where the weights are random,
        text that repeats its prompt (with a model that has learned to), and text drawn at temperature 1
start   seconds until a server is ready beside those of `numatp generate -n 1`, in turns

It starts each server that it asks itself, with one rank unless --serve says otherwise. Prints JSON.
"""

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

NUMATP = Path(sys.executable).parent / "numatp"
TEXT = (Path(__file__).parent.parent / "tests/data/text.txt").read_text()
SCHEMA = {
    "type": "array", "minItems": 100,
    "items": {
        "type": "object", "properties": {"name": {"type": "string"}, "size": {"type": "integer"}, "open": {"type": "boolean"}},
        "required": ["name", "size", "open"], "additionalProperties": False,
    },
}  # fmt: skip


@contextmanager
def served(model, serve, *more):
    """(client, seconds until it was ready)."""
    command = [NUMATP, "serve", "-m", model, "--port", "0", *serve, *more]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stderr=said)
        try:
            text = ""
            while "ready for" not in text:
                if process.poll() is not None:
                    sys.exit(f"{' '.join(map(str, command))}: {text}")
                time.sleep(0.005)
                text = os.pread(said.fileno(), 1 << 20, 0).decode()
            seconds = time.perf_counter() - began
            url = next(word.rstrip(":") for word in text.split() if word.startswith("http://"))
            with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
                yield client, seconds
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def stream(client, prompt, tokens, times=None, **more):
    """(when the request began and each piece came, seconds; the usage). times: the list for these, if somebody else looks at it."""
    body = {"prompt": prompt, "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
    times, usage = [] if times is None else times, {}
    times.append(time.perf_counter())
    with client.stream("POST", "/v1/completions", json=body | {"ignore_eos": True} | more) as answer:
        if answer.status_code != 200:
            sys.exit(answer.read().decode())
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                said = json.loads(line[6:])
                usage = said.get("usage") or usage
                if said["choices"] and said["choices"][0]["finish_reason"] is None:
                    times.append(time.perf_counter())
    return times, usage


def rate(client, prompt, tokens, **more):
    """Tokens per second from the first one on."""
    times, usage = stream(client, prompt, tokens, **more)
    return (usage["completion_tokens"] - 1) / (times[-1] - times[1])


def first_token(client, prompt):
    """(seconds until it came, tokens of the prompt that were computed)."""
    (began, came, *_), usage = stream(client, prompt, 16)
    return came - began, usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]


def ids(chances, count):
    return [chances.randint(1000, 9999) for _ in range(count)]


def turn(model, options):
    rounds = []
    for _ in range(options.rounds):
        chances = random.Random()
        first, second = ids(chances, options.prompt), ids(chances, 40)
        with tempfile.TemporaryDirectory() as folder:
            more = [*options.serve, "--prompt-cache-dir", folder]
            with served(model, more) as (client, _):
                seconds, _ = first_token(client, first)
                again, computed = first_token(client, first + second)
            with served(model, more) as (client, _):
                restarted, computed_then = first_token(client, first + second)
        rounds.append({
            "first_seconds": seconds, "second": again / seconds, "after_restart": restarted / seconds,
            "computed": [computed, computed_then],
        })  # fmt: skip
    return rounds


def gap(model, options):
    from threading import Thread

    rounds = []
    with served(model, [*options.serve, "--spec", "off"]) as (client, _):
        for _ in range(options.rounds):
            chances, came = random.Random(), []
            answer = Thread(target=stream, args=(client, ids(chances, 16), 400, came))
            answer.start()
            while len(came) < 20:
                if not answer.is_alive():
                    sys.exit("the stream of 400 tokens has ended before its 20th")
                time.sleep(0.02)
            began = time.perf_counter()
            stream(client, ids(chances, options.prompt), 1)
            ended = time.perf_counter()
            answer.join()
            gaps = sorted(later - earlier for earlier, later in itertools.pairwise(came) if began <= later and earlier <= ended)
            rounds.append({
                "prompt_seconds": ended - began, "gaps": len(gaps), "median": statistics.median(gaps),
                "99th": gaps[min(len(gaps) - 1, len(gaps) * 99 // 100)],
            })  # fmt: skip
    return rounds


def form(model, options):
    rounds = []
    more = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, "ignore_eos": False}
    with served(model, options.serve) as (client, _):
        for number in range(options.rounds):
            prompt = ids(random.Random(), 32)
            free, formed = (rate(client, prompt, 128, temperature=1, seed=number, **how) for how in ({}, more))
            rounds.append({"free": free, "schema": formed, "ratio": formed / free})
    return rounds


def guess(model, options):
    prompts = {
        "greedy": ({}, lambda chances: ids(chances, 24)),
        "repeats its prompt": ({}, lambda chances: TEXT[:1500] + "\n\n" + TEXT[:1500] + "\n\n" + TEXT[:40]),
        "fresh": ({"temperature": 1}, lambda chances: ids(chances, 24)),
    }  # fmt: skip
    found = []
    with (
        served(model, options.serve, "--spec", "off") as (off, _), served(model, options.serve, "--spec", "ngram") as (ngram, _),
        served(model, options.serve) as (auto, _),
    ):  # fmt: skip
        for what, (more, prompt_of) in prompts.items():
            rates = {"off": [], "ngram": [], "auto": []}
            for number in range(options.rounds):
                prompt = prompt_of(random.Random(number))
                for name, client in (("off", off), ("ngram", ngram), ("auto", auto)):
                    rates[name].append(rate(client, prompt, 160, seed=number, **more))
            medians = {name: statistics.median(values) for name, values in rates.items()}
            ratios = {name: medians[name] / medians["off"] for name in ("ngram", "auto")}
            found.append({"text": what, "tokens_per_second": medians, "beside_off": ratios})
    return found


def start(model, options):
    rounds = []
    command = [NUMATP, "generate", "-m", model, "--ranks", "1", "-p", "a", "-n", "1"]
    for _ in range(options.rounds):
        with served(model, options.serve) as (_, ready):
            pass
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rounds.append({"ready": ready, "generate": time.perf_counter() - began})
    return rounds


QUESTIONS = {"turn": turn, "gap": gap, "form": form, "guess": guess, "start": start}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("questions", nargs="+", choices=QUESTIONS)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-p", "--prompt", type=int, default=4000)
    parser.add_argument("--serve", default="--ranks 1", type=str.split, help="options of the server (default --ranks 1)")
    options = parser.parse_args()
    found = {question: QUESTIONS[question](options.model, options) for question in options.questions}
    print(json.dumps({"model": options.model, **found}, indent=1))


if __name__ == "__main__":
    main()
