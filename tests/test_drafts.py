"""Tokens that are guessed and checked, several in one Step: the same text as without."""

from dataclasses import replace

import numpy as np
import pytest
from support.models import tiny_cohere2, tiny_qwen3, tiny_qwen3moe, tiny_qwen3next
from support.scheduling import finish_of, opened, tokens_of

from numatp.engine.drafts import LONGEST_PAUSE, MOST_DRAFT, Drafts
from numatp.engine.job import MOST_DRAFTS, Job, drafts_of
from numatp.engine.layout import open_model
from numatp.engine.token import Token
from numatp.errors import UserError

KINDS = {
    "full": (tiny_qwen3, {}), "windows": (tiny_cohere2, {}), "q8_0": (tiny_qwen3, {"cache_type": "q8_0"}),
    "experts": (tiny_qwen3moe, {}),
}  # fmt: skip
RNG = np.random.default_rng(2)
PHRASE = RNG.integers(0, 200, 25).tolist()
PROMPTS = [PHRASE * 4, [*RNG.integers(0, 200, 40).tolist(), *PHRASE, 7, *PHRASE], RNG.integers(0, 200, 90).tolist()]
WAYS = (
    {},
    {"temperature": 0.7, "seed": 5, "top_k": 3},
    {"temperature": 0.7, "seed": 6, "frequency_penalty": 0.4, "repeat_penalty": 1.1, "logprobs": 3},
)


def run(path, prompts, kind, ranks=1, **job):
    """For every way: (what was told of each prompt, counts)."""
    told = []
    with opened(path, ranks, context=640, max_sequences=4, max_rows=48, **KINDS[kind][1], **job) as play:
        for params in WAYS:

            def work(p, params=params):
                for prompt in prompts:
                    p.ask(prompt, 60, **params)
                p.finish()
                for (sequence, came), prompt in zip(p.asked, prompts, strict=True):
                    finish = finish_of(came)
                    assert sequence.tokens == prompt + tokens_of(came)
                    assert (finish.reason, finish.decoded_tokens, len(tokens_of(came))) == ("length", 59, 60)
                return [[item for item in came if isinstance(item, Token)] for _, came in p.asked], p.counts

            told.append(play(work))
    return told


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_text_is_the_same(tmp_path, kind, ranks):
    """To the last bit of the log-probabilities, for one sequence and for three."""
    KINDS[kind][0].write(tmp_path / "tiny.gguf")
    for prompts in (PROMPTS[:1], PROMPTS):
        without = run(tmp_path / "tiny.gguf", prompts, kind, ranks, threads=1)
        guessed = run(tmp_path / "tiny.gguf", prompts, kind, ranks, threads=1, spec="ngram")
        assert [tokens for tokens, _ in guessed] == [tokens for tokens, _ in without]
        assert all(counts.guessed_tokens == 0 for _, counts in without)
        assert sum(counts.right_guesses for _, counts in guessed) > 0
        assert all(counts.right_guesses <= counts.guessed_tokens for _, counts in guessed)


def test_what_was_guessed_wrong_is_not_kept(tmp_path):
    """The next turn takes over what is in the cache, and goes on as without."""
    tiny_qwen3.write(tmp_path / "tiny.gguf")
    ends = []
    for spec in ("off", "ngram"):
        with opened(tmp_path / "tiny.gguf", context=640, max_rows=48, prefix_cache=True, spec=spec) as play:

            def work(p):
                p.ask(PROMPTS[1], 100, temperature=0.5, top_k=2, seed=1)
                p.finish()
                sequence, came = p.ask([*PROMPTS[1], *p.texts[0], *PHRASE], 20)
                p.finish()
                assert finish_of(came).cached_tokens == 128
                return sequence.tokens, p.counts

            ends.append(play(work))
    assert ends[0][0] == ends[1][0] and 0 < ends[1][1].right_guesses < ends[1][1].guessed_tokens


def test_guesses_leave_others_their_room(tmp_path):
    """A cache of four blocks: nobody is set back for a guess."""
    tiny_qwen3.write(tmp_path / "tiny.gguf")
    texts = []
    for spec in ("off", "ngram"):
        with opened(tmp_path / "tiny.gguf", context=192, max_sequences=2, max_rows=48, spec=spec) as play:

            def work(p):
                for prompt in ([*PHRASE] * 2, [*PHRASE, 3]):
                    p.ask(prompt, 78)
                p.finish()
                return p.texts, p.counts.set_back

            texts.append(play(work))
    assert texts[0] == texts[1] and texts[0][1] == 0


def test_where_tokens_are_guessed(tmp_path):
    for module, auto, ngram in ((tiny_qwen3, MOST_DRAFTS, MOST_DRAFTS), (tiny_qwen3moe, 0, MOST_DRAFTS), (tiny_qwen3next, 0, None)):
        path = tmp_path / f"{module.__name__}.gguf"
        module.write(path)
        job = Job(str(path), spec="auto")
        spec = open_model(job).spec
        assert drafts_of(job, spec) == auto and drafts_of(replace(job, spec="off"), spec) == 0
        if ngram is None:
            with pytest.raises(UserError, match="spec ngram: this model has recurrent layers"):
                drafts_of(replace(job, spec="ngram"), spec)
        else:
            assert drafts_of(replace(job, spec="ngram"), spec) == ngram
    with pytest.raises(UserError, match="spec is 'always'; choose from off, ngram, auto"):
        drafts_of(replace(job, spec="always"), spec)


def test_guesses_grow_while_they_are_right_and_pause_where_they_are_wrong():
    drafts, tokens = Drafts(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]
    assert drafts.guess(tokens, 8) == []
    tokens.append(3)
    assert drafts.guess(tokens, 8) == [4, 5, 6, 7] and drafts.guess(tokens, 2) == [4, 5]
    drafts.checked(len(tokens), 4, 4)
    assert drafts.guess(tokens, MOST_DRAFT) == [4, 5, 6, 7, 8, 9, 1, 2]
    drafts.checked(len(tokens), 8, 2)
    assert drafts.guess(tokens, 8) == [4, 5]
    pauses = []
    for _ in range(10):
        drafts.checked(len(tokens), 1, 0)
        before = len(tokens)
        while not drafts.guess(tokens, 8):
            tokens += [4, 1, 2, 3]
        pauses.append(len(tokens) - before)
    assert pauses[:3] == [4, 4, 8] and max(pauses) == LONGEST_PAUSE == pauses[-1]
