"""Calls of tools, read in one step: most frames are one, and are right.

What is read here is what `split_message`, `Envelope.open` and `decode` would make of it. Of everything else
(another frame, a fault, a second spelling) nothing is said: those three have the rules and the words. What
they refuse and msgspec would take is looked for here: members that stand twice, or that nobody knows, and
numbers that no double holds.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mcpgw.wire.client_frames import ToolCall
from mcpgw.wire.reply import ReplyTo
from mcpgw.wire.strict_json import is_deeper_than

_LARGE: Final = 1 << 63
_Whole = Annotated[int, Meta(ge=-_LARGE, le=_LARGE - 1)]
_DEPTH: Final = 2
"""Levels above the arguments."""
_ALWAYS: Final = 5
"""Members that each call has: ``type``, ``id``, ``data``, ``serverId``, ``toolName``."""


class _Data(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The ``data`` of a call; bounds as in ``schemas/client-frames.json``."""

    serverId: Annotated[str, Meta(min_length=1, max_length=64)]  # noqa: N815 - the names of the wire
    toolName: Annotated[str, Meta(min_length=1, max_length=256)]  # noqa: N815
    params: dict[str, Any] | UnsetType = UNSET
    timeoutMs: Annotated[int, Meta(ge=1, le=_LARGE - 1)] | UnsetType = UNSET  # noqa: N815
    onDisconnect: Literal["keep", "cancel"] | UnsetType = UNSET  # noqa: N815


class _Call(msgspec.Struct, gc=False):
    """A call; a member that is not here is seen by the number of colons."""

    type: Literal["tool_call"]
    id: Annotated[str, Meta(min_length=1, max_length=128)]
    data: _Data
    timestamp: _Whole | UnsetType = UNSET


_DECODE: Final = msgspec.json.Decoder(_Call).decode


def quick_call(text: str, *, max_depth: int) -> ToolCall | None:
    """The call that a message is, where it surely is one and right; None where that is not known."""
    try:
        call = _DECODE(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        return None
    data = call.data
    params: Mapping[str, Any] = {} if data.params is UNSET else data.params
    inner = _inner_members(params, max_depth - _DEPTH)
    if inner is None:
        return None
    members = (
        _ALWAYS
        + inner
        + (call.timestamp is not UNSET)
        + (data.params is not UNSET)
        + (data.timeoutMs is not UNSET)
        + (data.onDisconnect is not UNSET)
    )
    # Each member has its colon, and what was passed over had one too.
    colons = text.count(":")
    if colons != members and ("\\" in text or colons != members + _colons(call, params)):
        return None
    return ToolCall(
        ReplyTo(call.id),
        data.serverId,
        data.toolName,
        params,
        None if data.timeoutMs is UNSET else data.timeoutMs,
        None if data.onDisconnect is UNSET else data.onDisconnect,
    )


def _inner_members(params: Mapping[str, Any], max_depth: int) -> int | None:
    """How many members there are in `params` and below; None where they cannot be taken as they are."""
    members = len(params)
    waiting: list[Any] = []
    for value in params.values():
        kind = type(value)
        if kind is int:
            if not -_LARGE <= value < _LARGE:
                return None
        elif kind is dict or kind is list:
            waiting.append(value)
    if not waiting:
        return members if max_depth > 0 else None
    if is_deeper_than(params, max_depth):
        return None
    while waiting:
        part = waiting.pop()
        if type(part) is dict:
            members += len(part)
            part = part.values()
        for value in part:
            kind = type(value)
            if kind is int:
                if not -_LARGE <= value < _LARGE:
                    return None
            elif kind is dict or kind is list:
                waiting.append(value)
    return members


def _colons(call: _Call, params: Mapping[str, Any]) -> int:
    """How many colons stand in the texts of a call."""
    colons = call.id.count(":") + call.data.serverId.count(":") + call.data.toolName.count(":")
    waiting: list[Any] = [params]
    while waiting:
        part = waiting.pop()
        if type(part) is str:
            colons += part.count(":")
        elif type(part) is dict:
            waiting += part
            waiting += part.values()
        elif type(part) is list:
            waiting += part
    return colons
