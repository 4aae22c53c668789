"""Log-probabilities in OpenAI's two forms. They are of the model's own distribution, before temperature, penalties and biases."""

from typing import Any

from numatp.engine.token import Token
from numatp.text.tokenizer import Tokenizer


def chat_logprobs(tokenizer: Tokenizer, tokens: list[Token]) -> dict[str, Any]:
    content = []
    for token in tokens:
        top = [_entry(tokenizer, id, logprob) for id, logprob in token.top]
        content.append({**_entry(tokenizer, token.id, token.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def _entry(tokenizer: Tokenizer, id: int, logprob: float | None) -> dict[str, Any]:
    spelled = tokenizer.token_bytes(id)
    return {"token": spelled.decode(errors="replace"), "logprob": logprob, "bytes": list(spelled)}


class CompletionLogprobs:
    """The older form, of tokens that come piece by piece."""

    def __init__(self, tokenizer: Tokenizer, offset: int = 0):
        """offset: characters of the text before the first token."""
        self._tokenizer, self._offset = tokenizer, offset

    def push(self, tokens: list[Token]) -> dict[str, Any]:
        said: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            text = self._text(token.id)
            said["tokens"].append(text)
            said["token_logprobs"].append(token.logprob)
            said["top_logprobs"].append({self._text(id): logprob for id, logprob in token.top} if token.top else None)
            said["text_offset"].append(self._offset)
            self._offset += len(text)
        return said

    def _text(self, id: int) -> str:
        """As OpenAI spells tokens that are no characters by themselves."""
        spelled = self._tokenizer.token_bytes(id)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
