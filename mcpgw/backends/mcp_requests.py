"""The requests that a gateway hands on to a server beside calls of tools, made from plain JSON.

Each function gives a maker of requests, for a request that is sent again must be another object.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import mcp_types as types
from pydantic import ValidationError

from mcpgw.backends.connection import forwarded_meta
from mcpgw.errors import InvalidParams

Maker: TypeAlias = Callable[[], types.ClientRequest]


def read_resource(uri: str, meta: Mapping[str, Any] | None) -> Maker:
    """``resources/read``."""
    kept = forwarded_meta(meta)
    return lambda: types.ReadResourceRequest(params=types.ReadResourceRequestParams(uri=uri, _meta=kept))


def get_prompt(name: str, arguments: Mapping[str, str] | None, meta: Mapping[str, Any] | None) -> Maker:
    """``prompts/get``."""
    kept = forwarded_meta(meta)
    given = None if arguments is None else dict(arguments)
    return lambda: types.GetPromptRequest(
        params=types.GetPromptRequestParams(name=name, arguments=given, _meta=kept)
    )


def complete(ref: Mapping[str, Any], argument: Mapping[str, str], context: Mapping[str, Any] | None) -> Maker:
    """``completion/complete``: `ref`, `argument` and `context` are those of the MCP request.

    Raises:
        InvalidParams: they are not.
    """
    members = {"ref": ref, "argument": argument} | ({"context": context} if context is not None else {})
    try:
        types.CompleteRequestParams.model_validate(members, by_name=False)
    except ValidationError as error:
        faults = [
            {"path": "".join(f"/{part}" for part in fault["loc"]), "reason": fault["msg"]}
            for fault in error.errors(include_input=False, include_url=False, include_context=False)
        ]
        raise InvalidParams("the completion is not as MCP has it", details=faults) from None
    return lambda: types.CompleteRequest(
        params=types.CompleteRequestParams.model_validate(members, by_name=False)
    )


def to_json(request: types.ClientRequest) -> dict[str, Any]:
    """A request as another worker is told it; see `again`."""
    raw: dict[str, Any] = request.model_dump(by_alias=True, mode="json", exclude_none=True)
    return raw


def again(raw: Mapping[str, Any]) -> Maker:
    """A maker of the request that `to_json` has told of."""
    return lambda: types.client_request_adapter.validate_python(raw, by_name=False)
