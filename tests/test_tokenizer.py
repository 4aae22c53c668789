"""The tokenizer against recorded ids of llama.cpp (tests/data/make_smollm2_tokens.py), and streams of pieces."""

import random
import re
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import gguf
import pytest
from support.models import vocabularies
from support.models.vocabularies import RECORDED, WORDS

from numatp.errors import UserError
from numatp.files.gguf import read_gguf
from numatp.text.tokenizer import BYTE_OF_CHAR, StreamDecoder, Tokenizer

DATA = Path(__file__).parent / "data"
NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6


@pytest.fixture(scope="module")
def tokenizer(model_path):
    return Tokenizer.from_gguf(read_gguf(model_path))


def test_the_ids_of_llama_cpp(tokenizer):
    wrong = [row for row in RECORDED if tokenizer.encode(row["text"], special=row["special"]) != row["ids"]]
    assert len(RECORDED) > 300 and not wrong


def test_other_threads_go_on_beside_a_long_text(tokenizer):
    """A server's streams wait for nobody's prompt."""
    lived, ended = [0], threading.Event()

    def live():
        while not ended.wait(0.001):
            lived[0] += 1

    other = threading.Thread(target=live)
    other.start()
    before = lived[0]
    tokenizer.encode("word " * 200_000)
    during = lived[0] - before
    ended.set()
    other.join()
    assert during > 10  # an interpreter that is held lets it in before and after


def of_rule(path, rule):
    vocabularies.write(path, WORDS, rule)
    return Tokenizer.from_gguf(read_gguf(path))


@pytest.mark.parametrize("rule", WORDS["ids"])
def test_the_ids_of_llama_cpp_by_every_rule(tmp_path, rule):
    tokenizer = of_rule(tmp_path / "x.gguf", rule)
    start = [] if tokenizer.bos is None else [tokenizer.bos]
    compared = 0
    for text, ids in zip(WORDS["texts"], WORDS["ids"][rule], strict=True):
        # In these rules a letter's marks belong to its word, which llama.cpp's expressions for them leave out.
        if rule in ("gpt-4o", "tekken", "kimi-k2") and any(unicodedata.category(char).startswith("M") for char in text):
            continue
        # Between two numbers llama.cpp cuts spaces as if it saw the second one, which lies beyond the piece that they are.
        if rule == "cohere2moe" and re.search(r"\d {2,}\d", text):
            continue
        assert tokenizer.encode(text) == start + ids, text
        compared += 1
    assert compared > 150


@pytest.mark.parametrize("rule", WORDS["ids"])
def test_text_comes_back_by_every_rule(tmp_path, rule):
    tokenizer = of_rule(tmp_path / "x.gguf", rule)
    for text in WORDS["texts"]:
        ids = tokenizer.encode(text)
        decoder = StreamDecoder(tokenizer)
        streamed = "".join([*map(decoder.push, ids), decoder.finish()])
        assert tokenizer.decode(ids) == streamed == (" " + text if rule == "llama" else text)


def test_sentencepiece_and_special_tokens(tmp_path):
    tokenizer = of_rule(tmp_path / "x.gguf", "llama")
    assert tokenizer.encode("") == [1]
    assert tokenizer.eos_ids == {2}
    # A space also comes before what follows a special token.
    the = tokenizer.encode("the")[1:]
    assert tokenizer.encode("the</s>the") == [1, *the, 2, *the]
    assert tokenizer.encode("<s>the") == [1, *the]
    assert "</s>" in tokenizer.decode(tokenizer.encode("a</s>", special=False))
    # What no piece can spell is spelt in bytes.
    ids = tokenizer.encode("\U0001f9a9")
    assert [tokenizer.token_bytes(id) for id in ids[-4:]] == [bytes([byte]) for byte in "\U0001f9a9".encode()]


def test_pieces_by_their_merges(tmp_path):
    """Gemma 4's kind: as without a first space, because the merges are in the order of the pieces."""
    tokenizer = of_rule(tmp_path / "x.gguf", "gemma4")
    for text, ids in zip(WORDS["texts"], WORDS["ids"]["llama without prefix"], strict=True):
        assert tokenizer.encode(text) == [1, *ids]
        assert tokenizer.decode(ids) == text


def test_a_start_token_where_the_metadata_does_not_say(tmp_path):
    for rule, expected in (("llama-bpe", [258]), ("qwen2", [])):
        tokenizer = Tokenizer.from_gguf(small(tmp_path / f"{rule}.gguf", pre=rule, add_bos_token=None, add_eos_token=None))
        assert tokenizer.encode("ab") == [*expected, 256]


def test_text_comes_back(tokenizer):
    # Bytes that this vocabulary has no token for are lost, as in llama.cpp.
    known = {BYTE_OF_CHAR[token] for token in tokenizer.tokens if token in BYTE_OF_CHAR}
    texts = [row["text"] for row in RECORDED if not row["special"] or "<" not in row["text"]]
    whole = [text for text in texts if known.issuperset(text.encode())]
    assert len(whole) > 200
    for text in whole:
        assert tokenizer.decode(tokenizer.encode(text, special=False)) == text


