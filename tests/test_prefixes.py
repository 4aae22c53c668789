"""What is in the cache is not computed again, and what comes of it is the same."""

import shutil
from random import Random

import gguf
import numpy as np
import pytest
from support.logits import F16_ROUNDING, error
from support.models import tiny_cohere2, tiny_qwen3, tiny_qwen3next
from support.models.golden import GOLDEN
from support.scheduling import finish_of, opened, tokens_of

from numatp import LLM, SamplingParams
from numatp.engine.blocks import Blocks
from numatp.engine.cache import Pool
from numatp.engine.prefixes import Prefixes, last_border
from numatp.engine.sequence import Scoring
from numatp.kernels.layout import CACHE_BLOCK, NO_WINDOW


class Recorded:
    """A golden model, said to be trained for texts as long as those of this file."""

    def __init__(self, name):
        self.name = name

    def write(self, path):
        shutil.copy(GOLDEN / f"{self.name}.gguf", path)
        field = gguf.GGUFReader(path, "r+").fields[f"{self.name}.context_length"]
        field.parts[field.data[0]][0] = 1024


KINDS = {
    "full": (tiny_qwen3, {}), "windows": (tiny_cohere2, {}), "recurrent": (tiny_qwen3next, {}),
    "q8_0": (tiny_qwen3, {"cache_type": "q8_0"}), "several": (Recorded("deepseek4"), {}),
    "runs": (Recorded("glm5-next"), {}),
}  # fmt: skip
STATES = ("recurrent", "several", "runs")  # that keep a state, which is taken up where a checkpoint of it is
EVERY = 128  # tokens between two checkpoints
RNG = np.random.default_rng(8)
LONG, OTHER = (RNG.integers(0, 100, 300).tolist() for _ in range(2))


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def path(kind, tmp_path_factory):
    path = tmp_path_factory.mktemp(kind) / "tiny.gguf"
    KINDS[kind][0].write(path)
    return path


@pytest.fixture(scope="module")
def cold(kind, path):
    with opened(path, context=640, max_sequences=4, max_rows=48, **KINDS[kind][1]) as play:
        yield play


@pytest.fixture
def warm(kind, path):
    """With a cache of its own for each test."""
    with opened(
        path, context=640, max_sequences=4, max_rows=48, prefix_cache=True, checkpoint_every=EVERY, **KINDS[kind][1]
    ) as play:
        yield play


def asked(play, prompt, max_tokens=1, **params):
    """(tokens, the logits of the last of them, Finish, rows of prompts that were computed)."""

    def work(p):
        _, came = p.ask(prompt, max_tokens, **params)
        p.finish()
        return p.texts[0], p.engine.window.logits[0, :200].copy(), finish_of(came), p.counts.computed_tokens

    return play(work)


def test_a_prompt_that_was_there_before(cold, warm):
    """Its last block alone is computed; the logits have the bits of the first time, and of an engine that keeps nothing."""
    wanted = asked(cold, LONG)
    first, second = asked(warm, LONG), asked(warm, LONG)
    assert (first[2].cached_tokens, second[2].cached_tokens, wanted[2].cached_tokens) == (0, last_border(300), 0)
    assert (first[3], second[3]) == (300, 300 - last_border(300))
    assert (first[1] == wanted[1]).all() and (second[1] == wanted[1]).all()
    for params in ({}, {"temperature": 0.8, "seed": 3}):
        assert asked(warm, LONG, 20, **params)[0] == asked(cold, LONG, 20, **params)[0]


@pytest.mark.parametrize("length", [1, 2, 64, 65, 66, 128, 130])
def test_two_tokens_at_least_are_computed(cold, warm, length):
    prompt = LONG[:length]
    wanted = asked(cold, prompt)
    for _ in range(2):
        found = asked(warm, prompt)
        assert (found[1] == wanted[1]).all() and found[3] >= min(length, 2)
    assert found[2].cached_tokens == last_border(length)


