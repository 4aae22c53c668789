"""Answers that follow a grammar, on a tiny random model in this process: whatever it would say, what it says fits."""

import json
import re
import sys
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
import tokenizers
from support.models import folders, tiny

from numatp import LLM, SamplingParams, UserError
from numatp.text import matcher
from numatp.text.grammar import MOST_BYTES, Grammar

VOCAB = tiny.SIZES["vocab"]
PROMPT = [3, 1, 4, 1, 5]
FREE = SamplingParams(1.0, 0, 1.0, 0.0, seed=1, max_tokens=200)
SHORT = {"type": "string", "maxLength": 5}
SCHEMAS = [
    {"type": "object", "properties": {"a": SHORT}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 12}}, "required": ["n"],
     "additionalProperties": False},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5},
    {"enum": ["red", "green", 7, None, {"x": [1, 2]}]},
    {"const": {"deep": [True, {"er": "text"}]}},
    {"anyOf": [{"type": "null"}, SHORT, {"type": "array", "items": {"type": "null"}, "maxItems": 2}]},
    {"type": "string", "pattern": "^[a-c]{3}-[0-9]{2}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "minLength": 4, "maxLength": 6},
    {"type": "integer", "minimum": -5, "maximum": 5},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": SHORT}, "additionalProperties": False},
    {"type": "object", "properties": {"inner": {"type": "object", "properties": {"leaf": {"enum": [1, 2]}}, "required": ["leaf"],
     "additionalProperties": False}}, "required": ["inner"], "additionalProperties": False},
    {"$defs": {"pair": {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["x", "y"]}], "items": False,
     "minItems": 2}}, "type": "array", "items": {"$ref": "#/$defs/pair"}, "minItems": 1, "maxItems": 2},
    {"oneOf": [{"type": "object", "properties": {"kind": {"const": "a"}, "v": {"type": "boolean"}}, "required": ["kind", "v"],
                "additionalProperties": False},
               {"type": "object", "properties": {"kind": {"const": "b"}}, "required": ["kind"], "additionalProperties": False}]},
    {"type": ["boolean", "null"]},
    {"type": "array", "items": {"enum": ["k", "l"]}, "minItems": 3, "maxItems": 3},
    {"allOf": [{"type": "integer", "minimum": 1}, {"type": "integer", "maximum": 20}]},
    {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "boolean"}}, "additionalProperties": False, "maxProperties": 3},
    {"type": "object", "properties": {"uuid": {"type": "string", "format": "uuid"}}, "required": ["uuid"],
     "additionalProperties": False},
]  # fmt: skip


def write_tokenizer(folder, *special):
    """ASCII, a space, a new line and some parts of JSON: every state of a schema can go on."""
    merges = [("{", '"'), ('"', ":"), ('"', ","), ("t", "r"), ("u", "e"), ("tr", "ue"), ("a", "b")]
    tokens = [*map(chr, range(0x21, 0x7F)), "\u0120", "\u010a", *map("".join, merges)]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    bpe.pre_tokenizer, bpe.decoder = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    bpe.add_special_tokens(["<|endoftext|>", "<|other|>", *special])
    bpe.save(str(folder / "tokenizer.json"))


def open_tiny(folder, write_tokenizer):
    folders.write(folder, *folders.llama(tiny.write(folder.with_suffix(".gguf"))))
    write_tokenizer(folder)
    return LLM(folder, ranks=1, threads=2, quantize="none", ctx=256, max_sequences=8, ubatch=32)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    with open_tiny(tmp_path_factory.mktemp("tiny") / "tiny", write_tokenizer) as llm:
        yield llm


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_json_fits_its_schema(llm, number):
    schema = SCHEMAS[number]
    for params in (FREE, replace(FREE, seed=2, temperature=3.0), replace(FREE, temperature=0, frequency_penalty=0.5)):
        output = llm.generate(PROMPT, replace(params, grammar=Grammar.json_schema(schema)))
        assert output.finish_reason == "stop", output.text
        jsonschema.validate(json.loads(output.text), schema)


@pytest.mark.parametrize(("grammar", "fits"), [
    (Grammar.regex("[0-9]{3}-(ab|cd)"), "[0-9]{3}-(ab|cd)"),
    (Grammar.gbnf('root ::= item{2,4} "."\nitem ::= "x" [0-9]'), r"(x[0-9]){2,4}\."),
    (Grammar.lark('start: "<" /[a-f]{2,5}/ ">"'), "<[a-f]{2,5}>"),
])  # fmt: skip
def test_other_grammars(llm, grammar, fits):
    texts = {llm.generate(PROMPT, replace(FREE, seed=seed, grammar=grammar)).text for seed in range(6)}
    assert len(texts) > 2 and all(re.fullmatch(fits, text) for text in texts)


