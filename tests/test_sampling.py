"""Sampling: the kernel against the probabilities that numpy gives in float64, and seeds, stops and limits of texts."""

import json
import re
from dataclasses import astuple, replace

import numpy as np
import pytest
from support.warm import numatp

from numatp.engine.chooser import Chooser, uniform
from numatp.engine.sampler import PAIR, Choice, Sampler
from numatp.engine.sampling import SamplingParams, recommended_params
from numatp.errors import UserError
from numatp.files.gguf_writer import GGUFWriter, new_file
from numatp.files.recommended import encoded_sampling
from numatp.kernels.sampling import NO_NUMBERS, NO_TOKEN

VOCAB, DRAWS = 300, 4000


def probabilities(logits, params, tokens):
    """float64 (vocab,): how likely each token should be chosen."""
    logits = logits.astype(np.float64).copy()
    for token in set(tokens[-64:]):
        logits[token] = logits[token] / params.repeat_penalty if logits[token] > 0 else logits[token] * params.repeat_penalty
    order = np.argsort(-logits, kind="stable")
    kept = order[: params.top_k] if params.top_k else order
    p = np.exp(logits[kept] - logits[kept].max())
    enough = np.searchsorted(np.cumsum(p), params.top_p * p.sum()) + 1 if params.top_p < 1 else len(kept)
    kept = kept[:enough]
    p = np.exp(logits[kept] - logits[kept].max())
    kept = kept[p >= params.min_p]
    wanted = np.zeros(len(logits))
    p = np.exp((logits[kept] - logits[kept].max()) / params.temperature)
    wanted[kept] = p / p.sum()
    return wanted


def sampler(logits):
    """Of a copy of the rows, whose last columns must not be looked at."""
    padded = np.full((len(logits), logits.shape[1] + 5), 1e9, np.float32)
    padded[:, : logits.shape[1]] = logits
    return Sampler(padded, logits.shape[1])


def chosen(logits, choices, rows=None):
    return [token.id for token in sampler(logits).choose(choices, rows)]


def pairs(values):
    return np.array([*values.items()], PAIR)


def drawn(logits, params, tokens=()):
    """How often each token comes when the deciding number goes evenly over [0, 1)."""
    rows = np.repeat(logits[None], DRAWS, 0)
    choices = [Choice(params, (i + 0.5) / DRAWS, list(tokens)) for i in range(DRAWS)]
    return np.bincount(chosen(rows, choices), minlength=len(logits)) / DRAWS


@pytest.mark.parametrize("top_k", [0, 1, 7, VOCAB, VOCAB + 1])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("min_p", [0.0, 0.05])
@pytest.mark.parametrize(("temperature", "penalty"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.3)])
def test_tokens_come_as_often_as_they_should(top_k, top_p, min_p, temperature, penalty):
    logits = (np.random.default_rng(top_k).standard_normal(VOCAB) * 2).astype(np.float32)
    params = SamplingParams(temperature, top_k, top_p, min_p, penalty)
    tokens = [int(np.argmax(logits))] * 3 + [5, 9]
    wanted = probabilities(logits, params, tokens)
    often = drawn(logits, params, tokens)
    assert (often[wanted == 0] == 0).all()
    assert np.abs(often - wanted).max() <= 1.5 / DRAWS  # a grid hits an interval of length p at p * DRAWS points, or one beside


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, 6.0, 60.0])
def test_top_p_of_many_tokens(spread):
    """Nearly alike, so that all of them are needed, or with the few that are needed near or far below the top."""
    logits = (np.random.default_rng(3).standard_normal(3001) * spread).astype(np.float32)
    logits[7::50] = -np.inf  # may not be chosen
    for top_p in (0.999, 0.9, 0.05):
        params = SamplingParams(1.0, 0, top_p, 0.0)
        biases = pairs({int(token): -np.inf for token in np.flatnonzero(np.isinf(logits))})
        rows = np.repeat(np.where(np.isinf(logits), 0, logits).astype(np.float32)[None], 500, 0)
        told = chosen(rows, [Choice(params, (i + 0.5) / 500, [], biases=biases) for i in range(500)])
        wanted = probabilities(logits, params, [])
        often = np.bincount(told, minlength=3001) / 500
        near = probabilities(
            logits, replace(params, top_p=min(top_p * (1 + 1e-5), 1 - 1e-9)), []
        )  # sums of float32 are no exact ones
        assert (often[(wanted == 0) & (near == 0)] == 0).all() and np.abs(often - wanted).max() <= 1.5 / 500 + 1e-5


