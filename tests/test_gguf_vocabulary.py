"""Tokenizers of folders written as GGUF: what is read back is the same tokenizer."""

import json
import re
from pathlib import Path

import pytest
import tokenizers
from support.models import vocabularies
from support.models.folders import folder_of
from support.models.vocabularies import RECORDED, WORDS

from numatp.errors import UserError
from numatp.files.gguf import read_gguf
from numatp.files.gguf_writer import GGUFWriter, new_file
from numatp.text import words
from numatp.text.gguf_vocabulary import vocabulary
from numatp.text.tokenizer import Tokenizer, open_tokenizer


def written(folder: Path, size: int) -> Path:
    path = folder / "vocabulary.gguf"
    with new_file(path) as fd:
        GGUFWriter(fd, vocabulary(folder, size), [])
    return path


def test_byte_level(model_path, tmp_path):
    original = Tokenizer.from_gguf(read_gguf(model_path))
    about = {"chat_template": original.chat_template, "bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    folder = folder_of(original, tmp_path / "folder", generation_config={"eos_token_id": [0, 2, 77]}, tokenizer_config=about)
    path = written(folder, original.vocab_size + 3)  # rows that no token has
    got, from_folder = open_tokenizer(path), open_tokenizer(folder)
    assert read_gguf(path).text("tokenizer.ggml.pre") == "smollm"
    assert [row for row in RECORDED if got.encode(row["text"], special=row["special"]) != row["ids"]] == []
    assert got.vocab_size == original.vocab_size + 3 and got.token_bytes(original.vocab_size) == b""
    assert (got.eos_ids, got.bos, got.chat_template) == (from_folder.eos_ids, None, original.chat_template)
    assert (got.bos_name, got.eos_name, 77 in got.eos_ids) == ("<|im_start|>", "<|im_end|>", True)
    assert [got.token_bytes(id) for id in range(original.vocab_size)] == list(map(original.token_bytes, range(original.vocab_size)))


@pytest.mark.parametrize("kind", ["llama", "llama without prefix"])
def test_sentencepiece(tmp_path, kind):
    vocabularies.write(tmp_path / "x.gguf", WORDS, kind)
    original = Tokenizer.from_gguf(read_gguf(tmp_path / "x.gguf"))
    decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    names = [("<s>", True), ("</s>", True), ("<tool>", False)]
    folder = folder_of(original, tmp_path / "folder", names, decoder, before="<s>", config={"eos_token_id": 2}, tokenizer_config={})
    got = open_tokenizer(written(folder, original.vocab_size + 1))
    assert (got.bos, got.eos_ids, got.encode("<tool>")[-1]) == (1, {2}, original.vocab_size)
    for text, ids in zip(WORDS["texts"], WORDS["ids"][kind], strict=True):
        assert got.encode(text) == [1, *ids]


@pytest.mark.parametrize(
    "rule", dict.fromkeys(words.WORDS.values()), ids=lambda rule: next(n for n in words.WORDS if words.WORDS[n] is rule)
)
def test_every_rule_is_recognised(tmp_path, rule):
    name = next(name for name in words.WORDS if words.WORDS[name] == rule)
    vocabularies.write(tmp_path / "x.gguf", WORDS, name)
    folder = folder_of(Tokenizer.from_gguf(read_gguf(tmp_path / "x.gguf")), tmp_path / "folder")
    got = read_gguf(written(folder, 5000)).text("tokenizer.ggml.pre")
    # A start token is told by another key, and not by the rule.
    assert (words.WORDS[got].splits, words.WORDS[got].whole) == (rule.splits, rule.whole)


def test_a_rule_without_a_name(tmp_path):
    vocabularies.write(tmp_path / "x.gguf", WORDS, "qwen2")
    folder = folder_of(Tokenizer.from_gguf(read_gguf(tmp_path / "x.gguf")), tmp_path / "folder")
    described = json.loads((folder / "tokenizer.json").read_text())
    described["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\p{N}{1,2}|\p{L}+"}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="tokenizer.json: cuts words by a rule that numatp has no name for"):
        vocabulary(folder, 5000)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"normalizer": {"type": "NFC"}}, r"GGUF cannot say that .*tokenizer.json composes letters \(NFC\)"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}}, "composes letters"),
        ({"added_tokens": {"rstrip": True}}, r"GGUF cannot say that '<end>' of .*tokenizer.json look at what stands beside them"),
        ({"added_tokens": {"lstrip": True}}, "'<end>'"),
        ({"added_tokens": {"single_word": True}}, "'<end>'"),
    ],
)
def test_what_gguf_cannot_say_of_a_few_texts_is_said_in_a_line(tmp_path, changes, line):
    folder, lines = changed_folder(tmp_path, changes), []
    assert vocabulary(folder, 5000, lines.append)
    assert len(lines) == 1 and re.search(line, lines[0])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "changes texts by 'Lowercase', which GGUF cannot say; use the folder itself"),
        ({"normalizer": {"type": "NFKC"}}, "changes texts by 'NFKC'"),
        ({"normalizer": {"type": "Prepend", "prepend": "x"}}, "changes texts by 'Prepend'"),
    ],
)
def test_what_gguf_cannot_say_of_many_texts_is_refused(tmp_path, changes, line):
    with pytest.raises(UserError, match=line):
        vocabulary(changed_folder(tmp_path, changes), 5000)


def test_nothing_is_said_of_a_tokenizer_that_gguf_can_say(tmp_path):
    lines = []
    vocabulary(changed_folder(tmp_path, {}), 5000, lines.append)
    assert lines == []


def changed_folder(tmp_path, changes):
    vocabularies.write(tmp_path / "x.gguf", WORDS, "qwen2")
    folder = folder_of(Tokenizer.from_gguf(read_gguf(tmp_path / "x.gguf")), tmp_path / "folder", [("<end>", True)])
    described = json.loads((folder / "tokenizer.json").read_text())
    for key, value in changes.items():
        if key == "added_tokens":
            described[key][0] |= value
        else:
            described[key] = value
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return folder
