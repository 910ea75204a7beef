"""What a backend has sent, in the envelope of the revision that the client speaks.

The SDK shapes every answer by its models, and drops what they do not know. A handler therefore gives the SDK
a stand-in, so that it checks the request and writes the envelope (``resultType``, the name of the server),
and here what was really sent takes the stand-in's place.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final, TypeAlias, TypeVar

import mcp_types as types
from mcp.server.context import CallNext, HandlerResult
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from mcpgw.aggregate.relay import Context

T = TypeVar("T")
Result: TypeAlias = dict[str, Any]
"""The JSON of a result."""

_OF_LATER_REVISIONS: Final = ("resultType", "ttlMs", "cacheScope")
_raw: ContextVar[list[Result]] = ContextVar("mcpgw_raw_result")


def give(result: Result, stand_in: T) -> T:
    """Answer with `result`; `stand_in` is what the handler returns to the SDK."""
    _raw.get().append(result)
    return stand_in


async def unharmed(ctx: Context, call_next: CallNext) -> HandlerResult:
    """Put what was given in the place of its stand-in: a middleware of the SDK's server."""
    given: list[Result] = []
    token = _raw.set(given)
    try:
        shaped = await call_next(ctx)
    finally:
        _raw.reset(token)
    if not given or not isinstance(shaped, dict):
        return shaped
    return _enveloped(ctx.protocol_version, given[0], shaped)


def _enveloped(version: str, given: Result, shaped: Mapping[str, Any]) -> Result:
    result = {name: value for name, value in given.items() if name != "_meta"}
    meta = dict(given.get("_meta") or {})
    meta.pop(types.SERVER_INFO_META_KEY, None)
    if version in MODERN_PROTOCOL_VERSIONS:
        result.setdefault("resultType", "complete")
        if (stamp := (shaped.get("_meta") or {}).get(types.SERVER_INFO_META_KEY)) is not None:
            meta[types.SERVER_INFO_META_KEY] = stamp
    else:
        for name in _OF_LATER_REVISIONS:
            result.pop(name, None)
        _without_later_shapes(result)
    return result | ({"_meta": meta} if meta else {})


def _without_later_shapes(result: Result) -> None:
    """Up to 2025-11-25 structured content is an object, and so is what an output schema describes."""
    if not isinstance(result.get("structuredContent", {}), dict):
        del result["structuredContent"]
    tools = result.get("tools")
    if isinstance(tools, list):
        result["tools"] = [
            {name: value for name, value in tool.items() if name != "outputSchema"}
            if "outputSchema" in tool and tool["outputSchema"].get("type") != "object"
            else tool
            for tool in tools
        ]


def for_nobody_else(version: str, result: Result) -> Result:
    """`result` with the word that it is for this user alone, and old at once (2026-07-28, "Caching")."""
    if version not in MODERN_PROTOCOL_VERSIONS:
        return result
    return {"ttlMs": 0, **result, "cacheScope": "private"}
