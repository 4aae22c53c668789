"""Calls of tools in a chat's history: what templates like those of real models make of them is what their format reads."""

import json
from dataclasses import asdict
from threading import Event
from types import SimpleNamespace

import pytest
from support.answers import ids_of, read, vocabulary

from numatp.engine.collective import Collective
from numatp.engine.sampling import SamplingParams
from numatp.engine.token import Finish, Token
from numatp.errors import UserError
from numatp.llm import LLM
from numatp.results import Output
from numatp.text.chat_template import END, render_chat
from numatp.text.parts.formats import Parts
from numatp.text.parts.piece import Piece, ToolCall
from numatp.text.stream import TextStream

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"properties": {"days": {"type": "integer"}}}}}]
CALLS = "{% if m.tool_calls %}{% for c in m.tool_calls %}{% set f = c.function %}"
DONE = "{% endfor %}{% endif %}"


def chatml(call):
    """How the calls of an assistant's message are written, in a template that is else as simple as they come."""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content or '' }}"
        + CALLS
        + call
        + DONE
        + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{# tools #}"
    )


TEMPLATES = {
    "qwen": chatml(
        '\n<tool_call>\n{"name": "{{ f.name }}", "arguments": {% if f.arguments is string %}{{ f.arguments }}{% else %}'
        "{{ f.arguments | tojson }}{% endif %}}\n</tool_call>"
    ),
    "hermes": chatml('<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>'),
    "qwen_coder": chatml(
        "\n<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}<parameter={{ k }}>\n"
        "{{ v | tojson if v is mapping or v is sequence and v is not string else v }}\n</parameter>\n{% endfor %}"
        "</function>\n</tool_call>"
    ),
    "glm": chatml(
        "\n<tool_call>{{ f.name }}\n{% for k, v in f.arguments.items() %}<arg_key>{{ k }}</arg_key>\n<arg_value>"
        "{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>"
    ),
    "minimax": chatml(
        '<minimax:tool_call>\n<invoke name="{{ f.name }}">\n{% for k, v in f.arguments.items() %}<parameter name="{{ k }}">'
        "{{ v if v is string else v | tojson }}</parameter>\n{% endfor %}</invoke>\n</minimax:tool_call>"
    ),
    "deepseek": "</think>" + chatml(
        "{% if loop.first %}<｜tool▁calls▁begin｜>{% endif %}"
        "{{ '<｜tool▁call▁begin｜>' + f.name + '<｜tool▁sep｜>' + f.arguments }}"
        "<｜tool▁call▁end｜>{% if loop.last %}<｜tool▁calls▁end｜>{% endif %}"
    ),
    "kimi": chatml(
        "{% if loop.first %}<|tool_calls_section_begin|>{% endif %}<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>"
        "{{ f.arguments if f.arguments is string else f.arguments | tojson }}<|tool_call_end|>"
        "{% if loop.last %}<|tool_calls_section_end|>{% endif %}"
    ),
    "mistral": chatml(
        "{% if c.id | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
        "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}"
    ),
    "command": chatml(
        '{% if loop.first %}<|START_ACTION|>[{% endif %}{"tool_name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
        "{{ ']<|END_ACTION|>' if loop.last else ', ' }}"
    ),
    "llama": "ipython" + chatml('{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'),
}  # fmt: skip
CITY = {"city": 'Köln "1"\n<b>', "days": 3}


def chat(*calls, **message):
    """A question, calls, what came of them, and that the user thanks for it."""
    asked = [
        {"id": f"x{i}", "type": "function", "function": {"name": "weather", "arguments": said}} for i, said in enumerate(calls)
    ]
    results = [{"role": "tool", "tool_call_id": f"x{i}", "content": "mild"} for i in range(len(calls))]
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": asked} | message, *results]