def test_any_json_object(llm):
    """Of a length that a random model ends by a bias for what closes it."""
    tokens = {token: id for id, token in enumerate(llm.tokenizer.tokens)}
    biases = {tokens["}"]: 4.0, tokens['"']: 3.0, tokens["{"]: -5.0, tokens["["]: -5.0}
    for seed in range(4):
        output = llm.generate(PROMPT, replace(FREE, seed=seed, grammar=Grammar.json_object(), logit_bias=biases))
        assert isinstance(json.loads(output.text), dict) and output.finish_reason == "stop"


def test_the_end_is_where_the_grammar_ends(llm):
    """Not before min_tokens, unless nothing else may follow; and an end that is ignored elsewhere ends a grammar."""
    end = next(iter(llm.tokenizer.eos_ids))
    some = replace(FREE, grammar=Grammar.regex("[ab]{2,9}"), logit_bias={end: 100.0})
    assert len(llm.generate(PROMPT, some).text) == 2
    assert len(llm.generate(PROMPT, replace(some, min_tokens=4)).token_ids) == 4
    assert len(llm.generate(PROMPT, replace(some, min_tokens=100)).text) == 9
    ignored = llm.generate(PROMPT, replace(some, ignore_eos=True))
    assert (len(ignored.text), ignored.finish_reason) == (9, "stop")


def test_stops_and_limits_cut_a_grammar_short(llm):
    some = replace(FREE, grammar=Grammar.regex("ab{20}c"))
    assert llm.generate(PROMPT, replace(some, stop="bbb")).text == "a"
    cut = llm.generate(PROMPT, replace(some, max_tokens=3))
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 3)


def test_log_probabilities_are_of_the_model_whatever_the_grammar_allows(llm):
    params = replace(FREE, max_tokens=4, logprobs=3)
    output = llm.generate(PROMPT, replace(params, grammar=Grammar.regex("zzzz")))
    assert output.text == "zzzz"
    assert output.logprobs[0].top == llm.generate(PROMPT, params).logprobs[0].top
    scores = llm.score(PROMPT + output.token_ids, 4).logprobs
    assert np.abs(np.array(scores) - [token.logprob for token in output.logprobs]).max() < 1e-4


def test_answers_with_and_without_beside_each_other(llm):
    """Each is what it is alone."""
    grammars = [None, Grammar.json_schema(SCHEMAS[0]), Grammar.regex("[ab]+c"), None, Grammar.json_schema(SCHEMAS[2])]
    wanted = [replace(FREE, seed=i, grammar=grammar, max_tokens=40) for i, grammar in enumerate(grammars)]
    alone = [llm.generate(PROMPT, params).token_ids for params in wanted]
    answers = [llm.submit(PROMPT, params) for params in wanted]
    assert [answer.output().token_ids for answer in answers] == alone


def test_answers_that_are_set_back_are_what_they_are_alone(llm):
    """Numbers of seeds, counts of tokens, places in grammars and scores of prompts stay with a sequence that is computed again."""
    wanted = [
        replace(FREE, seed=i, max_tokens=100, ignore_eos=True, frequency_penalty=0.3, grammar=grammar, prompt_logprobs=told)
        for i, (grammar, told) in enumerate(
            [(None, None), (Grammar.regex("[ab]{80,}"), 2), (Grammar.regex("([cd] ){40,}"), None)] * 2
        )
    ]
    alone = [llm.generate(PROMPT, params) for params in wanted]
    before = llm.counts.set_back
    outputs = [answer.output() for answer in [llm.submit(PROMPT, params) for params in wanted]]
    assert llm.counts.set_back > before
    assert [output.token_ids for output in outputs] == [output.token_ids for output in alone]
    assert [output.prompt_logprobs for output in outputs] == [output.prompt_logprobs for output in alone]


