"""`numatp serve` in a process of its own, for the tests of a module."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import time

import httpx
from support.commands import BIN

PATIENCE = 240  # seconds, on a machine that compiles kernels for others at the same time


class Server:
    def __init__(self, model, *arguments, launcher=(), env=None):
        command = [*launcher, BIN / "numatp", "serve", "-m", model, "--port", 0, *arguments]
        self.process = subprocess.Popen(
            [str(part) for part in command], stderr=subprocess.PIPE, text=True, env=os.environ | (env or {}), start_new_session=True
        )
        self.said = ""
        self.url = self._wait_for(r"((?:http://|unix:)\S+): answers")
        path = self.url.removeprefix("unix:")
        transport = None if path == self.url else httpx.HTTPTransport(uds=path)
        base = self.url if path == self.url else "http://localhost"
        self.client = httpx.Client(base_url=base, timeout=PATIENCE, trust_env=False, transport=transport)

    def _wait_for(self, pattern):
        end = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.said)):
            assert self.read(end - time.monotonic()), self.said
        return found[1] if found.groups() else found[0]

    def read(self, timeout=0.0):
        """What it has written to stderr since; False at the end."""
        if not select.select([self.process.stderr], [], [], max(timeout, 0))[0]:
            return timeout <= 0
        text = os.read(self.process.stderr.fileno(), 65536).decode()
        self.said += text
        return bool(text)

    def ready(self):
        self._wait_for("ready for")
        assert self.client.get("/health").status_code == 200
        return self

    def post(self, path, body, **options):
        return self.client.post(path, json=body, **options)

    def events(self, path, body, **options):
        """The data of the events of a stream; bytes of the whole in `raw`."""
        with self.client.stream("POST", path, json=body | {"stream": True}, **options) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            return [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]

    def chunks(self, path, body, **options):
        events = self.events(path, body, **options)
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]

    def counts(self):
        """What /metrics says, by name."""
        lines = self.client.get("/metrics").text.splitlines()
        return {
            line.split()[0].removeprefix("numatp:"): float(line.split()[1]) for line in lines if line[0] != "#" and "{" not in line
        }

    def wait(self, timeout=60):
        """The exit status, once it has ended and all that it said was read."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0 and self.read(left):
            pass
        return self.process.wait(max(end - time.monotonic(), 0.1))

    def close(self):
        self.client.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stderr.close()
