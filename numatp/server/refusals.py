"""What the server refuses, in the words of the interface that was called."""

from typing import Any

from numatp.errors import UserError

OPENAI_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "invalid_request_error", 429: "rate_limit_error",
    503: "unavailable_error",
}  # fmt: skip
ANTHROPIC_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


class Refused(Exception):
    """An answer that is no 200. param: the field of the request. code: OpenAI's word for the case."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | int | None = None, retry_after: int | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Clients repeat what failed with 408, 429 or 5xx; where that is hopeless they are told so."""
        found = {"retry-after": str(self.retry_after)} if self.retry_after else {}
        if not self.retry_after and (self.status >= 500 or self.status == 408):
            found["x-should-retry"] = "false"
        if self.status == 401:
            found["www-authenticate"] = 'Basic realm="numatp"'  # for the page: a browser asks for the key, as a password
        return found


def openai_error(refused: Refused) -> dict[str, Any]:
    kind = OPENAI_TYPES.get(refused.status, "server_error")
    return {"error": {"message": refused.message, "type": kind, "param": refused.param, "code": refused.code}}


def anthropic_error(refused: Refused) -> dict[str, Any]:
    return {"type": "error", "error": {"type": ANTHROPIC_TYPES.get(refused.status, "api_error"), "message": refused.message}}


def of_user_error(error: UserError, secret: str) -> Refused:
    """A UserError of the library. secret: a path, which is nobody's business."""
    return Refused(400, str(error).replace(secret, "the model"))
