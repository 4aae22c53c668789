"""Chat templates: what SmolLM2's own makes of messages, and templates that do what they should not."""

import pytest
from support.commands import numatp

from numatp.errors import UserError
from numatp.files.gguf import read_gguf
from numatp.text.chat_template import render_chat
from numatp.text.tokenizer import Tokenizer

pytestmark = pytest.mark.beside

HELLO = [{"role": "user", "content": "Hello"}]
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def tokenizer(model_path):
    return Tokenizer.from_gguf(read_gguf(model_path))


def test_smollm2(tokenizer):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.render_chat(question)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    # As llama.cpp's llama-tokenize gives them for this text.
    assert tokenizer.encode(text) == [
        1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198,
        1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
    ]  # fmt: skip
    talk = [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": "Hi."}, *HELLO]
    assert tokenizer.render_chat(talk) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_what_templates_of_today_use():
    template = (
        "{%- for m in messages if m.role != 'tool' -%}\n    {%- if loop.index0 > 5 %}{% break %}{% endif -%}\n"
        "{{ bos_token }}{% generation %}{{ m['content'] | trim }}{% endgeneration %}{{ {'a': 'é<'} | tojson }}\n{% endfor %}"
        "{{ strftime_now('%Y')[:2] }}{% if add_generation_prompt %}>{% endif %}"
    )
    assert render_chat(template, [{"role": "user", "content": " x "}], NAMES) == '<s>x{"a": "é<"}\n20>'


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{{ raise_exception('only users\n may speak') }}", r"does not take these messages \(only users may speak\)"),
        ("{{ raise_exception.__globals__['json'] }}", r"does not take these messages \(access to attribute '__globals__'"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "does not take these messages"),
        ("{{ messages.append(1) }}", "does not take these messages"),
        ("{% for i in range(10000000) %}{% endfor %}", "does not take these messages"),
        ("{{ nothing() }}", "does not take these messages"),
        ("{{ 1 / 0 }}", "does not take these messages"),
        ("{{ messages[0].content + 1 }}", "does not take these messages"),
        ("{% for m in %}", "does not take these messages"),
        ("{% include '/etc/passwd' %}", "does not take these messages"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "does not end"),
    ],
)
def test_templates_that_do_what_they_should_not(template, line):
    with pytest.raises(UserError, match=line) as refused:
        render_chat(template, HELLO, NAMES)
    assert "\n" not in str(refused.value) and "generate" in str(refused.value)


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([{"role": "king", "content": "Hello"}], "message 0 is .*: it needs a role, one of system, "),
        (["Hello"], "message 0 is 'Hello': it needs a role"),
        ([*HELLO, {"role": "user", "content": 3}], "message 1: its content is int: give text"),
    ],
)
def test_messages_that_are_none(messages, line):
    with pytest.raises(UserError, match=line):
        render_chat("", messages, NAMES)


def test_a_model_without_template():
    tokenizer = Tokenizer([], [], None, None, bos=None, eos=None, eos_ids=frozenset(), chat_template=None)
    with pytest.raises(UserError, match="no chat template: use generate without --chat"):
        tokenizer.render_chat(HELLO)


def test_the_command_answers_a_chat(model_path):
    chat = ("generate", "-m", model_path, "--chat", "-p", "What is gravity?", "-n", 12, "--temp", 0)
    answer = numatp(*chat)
    assert answer.stdout.startswith("Gravity is a "), answer.stderr
    text = numatp(*chat[:3], "-p", "What is gravity?", *chat[6:]).stdout
    assert text != answer.stdout
