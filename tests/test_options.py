"""Options with llama.cpp's names and meanings, before anything is loaded."""

import argparse
import io

import pytest

from numatp.cli import chat, generate
from numatp.cli.main import Parser
from numatp.cli.options import add_sampling, add_template_arguments, params_of, read_text, unescape
from numatp.engine.sampling import SamplingParams
from numatp.errors import UserError
from numatp.text.grammar import Grammar


def parsed(*options):
    parser = Parser()
    add_sampling(parser)
    add_template_arguments(parser)
    return parser.parse_args(options)


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (("-n", "0"), "max_tokens", 0),
        (("-n", "-1"), "max_tokens", None),
        (("-n", "-2"), "max_tokens", None),
        (("--top-k", "-1"), "top_k", 0),
        (("--temp", "-1"), "temperature", 0),
        (("--temp", "-0.5"), "temperature", 0),
        (("-s", "7"), "seed", 7),
        (("-s", "-2"), "seed", 4294967294),
        (("--presence-penalty", "1.5"), "presence_penalty", 1.5),
        (("--frequency-penalty", "-2"), "frequency_penalty", -2),
        (("--logit-bias", "15043+1", "-l", "7-1.5"), "logit_bias", {15043: 1, 7: -1.5}),
        (("--stop", r"\n\n", "--stop", "x"), "stop", ["\n\n", "x"]),
        (("--grammar", 'root ::= "a"'), "grammar", Grammar.gbnf('root ::= "a"')),
        (("-j", '{"type": "array"}'), "grammar", Grammar.json_schema({"type": "array"})),
        (("--json-schema", "{}"), "grammar", Grammar.json_object()),
        (("--no-escape", "--stop", r"\n"), "stop", [r"\n"]),
    ],
)
def test_what_llama_cpp_means(options, name, value):
    assert getattr(params_of(parsed(*options), SamplingParams()), name) == value


def test_grammars_from_files(tmp_path):
    (tmp_path / "schema").write_text('{"type":\n"string"}\n')
    (tmp_path / "grammar").write_text('root ::= "a"\n')
    found = params_of(parsed("-jf", str(tmp_path / "schema")), SamplingParams()).grammar
    assert found == Grammar.json_schema({"type": "string"})
    found = params_of(parsed("--grammar-file", str(tmp_path / "grammar")), SamplingParams()).grammar
    assert found == Grammar.gbnf('root ::= "a"')


@pytest.mark.parametrize("seed", ["-1", "4294967295", None])
def test_random_seeds(seed):
    options = () if seed is None else ("-s", seed)
    seeds = {params_of(parsed(*options), SamplingParams()).seed for _ in range(4)}
    assert len(seeds) > 1 and all(0 <= one < 1 << 32 for one in seeds)


def test_what_the_model_recommends_holds_where_nothing_is_said():
    usual = SamplingParams(temperature=0.3, top_k=5, top_p=0.7)
    params = params_of(parsed("--top-k", "7"), usual)
    assert (params.temperature, params.top_k, params.top_p) == (0.3, 7, 0.7)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("-n", "-3"), "'-3' is not a whole number"),
        (("--top-k", "1.5"), "'1.5' is not a whole number"),
        (("--temp", "nan"), "'nan' is not a number"),
        (("--temp", "inf"), "'inf' is not a number"),
        (("--top-p", "x"), "'x' is not a number"),
        (("--repeat-penalty", "0"), "repeat_penalty is 0.0 and must be above 0; 1 is none"),
        (("--min-p", "-1"), "min_p is -1.0 and must be 0 to 1"),
        (("--top-p", "0"), "top_p is 0.0 and must be above 0, up to 1"),
        (("--frequency-penalty", "3"), "frequency_penalty is 3.0 and must be -2 to 2"),
        (("--logit-bias", "5"), "'5' is not a token id and a signed number"),
        (("--logit-bias", "5+x"), "'+x' is not a number"),
        (("--logit-bias", "5-101"), "logit_bias gives token 5 -101.0 and must"),
        (("-j", "{"), "the JSON schema is no JSON object"),
        (("-jf", "/absent.json"), "cannot read /absent.json: No such file"),
        (("--grammar", "a", "-j", "{}"), "not allowed with argument"),
        (("-s", "x"), "'x' is not a whole number"),
        (("--chat-template-kwargs", "[1]"), "'[1]' is not a JSON object like"),
        (("--chat-template-kwargs", "{a}"), "'{a}' is not a JSON object like"),
    ],
)
def test_what_makes_no_sense_is_refused_by_the_parser(options, line):
    with pytest.raises(UserError) as refused:
        parsed(*options)
    assert line in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (r"One\nTwo\n", "One\nTwo\n"),
        (r"a\tb\rc\\n", "a\tb\rc\\n"),
        (r"\"x\" \'y\'", "\"x\" 'y'"),
        (r"\x41\xe2\x82\xac", "A€"),
        (r"\d \x4 \u0041 C:\\dir \ ", "\\d \\x4 \\u0041 C:\\dir \\ "),
        ("é\\", "é\\"),
        ("\udcff", "\udcff"),  # half a character, which the tokenizer refuses
    ],
)
def test_escapes(text, meant):
    assert unescape(argparse.Namespace(escape=True), text) == meant
    assert unescape(argparse.Namespace(escape=False), text) == text


def test_escapes_in_what_is_said_to_a_model(monkeypatch):
    said, lines = [], iter(["hi", None])
    for command in (generate, chat):
        monkeypatch.setattr(
            command, "run_session", lambda job, ranks, work: work(argparse.Namespace(default_params=SamplingParams()))
        )
        monkeypatch.setattr(command, "job_of", lambda arguments, **more: None)
        monkeypatch.setattr(command, "show_answer", lambda llm, prompt, *others: said.append(prompt) or "")
    monkeypatch.setattr(chat, "Lines", lambda llm: argparse.Namespace(read=lambda: next(lines)))
    for command, options in (
        (generate, ("-p", r"a\nb")),
        (generate, ("--no-escape", "-p", r"a\nb")),
        (chat, ("--system", r"c\td")),
    ):
        parser = Parser()
        command.add_arguments(parser)
        command.run(parser.parse_args(["-m", "absent", *options]))
    assert said[:2] == ["a\nb", r"a\nb"] and said[2][0] == {"role": "system", "content": "c\td"}


@pytest.mark.parametrize(("raw", "text"), [(b"a\n", "a"), (b"a\n\n", "a\n"), (b"a\r\nb\r\n", "a\r\nb\r"), (b"\n", ""), (b"a", "a")])
def test_new_lines_of_a_file(tmp_path, monkeypatch, raw, text):
    """As llama.cpp takes them: the last one is left out."""
    (tmp_path / "text").write_bytes(raw)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
    assert read_text(tmp_path / "text") == read_text("-") == text


def test_arguments_of_a_chat_template():
    assert parsed("--chat-template-kwargs", '{"enable_thinking": false, "n": [1]}').template == {"enable_thinking": False, "n": [1]}
    assert parsed().template == {}