@pytest.mark.parametrize("kept", [json.dumps, lambda arguments: arguments], ids=["json", "object"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_writes_is_what_its_format_reads(name, kept):
    """Whether the caller has arguments as JSON, as OpenAI's clients do, or as an object."""
    template = TEMPLATES[name]
    calls = [CITY] if name == "llama" else [CITY, {}]
    before = render_chat(template, chat()[:1], {}, {"tools": TOOLS})
    text = render_chat(template, chat(*map(kept, calls), reasoning_content="Hm."), {}, {"tools": TOOLS})
    assert text.startswith(before)
    said = text.removeprefix(before).partition("<|im_end|>")[0]
    tokenizer = vocabulary((), template)
    pieces = read(TextStream(tokenizer, (), (), Parts(template, TOOLS)), ids_of(tokenizer, said))
    if name != "llama":  # whose calls are the whole answer
        reasoned = (
            Piece("Hm.", "reasoning") if any(piece.part == "reasoning" for piece in pieces) else Piece("<think>\nHm.\n</think>")
        )
        assert pieces.pop(0) == reasoned
    else:
        pieces = read(TextStream(tokenizer, (), (), Parts(template, TOOLS)), ids_of(tokenizer, said.partition("</think>\n\n")[2]))
    assert pieces == [Piece("", "answer", (ToolCall("weather", json.dumps(call, ensure_ascii=False)),)) for call in calls]
    assert "None" not in text


def test_ids_are_those_that_a_template_wants():
    results = "{% if m.role == 'tool' %}[{{ m.tool_call_id }} {{ m.name }}]{% endif %}"
    for name, ids in (("kimi", ["functions.weather:0", "functions.weather:1"]), ("mistral", ["000000000", "000000001"])):
        template = TEMPLATES[name].replace("{{ m.content or '' }}", results)
        text = render_chat(template, chat("{}", "{}"), {})
        assert all(f"[{id} weather]" in text for id in ids), text
    assert "[x0 weather]" in render_chat(TEMPLATES["qwen"].replace("{{ m.content or '' }}", results), chat("{}"), {})


def test_contents_of_calls_are_none_or_empty_as_the_template_takes_them():
    adds = (
        "{% for m in messages %}{{ '[' + m.content + ']' }}"
        + CALLS
        + "{{ f.name }}{{ f.arguments | tojson }}"
        + DONE
        + "{% endfor %}"
    )
    assert render_chat(adds, chat(CITY)[:2], {}) == f"[?][]weather{json.dumps(CITY, ensure_ascii=False)}"
    wants_none = adds.replace(
        "{{ '[' + m.content + ']' }}", "{{ m.content if not m.tool_calls }}{{ '!' + 1 if m.content is string and m.tool_calls }}"
    )
    assert render_chat(wants_none, chat(CITY, content="")[:2], {}).startswith("?weather{")
    says_none = adds.replace("'[' + m.content + ']'", "'[' ~ m.content ~ ']'")
    assert render_chat(says_none, chat(CITY)[:2], {}).startswith("[?][]weather{")
    assert "Look" in render_chat(adds, chat(CITY, content="Look")[:2], {})
    says = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert render_chat(says, [{"role": "user", "content": "?"}, {"role": "assistant", "content": None}], {}) == "[?][]"


@pytest.mark.parametrize(
    ("calls", "line"),
    [
        (5, "message 1: its tool_calls are int: give a list"),
        (["f"], "message 1 has the call 'f': give "),
        ([{"function": {"arguments": "{}"}}], "message 1 has the call .*: give "),
        ([{"function": {"name": "f", "arguments": "{"}}], "message 1 has a call with the arguments '{': give a JSON object"),
        ([{"function": {"name": "f", "arguments": "[1]"}}], "message 1 has a call with the arguments .*: give a JSON object"),
        (
            [{"function": {"name": "f", "arguments": "[" * 100000}}],
            "message 1 has a call with the arguments .*: give a JSON object",
        ),
    ],
)
def test_calls_that_are_none(calls, line):
    with pytest.raises(UserError, match=line):
        render_chat(TEMPLATES["hermes"], [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": calls}], {})


def test_a_template_that_knows_no_calls_is_given_what_there_is():
    assert render_chat("{{ messages | tojson }}", chat("{}")[:2], {}).startswith("[{")
    assert render_chat("{% for m in messages %}{{ m.role }} {% endfor %}", chat("{}"), {}) == "user assistant tool "


def test_a_developer_is_the_system_to_templates_without_one():
    says = "{% for m in messages %}{{ m.role }}:{{ m.content }} {% endfor %}"
    messages = [{"role": "developer", "content": "obey"}, {"role": "user", "content": "?"}]
    assert render_chat(says, messages, {}) == "system:obey user:? "
    assert render_chat(says + "{# developer #}", messages, {}) == "developer:obey user:? "


def test_reasoning_has_the_name_that_a_template_knows():
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "Yes.", "reasoning": "Hm."},
        {"role": "user", "content": "!"},
    ]
    assert render_chat("{{ messages[1].reasoning_content }}", messages, {}) == "Hm."
    assert render_chat("{{ messages[1].thinking }}", messages, {}) == "Hm."
    assert render_chat("{% if messages[1].reasoning_content %}{{ messages[1].thinking }}{% endif %}", messages, {}) == ""


@pytest.mark.parametrize("content", ["Well, ", " x", [{"type": "text", "text": "Well, "}], f"a {END} b"])
def test_an_answer_goes_on_with_the_last_message(content):
    template = TEMPLATES["qwen"].replace("{{ m.content or '' }}", "{{ m.content | trim }}")
    before = render_chat(template, [{"role": "user", "content": "?"}], {})
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]
    said = content if isinstance(content, str) else content[0]["text"]
    assert render_chat(template, messages, {}) == before + said.lstrip()
    assert render_chat(template, messages, {}, {"continue_final_message": True}) == before + said.lstrip()
    closed = before + said.strip() + "<|im_end|>\n"
    assert render_chat(template, messages, {}, {"continue_final_message": False}) == closed + "<|im_start|>assistant\n"
    assert render_chat(template, messages, {}, {"add_generation_prompt": False}) == closed


def test_messages_that_do_not_begin_an_answer():
    template = TEMPLATES["qwen"]
    assert render_chat(template, chat("{}")[:2], {}).endswith("<|im_start|>assistant\n")
    for last in ({"role": "user", "content": "?"}, {"role": "assistant", "content": ""}):
        with pytest.raises(UserError, match="continue_final_message is for chats whose last message is the assistant's"):
            render_chat(template, [{"role": "user", "content": "?"}, last], {}, {"continue_final_message": True})
    with pytest.raises(UserError, match="does not show the assistant's last message"):
        render_chat("{{ messages[0].content }}", [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], {})


class Scripted(LLM):
    """The library over a model that says what a test wants: a token for each byte, and no engine."""

    def __init__(self, says, template=TEMPLATES["qwen"]):
        self.tokenizer = vocabulary((), template)
        self.tokenizer.encode_chat = lambda messages, arguments: ids_of(
            self.tokenizer, self.tokenizer.render_chat(messages, arguments)
        )
        self.place, self.default_params = SimpleNamespace(context=10000), SamplingParams()
        self.says, self.prompt = says, ""
        self._collectively = Collective(None)

    def start(self, tokens, params, put, progress=False, cache_salt="", parts=None):
        self.prompt = self.tokenizer.decode(tokens)
        for id in ids_of(self.tokenizer, self.says):
            put(Token(id))
        put(Finish("stop", len(tokens), 1.0, 1, 1.0))
        return SimpleNamespace(cancelled=Event())

    def close(self):
        pass


QUESTION = [{"role": "user", "content": "?"}]
HERE = '<think>Hm.</think>\n\nLook.\n<tool_call>\n{"name": "weather", "arguments": {"days": 3}}\n</tool_call>'


def test_the_library_gives_calls():
    llm = Scripted(HERE)
    output = llm.chat(QUESTION, tools=TOOLS)
    assert (output.text, output.reasoning, output.tool_calls) == ("Look.", "Hm.", (ToolCall("weather", '{"days": 3}'),))
    assert Output.from_json(json.loads(json.dumps(asdict(output)))) == output  # as other ranks get it
    without = llm.chat(QUESTION)
    assert (without.text, without.reasoning, without.tool_calls) == (HERE.partition("\n\n")[2], "Hm.", ())
    assert "".join(llm.submit(QUESTION, template_kwargs={"tools": TOOLS})) == "Look."
    assert llm.generate(ids_of(llm.tokenizer, "<think>?")).text == HERE  # tokens are no chat


def test_a_chat_goes_on_with_what_the_library_gave():
    output = Scripted(HERE).chat(QUESTION, tools=TOOLS)
    calls = [{"id": "a", "type": "function", "function": call._asdict()} for call in output.tool_calls]
    said = {"role": "assistant", "content": output.text, "reasoning_content": output.reasoning, "tool_calls": calls}
    llm = Scripted("Three days.")
    assert llm.chat([*QUESTION, said, {"role": "tool", "tool_call_id": "a", "content": "mild"}], tools=TOOLS).text == "Three days."
    assert '<think>\nHm.\n</think>\n\nLook.<tool_call>\n{"name": "weather", "arguments": {"days": 3}}\n</tool_call>' in llm.prompt


@pytest.mark.parametrize(
    "tools", [["f"], [{"name": "f"}], [{"type": "function", "function": {"name": 3}}], 5, {"function": {"name": "f"}}]
)
def test_tools_that_are_none(tools):
    with pytest.raises(UserError, match="a tool is {|tools are a list"):
        Scripted("").chat(QUESTION, tools=tools)


def test_a_template_without_tools():
    with pytest.raises(UserError, match="this model's chat template tells it of no tools: leave them out"):
        Scripted("", "{{ messages[0].content }}").chat(QUESTION, tools=TOOLS)
