"""What a server gives to several clients at once: `python bench/serve.py URL... [-s 1,4,8,16] [-p 256] [-n 64] [-r 3]`

URL: of numatp's or of any other that answers /v1/completions, each already running; several are asked in turns. For each number of
streams every client sends a prompt of its own, of -p random token ids (or words with --words, for servers that take texts alone)
and reads -n tokens of its stream. Prints JSON: by server and number of streams the medians over -r rounds of all tokens per second,
of the seconds to the first token, and of the longest gaps between two tokens (99th percentile). The script stops by itself: a round
has --timeout seconds.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time

import httpx


async def stream(client, prompt, tokens, seconds):
    """When each piece of an answer came, from the request on."""
    body = {"prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    came, began = [], time.perf_counter()
    async with asyncio.timeout(seconds), client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{client.base_url}: {(await answer.aread()).decode()[:300]}")
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line[6:]).get("choices")
                if choices and choices[0].get("finish_reason") is None:
                    came.append(time.perf_counter() - began)
    return came


async def one_round(url, prompts, tokens, seconds):
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=seconds, limits=limits, trust_env=False) as client:
        began = time.perf_counter()
        streams = await asyncio.gather(*(stream(client, prompt, tokens, seconds) for prompt in prompts))
        took = time.perf_counter() - began
    gaps = sorted(later - earlier for came in streams for earlier, later in itertools.pairwise(came))
    return {
        "tokens_per_second": len(prompts) * tokens / took,
        "first_token_seconds": statistics.median(came[0] for came in streams),
        "gap_99_seconds": gaps[min(len(gaps) - 1, len(gaps) * 99 // 100)] if gaps else 0.0,
    }


def prompt_of(chances, length, words):
    if words:
        return " ".join(chances.choice(("one", "two", "red", "sun", "tree", "house")) for _ in range(length))
    return [chances.randint(1000, 9999) for _ in range(length)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("-s", "--streams", default="1,4,8,16")
    parser.add_argument("-p", "--prompt", type=int, default=256)
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--words", action="store_true")
    parser.add_argument("--timeout", type=float, default=600)
    arguments = parser.parse_args()
    chances = random.Random()  # no server has seen these prompts in an earlier run
    results = []
    for count in map(int, arguments.streams.split(",")):
        found = {url: [] for url in arguments.urls}
        for _ in range(arguments.rounds):
            prompts = [prompt_of(chances, arguments.prompt, arguments.words) for _ in range(count)]
            for url in arguments.urls:
                found[url].append(asyncio.run(one_round(url, prompts, arguments.tokens, arguments.timeout)))
        for url, rounds in found.items():
            medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
            results.append({"url": url, "streams": count, **medians})
    print(
        json.dumps(
            {"prompt": arguments.prompt, "tokens": arguments.tokens, "rounds": arguments.rounds, "results": results}, indent=1
        )
    )


if __name__ == "__main__":
    main()
