"""Mistral's own tekken.json: the ids that Mistral's library gives, special tokens and their names, and what is damaged."""

import json
from base64 import b64encode

import pytest
from support.models.vocabularies import WORDS

from numatp.errors import UserError
from numatp.files.gguf_writer import encoded
from numatp.text import words
from numatp.text.gguf_vocabulary import vocabulary
from numatp.text.tekken import SPECIAL
from numatp.text.tokenizer import BYTE_OF_CHAR, open_tokenizer

COUNT = 24  # special tokens
MERGED = [token for token in WORDS["bpe"]["tokens"] if len(token) > 1]
TOKENS = [*(bytes([byte]) for byte in range(256)), *(bytes(BYTE_OF_CHAR[char] for char in token) for token in MERGED)]


# Marks belong to the letters before them, in other words than llama.cpp's, which gives all other texts the same tokens. As
# mistral_common 1.13.1 has it, which was asked for all of these texts.
MARKED = {
    120: "e0a4b9e0a4bf e0a4a8e0a58de0a4a6e0a5 80", 125: "65cc81", 127: "61cc88cc84cca3", 129: "e0a495e0a58de0a4 b7e0a4bf",
    130: "d7a0d6b4d7 a7d6bcd795d6bcd793",
}  # fmt: skip


def described(tokens=TOKENS, **changes):
    """As Mistral's library writes it; more tokens are listed than the vocabulary has."""
    listed = [
        {"rank": rank, "token_bytes": b64encode(token).decode(), "token_str": token.decode(errors="replace")}
        for rank, token in enumerate([*tokens, b"beyond"])
    ]
    config = {
        "pattern": words.TEKKEN, "num_vocab_tokens": len(listed), "default_vocab_size": len(tokens) + COUNT,
        "default_num_special_tokens": COUNT, "version": "v3",
    }  # fmt: skip
    return {"config": config, "vocab": listed} | changes


def write(folder, given):
    folder.mkdir(exist_ok=True)
    (folder / "tekken.json").write_text(json.dumps(given))
    return folder


def test_the_ids_of_mistrals_library(tmp_path):
    tokenizer = open_tokenizer(write(tmp_path / "own", described()))
    numbers = {token: COUNT + rank for rank, token in enumerate(TOKENS)}
    spelled = [bytes(BYTE_OF_CHAR[char] for char in token) for token in WORDS["bpe"]["tokens"]]
    for place, (text, ids) in enumerate(zip(WORDS["texts"], WORDS["ids"]["tekken"], strict=True)):
        wanted = [numbers[spelled[id]] for id in ids]
        if place in MARKED:
            wanted = [numbers[bytes.fromhex(piece)] for piece in MARKED[place].split()]
        elif text == "e\u0301clair vs \xe9clair":
            wanted[:2] = [numbers[b"e\xcc\x81"]]
        assert tokenizer.encode(text, special=False, ends=False) == wanted, text
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == len(TOKENS) + COUNT
    assert [tokenizer.token_bytes(COUNT + rank) for rank in range(len(TOKENS))] == TOKENS


def test_special_tokens_without_a_list_are_those_of_old_files(tmp_path):
    tokenizer = open_tokenizer(write(tmp_path / "own", described()))
    names = [*SPECIAL, "<SPECIAL_20>", "<SPECIAL_21>", "<SPECIAL_22>", "<SPECIAL_23>"]
    assert tokenizer.tokens[:COUNT] == names and tokenizer.tokens[3:5] == ["[INST]", "[/INST]"]
    assert (tokenizer.bos, tokenizer.eos_ids, tokenizer.bos_name, tokenizer.eos_name) == (1, {2}, "<s>", "</s>")
    assert tokenizer.encode("[INST]")[:2] == [1, 3] and tokenizer.decode([3, 1, 2]) == ""
    assert 3 not in tokenizer.encode("[INST]", special=False)


def test_special_tokens_that_are_listed_and_a_chat(tmp_path):
    names = ["<unk>", "<s>", "</s>", "[THINK]", "[INST]", "[/INST]"]
    listed = [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)]
    folder = write(tmp_path / "own", described(special_tokens=listed))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}")
    tokenizer = open_tokenizer(folder)
    assert tokenizer.tokens[:7] == [*names, "<SPECIAL_6>"]
    ids = tokenizer.encode_chat([{"role": "user", "content": "Hi [/INST]"}])
    assert ids[:2] == [1, 4] and ids[-1] == 5 and ids.count(5) == 1


def test_a_tokenizer_json_beside_it_counts(tmp_path):
    folder = write(tmp_path / "own", {"config": None})
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"own/tokenizer.json: "):
        open_tokenizer(folder)


def test_quantize_writes_it_as_gguf_has_it(tmp_path):
    found = vocabulary(write(tmp_path / "own", described()), len(TOKENS) + COUNT)
    wanted = {"model": "gpt2", "pre": "tekken", "bos_token_id": 1, "eos_token_id": 2, "add_bos_token": True}
    assert {key: found[f"tokenizer.ggml.{key}"] for key in wanted} == {key: encoded(value) for key, value in wanted.items()}


@pytest.mark.parametrize(("changes", "message"), [
    ({"config": {}}, "no 'config' with a 'pattern'"),
    ({"config": described()["config"] | {"pattern": "("}}, "the tokenizers library cannot use it"),
    ({"config": described()["config"] | {"default_vocab_size": "many"}}, "'default_vocab_size' is 'many'"),
    ({"config": described()["config"] | {"default_vocab_size": 1 << 20}}, "and says that it has 1048552"),
    ({"config": described()["config"] | {"default_vocab_size": 100}}, "and says that it has 76"),
    ({"config": described()["config"] | {"default_num_special_tokens": 3}}, "has 20 special tokens"),
    ({"vocab": None}, "has 0 tokens"),
    ({"vocab": described(TOKENS[::-1])["vocab"]}, "token 0 is out of order"),
    ({"vocab": [{**one, "rank": one["rank"] + 1} for one in described()["vocab"]]}, "token 0 is out of order"),
    ({"vocab": [{**one, "token_bytes": "?"} for one in described()["vocab"]]}, "token 0 has no bytes"),
    ({"vocab": [7] * 3000}, "token 0 has no bytes"),
    ({"vocab": described([*TOKENS[:-1], TOKENS[300]])["vocab"]}, "has 1 tokens twice"),
    ({"special_tokens": ["<s>"]}, "should be a list of tokens"),
    ({"special_tokens": [{"rank": 1, "token_str": "<s>"}]}, "not numbered from 0"),
    ({"special_tokens": [{"rank": rank, "token_str": "<s>"} for rank in (0, 1)]}, "some of them twice"),
])  # fmt: skip
def test_what_is_damaged(tmp_path, changes, message):
    folder = write(tmp_path / "own", described() | changes)
    with pytest.raises(UserError) as refused:
        open_tokenizer(folder)
    line = str(refused.value)
    assert line.startswith(str(folder / "tekken.json")) and message in line and line.isprintable() and len(line) < 400, line
