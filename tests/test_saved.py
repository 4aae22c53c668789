"""Prompts that outlive the process: what one engine has computed the next one finds in files, and the text is the same."""

import logging
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from support.models import tiny_cohere2, tiny_qwen3, tiny_qwen3next
from support.models.golden import GOLDEN, model_file
from support.scheduling import finish_of, opened

from numatp import UserError
from numatp.engine.blocks import Blocks
from numatp.engine.cache import Pool
from numatp.engine.prefixes import Prefixes, last_border
from numatp.files.prompt_cache import PromptCache, Saved, open_key
from numatp.kernels.layout import NO_WINDOW

KINDS = {
    "f16": (tiny_qwen3, {}), "q8_0": (tiny_qwen3, {"cache_type": "q8_0"}), "windows": (tiny_cohere2, {}),
    "recurrent": (tiny_qwen3next, {}), "latent": (GOLDEN / "deepseek2.gguf", {}),
}  # fmt: skip
RNG = np.random.default_rng(8)
LONG, OTHER = (RNG.integers(0, 150, 600).tolist() for _ in range(2))


def asked(play, prompt, max_tokens=1, **params):
    """(tokens, the logits of the last of them, Finish, rows of prompts that were computed)."""

    def work(p):
        _, came = p.ask(prompt, max_tokens, **params)
        p.finish()
        return p.texts[0], p.engine.window.logits[0, :150].copy(), finish_of(came), p.counts.computed_tokens

    return play(work)


def opened_with(path, folder, ranks=1, **job):
    return opened(path, ranks, prefix_cache=True, prompt_cache_dir=str(folder), **({"max_rows": 48} | job))


def files(folder):
    return sorted(path for path in folder.glob("*/*") if path.is_file())


@pytest.mark.parametrize(("kind", "ranks"), [*((kind, 1) for kind in KINDS), ("windows", 2), ("recurrent", 2)])
def test_after_a_restart(kind, ranks, tmp_path):
    """The rest of the prompt alone is computed, at most 5 % of it where it is long; logits and texts have the same bits."""
    path, job = model_file(KINDS[kind][0], tmp_path), dict(KINDS[kind][1])
    with opened(path, context=None, **job) as play:
        length = min(600, play.engine.loaded.layout.context - 30)
        wanted = [asked(play, LONG[:length], 12), asked(play, LONG[:length], 12, temperature=0.9, seed=5)]
    with opened_with(path, tmp_path / "kept", ranks, **job) as play:
        first = asked(play, LONG[:length], 12)
        assert first[2].cached_tokens == 0
    assert files(tmp_path / "kept") and not list((tmp_path / "kept").glob("*/.*"))
    with opened_with(path, tmp_path / "kept", ranks, **job) as play:
        again = [asked(play, LONG[:length], 12), asked(play, LONG[:length], 12, temperature=0.9, seed=5)]
    for one, other in zip(again, wanted, strict=True):
        assert one[0] == other[0]
        assert one[2].cached_tokens == last_border(length) and one[3] == length - last_border(length)
    assert (again[0][1] == first[1]).all()
    assert length < 600 or again[0][3] <= 0.05 * length