def test_the_next_turn_begins_where_the_last_one_ended(cold, warm):
    """What was decoded is taken over too: its last bits are those of single rows, so those of the logits may differ."""
    answer = asked(warm, LONG, 90)[0]
    turn = [*LONG, *answer, *OTHER[:40]]
    found, wanted = asked(warm, turn, 1), asked(cold, turn, 1)
    assert found[2].cached_tokens == (300 + 89) // CACHE_BLOCK * CACHE_BLOCK  # the last token was never fed
    assert found[0] == wanted[0] and error(found[1][None], wanted[1][None]) < F16_ROUNDING


def test_who_goes_another_way(kind, cold, warm):
    """The beginning that both have is taken over; of recurrent layers as far as a checkpoint is, and the next time all of it."""
    asked(warm, LONG, 5)
    ways = [[*LONG[:250], *OTHER[i : i + 40]] for i in (0, 100)]
    found = [asked(warm, way) for way in ways]
    border = 250 // CACHE_BLOCK * CACHE_BLOCK
    assert [one[2].cached_tokens for one in found] == [EVERY if kind in STATES else border, border]
    for way, one in zip(ways, found, strict=True):
        assert (one[1] == asked(cold, way)[1]).all()


def test_equal_prompts_at_once_are_computed_once(cold, warm):
    wanted = [asked(cold, LONG, 10, temperature=0.9, seed=seed)[0] for seed in range(4)]

    def work(p):
        for seed in range(4):
            p.ask(LONG, 10, temperature=0.9, seed=seed)
        p.finish()
        assert [finish_of(came).cached_tokens for _, came in p.asked] == [0, *[last_border(300)] * 3]
        return p.texts, p.counts

    texts, counts = warm(work)
    assert texts == wanted
    assert counts.computed_tokens == 300 + 3 * (300 - last_border(300))
    assert (counts.prompt_tokens, counts.cached_tokens) == (1200, 3 * last_border(300)) and counts.set_back == 0


def test_prompts_with_one_beginning_at_once(cold, warm):
    prompts = [[*LONG[:200], *OTHER[i : i + 50]] for i in (0, 60, 120)]
    wanted = [asked(cold, prompt, 5)[0] for prompt in prompts]

    def work(p):
        for prompt in prompts:
            p.ask(prompt, 5)
        p.finish()
        return p.texts, p.counts.computed_tokens

    assert warm(work) == (wanted, 250 + 2 * (250 - 192))


def test_who_waits_for_another_goes_on_when_that_one_is_cancelled(cold, warm):
    def work(p):
        first, _ = p.ask(LONG, 3)
        p.ask(LONG, 3)
        p.scheduler.step()
        p.scheduler.step()
        first.cancelled.set()
        p.finish()
        return tokens_of(p.asked[1][1])

    assert warm(work) == asked(cold, LONG, 3)[0]


def test_scores_take_over_what_prompts_computed_and_have_the_same_bits(cold, warm):
    def scored(play, tokens, count):
        def work(p):
            p.scheduler.submit(Scoring(tokens, (came := []).append, count))
            p.finish()
            return came[0], p.counts.computed_tokens

        return play(work)

    answer = asked(warm, LONG, 70)[0]
    for tokens, count in ((LONG, 20), (LONG, 299), ([*LONG, *answer], 30), ([*LONG, *answer], 1)):
        found, computed = scored(warm, tokens, count)
        assert found == scored(cold, tokens, count)[0]
        assert computed < len(tokens) - 1 or count == 299


def test_after_being_set_back(cold, warm):
    """Five sequences, each of which wants more than a fifth of the cache: with their blocks kept, as long as there is room."""
    prompts = [[*LONG[:100], *OTHER[i * 40 : i * 40 + 60]] for i in range(4)]
    wanted = [asked(cold, prompt, 200)[0] for prompt in prompts]

    def work(p):
        for prompt in prompts:
            p.ask(prompt, 200)
        p.finish()
        for (sequence, came), prompt in zip(p.asked, prompts, strict=True):
            assert sequence.tokens == prompt + tokens_of(came)
        return p.texts, p.counts.set_back

    texts, set_back = warm(work)
    assert texts == wanted and set_back > 0


