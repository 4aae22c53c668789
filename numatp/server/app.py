"""Which route is answered by whom."""

from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from numatp.server import anthropic, chat, completions, health, models, native, page, responses
from numatp.server.endpoint import Endpoint, Handler, refusal
from numatp.server.guard import App, Guard
from numatp.server.refusals import Refused
from numatp.server.state import State

# All of them also behind /v1: half of all clients are told the address with it, and half without.
ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/health", health.health),
    ("GET", "/metrics", health.metrics),
    ("GET", "/machine", health.machine),
    ("GET", "/models", models.models),
    ("GET", "/models/{name:path}", models.model),
    ("POST", "/chat/completions", chat.chat_completions),
    ("POST", "/completions", completions.completions),
    ("POST", "/responses", responses.responses),
    ("POST", "/messages", anthropic.messages),
    ("POST", "/messages/count_tokens", anthropic.count_tokens),
    ("POST", "/completion", native.completion),
    ("POST", "/tokenize", native.tokenize),
    ("POST", "/detokenize", native.detokenize),
    ("POST", "/apply-template", native.apply_template),
    ("GET", "/tokenizer_info", native.tokenizer_info),
    ("GET", "/props", native.props),
    ("GET", "/slots", native.slots),
]


def make_app(state: State) -> App:
    routes = [Route("/", Endpoint(state, "GET", page.page))]
    for method, path, handler in ROUTES:
        endpoint = Endpoint(state, method, handler)
        routes += [Route(prefix + path, endpoint) for prefix in ("", "/v1")]
    router = Router(routes, redirect_slashes=False, default=_not_found)
    return Guard(router, state.settings)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    refused = Refused(404, f"no such route: {scope['method']} {scope['path'][:200]}")
    await refusal(scope["path"], refused).send(send)
