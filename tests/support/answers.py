"""Answers of models that were never loaded: a vocabulary of bytes and marks, and what a stream makes of a text."""

from numatp.text.parts.piece import Piece
from numatp.text.tokenizer import BYTE_OF_CHAR, CONTROL, NORMAL, Tokenizer, spell_byte_level

BYTE_IDS = {byte: id for id, byte in enumerate(BYTE_OF_CHAR.values())}


def vocabulary(marks, template=None):
    """A token for each byte, and special ones."""
    tokens, kinds = [*BYTE_OF_CHAR, *marks], [NORMAL] * 256 + [CONTROL] * len(marks)
    return Tokenizer(tokens, kinds, None, spell_byte_level, bos=None, eos=None, eos_ids=frozenset(), chat_template=template)


def ids_of(tokenizer, text):
    """Special tokens by their names, everything else byte by byte."""
    marks = sorted(tokenizer.tokens[256:], key=len, reverse=True)
    ids = []
    while text:
        mark = next((mark for mark in marks if text.startswith(mark)), None)
        ids += [tokenizer.special_id(mark)] if mark else [BYTE_IDS[byte] for byte in text[0].encode()]
        text = text.removeprefix(mark) if mark else text[1:]
    return ids


def joined(pieces):
    """With texts of the same part that follow each other as one: what an answer says, however it was cut."""
    said = []
    for piece in pieces:
        if said and not piece.calls and not said[-1].calls and said[-1].part == piece.part:
            said[-1] = Piece(said[-1].text + piece.text, piece.part)
        else:
            said.append(piece)
    return said


def read(stream, ids):
    return joined([piece for id in ids for piece in stream.push(id)] + stream.finish())
