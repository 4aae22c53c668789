"""POST /v1/completions, as OpenAI's clients and lm-evaluation-harness know it."""

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any

from msgspec import Meta

from numatp.llm import LLM
from numatp.server.chat import DONE, StreamOptions, event_of
from numatp.server.conversation import check_length, check_size, reason_of
from numatp.server.endpoint import Call
from numatp.server.forms import ResponseFormat, grammars_of, of_format, one_of
from numatp.server.generation import Delta, Generation, Prompt
from numatp.server.logprobs import CompletionLogprobs
from numatp.server.messages import Name
from numatp.server.refusals import Refused, openai_error
from numatp.server.reply import Reply, reply
from numatp.server.sampling import Sampling, TokenId, params_of
from numatp.server.usage import progress_of, timings_of, usage_of
from numatp.text.stream import TextStream

MOST_SEQUENCES = 256  # of one request: prompts times answers
MOST_TOKENS = 1 << 20  # that are given as numbers
Text = str | Annotated[list[str | TokenId | list[TokenId]], Meta(max_length=MOST_TOKENS)]


class CompletionRequest(Sampling):
    prompt: Text
    model: Name | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | bool | None = None
    echo: bool | None = None
    response_format: ResponseFormat | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None


def texts_of(given: Text) -> list[str | list[int]]:
    """Every prompt of a request: a text, token ids, or a list of either."""
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(one, int) for one in given):
        return [given]  # type: ignore[list-item]
    if not given or any(isinstance(one, int) for one in given):
        raise Refused(400, "prompt: a text, a list of texts, a list of token ids or a list of such lists", param="prompt")
    return given  # type: ignore[return-value]


def prompts_of(llm: LLM, asked: CompletionRequest) -> list[Prompt]:
    """In a thread. Names of special tokens in a text are those tokens: the text is a whole prompt, with its template applied."""
    found = []
    logprobs = None if asked.logprobs is None or asked.logprobs is False else int(asked.logprobs)
    limit = asked.max_tokens
    if limit == 0 and not asked.echo:
        raise Refused(400, "max_tokens is 0: nothing would be answered, except with echo", param="max_tokens")
    grammar = one_of(of_format(asked.response_format), *grammars_of(asked))
    if grammar:
        llm.check_grammar(grammar)
    of_prompt = logprobs if asked.echo else None
    params = params_of(asked, llm.default_params, limit, logprobs=logprobs, prompt_logprobs=of_prompt, grammar=grammar)
    texts = texts_of(asked.prompt)
    if len(texts) * (asked.n or 1) > MOST_SEQUENCES:
        raise Refused(400, f"{len(texts)} texts in one request: at most {MOST_SEQUENCES} answers", param="prompt")
    for text in texts:
        tokens = encoded(llm, text)
        if not tokens:
            raise Refused(400, "the prompt is empty", param="prompt")
        if limit != 0 or len(tokens) > llm.place.context:
            check_length(llm, len(tokens))
        for i in range(asked.n or 1):
            one = replace(params, seed=(params.seed or 0) + i)
            found.append(Prompt(tokens, one, TextStream(llm.tokenizer, params.stops, min_tokens=params.min_tokens)))
    return found


def encoded(llm: LLM, text: str | list[int]) -> list[int]:
    """In a thread. Refused for what is certainly too long, before anything is done with it."""
    if isinstance(text, str):
        check_size(llm, len(text))
    else:
        check_length(llm, len(text) - 1)
    return llm.encode(text)


async def completions(call: Call) -> Reply:
    asked = await call.parse(CompletionRequest)
    state = call.state
    state.check_ready()
    prompts = await state.in_thread(prompts_of, state.llm, asked)
    generation = Generation(state, prompts, bool(asked.return_progress and asked.stream), call.salt(asked))
    answer = CompletionAnswer(state.name, state.llm, asked, prompts)
    generation.start()
    return await reply(answer, generation, bool(asked.stream), state.settings.ping)


class CompletionAnswer:
    """How one request is answered."""

    def __init__(self, model: str, llm: LLM, asked: CompletionRequest, prompts: list[Prompt]):
        self._asked, self._prompts = asked, len(prompts) // (asked.n or 1)
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex[:24]}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._before = [llm.tokenizer.decode(prompt.tokens) if asked.echo else "" for prompt in prompts]
        self._logprobs = [CompletionLogprobs(llm.tokenizer) for _ in prompts]
        self._wants_logprobs = asked.logprobs is not None and asked.logprobs is not False

    async def whole(self, generation: Generation) -> dict[str, Any]:
        said: list[list[Delta]] = [[] for _ in generation.sequences]
        async for delta in generation.deltas():
            said[delta.number].append(delta)
        choices = []
        for i, sequence in enumerate(generation.sequences):
            text = self._before[i] + "".join(delta.piece.text for delta in said[i])
            choices.append({
                "index": i, "text": text, "logprobs": self._said_logprobs(i, said[i]), "finish_reason": reason_of(sequence),
            })  # fmt: skip
        body = {**self._head, "choices": choices, "usage": usage_of(generation.sequences, self._prompts)}
        if generation.sequences[0].finish:
            body["timings"] = timings_of(generation.sequences[0])
        return body

    def _said_logprobs(self, index: int, deltas: list[Delta]) -> dict[str, Any] | None:
        tokens = [token for delta in deltas for token in delta.tokens]
        return self._logprobs[index].push(tokens) if self._wants_logprobs else None

    async def events(self, generation: Generation) -> AsyncIterator[bytes]:
        options = self._asked.stream_options or StreamOptions()
        try:
            for index, text in enumerate(self._before):
                if text:
                    yield self._chunk(index, text)
            while await generation.more():
                yield b"".join(self._event_of(generation, delta, options) for delta in generation.came())
            if options.include_usage:
                yield event_of({**self._head, "choices": [], "usage": usage_of(generation.sequences, self._prompts)})
        except Refused as refused:
            yield event_of(openai_error(refused))
        yield DONE

    def _event_of(self, generation: Generation, delta: Delta, options: StreamOptions) -> bytes:
        sequence = generation.sequences[delta.number]
        more: dict[str, Any] = {}
        if options.continuous_usage_stats:
            more["usage"] = usage_of(generation.sequences, self._prompts)
        if delta.progress:
            more["prompt_progress"] = progress_of(delta.progress, generation.seconds)
        if delta.finish or (self._asked.timings_per_token and delta.piece.text):
            more["timings"] = timings_of(sequence)
        reason = reason_of(sequence) if delta.finish else None
        return self._chunk(delta.number, delta.piece.text, reason, self._said_logprobs(delta.number, [delta]), more)

    def _chunk(
        self, index: int, text: str, reason: str | None = None, logprobs: dict[str, Any] | None = None,
        more: dict[str, Any] | None = None,
    ) -> bytes:  # fmt: skip
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return event_of({**self._head, "choices": [choice], **(more or {})})