def test_more_texts_than_the_cache_holds(cold, warm):
    """The oldest are forgotten, of each its end first; what comes is right all the same."""
    texts = [RNG.integers(0, 200, 250).tolist() for _ in range(6)]
    wanted = [asked(cold, text, 3)[0] for text in texts]
    for _ in range(2):
        for text, tokens in zip(texts, wanted, strict=True):
            assert asked(warm, text, 3)[0] == tokens
    assert asked(warm, texts[-1])[2].cached_tokens == last_border(250)


def test_windows_that_are_gone(tmp_path):
    """Who goes another way a window behind the end finds what he needs; further back it is computed anew."""
    tiny_cohere2.write(tmp_path / "tiny.gguf")
    text = RNG.integers(0, 200, 600).tolist()
    ways = {length: [*text[:length], *OTHER[:20]] for length in (600, 500, 200)}
    with opened(tmp_path / "tiny.gguf", context=640, max_rows=16) as play:
        wanted = {length: asked(play, way)[1] for length, way in ways.items()}
    with opened(tmp_path / "tiny.gguf", context=640, max_rows=16, prefix_cache=True) as play:
        asked(play, text)
        assert play.engine.blocks.pools[1].blocks < 10
        for length, cached in ((600, 576), (500, 448), (200, 0)):
            _, row, finish, _ = asked(play, ways[length])
            assert finish.cached_tokens == cached and (row == wanted[length]).all()


def test_on_several_ranks(kind, path, cold):
    with opened(path, 2, context=640, max_sequences=4, max_rows=48, prefix_cache=True, threads=1, **KINDS[kind][1]) as play:
        first, second = asked(play, LONG, 5), asked(play, LONG, 5)
    assert first[0] == second[0] == asked(cold, LONG, 5)[0]
    assert second[2].cached_tokens == last_border(300) and (first[1] == second[1]).all()


def test_the_switch(path):
    with opened(path, context=640, max_sequences=4, max_rows=48) as play:
        assert [asked(play, LONG)[2].cached_tokens for _ in range(2)] == [0, 0]


def test_texts_whose_names_are_equal_are_told_apart():
    blocks = Blocks([Pool(NO_WINDOW, {}, 8)], 16)
    prefixes = Prefixes(blocks, range(0), EVERY)
    assert prefixes._name(b"", b"some") != Prefixes(blocks, range(0), EVERY)._name(b"", b"some")
    prefixes._name = lambda before, tokens: b"equal"
    tables, known = prefixes.take(prefixes.find([], 0, exact=False))
    tables.prepare(0, 64)
    prefixes.add(tables, known, LONG, 64)
    assert prefixes.find(LONG, 64, exact=False).tokens == 64 and prefixes.find(OTHER, 64, exact=False).tokens == 0


def test_salts_keep_users_apart(cold, warm):
    """With another one nothing is found, also of texts that run at the same time; the text is the same."""
    wanted = asked(cold, LONG, 3)[0]
    assert [asked(warm, LONG, 3, salt=salt)[2].cached_tokens for salt in ("a", "", "b", "a")] == [0, 0, 0, last_border(300)]

    def work(p):
        for salt in ("c", "d", "c"):
            p.ask(LONG, 3, salt=salt)
        p.finish()
        return p.texts, [finish_of(came).cached_tokens for _, came in p.asked]

    assert warm(work) == ([wanted] * 3, [0, 0, last_border(300)])


def test_a_state_of_decoded_tokens_is_no_state_of_a_prompt():
    blocks = Blocks([Pool(NO_WINDOW, {}, 8)], 16)
    prefixes = Prefixes(blocks, range(2, 4), EVERY)
    slots = []
    for exact in (True, False, True):
        tables, known = prefixes.take(prefixes.find(LONG, 0, exact=False))
        known.exact = exact
        tables.prepare(0, 64)
        prefixes.add(tables, known, LONG, 64)
        if len(slots) or not exact:
            slots.append(prefixes.checkpoint(known, 64, 300))
    assert slots[0] is None and slots[1] is not None