def test_temperature_0_takes_the_first_of_equals():
    logits = np.array([[1, 5, 5], [-3, -2, -7]], np.float32)
    assert chosen(logits, [Choice(SamplingParams(0), 0.9, [])] * 2) == [1, 1]


@pytest.mark.parametrize("vocab", [63, 64, 65, 1000, 5003])
@pytest.mark.parametrize("order", [1, -1, 0])
def test_the_most_probable_of_many_that_differ_little(vocab, order):
    logits = np.linspace(3, 3.5, vocab, dtype=np.float32)[:: order or 1]
    if not order:
        logits = np.random.default_rng(0).permutation(logits)
    best = np.argsort(-logits)[:3].tolist()
    rows, params = np.repeat(logits[None], 4, 0), SamplingParams(1.0, 3, 1.0, 0.0)
    choices = [Choice(params, uniform, []) for uniform in (0.1, 0.5, 0.9)]
    found = chosen(rows, [Choice(SamplingParams(0), 0, []), *choices])
    assert found[0] == best[0] and sorted(found[1:]) == sorted(best)


def test_equals_are_equally_likely():
    often = drawn(np.zeros(8, np.float32), SamplingParams(0.7, 4, 1.0, 0.0))
    assert often.tolist() == [0.25] * 4 + [0] * 4


def test_a_penalty_counts_once_and_only_for_the_last_64():
    logits = np.array([[4, 3, -1, -1.5]], np.float32)
    for tokens, best in (([0, 0], 0), ([0], 0), ([0, 1], 0), ([0, *[1] * 63], 0), ([0, *[1] * 64], 0), ([], 0)):
        assert chosen(logits, [Choice(SamplingParams(0, repeat_penalty=1.2), 0, tokens)]) == [best], tokens
    assert chosen(logits, [Choice(SamplingParams(0, repeat_penalty=1.4), 0, [0, 0, 0])]) == [1]
    assert chosen(logits, [Choice(SamplingParams(0, repeat_penalty=1.4), 0, [0, *[2] * 64])]) == [0]
    assert chosen(logits[:, 2:], [Choice(SamplingParams(0, repeat_penalty=1.6), 0, [0])]) == [1]


@pytest.mark.parametrize(("repeat", "presence", "frequency"), [(1, 1.5, 0), (1, 0, 0.7), (1.2, -2, 0.25), (1, 0.5, -0.1)])
def test_penalties_of_openai_count_what_was_generated(repeat, presence, frequency):
    """Its reference's formula: logit[j] -= count[j] * frequency + (count[j] > 0) * presence. The repeat penalty comes before."""
    rng = np.random.default_rng(4)
    logits, generated = (rng.standard_normal(VOCAB) * 2).astype(np.float32), rng.integers(0, 80, 200).tolist()
    params = SamplingParams(1.0, 0, 1.0, 0.0, repeat, presence_penalty=presence, frequency_penalty=frequency)
    chooser = Chooser(params, frozenset(), None)
    for token in generated:
        chooser.take(token)
    prompt = [150, 150, 151]
    counts, changed = np.bincount(generated, minlength=VOCAB), logits.astype(np.float64)
    for token in set((prompt + generated)[-64:]):
        changed[token] = changed[token] / repeat if changed[token] > 0 else changed[token] * repeat
    changed -= counts * frequency + (counts > 0) * presence
    wanted = np.exp(changed) / np.exp(changed).sum()
    choices = [replace(chooser.choice(prompt + generated), uniform=(i + 0.5) / DRAWS) for i in range(DRAWS)]
    often = np.bincount(chosen(np.repeat(logits[None], DRAWS, 0), choices), minlength=VOCAB) / DRAWS
    assert np.abs(often - wanted).max() <= 1.5 / DRAWS


def test_biases_add_to_logits_and_change_nothing_in_the_window():
    logits = (np.random.default_rng(5).standard_normal((1, VOCAB))).astype(np.float32)
    there = sampler(logits)
    before = there._logits.copy()
    biases = {int(np.argmax(logits)): -100.0, 7: 50.0, 9: 100.0}
    choice = Choice(SamplingParams(0, repeat_penalty=1.1, presence_penalty=1), 0, [9], None, pairs(biases), pairs({9: 1.0}))
    assert [token.id for token in there.choose([choice])] == [9]
    assert np.array_equal(there._logits, before)
    params = SamplingParams(1.0, 0, 1.0, 0.0, logit_bias={3: 2.0})
    choices = [Choice(params, (i + 0.5) / DRAWS, [], None, pairs(params.logit_bias)) for i in range(DRAWS)]
    often = np.bincount(chosen(np.zeros((DRAWS, 4), np.float32), choices))
    assert often / DRAWS == pytest.approx(np.exp([0, 0, 0, 2]) / np.exp([0, 0, 0, 2]).sum(), abs=1.5 / DRAWS)


