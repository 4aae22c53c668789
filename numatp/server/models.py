"""GET /v1/models: the one that is loaded."""

from typing import Any

from numatp.server.endpoint import Call
from numatp.server.refusals import Refused
from numatp.server.reply import Body, Reply
from numatp.server.state import State


async def models(call: Call) -> Reply:
    call.state.check_ready()
    one = _described(call.state)
    # Codex reads `models`, all others `data`.
    return Body({"object": "list", "data": [one], "models": [{**one, "slug": one["id"], "name": one["id"]}]})


async def model(call: Call) -> Reply:
    call.state.check_ready()
    name = call.request.path_params["name"]
    if name != call.state.name:
        raise Refused(
            404, f"The model {name[:80]!r} does not exist: it is {call.state.name!r}", param="model", code="model_not_found"
        )
    return Body(_described(call.state))


def _described(state: State) -> dict[str, Any]:
    place, tokenizer = state.llm.place, state.llm.tokenizer
    return {
        "id": state.name, "object": "model", "created": state.created, "owned_by": "numatp", "max_model_len": place.context,
        "meta": {"n_ctx": place.context, "n_ctx_train": place.trained_context, "n_vocab": tokenizer.vocab_size},
    }  # fmt: skip
