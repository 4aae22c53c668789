"""A chat, whichever interface it came by, on its way to the engine."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from numatp.engine.sampling import SamplingParams
from numatp.llm import LLM
from numatp.server.forms import CallReader, of_call
from numatp.server.generation import Delta, Generation, Prompt, Sequence
from numatp.server.refusals import Refused
from numatp.server.state import State
from numatp.text.parts.piece import ToolCall
from numatp.text.stream import TextStream

SHORT = 8  # characters a token: a text with fewer may fit, whatever words the model knows


@dataclass(frozen=True)
class Chat:
    messages: list[dict[str, Any]]
    arguments: dict[str, Any]  # of the template
    params: SamplingParams
    count: int = 1  # answers
    one_call: bool = False  # the answer ends with its first call of a tool
    must_call: bool = False  # the answer has to be a call of one of the arguments' tools


async def ask(state: State, chat: Chat, salt: str, progress: bool = False) -> Generation:
    """A Generation that has been started. Refused for messages that the model does not take, or if too many wait."""
    generation = Generation(state, await state.in_thread(prompts_of, state.llm, chat), progress, salt)
    generation.start()
    return generation


def prompts_of(llm: LLM, chat: Chat) -> list[Prompt]:
    """In a thread."""
    check_size(llm, sum(map(_characters, chat.messages)))
    tokens = llm.encode(chat.messages, chat.arguments)
    check_length(llm, len(tokens))
    params = chat.params
    if chat.must_call:
        if params.grammar:
            raise Refused(400, "an answer that must be a call cannot follow a grammar as well", param="tool_choice")
        params = replace(params, grammar=of_call(chat.arguments["tools"]))
    if params.grammar:
        llm.check_grammar(params.grammar)
    parts = llm.tokenizer.parts(chat.arguments)

    def reader() -> TextStream | CallReader:
        if chat.must_call:
            return CallReader(TextStream(llm.tokenizer, prompt=tokens, parts=replace(parts, tools=())))
        return TextStream(llm.tokenizer, params.stops, tokens, parts, params.min_tokens)

    seeds = range(params.seed or 0, (params.seed or 0) + chat.count)
    return [Prompt(tokens, replace(params, seed=seed), reader(), chat.one_call, parts) for seed in seeds]


def check_length(llm: LLM, tokens: int, least: str = "") -> None:
    """In OpenAI's words, by which agents know that they have to shorten their history. least: "at least ", if it is."""
    most = llm.place.context
    if tokens >= most:
        raise Refused(
            400, f"This model's maximum context length is {most} tokens. However, you requested {least}{tokens + 1} tokens "
            f"({least}{tokens} in the messages, at least 1 in the completion). Please reduce the length of the messages.",
            param="messages", code="context_length_exceeded",
        )  # fmt: skip


def check_size(llm: LLM, characters: int) -> None:
    """Before a text of so many is read, which takes a second a million: that which is certainly too long is refused at once."""
    if characters >= llm.place.context * SHORT:
        check_length(llm, characters // llm.tokenizer.longest, "at least ")


def _characters(message: dict[str, Any]) -> int:
    """Of its text."""
    content = message["content"] or ""
    return len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content)


class Block(NamedTuple):
    """What an answer consists of, in the order in which it was said."""

    kind: Literal["reasoning", "text", "call"]
    text: str = ""
    call: ToolCall | None = None


def blocks_of(delta: Delta) -> list[Block]:
    """Of one piece."""
    kind: Literal["reasoning", "text"] = "reasoning" if delta.piece.part == "reasoning" else "text"
    said = [Block(kind, delta.piece.text)] if delta.piece.text else []
    return said + [Block("call", call=call) for call in delta.piece.calls]


def joined(blocks: Iterable[Block]) -> list[Block]:
    """Neighbours of one kind in one; a call is always one for itself."""
    found: list[Block] = []
    for block in blocks:
        if found and block.kind != "call" and found[-1].kind == block.kind:
            found[-1] = Block(block.kind, found[-1].text + block.text)
        else:
            found.append(block)
    return found


def reason_of(sequence: Sequence) -> Literal["stop", "length", "tool_calls"]:
    """Why it ended, in OpenAI's words."""
    if sequence.calls:
        return "tool_calls"
    return "length" if sequence.finish and sequence.finish.reason == "length" else "stop"