@pytest.mark.parametrize("params", [
    SamplingParams(0, min_tokens=3), SamplingParams(5.0, 0, 1.0, 0.0, min_tokens=3),
    SamplingParams(5.0, 0, 0.99, 0.0, min_tokens=3),
])  # fmt: skip
def test_no_end_of_text_before_min_tokens(params):
    logits = np.full((1, VOCAB), -50, np.float32)
    logits[0, [5, 250]] = 50
    chooser = Chooser(params, frozenset([5, 250]), None)
    for taken in range(5):
        [token] = chosen(logits, [chooser.choice([1] * taken)])
        assert (token in (5, 250)) == (taken >= 3)
        chooser.take(1)
    ignored = Chooser(replace(params, ignore_eos=True), frozenset([5, 250]), None)
    assert chosen(logits, [ignored.choice([])])[0] in (5, 250)


@pytest.mark.parametrize("vocab", [1, 15, 16, 31, 33, VOCAB])
def test_a_mask_forbids_all_tokens_without_their_bit(vocab):
    rng = np.random.default_rng(vocab)
    allowed = rng.random(vocab) < 0.3
    allowed[rng.integers(vocab)] = True
    bits = np.zeros((vocab + 31) // 32 * 32, bool)
    bits[:vocab] = allowed
    mask = np.packbits(bits, bitorder="little").view(np.int32)
    logits = rng.standard_normal((3, vocab)).astype(np.float32)
    greedy = Choice(SamplingParams(0), 0, [], mask=mask)
    assert chosen(logits[:1], [greedy]) == [int(np.argmax(np.where(allowed, logits[0], -np.inf)))]
    for params in (SamplingParams(9.0, 0, 1.0, 0.0), SamplingParams(9.0, 3, 0.9, 0.0, 1.2)):
        found = chosen(np.repeat(logits[:1], 400, 0), [Choice(params, i / 400, [0], mask=mask) for i in range(400)])
        assert set(found) <= set(np.flatnonzero(allowed))
        assert params.top_k or set(found) == set(np.flatnonzero(allowed)) or vocab == VOCAB
    nothing = Choice(SamplingParams(0), 0, [], mask=np.zeros_like(mask))
    assert chosen(logits, [nothing, Choice(SamplingParams(0), 0, []), greedy])[:2] == [NO_TOKEN, int(np.argmax(logits[1]))]


def test_where_no_token_may_be_chosen():
    logits = np.zeros((3, 4), np.float32)
    banned = pairs(dict.fromkeys(range(4), -np.inf))
    for params in (SamplingParams(0), SamplingParams(1.0), SamplingParams(1.0, 0, 1.0, 0.0)):
        choices = [Choice(params, 0.999, [], None, banned[:n]) for n in (3, 4, 2)]
        assert chosen(logits, choices)[:2] == [3, NO_TOKEN]


@pytest.mark.parametrize("vocab", [1, 15, 40, 300, 5000])
@pytest.mark.parametrize("most", [0, 1, 5, 20])
@pytest.mark.parametrize("size", [1, 30, 1e4])
def test_log_probabilities_are_of_the_model_s_own_distribution(vocab, most, size):
    """Whatever penalties, biases and temperature make of it; nothing is told where nobody asks, or where there is no token."""
    rng = np.random.default_rng(vocab)
    logits = (rng.standard_normal((5, vocab)) * size).astype(np.float32)
    logits[3, ::2] = logits[3].max()  # equals: the first come first
    logits[4, vocab // 2] = np.nan
    params = SamplingParams(0.9, 0, 1.0, 0.0, 1.3, presence_penalty=1.5, logprobs=most)
    biases, counts = pairs({0: 90.0}), pairs({vocab - 1: 2.0})
    choices = [
        Choice(p, rng.random(), [0, vocab - 1], None, biases, counts) for p in [params] * 2 + [replace(params, logprobs=None)]
    ]
    tokens = sampler(logits).choose([*choices, choices[0], choices[0]])
    for row in (0, 1, 3):
        exact = logits[row].astype(np.float64)
        wanted = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
        order = np.argsort(-logits[row], kind="stable")[:most]
        assert [token for token, _ in tokens[row].top] == order.tolist()
        # Logits are exact; the logarithm of a sum of float32 powers is wrong by what those are: 1e-7 and half a bit per addition.
        error = 3e-7 + vocab / 32 * 2.0**-24
        assert np.abs(np.array([logprob for _, logprob in tokens[row].top]) - wanted[order]).max(initial=0) < error
        assert abs(tokens[row].logprob - wanted[tokens[row].id]) < error
    assert [tuple(token[1:]) for token in (tokens[2], tokens[4])] == [(None, ())] * 2 and tokens[4].id == NO_NUMBERS


def test_log_probabilities_beside_rows_that_are_no_tokens():
    """They take their part of the probability, as in scores; unless there are no numbers in them."""
    logits = np.random.default_rng(0).standard_normal((2, VOCAB)).astype(np.float32)
    logits[0, 250], logits[1, 250] = 9, np.nan
    told = sampler(logits).choose([Choice(SamplingParams(0, logprobs=20), 0, [], vocab=200)] * 2)
    for token, row, size in zip(told, logits.astype(np.float64), (VOCAB, 200), strict=True):
        wanted = row - np.log(np.exp(row[:size]).sum())
        assert max(id for id, _ in token.top) < 200 and token.logprob == token.top[0][1]
        assert [logprob for _, logprob in token.top] == pytest.approx(np.sort(wanted[:200])[:-21:-1], abs=1e-5)


def test_rows_in_any_order():
    logits = np.eye(5, 7, dtype=np.float32)
    assert chosen(logits, [Choice(SamplingParams(0), 0, [])] * 3, rows=[4, 0, 4]) == [4, 0, 4]


def test_the_number_that_decides_is_of_seed_and_position_alone():
    numbers = [[uniform(seed, position) for position in range(2000)] for seed in (0, 1, -1, 2**70)]
    assert len({number for row in numbers for number in row}) == 8000
    assert all(0 <= number < 1 for row in numbers for number in row)
    for row in numbers:
        assert np.abs(np.histogram(row, 10, (0, 1))[0] - 200).max() < 5 * np.sqrt(180)  # five standard deviations
    chooser = Chooser(SamplingParams(seed=1), frozenset(), None)
    for number in numbers[1][:3]:
        assert chooser.choice([1, 2, 3]).uniform == number
        chooser.take(1)


@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
def test_logits_that_are_no_numbers_give_no_token(bad):
    logits = np.random.default_rng(0).standard_normal(VOCAB).astype(np.float32)
    for logits[::2] in (bad, bad):
        for params in (SamplingParams(), SamplingParams(0), SamplingParams(1, 0, 0.5, 0)):
            assert chosen(logits[None], [Choice(params, 0.999, [])]) == [NO_NUMBERS]
        logits[:] = bad


@pytest.mark.parametrize("place", [0, 17, 33, 63, 64, VOCAB - 1])
def test_one_logit_that_is_no_number_hurts_its_own_row_alone(place):
    logits = np.random.default_rng(0).standard_normal((3, VOCAB)).astype(np.float32)
    wanted = chosen(logits, [Choice(SamplingParams(0), 0, [])] * 3)
    logits[1, place] = np.inf
    assert chosen(logits, [Choice(SamplingParams(0), 0, [])] * 3) == [wanted[0], NO_NUMBERS, wanted[2]]


@pytest.mark.parametrize("params", [SamplingParams(0), SamplingParams(5.0, 0, 1.0, 0.0), SamplingParams(5.0, VOCAB, 0.9, 0.0)])
def test_tokens_of_a_vocabulary_that_is_padded_are_never_drawn(params):
    """Of a matrix with more rows than the tokenizer has tokens, and beside a request that may have them all."""
    logits = np.zeros((2, VOCAB), np.float32)
    logits[:, 200:] = 90
    logits[:, 250] = np.nan  # whatever it says there
    logits[1, 250] = 90
    for u in (0.01, 0.3, 0.6, 0.99):
        few, all_ = chosen(logits, [Choice(params, u, [], vocab=200), Choice(params, u, [], vocab=VOCAB + 7)])
        assert 0 <= few < 200 <= all_  # below 0 is what is no token


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0), ("top_p", 1.1), ("min_p", -0.1), ("min_p", 2),
     ("repeat_penalty", 0), ("max_tokens", -1), ("max_tokens", 1.5), ("max_tokens", True), ("top_k", 2.0), ("seed", 1.5),
     ("seed", [1]), ("temperature", "0"), ("stop", 5), ("stop", [5]), ("presence_penalty", 2.1), ("frequency_penalty", -2.1),
     ("frequency_penalty", None), ("min_tokens", -1), ("min_tokens", None), ("min_tokens", 129), ("logprobs", 21),
     ("logprobs", True), ("prompt_logprobs", -1)],
)  # fmt: skip
def test_values_that_make_no_sense(name, value):
    with pytest.raises(UserError, match=re.escape(f"{name} is {value!r} and must be")):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("given", "line"),
    [({5: 101}, "logit_bias gives token 5 101 and must"), ({-1: 1}, "logit_bias gives token -1 1"), ({"5": 1}, "token '5' 1"),
     ({5: float("nan")}, "gives token 5 nan"), ({5: None}, "token 5 None"), ([5], "must be at most 1024 token ids"),
     (None, "at most"), (dict.fromkeys(range(1025), 1), "at most 1024")],
)  # fmt: skip
def test_biases_that_make_no_sense(given, line):
    with pytest.raises(UserError, match=re.escape(line)):
        SamplingParams(logit_bias=given)
    assert SamplingParams(logit_bias={np.int64(3): np.float32(1)}).logit_bias == {3: 1.0}