@pytest.mark.parametrize(("grammar", "line"), [
    (Grammar.regex("(ab|"), "unclosed group"),
    (Grammar.regex("(" * 60000 + ")" * 60000), "does not compile"),
    (Grammar.gbnf("root = ("), "no GBNF"),
    (Grammar.gbnf("root ::= " + "(" * 60000 + '"a"' + ")" * 60000), "does not compile"),
    (Grammar.lark("start: nothing"), "does not compile"),
    (Grammar.lark("start: " + "(" * 60000 + '"a"' + ")" * 60000), "too deeply nested"),
    (Grammar.json_schema({"type": "objectt"}), "Invalid type: objectt"),
    (Grammar.json_schema({"$ref": "#/nowhere"}), "'/nowhere' does not exist"),
    (Grammar.json_schema({"$ref": "http://somewhere.else/schema.json"}), "does not compile"),
    (Grammar.json_schema({"not": {"type": "string"}}), "Unimplemented keys"),
    (Grammar.json_schema({"type": "string", "pattern": "(" * 3000}), "does not compile"),
])  # fmt: skip
def test_grammars_that_do_not_compile_are_refused_at_once(llm, grammar, line):
    for ask in (llm.check_grammar, lambda grammar: llm.submit(PROMPT, SamplingParams(grammar=grammar))):
        with pytest.raises(UserError, match=re.escape(line)) as refused:
            ask(grammar)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize("joined", [
    {"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(40)]},
    {"$ref": "#/$defs/0", "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}", "pattern": f".*{i}.*"} for i in range(40)} | {"40": {}}},
], ids=["allOf", "ref"])  # fmt: skip
def test_patterns_that_would_never_be_compiled(llm, monkeypatch, joined):
    """Each doubles the time: forty would hold a core for ever, in a thread that nobody can end."""
    monkeypatch.setattr(matcher, "SECONDS", 0.7)
    with pytest.raises(UserError, match=r"does not compile: it takes more than 0.7 s"):
        llm.check_grammar(Grammar.json_schema(joined))


def test_many_patterns_that_need_not_hold_together(llm):
    fields = {f"at{i}": {"$ref": "#/$defs/time"} if i % 2 else {"type": "string", "pattern": f"^{i}+$"} for i in range(40)}
    llm.check_grammar(Grammar.json_schema({"type": "object", "properties": fields, "$defs": {"time": {"format": "date-time"}}}))


@pytest.mark.parametrize(("make", "line"), [
    (lambda: Grammar.json_schema("{"), "no JSON object"),
    (lambda: Grammar.json_schema("[1]"), "no JSON object"),
    (lambda: Grammar.json_schema("[" * 100000), "no JSON object"),
    (lambda: Grammar.json_schema({"a": {1, 2}}), "no JSON object"),
    (lambda: Grammar.json_schema('{"a":' * 70 + "1" + "}" * 70), "deeper than 64 levels"),
    (lambda: Grammar.regex("a" * (MOST_BYTES + 1)), "longer than"),
    (lambda: Grammar.regex(5), "a kind"),
    (lambda: Grammar("yaml", "a"), "a kind"),
    (lambda: SamplingParams(grammar="a"), "must be a Grammar"),
])  # fmt: skip
def test_what_is_no_grammar(make, line):
    with pytest.raises(UserError, match=re.escape(line)):
        make()


def test_an_impossible_state_ends_one_answer(tmp_path):
    """A vocabulary that lacks the bytes which would have to come next."""
    with open_tiny(tmp_path / "tiny", lambda folder: folders.write_small_tokenizer(folder, VOCAB)) as llm:
        params = SamplingParams(0, max_tokens=20, ignore_eos=True)
        wanted = llm.generate(PROMPT, params).token_ids
        impossible = replace(params, ignore_eos=False, grammar=Grammar.regex("a\u00ed"))
        answers = [llm.submit(PROMPT, one) for one in (params, impossible, params)]
        with pytest.raises(UserError, match="no token of this model goes on in the answer's grammar"):
            answers[1].output()
        assert [answers[i].output().token_ids for i in (0, 2)] == [wanted] * 2
        assert llm.generate(PROMPT, params).token_ids == wanted


def test_without_the_package_one_line_says_what_is_missing(llm, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=re.escape("pip install 'numatp[server]'")):
        llm.generate(PROMPT, SamplingParams(grammar=Grammar.regex("never seen before")))


