"""Tokens that are guessed and checked, several in one Step: the same text as without."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from support.models import tiny_cohere2, tiny_qwen3, tiny_qwen3moe, tiny_qwen3next
from support.models.golden import GOLDEN, model_file
from support.scheduling import finish_of, opened, tokens_of

from numatp.engine.blocks import Blocks, Tables
from numatp.engine.cache import Pool
from numatp.engine.drafts import ALIKE, ALIKE_FOR_EXPERTS, LONGEST_PAUSE, MOST_DRAFT, Drafts
from numatp.engine.job import MOST_DRAFTS, SPECS, Job, alike_of, drafts_of
from numatp.engine.layout import open_model
from numatp.engine.prefixes import Known
from numatp.engine.sampling import SamplingParams
from numatp.engine.sequence import Continuation
from numatp.engine.token import Token
from numatp.errors import UserError
from numatp.kernels.layout import CACHE_BLOCK
from numatp.kernels.states import PIECE
from numatp.models.layers import Recurrent

KINDS = {
    "full": (tiny_qwen3, {}), "windows": (tiny_cohere2, {}), "q8_0": (tiny_qwen3, {"cache_type": "q8_0"}),
    "experts": (tiny_qwen3moe, {}), "recurrent": (tiny_qwen3next, {}),
    "recurrent by channel": (GOLDEN / "kimi-linear.gguf", {"context": 512}),
    "runs of tokens": (GOLDEN / "glm5-next.gguf", {"context": 512}),
}  # fmt: skip
RNG = np.random.default_rng(2)
PHRASE = RNG.integers(0, 200, 25).tolist()
PROMPTS = [PHRASE * 4, [*RNG.integers(0, 200, 40).tolist(), *PHRASE, 7, *PHRASE], RNG.integers(0, 200, 90).tolist()]
FEW = dict.fromkeys((3, 5, 7), 50.0)  # texts of these alone come back to what they have said, in any model
WAYS = (
    {},
    {"temperature": 0.7, "seed": 5, "top_k": 3},
    {"temperature": 0.7, "seed": 6, "frequency_penalty": 0.4, "repeat_penalty": 1.1, "logprobs": 3},
    {"logit_bias": FEW, "logprobs": 1},
    {"temperature": 0.7, "seed": 7, "logit_bias": FEW, "logprobs": 1},
)


def test_what_the_fed_row_still_sees_is_kept_while_others_follow_it():
    """The window of the row at 132 begins with the last token of block 0, that of the first guess behind it with block 1."""
    window, fed = 70, 132
    blocks = Blocks([Pool(window, {}, 9)], max_rows=16)
    sequence = Continuation(list(range(fed)), list.append, SamplingParams(max_tokens=40), frozenset())
    sequence.tokens.append(7)
    sequence.begin(Tables(blocks), Known(b"", 0), 0)
    sequence.tables.prepare(0, fed)
    sequence.done = fed
    sequence.next_span(1)
    sequence.spans_of([3, 4])
    assert sequence.tables.first == [(fed + 1 - window) // CACHE_BLOCK] == [0]
    sequence.tables.prepare(fed + 1, 1)
    assert sequence.tables.first == [1]


EACH = [*product(WAYS, (1, 3))]  # a way, and how many sequences
# Each exchange of ranks that share a core is a switch: on two ranks one sequence goes the first way and the last.
ON_TWO_RANKS = [each for each in EACH if each[1] == 3 or each[0] in (WAYS[0], WAYS[-1])]


def run(path, kind, each, ranks=1, **job):
    """What was told of each prompt, and counts, for each way and number of sequences."""
    told = []
    with opened(path, ranks, max_sequences=4, max_rows=48, **{"context": 640, **KINDS[kind][1], **job}) as play:
        vocab = play.engine.loaded.spec.sizes.vocab
        texts = [[token % vocab for token in prompt] for prompt in PROMPTS]
        for params, count in each:

            def work(p, params=params, prompts=texts[:count]):
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
    path = model_file(KINDS[kind][0], tmp_path)
    each = EACH if ranks == 1 else ON_TWO_RANKS
    without, guessed = (run(path, kind, each, ranks, threads=1, **spec) for spec in ({}, {"spec": "ngram"}))
    assert [tokens for tokens, _ in guessed] == [tokens for tokens, _ in without]
    assert all(counts.guessed_tokens == 0 for _, counts in without)
    for count in (1, 3):
        assert sum(counts.right_guesses for (_, counts), (_, asked) in zip(guessed, each, strict=True) if asked == count) > 0
    assert all(counts.right_guesses <= counts.guessed_tokens for _, counts in guessed)


@pytest.mark.parametrize("kind", ["full", "recurrent"])
def test_what_was_guessed_wrong_is_not_kept(kind, tmp_path):
    """The next turn takes over what is in the cache, and goes on as without."""
    path = model_file(KINDS[kind][0], tmp_path)
    ends = []
    for spec in ("off", "ngram"):
        with opened(path, context=640, max_rows=48, prefix_cache=True, spec=spec) as play:

            def work(p):
                p.ask(PROMPTS[1], 100, temperature=0.5, top_k=2, seed=1, logit_bias=FEW)
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
    for module, by_itself in ((tiny_qwen3, ALIKE), (tiny_qwen3moe, ALIKE_FOR_EXPERTS), (tiny_qwen3next, ALIKE)):
        path = tmp_path / f"{module.__name__}.gguf"
        module.write(path)
        spec = open_model(Job(str(path))).spec
        assert [alike_of(Job(str(path), spec=way), spec) for way in SPECS] == [0, ALIKE, by_itself]
    assert [drafts_of(Job("model", spec=way)) for way in SPECS] == [0, MOST_DRAFTS, MOST_DRAFTS]
    with pytest.raises(UserError, match="spec is 'always'; choose from off, ngram, auto"):
        drafts_of(Job("model", spec="always"))


def test_by_themselves_experts_guess_less_and_are_right_more_often(tmp_path):
    path = model_file(KINDS["experts"][0], tmp_path)
    off, ngram, auto = (run(path, "experts", EACH[::2], spec=spec) for spec in SPECS)
    assert [tokens for tokens, _ in auto] == [tokens for tokens, _ in ngram] == [tokens for tokens, _ in off]

    def totals(ways):
        return [sum(getattr(counts, name) for _, counts in ways) for name in ("guessed_tokens", "right_guesses")]

    (guessed, right), (sure, right_of_these) = totals(ngram), totals(auto)
    assert 0 < sure < guessed and right_of_these * guessed > right * sure


def test_how_many_tokens_must_be_the_same():
    tokens = [*range(20), *range(8)]
    assert Drafts().guess(tokens, 8, alike=8) == [8, 9, 10, 11]
    assert Drafts().guess(tokens[:-1], 8, alike=8) == Drafts().guess(tokens[:7], 8, alike=8) == []
    drafts = Drafts()
    assert drafts.guess(tokens[:4], 8, alike=8) == [] and drafts.guess(tokens, 8, alike=8) == [8, 9, 10, 11]


def test_the_last_token_of_a_piece_is_no_guess(tmp_path):
    """What it does to a recurrent layer's state cannot be taken back. Right guesses follow each other without gaps."""
    guessed = []  # (place in the text of the first guess, guesses)

    class Watched(Continuation):
        def spans_of(self, guess):
            guessed.append((self.done, len(guess)))
            return super().spans_of(guess)

    with opened(model_file(KINDS["recurrent"][0], tmp_path), context=640, max_rows=48, spec="ngram") as play:

        def work(p):
            params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=200, logit_bias={3: 100.0})  # it says nothing else
            p.scheduler.submit(Watched(list(PROMPTS[0]), lambda item: None, params, frozenset()))
            p.finish()
            return p.counts

        counts = play(work)
    guessed = [(first, count) for first, count in guessed if count]
    assert all(first // PIECE == (first + count) // PIECE for first, count in guessed)
    assert max(count for _, count in guessed) == PIECE - 1 and counts.right_guesses > 100


def test_the_smallest_piece_of_any_layer_counts(tmp_path):
    spec = open_model(Job(str(model_file(KINDS["recurrent"][0], tmp_path)))).spec
    other = Recurrent(lambda split: 64, piece=1)
    assert spec.piece == PIECE and replace(spec, layers=(*spec.layers, other)).piece == 1
    assert open_model(Job(str(model_file(KINDS["full"][0], tmp_path)))).spec.piece == 0


def test_a_guess_is_longer_than_what_repeats_itself():
    """Of a text that says the same few tokens again and again."""
    assert Drafts().guess([9, 3, 3, 3, 3], 8) == [3, 3, 3, 3]
    assert Drafts().guess([1, 2, 1, 2, 1, 2], 3) == [1, 2, 1]


def test_only_what_a_grammar_is_sure_of():
    drafts, tokens = Drafts(), [1, 2, 3, 4, 1, 2, 3]
    assert drafts.guess(tokens, 8) == [4, 1, 2, 3] and drafts.guess(tokens, 8, alike=0) == []
    assert drafts.guess(tokens, 8, [5, 6], alike=0) == [5, 6]


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
