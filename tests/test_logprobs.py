"""What is told of answers' tokens besides the text, and seeds: on tiny models in this process."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from support.logits import F16_ROUNDING, log_probabilities
from support.models import folders, tiny
from support.reference import naive

from numatp import LLM, SamplingParams, UserError
from numatp.results import Output

VOCAB = tiny.SIZES["vocab"]
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module", params=[1, 2])
def llm(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    written = tiny.write(folder.with_suffix(".gguf"))
    folders.write(folder, *folders.llama(written))
    folders.write_small_tokenizer(folder, VOCAB)
    with LLM(folder, ranks=request.param, threads=2, quantize="none", ctx=256, max_sequences=4, ubatch=16) as llm:
        llm.written = written
        yield llm


def test_log_probabilities_of_an_answer(llm):
    """Those of the score of the same text. Greedy tokens are the most probable ones, also below penalties that choose others."""
    params = SamplingParams(0, max_tokens=12, ignore_eos=True, logprobs=5)
    output = llm.generate(PROMPT, params)
    assert [token.id for token in output.logprobs] == output.token_ids and len(output.token_ids) == 12
    assert all(token.top[0] == (token.id, token.logprob) and len(token.top) == 5 for token in output.logprobs)
    scores = llm.score(PROMPT + output.token_ids, 12).logprobs
    # The same products in two programs: their sums differ in order, by some 1e-6 of logits of a few units.
    assert np.abs(np.array(scores) - [token.logprob for token in output.logprobs]).max() < 1e-4
    changed = llm.generate(PROMPT, replace(params, frequency_penalty=2, presence_penalty=2, logit_bias={7: 3}))
    assert changed.token_ids != output.token_ids
    assert changed.logprobs[0].top == output.logprobs[0].top
    scores = llm.score(PROMPT + changed.token_ids, 12).logprobs
    assert np.abs(np.array(scores) - [token.logprob for token in changed.logprobs]).max() < 1e-4


def test_nothing_is_told_that_nobody_asked_for(llm):
    params = SamplingParams(0, max_tokens=3, ignore_eos=True)
    assert llm.generate(PROMPT, params).logprobs == ()
    own = llm.generate(PROMPT, replace(params, logprobs=0)).logprobs
    assert [token.top for token in own] == [()] * 3 and all(token.logprob < 0 for token in own)


def test_an_output_through_json(llm):
    output = llm.generate(PROMPT, SamplingParams(0, max_tokens=3, ignore_eos=True, logprobs=2))
    assert Output.from_json(json.loads(json.dumps(asdict(output)))) == output


def test_a_seed_gives_the_same_tokens_alone_and_beside_others(llm):
    """And among others that come and go."""
    params = SamplingParams(1.5, 0, 1.0, 0.0, seed=7, max_tokens=20, ignore_eos=True, frequency_penalty=0.3)
    alone = llm.generate(PROMPT, params).token_ids
    assert llm.generate(PROMPT, params).token_ids == alone
    assert llm.generate(PROMPT, replace(params, seed=8)).token_ids != alone
    assert llm.generate(PROMPT, replace(params, seed=None)).token_ids != llm.generate(PROMPT, replace(params, seed=None)).token_ids
    others = [llm.submit(prompt, replace(params, seed=i, max_tokens=3 * i)) for i, prompt in enumerate(([5], [6, 7], [1] * 40), 1)]
    answers = [llm.submit(PROMPT, params) for _ in range(3)]
    assert [answer.output().token_ids for answer in answers] == [alone] * 3
    assert [len(answer.output().token_ids) for answer in others] == [3, 6, 9]


@pytest.mark.parametrize("length", [1, 2, 16, 17, 100])
@pytest.mark.parametrize("most", [0, 5, 20])
def test_log_probabilities_of_a_prompt(llm, length, most):
    """Those of numpy's float64, through as many Steps as the prompt takes; what follows it is as without."""
    prompt = np.random.default_rng(length).integers(0, VOCAB, length).tolist()
    params = SamplingParams(0, max_tokens=5, ignore_eos=True, prompt_logprobs=most)
    output = llm.generate(prompt, params)
    assert [token.id for token in output.prompt_logprobs] == prompt
    assert tuple(output.prompt_logprobs[0][1:]) == (None, ())
    wanted = log_probabilities(naive.logits(tiny.SIZES, llm.written, prompt))
    for token, row in zip(output.prompt_logprobs[1:], wanted[:-1], strict=True):
        size = 4 * np.abs(row).mean()
        assert abs(token.logprob - row[token.id]) < F16_ROUNDING * size
        order = np.argsort(-row)[:most]
        assert len(token.top) == most
        assert np.abs(np.array([logprob for _, logprob in token.top]) - row[order]).max(initial=0) < F16_ROUNDING * size
        assert all(abs(logprob - row[id]) < F16_ROUNDING * size for id, logprob in token.top)
    assert output.token_ids == llm.generate(prompt, replace(params, prompt_logprobs=None)).token_ids
    assert Output.from_json(json.loads(json.dumps(asdict(output)))) == output


def test_scored_prompts_beside_others(llm):
    """What lm-evaluation-harness asks for: a prompt, one token, and whether each token is the most probable."""
    params = SamplingParams(0, max_tokens=1, prompt_logprobs=1, logprobs=1, ignore_eos=True)
    prompts = [np.random.default_rng(i).integers(0, VOCAB, 30 + i).tolist() for i in range(6)]
    alone = [llm.generate(prompt, params) for prompt in prompts]
    beside = llm.submit(PROMPT, SamplingParams(0, max_tokens=40, ignore_eos=True))
    answers = [llm.submit(prompt, params) for prompt in prompts]
    assert [answer.output().prompt_logprobs for answer in answers] == [output.prompt_logprobs for output in alone]
    assert len(beside.output().token_ids) == 40
    for prompt, output in zip(prompts, alone, strict=True):
        assert [token.logprob for token in output.prompt_logprobs[1:]] == llm.score(prompt).logprobs


def test_a_bias_for_a_token_that_is_none(llm):
    with pytest.raises(UserError, match=f"token {VOCAB} is outside the model's vocabulary of {VOCAB}"):
        llm.submit(PROMPT, SamplingParams(logit_bias={VOCAB: 1}))
