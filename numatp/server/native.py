"""llama-server's own routes: its completion, tokens to and from texts, templates, and what the server is."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any

from msgspec import Meta, Struct

from numatp.engine.token import Token
from numatp.llm import LLM
from numatp.server.chat import event_of
from numatp.server.completions import MOST_TOKENS, Text, encoded, texts_of
from numatp.server.conversation import check_length, check_size
from numatp.server.endpoint import Call
from numatp.server.forms import grammars_of, one_of
from numatp.server.generation import Delta, Generation, Prompt, Sequence
from numatp.server.messages import Messages, as_taken, template_arguments
from numatp.server.refusals import Refused, openai_error
from numatp.server.reply import Body, Reply, reply
from numatp.server.sampling import Sampling, TokenId, params_of
from numatp.server.usage import progress_of, timings_of
from numatp.text.stream import TextStream

# ---------------------------------------------------------------- POST /completion


class NativeRequest(Sampling):
    prompt: Text
    n_predict: Annotated[int, Meta(ge=-2, le=(1 << 31) - 1)] | None = None
    max_tokens: Annotated[int, Meta(ge=-2, le=(1 << 31) - 1)] | None = None
    n_probs: Annotated[int, Meta(ge=0, le=20)] | None = None
    stream: bool | None = None
    return_tokens: bool | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None


def _prompt_of(llm: LLM, asked: NativeRequest) -> Prompt:
    """In a thread. A list of texts and ids is one prompt, piece after piece."""
    given = asked.prompt
    if isinstance(given, list) and any(isinstance(one, str) for one in given) and len(given) > 1:
        check_size(llm, sum(len(one) for one in given if isinstance(one, str)))
        pieces = [one if isinstance(one, list) else [one] if isinstance(one, int) else llm.tokenizer.encode(one) for one in given]
        texts: list[str | list[int]] = [[id for piece in pieces for id in piece]]
    else:
        texts = texts_of(given)
    if len(texts) != 1:
        raise Refused(400, "several prompts: /v1/completions takes them", param="prompt")
    tokens = encoded(llm, texts[0])
    check_length(llm, len(tokens))
    limit = asked.n_predict if asked.n_predict is not None else asked.max_tokens
    limit = limit if limit is not None and limit >= 0 else None
    grammar = one_of(*grammars_of(asked))
    if grammar:
        llm.check_grammar(grammar)
    params = params_of(asked, llm.default_params, limit, logprobs=asked.n_probs or None, grammar=grammar)
    return Prompt(tokens, params, TextStream(llm.tokenizer, params.stops, min_tokens=params.min_tokens))


async def completion(call: Call) -> Reply:
    asked = await call.parse(NativeRequest)
    state = call.state
    state.check_ready()
    prompt = await state.in_thread(_prompt_of, state.llm, asked)
    generation = Generation(state, [prompt], bool(asked.return_progress and asked.stream), call.salt(asked))
    answer = NativeAnswer(state.name, state.llm, asked, prompt)
    generation.start()
    return await reply(answer, generation, bool(asked.stream), state.settings.ping)


class NativeAnswer:
    def __init__(self, model: str, llm: LLM, asked: NativeRequest, prompt: Prompt):
        self._model, self._llm, self._asked, self._prompt = model, llm, asked, prompt

    async def whole(self, generation: Generation) -> dict[str, Any]:
        return self.end(generation.sequences[0], [delta async for delta in generation.deltas()])

    async def events(self, generation: Generation) -> AsyncIterator[bytes]:
        try:
            while await generation.more():
                yield b"".join(event_of(self._part(generation, delta)) for delta in generation.came())
        except Refused as refused:
            yield event_of(openai_error(refused))

    def _part(self, generation: Generation, delta: Delta) -> dict[str, Any]:
        """Of a stream."""
        sequence = generation.sequences[0]
        if delta.progress:
            return self._said([], False) | {"prompt_progress": progress_of(delta.progress, generation.seconds)}
        if delta.finish:
            return self.end(sequence, [delta])
        timings = {"timings": timings_of(sequence)} if self._asked.timings_per_token else {}
        return self._said([delta], False) | timings

    def _said(self, deltas: list[Delta], stop: bool) -> dict[str, Any]:
        tokens = [token for delta in deltas for token in delta.tokens]
        said = {"index": 0, "content": "".join(delta.piece.text for delta in deltas), "stop": stop, "id_slot": -1}
        said["tokens"] = [token.id for token in tokens] if self._asked.return_tokens else []
        if self._asked.n_probs:
            said["completion_probabilities"] = [self._probabilities(token) for token in tokens]
        return said

    def _probabilities(self, token: Token) -> dict[str, Any]:
        top = [self._entry(id, logprob) for id, logprob in token.top]
        return {**self._entry(token.id, token.logprob), "top_logprobs": top}

    def _entry(self, id: int, logprob: float | None) -> dict[str, Any]:
        spelled = self._llm.tokenizer.token_bytes(id)
        return {"id": id, "token": spelled.decode(errors="replace"), "bytes": list(spelled), "logprob": logprob}

    def end(self, sequence: Sequence, deltas: list[Delta]) -> dict[str, Any]:
        finish = sequence.finish
        assert finish
        kind = "limit" if finish.reason == "length" else "word" if sequence.text.stopped else "eos"
        return self._said(deltas, True) | {
            "model": self._model, "tokens_predicted": sequence.token_count, "tokens_evaluated": finish.prompt_tokens,
            "tokens_cached": finish.cached_tokens, "truncated": False, "stop_type": kind, "stopping_word": sequence.text.stop,
            "has_new_line": any("\n" in delta.piece.text for delta in deltas),
            "timings": timings_of(sequence),
        }  # fmt: skip


# ---------------------------------------------------------------- tokens and templates


Letters = Annotated[str, Meta(max_length=4 << 20)]  # whose tokens are told one by one


class TokenizeRequest(Struct):
    content: Letters | None = None  # llama-server's word
    prompt: Letters | None = None  # vLLM's
    messages: Messages | None = None
    add_special: bool | None = None  # the model's own start and end tokens
    add_special_tokens: bool | None = None
    parse_special: bool | None = None  # names of special tokens in a text are those tokens
    with_pieces: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


async def tokenize(call: Call) -> Reply:
    asked = await call.parse(TokenizeRequest)
    call.state.check_ready()
    llm = call.state.llm
    tokens = await call.state.in_thread(_tokens_of, llm, asked)
    found = await call.state.in_thread(_pieces, llm, tokens) if asked.with_pieces else tokens
    return Body({"tokens": found, "count": len(tokens), "max_model_len": llm.place.context})


def _pieces(llm: LLM, tokens: list[int]) -> list[Any]:
    return [{"id": id, "piece": _piece(llm.tokenizer.token_bytes(id))} for id in tokens]


def _tokens_of(llm: LLM, asked: TokenizeRequest) -> list[int]:
    if asked.messages is not None:
        taken = as_taken(asked.messages)
        return llm.encode(taken, template_arguments(asked.chat_template_kwargs, None, None))
    text = asked.content if asked.content is not None else asked.prompt
    if text is None:
        raise Refused(400, "give content, prompt or messages", param="content")
    # llama-server adds none unless told to, vLLM does.
    usual = asked.content is None
    ends = next((one for one in (asked.add_special, asked.add_special_tokens) if one is not None), usual)
    return llm.tokenizer.encode(text, asked.parse_special is not False, ends)


def _piece(spelled: bytes) -> str | list[int]:
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return list(spelled)


class DetokenizeRequest(Struct):
    tokens: Annotated[list[TokenId], Meta(max_length=MOST_TOKENS)]


async def detokenize(call: Call) -> Reply:
    asked = await call.parse(DetokenizeRequest)
    call.state.check_ready()
    text = await call.state.in_thread(call.state.llm.tokenizer.decode, asked.tokens)
    return Body({"content": text, "prompt": text})


class TemplateRequest(Struct):
    messages: Messages
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


async def apply_template(call: Call) -> Reply:
    asked = await call.parse(TemplateRequest)
    call.state.check_ready()
    tokenizer = call.state.llm.tokenizer
    taken = as_taken(asked.messages)
    arguments = template_arguments(asked.chat_template_kwargs, asked.tools, None)
    return Body({"prompt": await call.state.in_thread(tokenizer.render_chat, taken, arguments)})


async def tokenizer_info(call: Call) -> Reply:
    """What lm-evaluation-harness asks of a remote tokenizer."""
    call.state.check_ready()
    tokenizer = call.state.llm.tokenizer
    return Body({"bos_token": tokenizer.bos_name, "eos_token": tokenizer.eos_name, "chat_template": tokenizer.chat_template})


# ---------------------------------------------------------------- what the server is


async def props(call: Call) -> Reply:
    call.state.check_ready()
    state, llm = call.state, call.state.llm
    params = replace(llm.default_params, stop=())
    return Body({
        "default_generation_settings": {
            "n_ctx": llm.place.context,
            "params": {
                "temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p, "min_p": params.min_p,
                "repeat_penalty": params.repeat_penalty,
            },
        },
        "total_slots": state.places,
        "model_alias": state.name,
        "chat_template": llm.tokenizer.chat_template or "",
        "bos_token": llm.tokenizer.bos_name,
        "eos_token": llm.tokenizer.eos_name,
        "modalities": {"vision": False, "audio": False},
        "build_info": state.version,
        "is_sleeping": False,
    })  # fmt: skip


async def slots(call: Call) -> Reply:
    """What runs, without a word of what anybody said."""
    call.state.check_ready()
    state, counts = call.state, call.state.llm.counts
    return Body([
        {"id": i, "n_ctx": state.llm.place.context, "is_processing": i < counts.running} for i in range(state.places)
    ])  # fmt: skip
