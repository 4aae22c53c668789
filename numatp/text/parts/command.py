"""Command A and R7B: `<|START_ACTION|>[{"tool_name": "f", "parameters": {...}}]<|END_ACTION|>`; Command R: `Action:` and a fence
with such a list.

https://docs.cohere.com/docs/command-a-hf, https://huggingface.co/CohereLabs/c4ai-command-r-v01
"""

from numatp.text.parts.calls import Tools, json_calls
from numatp.text.parts.format import CallFormat
from numatp.text.parts.source import Reading, Source

NONE = ("directly-answer", "directly_answer")  # Command R's word for no call


def read_action(source: Source, tools: Tools) -> Reading[None]:
    yield from source.expect("<|START_ACTION|>")
    yield from source.space()
    yield from json_calls(source)
    yield from source.space()
    yield from source.has("<|END_ACTION|>")


def read_fenced(source: Source, tools: Tools) -> Reading[None]:
    yield from source.expect("Action:")
    yield from source.space()
    yield from source.expect("```json")
    yield from source.space()
    for call in json_calls(source):
        if call is None or call.name not in NONE:
            yield call
    yield from source.space()
    yield from source.has("```")


ACTION = CallFormat(told_by=("<|START_ACTION|>",), opening=("<|START_ACTION|>",), marks=("<|END_ACTION|>",), read=read_action)
FENCED = CallFormat(told_by=("Action:", '"tool_name"'), opening=("Action:",), read=read_fenced)
