"""A tiny random model that text is given to: greedy, it goes on from PROMPT with SAYS, by a wide margin.

A word's row of the output matrix is turned towards the state in which it is wanted. That state comes from all that is computed, so
a wrong sum or a lost rank changes the words.
"""

import functools

import gguf
import numpy as np
from support.models import tiny
from support.reference import naive

from numatp.text.tokenizer import BYTE_OF_CHAR, CONTROL, NORMAL

PROMPT = ("The", " capital", " of", " France", " is")
SAYS = (" Paris", ".", "\n", "It", " has", " cafés", ",", " boats", " and", " a", " river", "!")
WORDS = ("Once", " upon", " time", " word", "word")
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = """
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
MARGIN = 16.0  # that a wanted logit is raised by; the others have a standard deviation of 1
CONTEXT = 1 << 17


CHAR_OF_BYTE = {byte: char for char, byte in BYTE_OF_CHAR.items()}


def spelled(word):
    return "".join(CHAR_OF_BYTE[byte] for byte in word.encode())


@functools.cache
def vocabulary():
    """(tokens, merges): bytes, and words that are merged from their left, letter by letter."""
    tokens, merges = [*BYTE_OF_CHAR], []
    for letters in map(spelled, (*PROMPT, *SAYS, *WORDS)):
        for end in range(2, len(letters) + 1):
            if letters[:end] not in tokens:
                tokens.append(letters[:end])
                merges.append(f"{letters[: end - 1]} {letters[end - 1]}")
    return tokens, merges


SIZES = tiny.SIZES | {"vocab": len(vocabulary()[0]) + len(CONTROLS), "context": CONTEXT}


def add(writer):
    """The vocabulary and a chat template, to a file that is being written."""
    tokens, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*tokens, *CONTROLS])
    writer.add_token_types([NORMAL] * len(tokens) + [CONTROL] * len(CONTROLS))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens) + CONTROLS.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def write(path, matrix_type="Q4_1"):
    tensors = tiny.write(path, matrix_type, sizes=SIZES, vocabulary=add)
    asked, said = ([vocabulary()[0].index(spelled(word)) for word in words] for words in (PROMPT, SAYS))
    states = naive.logits(SIZES, tensors | {"output.weight": np.eye(SIZES["width"])}, asked + said[:-1])[len(asked) - 1 :]
    output = tensors["output.weight"].copy()
    for id, state in zip(said, states, strict=True):
        output[id] += MARGIN * state / (state @ state)
    (stored,) = (tensor for tensor in gguf.GGUFReader(str(path), "r+").tensors if tensor.name == "output.weight")
    stored.data[:] = tiny.quantized(output, matrix_type, None)[0].reshape(stored.data.shape)
    stored.data.flush()