def test_what_the_model_says_of_itself(tokenizer):
    assert tokenizer.vocab_size == 49152
    assert tokenizer.eos_ids == {0, 2}  # <|endoftext|> by its name, <|im_end|> by the metadata
    assert "<|im_start|>" in tokenizer.chat_template


def test_special_tokens_have_no_text(tokenizer):
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>")
    assert ids[0] == 1 and ids[-1] == 2
    assert tokenizer.decode(ids) == "user\nhi"


def test_pieces_never_hold_half_a_character(tokenizer):
    rng, decoder = random.Random(1), StreamDecoder(tokenizer)
    texts = [tokenizer.encode(row["text"]) for row in RECORDED]
    noise = [[rng.randrange(tokenizer.vocab_size) for _ in range(200)] for _ in range(20)]
    bytes_alone = [id for id in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(id)) == 1]
    noise += [[rng.choice(bytes_alone) for _ in range(100)] for _ in range(50)]
    for ids in texts + noise:  # one decoder for all of them: finish() begins anew
        pieces = [decoder.push(id) for id in ids]
        assert "".join([*pieces, decoder.finish()]) == tokenizer.decode(ids)
    for text in ("日本語", "👍🏽", "नमस्ते", "e\u0301"):
        pieces = [decoder.push(id) for id in tokenizer.encode(text)]
        assert "\ufffd" not in "".join(pieces) and decoder.finish() == ""
    cut = next(id for id in bytes_alone if tokenizer.token_bytes(id)[0] in range(0xE0, 0xF0))
    assert (decoder.push(cut), decoder.finish(), decoder.finish()) == ("", "\ufffd", "")


def test_bad_input(tokenizer):
    with pytest.raises(UserError, match=r"lone surrogate\) at position 2; remove it"):
        tokenizer.encode("ab\ud800")
    with pytest.raises(UserError, match=r"token id -1 is outside the vocabulary; use 0 to 49151"):
        tokenizer.decode([-1])
    assert tokenizer.decode([28120, 49152, 28120]) == 2 * tokenizer.decode([28120])  # a row that fills a matrix up


TOKENS = [*BYTE_OF_CHAR, "ab", "abc", "<s>", "<end>", "<tool>", "<tool>s", "", "<unused>", "日"]
KINDS = [NORMAL] * 258 + [CONTROL, CONTROL, USER_DEFINED, USER_DEFINED, CONTROL, UNUSED, NORMAL]


def pieces(more=(), kinds=(), scores=()):
    """The same vocabulary as one of SentencePiece."""
    tokens = [*TOKENS, *more]
    scores = [*[0.0] * (len(tokens) - len(scores)), *scores]
    return {"model": "llama", "tokens": tokens, "token_type": [*KINDS, *kinds], "scores": scores}


