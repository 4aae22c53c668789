"""Which route is answered by whom."""

from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from numatp.server import anthropic, chat, completions, health, models, native, page, responses
from numatp.server.endpoint import Call, Endpoint, Handler, refusal
from numatp.server.guard import App, Guard
from numatp.server.openapi import openapi
from numatp.server.refusals import Refused
from numatp.server.reply import Body, Reply
from numatp.server.state import State

# All of them also behind /v1: half of all clients are told the address with it, and half without.
ROUTES: list[tuple[str, str, Handler, type | None]] = [  # the last is what a body must be
    ("GET", "/health", health.health, None),
    ("GET", "/metrics", health.metrics, None),
    ("GET", "/machine", health.machine, None),
    ("GET", "/models", models.models, None),
    ("GET", "/models/{name:path}", models.model, None),
    ("POST", "/chat/completions", chat.chat_completions, chat.ChatRequest),
    ("POST", "/completions", completions.completions, completions.CompletionRequest),
    ("POST", "/responses", responses.responses, responses.ResponsesRequest),
    ("POST", "/messages", anthropic.messages, anthropic.MessagesRequest),
    ("POST", "/messages/count_tokens", anthropic.count_tokens, anthropic.CountRequest),
    ("POST", "/completion", native.completion, native.NativeRequest),
    ("POST", "/tokenize", native.tokenize, native.TokenizeRequest),
    ("POST", "/detokenize", native.detokenize, native.DetokenizeRequest),
    ("POST", "/apply-template", native.apply_template, native.TemplateRequest),
    ("GET", "/tokenizer_info", native.tokenizer_info, None),
    ("GET", "/props", native.props, None),
    ("GET", "/slots", native.slots, None),
]


def make_app(state: State) -> App:
    described = Body(openapi(ROUTES, state.version))

    async def describe(call: Call) -> Reply:
        return described

    routes = [Route("/", Endpoint(state, "GET", page.page)), Route("/openapi.json", Endpoint(state, "GET", describe))]
    for method, path, handler, _ in ROUTES:
        endpoint = Endpoint(state, method, handler)
        routes += [Route(prefix + path, endpoint) for prefix in ("", "/v1")]
    router = Router(routes, redirect_slashes=False, default=_not_found)
    return Guard(router, state.settings)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    refused = Refused(404, f"no such route: {scope['method']} {scope['path'][:200]}")
    await refusal(scope["path"], refused).send(send)