@pytest.mark.parametrize("seed", range(10))
def test_a_block_holds_what_it_is_known_for(seed):
    """A random walk of texts that branch, grow and end; what is in each block and each slot is remembered beside it."""
    rng = Random(seed)
    pools = [Pool(NO_WINDOW, {}, 14), Pool(100, {}, 11)]
    blocks = Blocks(pools, max_rows=80)
    prefixes = Prefixes(blocks, range(3, 7) if seed % 2 else range(0), EVERY)
    held = [[None] * pool.blocks for pool in pools]  # the tokens up to the end of each block
    states = [None] * 7
    texts, running = [[0] * 30], []
    hits = 0
    for _ in range(500):
        if rng.random() < 0.3 and len(running) < 3:
            beginning = rng.choice(texts)
            text = beginning[: rng.randrange(len(beginning) + 1)] + [rng.randrange(2)] * rng.randrange(1, 90)
            texts = [*texts[-15:], text]
            found = prefixes.find(text, last_border(len(text)), exact=False)
            tables, known = prefixes.take(found)
            hits += found.tokens
            if prefixes.recurrent and found.tokens:
                assert states[found.prefixes[-1].state] == text[: found.tokens]
            running.append([text, tables, known, found.tokens])
        elif running:
            entry = rng.choice(running)
            text, tables, known, done = entry
            count = min(prefixes.next_stop(known, done, len(text)) - done, rng.randrange(1, 81))
            if not count or not tables.has_room(done, count) or rng.random() < 0.1:
                tables.release()
                running.remove(entry)
                continue
            tables.prepare(done, count)
            entry[3] = done = done + count
            for pool in range(2):
                for i in range((done - count) // CACHE_BLOCK, (done - 1) // CACHE_BLOCK + 1):
                    held[pool][tables.numbers[pool][i]] = text[: min(done, (i + 1) * CACHE_BLOCK)]
            prefixes.add(tables, known, text, done)
            slot = prefixes.checkpoint(known, done, len(text))
            if slot is not None:
                states[slot] = text[:done]
        users = [[block for _, tables, _, _ in running for block in set(tables.numbers[p][tables.first[p] :])] for p in range(2)]
        for pool in range(2):
            for text, tables, _, done in running:  # nobody has written over what a sequence will read
                for i in range(tables.first[pool], (done - 1) // CACHE_BLOCK + 1):
                    assert held[pool][tables.numbers[pool][i]][: (i + 1) * CACHE_BLOCK] == text[: min(done, (i + 1) * CACHE_BLOCK)]
            free, kept = blocks._free[pool], list(blocks._kept[pool])
            assert sorted([*set(users[pool]), *free, *kept]) == list(range(pools[pool].blocks))
            assert [users[pool].count(block) for block in range(pools[pool].blocks)] == blocks._holders[pool]
            assert set(prefixes._of_block[pool]) == {block for block, known in enumerate(blocks._known[pool]) if known}
        named = list(prefixes._named.values())
        assert len({id(prefix) for prefix in prefixes._states.values()}) == len(prefixes._states)
        assert sorted([*prefixes._states, *prefixes._free_states]) == list(range(3, 7) if seed % 2 else [])
        assert all(prefix.state is not None or any(b is not None for b in prefix.blocks) for prefix in named)
    assert hits > 0
    for _, tables, _, _ in running:
        tables.release()
    assert all(blocks.count(pool)[0] == 0 for pool in range(2))


def test_smollm2_alone_together_and_behind_what_is_cached(model_path):
    text = "The quick brown fox jumps over the lazy dog, and then it sits down to write a letter home. " * 6
    params = SamplingParams(temperature=0, max_tokens=24)
    with LLM(model_path, ranks=1, ctx=1024, max_sequences=4, ubatch=64, prefix_cache=False) as llm:
        wanted = [llm.generate(text + end, params) for end in ("Dear", "My", "Dear")]
    with LLM(model_path, ranks=1, ctx=1024, max_sequences=4, ubatch=64) as llm:
        outputs = llm.generate([text + end for end in ("Dear", "My", "Dear")], params)
        again = llm.generate(text + "Dear", params)
        assert [output.text for output in outputs] == [output.text for output in wanted] and again.text == wanted[0].text
        assert [output.cached_tokens for output in wanted] == [0, 0, 0]
        border = last_border(wanted[0].prompt_tokens)
        assert [output.cached_tokens for output in [*outputs, again]] == [0, border, border, border] and border >= 64
        assert (llm.counts.cached_tokens, llm.counts.blocks_held) == (3 * border, 0)
