"""Tokens on their way from the engine's thread to a stream: the event loop is woken for many at once."""

import asyncio
import json
import threading

import httpx
import pytest
from support.scripted import ScriptedServer

from numatp.server.mailbox import Mailbox


@pytest.fixture(scope="module")
def server(model_path):
    server = ScriptedServer(model_path)
    yield server
    server.close()


def test_the_event_loop_is_woken_once_for_all_that_came():
    async def play():
        loop, taken, woken = asyncio.get_running_loop(), [], []
        wake = loop.call_soon_threadsafe

        def waking(*call):
            woken.append(call)
            return wake(*call)

        loop.call_soon_threadsafe = waking
        mailbox = Mailbox()
        first, second = mailbox.receiver(lambda item: taken.append(("first", item))), mailbox.receiver(taken.append)
        for times in (1, 2):
            thread = threading.Thread(target=lambda: [put(i) for i in range(50) for put in (first, second)])
            thread.start()
            thread.join()  # the loop does not look meanwhile
            while len(taken) < 100:
                await asyncio.sleep(0)
            assert taken == [item for i in range(50) for item in (("first", i), i)]
            assert len(woken) == times
            taken.clear()

    asyncio.run(asyncio.wait_for(play(), 60))


def test_each_of_several_tokens_that_come_together_has_an_event_of_its_own(server):
    """And says what there was after it."""
    server.llm.says, server.llm.pause = "one two three four five six seven", 0
    body = {"prompt": "a", "stream": True, "stream_options": {"continuous_usage_stats": True}, "max_tokens": 100}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, trust_env=False, timeout=60) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    said = [event for event in events if event["choices"][0]["text"]]
    assert "".join(event["choices"][0]["text"] for event in said) == server.llm.says
    assert [event["usage"]["completion_tokens"] for event in said] == list(range(1, len(said) + 1)) and len(said) >= 7