def test_what_a_grammar_forces_is_computed_in_one_step(llm, tmp_path):
    """The same text as without, in fewer Steps; also where an answer begins with nothing to choose."""
    schema = {"type": "object", "properties": {"some_long_name": {"enum": ["another word", "anything"]}, "b": {"type": "boolean"}},
              "required": ["some_long_name", "b"], "additionalProperties": False}  # fmt: skip
    wanted = [replace(FREE, seed=i, grammar=Grammar.json_schema(schema), logprobs=2) for i in range(3)]
    told, steps, right = [], [], []
    for spec in ("off", "ngram"):
        with LLM(llm.model, ranks=1, threads=2, quantize="none", ctx=256, ubatch=32, spec=spec) as one:
            told.append([one.generate(PROMPT, params) for params in wanted])
            steps.append(one.counts.steps)
            right.append(one.counts.right_guesses)
    assert [(output.text, output.logprobs) for output in told[0]] == [(output.text, output.logprobs) for output in told[1]]
    assert all(json.loads(output.text)["some_long_name"] for output in told[0])
    assert right[0] == 0 and steps[0] - steps[1] == right[1] > 0.3 * sum(len(output.token_ids) for output in told[0])


# ---------------------------------------------------------------- behind reasoning

HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
ASSISTANT = "{% for m in messages %}<|other|>{{ m.content }}{% endfor %}<|other|>"
THINKS = ASSISTANT + "{% if think is not defined %}{% elif think %}<think>\n{% else %}<think></think>{% endif %}"
AB = Grammar.regex("[ab]{3}")


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinker") / "tiny"
    with open_tiny(folder, lambda folder: write_tokenizer(folder, "<think>", "</think>")) as llm:
        llm.tokenizer.chat_template = THINKS
        yield llm


def walk(tokenizer, template_kwargs, tokens):
    """Before each of the tokens, and behind the last: how many of a, b, z, < think > and the end may come."""
    from numatp.text.matcher import Grammars
    from numatp.text.reasoning import reasoning_of

    asked = [{"role": "user", "content": "x"}]
    prompt = tokenizer.encode_chat(asked, template_kwargs)
    matcher = Grammars(tokenizer).matcher(AB, reasoning_of(tokenizer, prompt, tokenizer.parts(template_kwargs)))
    ids = [tokenizer.tokens.index(name) for name in tokens]
    looked = [tokenizer.tokens.index(name) for name in ("a", "z", "<think>", "<|endoftext|>") if name in tokenizer.tokens]
    seen = []
    for id in [*ids, None]:
        matcher.wait()
        seen.append("".join(str(matcher.mask[one // 32] >> one % 32 & 1) for one in looked))
        if id is not None:
            matcher.take(id)
    return seen


def test_a_grammar_begins_behind_the_reasoning(thinker):
    tokenizer, free, bound, last = thinker.tokenizer, "1110", "1000", "0001"
    for kwargs in ({}, {"think": True}):  # the model begins it; its template does
        opening = ["<think>"] if not kwargs else []
        seen = walk(tokenizer, kwargs, [*opening, "z", "a", "</think>", "a", "b", "a"])
        assert seen == [*(["1010"] if opening else []), *[free] * 3, *[bound] * 3, last]
    assert walk(tokenizer, {}, ["a", "b", "b"]) == ["1010", bound, bound, last]  # it does not reason
    assert walk(tokenizer, {"think": False}, ["a", "b", "b"]) == [bound, bound, bound, last]  # it shall not


def test_an_answer_behind_reasoning_follows_its_grammar(thinker):
    """The marks are told apart from the answer; also of a chat that must call a tool."""
    close = thinker.tokenizer.tokens.index("</think>")
    asked = [{"role": "user", "content": "x"}]
    some = replace(FREE, grammar=AB, logit_bias={close: 3.0}, max_tokens=250)
    outputs = [thinker.chat(asked, replace(some, seed=i), template_kwargs={"think": True}) for i in range(4)]
    assert any(output.reasoning for output in outputs)
    assert all(re.fullmatch("[ab]{3}", output.text) and output.finish_reason == "stop" for output in outputs)


def test_a_grammar_begins_in_the_last_channel(tmp_path):
    from numatp.text.tokenizer import open_tokenizer

    write_tokenizer(tmp_path, *HARMONY)
    tokenizer = open_tokenizer(tmp_path)
    tokenizer.chat_template = "{% for m in messages %}<|start|>user<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>"
    free, bound, last = "110", "100", "001"
    said = ["a", "<|channel|>", "a", "n", "<|message|>", "z", "<|end|>", "<|start|>", "a", "<|channel|>", *"final", "<|message|>"]
    assert walk(tokenizer, {}, [*said, "a", "b", "b"]) == [*[free] * len(said), *[bound] * 3, last]