def test_the_next_turn_after_a_restart(tmp_path):
    """What was decoded is kept too, and its beginning serves a text that goes another way."""
    path = model_file(KINDS["f16"][0], tmp_path)
    with opened_with(path, tmp_path / "kept") as play:
        answer = asked(play, LONG[:300], 90)[0]
    with opened_with(path, tmp_path / "kept") as play:
        assert asked(play, [*LONG[:300], *answer, *OTHER[:40]])[2].cached_tokens == 384
        assert asked(play, [*LONG[:200], *OTHER[:40]])[2].cached_tokens == 192
        assert asked(play, OTHER[:200])[2].cached_tokens == 0


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_files_that_are_not_as_they_were_written(tmp_path, caplog):
    """A line each; what is before them is used, and what is behind them is not."""
    path = model_file(KINDS["f16"][0], tmp_path)
    with opened_with(path, tmp_path / "kept") as play:
        wanted = asked(play, LONG[:400], 8)
    by_age = sorted(files(tmp_path / "kept"), key=lambda one: -one.stat().st_mtime_ns)
    assert len(by_age) == 6
    kept = tmp_path / "kept"
    harms = [
        (flip, "damaged", 4), (lambda file: os.truncate(file, 100), "cut short", 4),
        (lambda file: os.truncate(file, 0), "cut short", 0),
        (lambda file: shutil.copy(by_age[0], file), "of another model, or of other settings", 2),
    ]  # fmt: skip
    for number, (harm, why, usable) in enumerate(harms):
        folder = tmp_path / f"harmed{number}"
        shutil.copytree(kept, folder)
        harmed = folder / by_age[usable].relative_to(kept)
        used = harmed.stat().st_mtime_ns
        harm(harmed)
        os.utime(harmed, ns=(used, used))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "numatp"), opened_with(path, folder) as play:
            found = asked(play, LONG[:400], 8)
        lines = [line for line in caplog.messages if "ignored" in line]
        assert lines == [f"{harmed}: {line.split(': ')[1]}: ignored" for line in lines] and len(lines) == 1 and why in lines[0]
        assert found[0] == wanted[0] and found[2].cached_tokens == usable * 64
        with opened_with(path, folder) as play:  # it was written again
            assert asked(play, LONG[:400])[2].cached_tokens == 384


def test_other_models_and_other_settings_find_nothing(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "numatp")
    path, folder = model_file(KINDS["f16"][0], tmp_path), tmp_path / "kept"
    with opened_with(path, folder) as play:
        asked(play, LONG[:200])
    (tmp_path / "other").mkdir()
    tiny_qwen3.write(tmp_path / "other" / "tiny.gguf")
    changed = bytearray((tmp_path / "other" / "tiny.gguf").read_bytes())
    changed[-1000] ^= 1  # one bit of its weights
    (tmp_path / "other" / "tiny.gguf").write_bytes(changed)
    other_jobs = [(tmp_path / "other" / "tiny.gguf", 1, {}), (path, 2, {})]
    other_jobs += [(path, 1, {"cache_type": "q8_0"}), (path, 1, {"same_bits": True})]
    for other, ranks, job in other_jobs:
        with opened_with(other, folder, ranks, **job) as play:
            assert asked(play, LONG[:200])[2].cached_tokens == 0
    assert sum("are left alone" in line for line in caplog.messages) == 4
    with opened_with(path, folder, max_rows=32, context=640, max_sequences=3) as play:  # which change nothing
        assert asked(play, LONG[:200])[2].cached_tokens == 192
    with monkeypatch.context() as patched:  # which say what a block holds
        patched.setattr("numatp.engine.saved.kernels_identity", lambda: "of other kernels")
        with opened_with(path, folder) as play:
            assert asked(play, LONG[:200])[2].cached_tokens == 0
    (folder / "key").write_bytes(b"short")
    (files(folder)[0].parent / "notes.txt").write_text("mine")
    with opened_with(path, folder) as play:
        assert asked(play, LONG[:200])[2].cached_tokens == 0
    assert any("key: damaged" in line for line in caplog.messages)
    assert oct(folder.stat().st_mode & 0o777) == "0o700" and all(file.stat().st_mode & 0o77 == 0 for file in folder.glob("*/*.0"))


def test_more_than_the_cache_holds(tmp_path):
    """What was used last is read back, as far as there is room."""
    path = model_file(KINDS["f16"][0], tmp_path)
    texts = [RNG.integers(0, 150, 140).tolist() for _ in range(4)]
    with opened_with(path, tmp_path / "kept", context=640) as play:
        for text in (*texts, texts[0]):
            asked(play, text)
    for number, cached in ((0, 128), (3, 128), (1, 0)):
        with opened_with(path, tmp_path / "kept", context=256) as play:
            assert asked(play, texts[number])[2].cached_tokens == cached


