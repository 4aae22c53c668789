"""A server whose model says what a test wants it to say: everything is real but the engine."""

import asyncio
import threading
from types import SimpleNamespace

import uvicorn

from numatp import LLM, SamplingParams
from numatp.engine.counts import Counts
from numatp.engine.token import Finish, Token
from numatp.server.app import make_app
from numatp.server.serve import listen
from numatp.server.settings import Settings
from numatp.server.state import State
from numatp.text.tokenizer import open_tokenizer

# As Hermes and Qwen3 have them: reasoning and calls in marks.
TEMPLATE = """
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif -%}
{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>{{ {"name": call.function.name, "arguments": call.function.arguments} | tojson }}</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant{{ "\n" }}"""


class ScriptedLLM:
    encode, check_length, template = LLM.encode, LLM.check_length, TEMPLATE
    model, pids, steps, step_seconds = "/secret/place/scripted.gguf", [0], 0, 0.0

    def __init__(self, model_path):
        self.tokenizer = open_tokenizer(model_path)
        self.tokenizer.chat_template = TEMPLATE
        self.counts, self.default_params = Counts(), SamplingParams()
        self.place = SimpleNamespace(context=4096, trained_context=4096)
        self.stats = SimpleNamespace(reads=[(0, 1)], pages="")
        self.says, self.tokens, self.prompt, self.params = "", [], "", None
        self.error = None  # with which it ends instead
        self.pause = 0.001  # seconds before each token

    def check_grammar(self, grammar):
        pass

    def start(self, tokens, params, put, progress=False, cache_salt="", parts=None):
        known = self.tokenizer
        spelled = (known.tokens[id].encode() if known.is_special(id) else known.token_bytes(id) for id in tokens)
        self.tokens, self.prompt, self.params = tokens, b"".join(spelled).decode(), params
        asked = SimpleNamespace(cancelled=threading.Event())
        threading.Thread(target=self._say, args=(len(tokens), params, put, asked)).start()
        return asked

    def _say(self, prompt_tokens, params, put, asked):
        ids = self.tokenizer.encode(self.says, special=False, ends=False)
        room = params.max_tokens if params.max_tokens is not None else len(ids) + 1
        for id in ids[:room]:
            if asked.cancelled.wait(self.pause):
                put(Finish("cancelled", prompt_tokens, 0.1, 1, 0.1, 3))
                return
            put(Token(id))
        put(self.error or Finish("length" if room <= len(ids) else "stop", prompt_tokens, 0.1, len(ids), 0.1, 3))


class ScriptedServer:
    def __init__(self, model_path, http="h11"):
        """http: uvicorn's word for who reads connections."""
        self.llm, settings = ScriptedLLM(model_path), Settings(port=0)
        listening = listen(settings)
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self.state = State(self.llm, settings, 8)
        self.state.phase = "ready"
        config = uvicorn.Config(make_app(self.state), http=http, ws="none", lifespan="off", log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([listening])))
        self._thread.start()

    def close(self):
        self._server.should_exit = True
        self._thread.join()
