"""What a backend asks of a caller in mid-call, and the answer, between MCP's types and the gateway's.

Source: MCP 2025-11-25, "Elicitation", "Sampling", "Roots"; MCP 2026-07-28, "Multi round-trip requests".
"""

from collections.abc import Mapping
from typing import Any

import mcp_types as types
from pydantic import ValidationError

from mcpgw.backends.requests import InputAnswer, InputKind, InputRequest, Observer

REFUSED = -1
"""The code of an input that was refused (MCP, "Sampling: error handling")."""


async def answer_input(
    observer: Observer, request: types.InputRequest, key: str = ""
) -> types.InputResponse | types.ErrorData:
    """Have the caller answer one request of a backend; an error where there is no answer that can be used.

    `key` is the backend's own name for the question, where it has one.
    """
    match request:
        case types.ElicitRequest(params=params):
            asked = _asked("elicitation", params.message, params, key)
            return _elicited(await observer.input_required(asked))
        case types.CreateMessageRequest(params=params):
            asked = _asked("sampling", "the server asks for a message of a language model", params, key)
            return _sampled(await observer.input_required(asked), with_tools=params.tools is not None)
        case types.ListRootsRequest():
            asked = InputRequest("roots", "the server asks for the roots that it may work in", {}, key)
            return _roots(await observer.input_required(asked))


def refusal(reason: str) -> types.ErrorData:
    """The answer to a backend whose request nobody answers."""
    return types.ErrorData(code=REFUSED, message=reason)


def _asked(kind: InputKind, message: str, params: types.RequestParams, key: str) -> InputRequest:
    raw: Mapping[str, Any] = params.model_dump(by_alias=True, mode="json", exclude_unset=True)
    return InputRequest(kind, message, {name: value for name, value in raw.items() if name != "_meta"}, key)


def _elicited(answer: InputAnswer) -> types.ElicitResult | types.ErrorData:
    try:
        content = dict(answer.content or {}) if answer.action == "accept" else None
        return types.ElicitResult.model_validate({"action": answer.action, "content": content})
    except ValidationError:
        return _unusable("elicitation")


def _sampled(
    answer: InputAnswer, *, with_tools: bool
) -> types.CreateMessageResult | types.CreateMessageResultWithTools | types.ErrorData:
    if answer.action != "accept":
        return refusal("the user refused the sampling request")
    model = types.CreateMessageResultWithTools if with_tools else types.CreateMessageResult
    try:
        return model.model_validate(answer.content, by_name=False)
    except ValidationError:
        return _unusable("sampling")


def _roots(answer: InputAnswer) -> types.ListRootsResult | types.ErrorData:
    if answer.action != "accept":
        return refusal("the user does not name roots")
    try:
        return types.ListRootsResult.model_validate(answer.content, by_name=False)
    except ValidationError:
        return _unusable("roots")


def _unusable(kind: str) -> types.ErrorData:
    # Not the caller's own text: it is the backend that reads this.
    return types.ErrorData(
        code=types.INTERNAL_ERROR, message=f"the caller's answer to the {kind} is not usable"
    )
