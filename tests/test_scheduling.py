"""Who runs, waits and is set back, and what a Step holds: the same tokens whatever runs beside them."""

from random import Random

import numpy as np
import pytest
from support.models import tiny_cohere2, tiny_qwen3, tiny_qwen3next
from support.scheduling import finish_of, opened, tokens_of

from numatp.engine.blocks import Blocks, Tables
from numatp.engine.cache import Pool
from numatp.engine.job import ROWS_UNIT
from numatp.engine.pace import Pace
from numatp.engine.sequence import Scoring
from numatp.engine.token import Progress, Token
from numatp.errors import UserError
from numatp.kernels.layout import CACHE_BLOCK, NO_WINDOW

MODELS = {"full": tiny_qwen3, "windows": tiny_cohere2, "recurrent": tiny_qwen3next}
RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(0, 200, length).tolist() for length in (60, 100, 30, 75)]


@pytest.fixture(scope="module", params=MODELS)
def play(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "tiny.gguf"
    MODELS[request.param].write(path)
    with opened(path, context=256, max_sequences=4, max_rows=48) as play:
        yield play


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    path = tmp_path_factory.mktemp("full") / "tiny.gguf"
    tiny_qwen3.write(path)
    with opened(path, context=256, max_sequences=4, max_rows=48) as play:
        yield play


def alone(play, prompt, max_tokens, **params):
    def work(p):
        p.ask(prompt, max_tokens, **params)
        p.finish()
        return p.texts[0]

    return play(work)


@pytest.mark.parametrize("params", [{}, {"temperature": 0.8, "seed": 7}])
def test_who_is_set_back_goes_on_where_it_was(play, params):
    """Seven blocks for four sequences that want three each: the tokens of each are those that it has alone, each sent once."""
    wanted = [alone(play, prompt, 90, **params) for prompt in PROMPTS]

    def work(p):
        for prompt in PROMPTS:
            p.ask(prompt, 90, **params)
        p.finish()
        for (sequence, came), prompt in zip(p.asked, PROMPTS, strict=True):
            assert sequence.tokens == prompt + tokens_of(came)
            finish = finish_of(came)
            assert (finish.reason, finish.decoded_tokens, finish.prompt_tokens) == ("length", 89, len(prompt))
        return p.texts, p.counts.set_back

    texts, set_back = play(work)
    assert texts == wanted
    assert set_back > 0 or len(play.engine.blocks.pools) > 1  # windows need fewer blocks


def test_the_oldest_is_never_set_back(full):
    def work(p):
        sequences = [p.ask(prompt, 150)[0] for prompt in PROMPTS]
        released, oldest = [], sequences[0]
        for sequence in sequences:
            release = sequence.release
            sequence.release = lambda release=release, sequence=sequence: released.append(sequence) or release()
        while not any(oldest is sequence for sequence in released):
            p.scheduler.step()
        assert len(oldest.tokens) == 210 and len(released) > 1
        p.finish()

    full(work)


def test_a_request_without_an_end_lets_others_in(full):
    def work(p):
        endless, came = p.ask(PROMPTS[0], None)
        others = [p.ask(prompt, 5) for prompt in PROMPTS[1:]]
        while not all(len(came) > 5 for _, came in others):
            p.scheduler.step()
        assert len(tokens_of(came)) < 30
        endless.cancelled.set()
        p.finish()
        assert finish_of(came).reason == "cancelled"

    full(work)


def test_a_long_prompt_gets_on_beside_short_ones(full):
    """Somebody with a short prompt comes before every Step, and the rows of a Step are not enough for all."""

    def work(p):
        long, _ = p.ask(RNG.integers(0, 200, 200).tolist(), 2)
        steps = 0
        while long.done < 200:
            p.ask(PROMPTS[2], 1)
            p.scheduler.step()
            steps += 1
        for sequence, _ in p.asked:
            sequence.cancelled.set()
        p.finish()
        return steps

    assert full(work) <= 200 // 40 + 1  # 48 rows less those of three others that decode


def test_who_can_never_run_is_told_so_at_once(full):
    def work(p):
        _, came = p.ask([1] * 257, 1)
        _, other = p.ask([1] * 255, 1)
        p.finish()
        assert isinstance(came[0], UserError) and "257 tokens do not fit into the context of 256" in str(came[0])
        return tokens_of(other)

    assert len(full(work)) == 1


def test_cancelled_while_it_waits_in_its_prompt_and_between_tokens(full):
    def work(p):
        sequences = [p.ask(prompt, 50) for prompt in [PROMPTS[1], *[PROMPTS[3]] * 3, PROMPTS[0]]]
        score = Scoring(PROMPTS[0], (scores := []).append, 5)
        p.scheduler.submit(score)
        sequences[4][0].cancelled.set()  # the fifth of four places
        p.scheduler.step()
        assert finish_of(sequences[4][1]).reason == "cancelled" and not tokens_of(sequences[4][1])
        assert 0 < sequences[0][0].done < 100
        sequences[0][0].cancelled.set()
        score.cancelled.set()
        p.scheduler.step()
        assert finish_of(sequences[0][1]).decoded_tokens == 0 and scores[0].reason == "cancelled"
        while len(sequences[1][1]) < 2:
            p.scheduler.step()
        for sequence, _ in sequences[1:4]:
            sequence.cancelled.set()
        p.finish()
        assert 2 <= len(tokens_of(sequences[1][1])) < 50

    full(work)


def test_progress_of_a_prompt_is_told_after_every_step(full):
    def work(p):
        _, came = p.ask(PROMPTS[1], 2, progress=True)
        _, silent = p.ask(PROMPTS[2], 2)
        p.finish()
        assert not any(isinstance(item, Progress) for item in silent)
        return came

    came = full(work)
    assert came[:3] == [Progress(48, 0, 100), Progress(96, 0, 100), Progress(100, 0, 100)]
    assert [type(item) for item in came[3:5]] == [Token, Token] and len(came) == 6


def test_counts(full):
    def work(p):
        p.ask(PROMPTS[0], 3)
        p.ask(PROMPTS[1], 3)
        p.scheduler.step()
        assert (p.counts.running, p.counts.waiting) == (2, 0)
        p.finish()
        return p.counts

    counts = full(work)
    assert (counts.running, counts.computed_tokens, counts.generated_tokens, counts.set_back) == (0, 160, 6, 0)


def in_parts(sequence, most):
    """Has at most so many rows in a Step."""
    rows = sequence.rows
    sequence.rows = lambda room, stop: rows(min(most, room), stop)
    return sequence


def test_a_prompt_has_the_same_bits_however_it_is_cut(play):
    """It never has a row of its own in a Step, as a cut after 33 of 100 would leave it. Scores likewise."""

    def work(p):
        rows, scores = [], []
        for most in (48, 17, 30, 33):
            in_parts(p.ask(PROMPTS[1], 1)[0], most)
            p.finish()
            rows.append(p.engine.window.logits[0, :200].copy())
            p.scheduler.submit(in_parts(Scoring([*PROMPTS[1], 7], scores.append, 60), most))
            p.finish()
        assert all((row == rows[0]).all() for row in rows) and all(some == scores[0] for some in scores)

    play(work)


def test_rows_beside_others_follow_what_was_measured():
    """A token takes 250 ms on average, a Step with prompts up to 1.4 times that, for the next one has none then."""
    pace = Pace(0.25, 512)
    assert (pace.rows(0), pace.rows(3)) == (512, 32)
    pace.measured(512, 2.048)
    assert pace.rows(0) == 512 and pace.rows(3) == 0
    pace.measured(0, 0.05)
    assert pace.rows(3) == 64 and pace.rows(0) == 512  # 4 ms a row, 300 ms beside 50
    pace.measured(64, 0.114)  # 1 ms a row beside 50 ms: 0.3 of the way from 4 ms to it, 3.1 ms
    assert pace.rows(3) == 96
    pace.measured(100, 0.35)
    assert pace.rows(3) == 0
    for _ in range(20):
        pace.measured(0, 0.2)
    assert pace.rows(3) == 32  # 300 ms in all, 100 of them for rows of 3 ms
    pace.measured(32, 0.216)
    assert pace.rows(3) == 32  # 2.25 ms
    pace.measured(32, 0.216)
    assert pace.rows(3) == 48  # 1.7 ms
    pace.measured(32, 0.304)  # slower counts at once
    assert pace.rows(3) == 0
    pace.measured(0, 0.2)
    assert pace.rows(3) == 32
    for _ in range(20):
        pace.measured(16, 3)
        pace.measured(0, 0.2)
    assert pace.rows(3) == 32 and pace.rows(500) == 12


@pytest.mark.parametrize(
    ("decode", "making", "row"), [(0.03, 0.08, 0.002), (0.1, 0.08, 0.003), (0.02, 0.0, 0.006), (0.2, 0.02, 0.002)]
)
def test_steps_beside_others_keep_to_the_time_of_a_token(decode, making, row):
    """Of a model whose Steps take so many seconds for those who decode, for panels, and for each row of a prompt."""
    pace, took, rows = Pace(0.25, 512), [], 0
    for _ in range(400):
        count = pace.rows(3)
        seconds = decode + (making + row * count if count else 0)
        pace.measured(count, seconds)
        took.append(seconds)
        rows += count
    assert max(took[20:]) <= 2 * 0.25 and sum(took[20:]) <= 0.25 * 1.02 * len(took[20:])
    steady = (0.25 - decode - making) / row // ROWS_UNIT * ROWS_UNIT  # rows of a prompt in each Step, were none longer
    assert rows / sum(took) >= steady / 0.25


def test_scores_and_prompts_take_turns_beside_who_decodes(full):
    """Each Step takes longer than a token should, so one without either follows; neither keeps the other out."""

    def work(p):
        kinds, run, score = [], p.engine.run, p.engine.score
        p.scheduler._pace = Pace(0.0, 48)
        p.ask(PROMPTS[2], 60)
        p.scheduler.step()
        p.engine.run = lambda spans: (kinds.append("prompt" if max(len(s.tokens) for s in spans) > 1 else "decode"), run(spans))[1]
        p.engine.score = lambda spans: (kinds.append("score"), score(spans))[1]
        p.scheduler.submit(Scoring(PROMPTS[1], (scores := []).append, 99))
        p.ask(PROMPTS[3], 2)
        p.finish()
        del p.engine.run, p.engine.score
        return kinds, scores

    kinds, scores = full(work)
    turns = [kind for kind in kinds if kind != "decode"]
    assert sorted(turns[:4]) == ["prompt", "prompt", "score", "score"] and turns[0] != turns[1]
    assert kinds[:13] == ["decode", *(kind for turn in turns[:6] for kind in (turn, "decode"))]
    assert len(scores) == 1


def test_a_step_of_a_score_is_bounded_too(full):
    def work(p):
        p.scheduler._pace.measured(48, 48)  # a second a row
        p.ask(PROMPTS[2], 10)
        p.scheduler.step()
        spans, score = [], p.engine.score
        p.engine.score = lambda found: (spans.extend(found), score(found))[1]
        p.scheduler.submit(Scoring(PROMPTS[1], (scores := []).append, 99))
        p.finish()
        del p.engine.score
        return [len(span.tokens) for span in spans], scores[0]

    rows, scores = full(work)
    assert rows[0] == 32 and sum(rows) == 99 == len(scores)


@pytest.mark.parametrize("seed", range(8))
def test_no_block_has_two_roles(seed):
    """A random walk: sequences grow, end and hold what others hold, some blocks are known."""
    rng = Random(seed)
    pools = [Pool(NO_WINDOW, {}, 12), Pool(100, {}, 9)]
    blocks = Blocks(pools, max_rows=32)
    known = [set(), set()]
    blocks.forgotten = lambda pool, block: known[pool].remove(block)
    running = []
    for _ in range(400):
        what = rng.random()
        if what < 0.2:
            running.append([Tables(blocks), 0])
        elif what < 0.7 and running:
            entry = rng.choice(running)
            tables, done = entry
            count = rng.randrange(1, 33)
            if tables.has_room(done, count):
                tables.prepare(done, count)
                entry[1] += count
            else:
                running.remove(entry)
                tables.release()
        elif what < 0.8 and running:
            tables, done = rng.choice(running)
            for pool in range(2):
                for block in tables.numbers[pool][tables.first[pool] : done // CACHE_BLOCK]:
                    blocks.remember(pool, block)
                    known[pool].add(block)
        elif what < 0.9 and any(known):
            pool = rng.choice([pool for pool in range(2) if known[pool]])
            block = rng.choice(sorted(known[pool]))
            known[pool].remove(block)
            blocks.forget(pool, block)
        elif running:
            tables, _ = running.pop(rng.randrange(len(running)))
            tables.release()
        for pool in range(2):
            held = [block for tables, _ in running for block in tables.numbers[pool][tables.first[pool] :]]
            free, kept = blocks._free[pool], list(blocks._kept[pool])
            assert sorted([*set(held), *free, *kept]) == list(range(pools[pool].blocks))
            assert len(held) == len(set(held)) and set(kept) <= known[pool] and not known[pool] & set(free)
            assert blocks.count(pool) == (len(held), len(kept))
    for tables, _ in running:
        tables.release()
    assert all(blocks.count(pool)[0] == 0 and blocks.available(pool) == pools[pool].blocks for pool in range(2))
