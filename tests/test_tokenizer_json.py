"""Tokenizers of Hugging Face folders, against those of GGUF files with the same vocabulary."""

import json

import pytest
import tokenizers
from support.models import vocabularies
from support.models.folders import folder_of
from support.models.vocabularies import RECORDED, WORDS

from numatp.errors import UserError
from numatp.files.gguf import read_gguf
from numatp.text.tokenizer import StreamDecoder, Tokenizer, open_tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def smollm2(model_path, tmp_path_factory):
    """(from the GGUF file, from a folder)."""
    original = Tokenizer.from_gguf(read_gguf(model_path))
    about = {"chat_template": original.chat_template, "bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    folder = folder_of(
        original,
        tmp_path_factory.mktemp("x") / "smollm2",
        generation_config={"eos_token_id": [0, 2]},
        tokenizer_config=about,
    )
    return original, open_tokenizer(folder)


def test_the_ids_of_llama_cpp(smollm2):
    original, tokenizer = smollm2
    wrong = [row for row in RECORDED if tokenizer.encode(row["text"], special=row["special"]) != row["ids"]]
    assert len(RECORDED) > 300 and not wrong
    assert (tokenizer.eos_ids, tokenizer.vocab_size, tokenizer.bos) == (original.eos_ids, original.vocab_size, None)
    for id in range(tokenizer.vocab_size):
        assert tokenizer.token_bytes(id) == original.token_bytes(id)
    messages = [{"role": "user", "content": "Hello"}]
    assert tokenizer.render_chat(messages) == original.render_chat(messages)


def test_sentencepiece(tmp_path):
    vocabularies.write(tmp_path / "x.gguf", WORDS, "llama")
    original = Tokenizer.from_gguf(read_gguf(tmp_path / "x.gguf"))
    decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    names = [("<s>", True), ("</s>", True)]
    folder = folder_of(original, tmp_path / "folder", names, decoder, before="<s>", config={"eos_token_id": 2}, tokenizer_config={})
    tokenizer = open_tokenizer(folder)
    assert (tokenizer.bos, tokenizer.eos_ids) == (1, {2})
    for text, ids in zip(WORDS["texts"], WORDS["ids"]["llama"], strict=True):
        assert tokenizer.encode(text) == [1, *ids]
        stream = StreamDecoder(tokenizer)
        assert "".join([*map(stream.push, ids), stream.finish()]) == " " + text
    assert tokenizer.encode("<s>the") == [1, *tokenizer.encode("the")[1:]]
    assert "</s>" in tokenizer.decode(tokenizer.encode("a</s>", special=False))


@pytest.fixture
def small(tmp_path):
    vocabularies.write(tmp_path / "x.gguf", WORDS, "qwen2")
    original = Tokenizer.from_gguf(read_gguf(tmp_path / "x.gguf"))
    return lambda **files: folder_of(original, tmp_path / "folder", [("<end>", True), ("<tool>", False)], **files)


def test_names_and_templates(small):
    folder = small(
        tokenizer_config={"eos_token": "<end>", "bos_token": None, "chat_template": [{"name": "default", "template": TEMPLATE}]}
    )
    tokenizer = open_tokenizer(folder)
    end, tool = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    assert tokenizer.eos_ids == {end} and tokenizer.encode("<end><tool>") == [end, tool]
    assert tokenizer.encode("<end><tool>", special=False)[-1] == tool and tokenizer.decode([end, tool]) == "<tool>"
    assert tokenizer.render_chat([{"role": "user", "content": "hi"}]) == "hi<end>"
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert open_tokenizer(folder).render_chat([{"role": "user", "content": "hi"}]) == "hi!"


@pytest.mark.parametrize("before", [None, "<s>"])
@pytest.mark.parametrize("said", [None, True, False])
def test_the_start_token_is_that_of_the_post_processor(tmp_path, before, said):
    """As in transformers 5, whatever add_bos_token says."""
    vocabularies.write(tmp_path / "x.gguf", WORDS, "qwen2")
    config = {"bos_token": "<s>"} | ({} if said is None else {"add_bos_token": said})
    original = Tokenizer.from_gguf(read_gguf(tmp_path / "x.gguf"))
    tokenizer = open_tokenizer(folder_of(original, tmp_path / "folder", [("<s>", True)], before=before, tokenizer_config=config))
    start = [tokenizer.special_id("<s>")] if before else []
    assert tokenizer.encode("the") == start + original.encode("the")


def test_what_is_meant_for_training_alone(small):
    """Texts are neither cut off nor filled up nor merged at random, as transformers gives them."""
    folder = small()
    whole = open_tokenizer(folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    described["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    pad = {"pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    described["padding"] = {"strategy": {"Fixed": 20}, "direction": "Right", **pad}
    described["model"]["dropout"] = 0.9
    (folder / "tokenizer.json").write_text(json.dumps(described))
    tokenizer = open_tokenizer(folder)
    for text in ("the", "the other words of a text that is much longer <end>"):
        for special in (True, False):
            assert tokenizer.encode(text, special) == whole.encode(text, special)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("tokenizer.json", None, "has no tokenizer.json; download it"),
        ("tokenizer.json", "[]", "its JSON is no object"),
        ("tokenizer.json", "{}", "the tokenizers library cannot use it"),
        ("tokenizer.json", '{"model": 1, "model": 2}', "'model' is there twice"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id is 'x', and should be a token"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template is '5', and should be a text"),
        ("chat_template.jinja", b"\xff", "is not UTF-8 text"),
        ("config.json", "{", "its JSON cannot be read"),
    ],
)
def test_folders_that_cannot_be_used(small, name, content, line):
    folder = small()
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        open_tokenizer(folder)
    assert line in str(caught.value) and str(folder) in str(caught.value) and str(caught.value).isprintable()


def test_a_decoder_that_is_not_known(small):
    with pytest.raises(UserError, match="its decoder is .*WordPiece.*, and numatp has ByteLevel and ByteFallback"):
        open_tokenizer(small(decoder=tokenizers.decoders.WordPiece()))