def small(path, **changes):
    """A vocabulary of all bytes and a few tokens more; `changes` replace metadata, None leaves a key out."""
    values = {
        "model": "gpt2", "pre": "smollm", "tokens": TOKENS, "token_type": KINDS, "merges": ["a b", "ab c"],
        "bos_token_id": 258, "eos_token_id": 259, "add_bos_token": True, "add_eos_token": True,
    } | changes  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in values.items():
        add = {str: writer.add_string, list: writer.add_array, int: writer.add_uint32, bool: writer.add_bool}
        if value is not None:
            add[type(value)](f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return read_gguf(path)


@pytest.mark.parametrize("pre", [None, "default"])
def test_a_file_without_a_rule_for_words(tmp_path, pre):
    """The words of llama.cpp's default rule, and a line that says so."""
    tokenizer = Tokenizer.from_gguf(small(tmp_path / "x.gguf", pre=pre))
    cut = [word for word, _ in tokenizer._bpe.pre_tokenizer.pre_tokenize_str("I'll add 12345 x+=<1>, ok")]
    assert cut == ["I", "'", "ll", "Ġadd", "Ġ", "123", "45", "Ġx", "+=<", "1", ">,", "Ġok"]
    (note,) = tokenizer.notes
    assert "tokenizer.ggml.pre" in note and len(note) < 250
    assert not Tokenizer.from_gguf(small(tmp_path / "y.gguf")).notes


def test_thousands_of_names_are_one_walk_over_the_text(tmp_path):
    """However many names there are, the library is asked once, which looks for all of them at the same time."""
    names = [f"<unused{i}>" for i in range(6400)]
    kinds = [*KINDS, *[USER_DEFINED] * len(names)]
    file = small(tmp_path / "x.gguf", tokens=[*TOKENS, *names], token_type=kinds, add_eos_token=False)
    tokenizer, asked = Tokenizer.from_gguf(file), []

    class Counting:
        def encode_batch_fast(self, texts, **options):
            asked.extend(texts)
            return library.encode_batch_fast(texts, **options)

    library, tokenizer._bpe = tokenizer._bpe, Counting()
    less, first = TOKENS.index("<"), len(TOKENS)
    assert tokenizer.encode("<" * 2000) == [258, *[less] * 2000]
    assert tokenizer.encode("<unused77><unused6399><unused777") == [258, first + 77, first + 6399, *map(TOKENS.index, "<unused777")]
    assert len(asked) == 2


def test_start_and_end_tokens(tmp_path):
    a, abc = BYTE_ID["a"], 257
    tokenizer = Tokenizer.from_gguf(small(tmp_path / "both.gguf"))
    assert tokenizer.encode("abca") == [258, abc, a, 259]
    assert tokenizer.encode("<s>abc<end>") == [258, abc, 259]  # a chat template may have written them
    assert tokenizer.encode("") == [258, 259]
    assert (tokenizer.eos_ids, tokenizer.chat_template) == ({259}, None)
    tokenizer = Tokenizer.from_gguf(small(tmp_path / "none.gguf", add_bos_token=None, add_eos_token=False))
    assert tokenizer.encode("abca") == [abc, a]
    tokenizer = Tokenizer.from_gguf(small(tmp_path / "eot.gguf", eot_token_id=258, eom_token_id=260))
    assert tokenizer.eos_ids == {258, 259, 260}


BYTE_ID = {char: index for index, char in enumerate(BYTE_OF_CHAR)}


def test_words_that_are_tokens_without_merges(tmp_path):
    for rule, expected in (("llama-bpe", [257]), ("qwen2", [256, BYTE_ID["c"]])):
        tokenizer = Tokenizer.from_gguf(
            small(tmp_path / f"{rule}.gguf", pre=rule, merges=["a b"], add_bos_token=False, add_eos_token=False)
        )
        assert tokenizer.encode("abc") == expected


def test_user_defined_and_unused_tokens(tmp_path):
    tokenizer = Tokenizer.from_gguf(small(tmp_path / "x.gguf", add_bos_token=False, add_eos_token=False))
    spelt = [BYTE_ID[char] for char in "<s>"]
    assert tokenizer.encode("<tool>s<tool><s>") == [261, 260, 258]  # the longest name counts
    assert tokenizer.encode("<tool>s<tool><s>", special=False) == [261, 260, *spelt]  # those of the user always count
    assert tokenizer.encode("<unused>") == [BYTE_ID[char] for char in "<unused>"]
    assert tokenizer.decode([260, 258, 263, 264, BYTE_ID["Ã"]]) == "<tool>日\ufffd"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": "t5"}, "its tokenizer is of kind 't5', and numatp has gpt2, llama, gemma4; use another model"),
        ({"model": "llama"}, "the metadata lacks 'tokenizer.ggml.scores'"),
        ({"model": "llama", "scores": [0.5]}, "265 tokens and 1 scores: damaged"),
        ({"pre": "klingon"}, "its tokenizer splits words by rule 'klingon', and numatp has gpt-2, phi-2, "),
        ({"tokens": []}, "the metadata lacks 'tokenizer.ggml.tokens'"),
        ({"merges": None}, "the metadata lacks 'tokenizer.ggml.merges'"),
        ({"tokens": [1, 2]}, "metadata 'tokenizer.ggml.tokens' should be a list of texts"),
        ({"token_type": [1]}, "265 tokens and 1 token types: damaged"),
        ({"merges": ["a b", "x y"]}, "its vocabulary does not fit together"),
        ({"merges": ["nospace"]}, "its vocabulary does not fit together"),
        ({"eos_token_id": 265}, "tokenizer.ggml.eos_token_id is 265, outside the 265 tokens"),
        ({"bos_token_id": None}, "the metadata lacks 'tokenizer.ggml.bos_token_id'"),
        (pieces(["<0xZZ>"], [BYTE]), "token 265 stands for a byte and is called '<0xZZ>', not like <0x0A>: damaged"),
        (pieces(["<0x0>"], [BYTE]), "token 265 stands for a byte and is called '<0x0>'"),
        (pieces(["x"], [NORMAL], [float("nan")]), "token 265, 'x', has the score nan: damaged"),
        (pieces() | {"unknown_token_id": 265}, "tokenizer.ggml.unknown_token_id is 265, outside the 265 tokens"),
    ],
)
def test_vocabularies_that_cannot_be_used(tmp_path, changes, line):
    path = tmp_path / "x.gguf"
    with pytest.raises(UserError) as caught:
        Tokenizer.from_gguf(small(path, **changes))
    assert str(caught.value).startswith(f"{path}: {line}") and str(caught.value).isprintable()


def test_the_library_is_loaded_only_for_a_tokenizer():
    code = "import sys, numatp.text.tokenizer, numatp.files.models; print('tokenizers' in sys.modules, 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False False\n"