def test_writing_waits_for_nobody(tmp_path):
    """While idle, before the end: a killed server's prompts are there as well."""
    path = model_file(KINDS["f16"][0], tmp_path)
    with opened_with(path, tmp_path / "kept") as play:
        asked(play, LONG[:400])
        end = time.monotonic() + 60
        while len(files(tmp_path / "kept")) < 6 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(files(tmp_path / "kept")) == 6


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--prompt-cache-dir .*file: cannot write there: "), opened_with(
        model_file(KINDS["f16"][0], tmp_path), tmp_path / "file"
    ):  # fmt: skip
        pass


def test_a_full_disk(tmp_path, monkeypatch, caplog):
    """One line, and the server goes on."""

    def full(self, saved):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PromptCache, "write", full)
    with caplog.at_level(logging.WARNING, "numatp"), opened_with(model_file(KINDS["f16"][0], tmp_path), tmp_path / "kept") as play:
        for _ in range(2):
            assert len(asked(play, LONG[:200], 3)[0]) == 3
    assert [line for line in caplog.messages if "No space" in line] == [
        f"{tmp_path / 'kept'}: prompts are not written any more: No space left on device"
    ]


def test_what_was_decoded_stays_no_prompt(tmp_path):
    """Scores take over only what prompts have computed, also after a restart."""
    blocks = Blocks([Pool(NO_WINDOW, {}, 8)], 16)
    prefixes = Prefixes(blocks, range(0), 128, key=b"k" * 32)
    tables, known = prefixes.take(prefixes.find(LONG, 0, exact=False))
    tables.prepare(0, 128)
    prefixes.add(tables, known, LONG, 64)
    known.exact = False
    prefixes.add(tables, known, LONG, 128)
    again = Prefixes(Blocks([Pool(NO_WINDOW, {}, 8)], 16), range(0), 128, key=b"k" * 32)
    for prefix, part, _ in prefixes.parts():
        again.restore(replace(prefix, blocks=[None]), part)
    assert [again.find(LONG, 128, exact).tokens for exact in (False, True)] == [128, 64]


# ---------------------------------------------------------------- the folder


def saved(number, used, content=b"c" * 1000):
    return Saved(bytes([number] * 16), 0, b"t" * 8, True, used, content)


def test_what_was_not_used_for_the_longest_time_makes_room(tmp_path):
    """Of other models too; what was used earlier than all else is not written."""
    open_key(tmp_path)
    other = PromptCache(tmp_path, b"o" * 16, 8, [1000], 5000)
    assert other.write(saved(9, 50))
    files = PromptCache(tmp_path, b"m" * 16, 8, [1000], 5000)
    for number, used in ((1, 100), (2, 200), (3, 300)):
        assert files.write(saved(number, used))
    files.touch((bytes([1] * 16), 0), 400)
    assert files.write(saved(4, 350)) and other.names()
    assert [name[0][0] for name in files.names()] == [1, 4, 3, 2]
    assert not PromptCache(tmp_path, b"o" * 16, 8, [1000], 5000).names()
    assert not files.write(saved(5, 150))
    assert files.write(saved(6, 250)) and [name[0][0] for name in files.names()] == [1, 4, 3, 6]
    again = PromptCache(tmp_path, b"m" * 16, 8, [1000], 5000)
    assert again.names() == files.names() and again.read((bytes([4] * 16), 0)) == saved(4, 350)
    assert PromptCache(tmp_path, b"m" * 16, 8, [1000], 5000).used((bytes([1] * 16), 0)) == 400


def test_any_flipped_byte_is_seen(tmp_path):
    open_key(tmp_path)
    files = PromptCache(tmp_path, b"m" * 16, 8, [40], 5000)
    files.write(saved(1, 100, b"c" * 40))
    name = (bytes([1] * 16), 0)
    path = next(tmp_path.glob("*/*.0"))
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert PromptCache(tmp_path, b"m" * 16, 8, [40], 5000).read(name) is None
    path.write_bytes(content)
    assert PromptCache(tmp_path, b"m" * 16, 8, [40], 5000).read(name).content == b"c" * 40
