"""Models that compute no numbers, and models with more rows than their tokenizer has tokens: what an answer makes of them."""

import numpy as np
import pytest
from support.models import folders, tiny

from numatp import LLM, SamplingParams, UserError
from numatp.engine.sequence import Continuation, Scoring

TOKENS = tiny.SIZES["vocab"] - 30  # of the tokenizer
WAYS = (SamplingParams(0, max_tokens=4), SamplingParams(0.8, max_tokens=4, seed=1))
DAMAGED = "it computes no numbers for what follows this text: damaged"


def open_folder(folder, change):
    """change(tensors): of a Hugging Face folder of the tiny Llama."""
    config, tensors = folders.llama(tiny.write(folder.with_suffix(".gguf")))
    tensors = {name: np.array(values) for name, values in tensors.items()}
    change(tensors)
    folders.write(folder, config, tensors)
    folders.write_small_tokenizer(folder, TOKENS)
    return LLM(folder, ranks=1, quantize="none", ctx=64, max_sequences=4, ubatch=16)


def test_rows_beyond_the_tokenizer_are_never_drawn(tmp_path):
    """One of the two always wins over all tokens that there are."""

    def change(tensors):
        tensors["lm_head.weight"][:] = 0
        tensors["lm_head.weight"][-1], tensors["lm_head.weight"][-2] = 1, -1

    with open_folder(tmp_path / "padded", change) as llm:
        for params in WAYS:
            assert all(token < TOKENS for token in llm.generate([1, 2, 3], params).token_ids)


def test_a_model_without_numbers_is_named(tmp_path):
    """Its norm is finite in the file, and what comes of it is not."""

    def change(tensors):
        tensors["model.norm.weight"][:] = 3e38

    with open_folder(tmp_path / "damaged", change) as llm:
        for params in WAYS:
            with pytest.raises(UserError, match=f"damaged: {DAMAGED}"):
                llm.generate([1, 2, 3], params)
        for count in (1, 39):
            with pytest.raises(UserError, match=f"damaged: {DAMAGED}"):
                llm.score(list(range(40)), count)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    with open_folder(tmp_path_factory.mktemp("sound") / "sound", lambda tensors: None) as llm:
        yield llm


def test_others_go_on_beside_an_answer_without_numbers(llm):
    """One row of a Step of several is spoilt: that of the prompt with token 7."""
    prompts = [[1, 2, 3], [7, 2, 3], [4, 5]]
    params = SamplingParams(0, max_tokens=6, ignore_eos=True)
    wanted = [llm.generate(prompt, params).token_ids for prompt in prompts]

    def spoil(engine):
        run = engine.run

        def spoiled(spans):
            run(spans)
            for row, span in enumerate(span for span in spans if span.want_logits):
                if 7 in span.tokens:
                    engine.window.logits[row, 3] = np.nan

        engine.run = spoiled

    llm._service.call(spoil)
    try:
        answers = [llm.submit(prompt, params) for prompt in prompts]
        with pytest.raises(UserError, match=DAMAGED):
            answers[1].output()
        assert [answers[i].output().token_ids for i in (0, 2)] == [wanted[0], wanted[2]]
        assert llm.generate(prompts[0], params).token_ids == wanted[0]  # whose place may be the spoilt one's
    finally:
        llm._service.call(lambda engine: delattr(engine, "run"))


def test_a_score_and_an_answer_take_turns(llm):
    """Between two Steps of a long score the answer gets a token, and the scores have the bits that they have alone."""
    text, params = [i % TOKENS for i in range(2, 62)], SamplingParams(0, max_tokens=12, ignore_eos=True)
    wanted, alone = llm.generate([1], params).token_ids, llm.score(text).logprobs

    def both(engine):
        from numatp.engine.scheduler import Scheduler

        steps, scheduler, answer, scores = [], Scheduler(engine), [], []
        run, score = engine.run, engine.score
        engine.run = lambda spans: (steps.append("answer"), run(spans))
        engine.score = lambda spans: (steps.append("score"), score(spans))[1]
        scheduler.submit(Continuation([1], answer.append, params, frozenset(), TOKENS))
        scheduler.submit(Scoring(text, scores.append, len(text) - 1))
        while scheduler.busy:
            scheduler.step()
        del engine.run, engine.score
        return steps, answer, scores

    held = llm._service.call(lambda engine: engine.blocks.count(0)[0])
    steps, answer, scores = llm._service.call(both)
    assert [token.id for token in answer[:-1]] == wanted and answer[-1].reason == "length"
    assert scores == [alone]
    assert steps[:8] == ["answer", "score"] * 4 and steps[8:] == ["answer"] * 8
    assert llm._service.call(lambda engine: engine.blocks.count(0)[0]) == held == 0