def test_what_the_authors_recommend(tmp_path):
    """Of a folder, and of the GGUF file that it becomes."""
    said = {"do_sample": True, "temperature": 0.7, "top_k": -1, "top_p": 0.8, "repetition_penalty": 1.05, "eos_token_id": [1, 2]}
    folder = tmp_path / "folder"
    folder.mkdir()
    assert recommended_params(folder) == SamplingParams()
    (folder / "generation_config.json").write_text(json.dumps(said))
    wanted = SamplingParams(temperature=0.7, top_k=0, top_p=0.8, repeat_penalty=1.05)
    assert recommended_params(folder) == wanted
    with new_file(tmp_path / "x.gguf") as fd:
        GGUFWriter(fd, encoded_sampling(folder), [])
    assert astuple(recommended_params(tmp_path / "x.gguf"))[:5] == pytest.approx(astuple(wanted)[:5])


@pytest.mark.parametrize(("said", "message"), [
    ({"top_k": 2.5}, "generation_config.json: recommends 2.5 as top_k, which is no such number"),
    ({"temperature": "hot"}, "generation_config.json: recommends 'hot' as temperature"),
    ({"top_p": 2}, "what it recommends for sampling makes no sense: top_p is 2.0 and must be above 0, up to 1"),
])  # fmt: skip
def test_recommendations_that_make_no_sense(tmp_path, said, message):
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=message):
        recommended_params(tmp_path)


# ---------------------------------------------------------------- texts of a model

STORY = ("-p", "Once upon a time", "-n", "12", "--temp", "1.2", "--top-k", "0", "--top-p", "0.99", "--repeat-penalty", "1.1")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_seed_gives_the_same_text_for_any_threads(words_path, ranks):
    texts = [
        numatp("generate", "-m", words_path, *STORY, "-s", seed, "--ranks", ranks, "-t", threads).stdout
        for seed, threads in ((7, 1), (7, 2), (7, 3), (7, 1), (8, 1))
    ]
    assert len(set(texts[:4])) == 1
    assert texts[0].strip()
    assert texts[4] != texts[0]


def test_the_seed_is_told(words_path):
    first = numatp("generate", "-m", words_path, *STORY)
    seed = re.search(r", seed (\d+)$", first.stderr, re.M)
    assert seed, first.stderr
    assert numatp("generate", "-m", words_path, *STORY, "--seed", seed[1]).stdout == first.stdout
    assert "seed" not in numatp("generate", "-m", words_path, *STORY, "--temp", "0").stderr


def test_stop_text_and_no_limit(words_path):
    words = ("generate", "-m", words_path, "-p", "The capital of France is", "--temp", "0")
    whole = numatp(*words, "-n", "20").stdout
    cut = numatp(*words, "-n", "-1", "--stop", "xyzzy", "--stop", whole[6:14])
    assert cut.stdout == whole[:6] + "\n", cut.stderr


def test_bad_sampling_options(model_path):
    result = numatp("generate", "-m", model_path, "-p", "x", "--top-p", "1.5")
    assert (result.returncode, result.stderr) == (2, "numatp: top_p is 1.5 and must be above 0, up to 1\n")
