"""A look at what passes between the SDK's client and a transport.

The SDK refuses a whole list for one entry that breaks its schema. Here an answer to a list is looked at
before the SDK sees it, and such an entry alone is mended or left out. What a server has listed is also kept
as it was sent, for the SDK's models drop members that they do not know.
"""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final, Self

import anyio
import mcp_types as types
from mcp.shared.message import SessionMessage
from mcp_types.methods import validate_server_result
from pydantic import ValidationError

_LISTS: Final = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}
CALLERS_CAPABILITIES: Final = "mcpgw/clientCapabilities"
"""The member of a request's ``_meta`` that has its caller's capabilities on the way through the SDK."""
_ANY_ARGUMENTS: Final = {"type": "object"}
_LONGEST_NAME = 64


class Tap:
    """A transport around another one. `on_fault` gets a sentence about each entry mended or left out.

    `version` tells the protocol version, once it is known. `heard_at` is when the last message came, by the
    monotonic clock; `listed_tools` are the tools by their names, as they were sent.
    """

    def __init__(self, transport: AbstractAsyncContextManager[Any], on_fault: Callable[[str], None]) -> None:
        self._transport = transport
        self._on_fault = on_fault
        self._lists: dict[str, str] = {}
        self.version: Callable[[], str | None] = lambda: None
        self.heard_at = time.monotonic()
        self.listed_tools: dict[str, Mapping[str, Any]] = {}

    async def __aenter__(self) -> tuple["_Reader", "_Writer"]:
        read, write = await self._transport.__aenter__()
        return _Reader(read, self), _Writer(write, self)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._transport.__aexit__(exc_type, exc_value, traceback)

    def sent(self, message: types.JSONRPCMessage) -> None:
        """A message goes out.

        From 2026-07-28 on each request says what its client can do. That is what its caller can, where that
        is known, and not all that this gateway can hand on.
        """
        if not isinstance(message, types.JSONRPCRequest):
            return
        if message.method in _LISTS:
            self._lists[str(message.id)] = message.method
        meta = (message.params or {}).get("_meta")
        if isinstance(meta, dict) and CALLERS_CAPABILITIES in meta:
            can = meta.pop(CALLERS_CAPABILITIES)
            if types.CLIENT_CAPABILITIES_META_KEY in meta:
                meta[types.CLIENT_CAPABILITIES_META_KEY] = can

    def heard(self) -> None:
        """Something has come that is not looked at."""
        self.heard_at = time.monotonic()

    def received(self, message: types.JSONRPCMessage) -> None:
        """A message has come."""
        self.heard_at = time.monotonic()
        if not self._lists or not isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            return
        method = self._lists.pop(str(message.id), None)
        if method is None or isinstance(message, types.JSONRPCError):
            return
        entries = message.result.get(_LISTS[method])
        if isinstance(entries, list):
            self._look_at(method, message.result, entries)

    def _look_at(self, method: str, result: dict[str, Any], entries: list[Any]) -> None:
        member, version = _LISTS[method], self.version()
        if version is not None and not _is_valid(method, version, result):
            rest = {**result, member: []}
            if not _is_valid(method, version, rest):
                return  # it is not the entries: the SDK refuses it with good reason
            result[member] = entries = [
                mended
                for entry in entries
                if (mended := self._mended(method, version, rest, entry)) is not None
            ]
        if method == "tools/list":
            named = (entry for entry in entries if isinstance(entry, dict) and "name" in entry)
            self.listed_tools |= {str(entry["name"]): entry for entry in named}

    def _mended(self, method: str, version: str, rest: dict[str, Any], entry: Any) -> Any:
        member = _LISTS[method]
        if _is_valid(method, version, {**rest, member: [entry]}):
            return entry
        name = str(entry.get("name", ""))[:_LONGEST_NAME] if isinstance(entry, dict) else ""
        if method == "tools/list" and isinstance(entry, dict):
            mended = {**entry, "inputSchema": _ANY_ARGUMENTS}
            mended.pop("outputSchema", None)
            if _is_valid(method, version, {**rest, member: [mended]}):
                self._on_fault(
                    f"its tool {name!r} has a schema that cannot be used; nothing is checked by it"
                )
                return mended
        self._on_fault(f"{method} held {name!r}, which is not as the protocol has it; it is left out")
        return None


def _is_beyond(message: types.JSONRPCMessage) -> bool:
    """Whether it tells of progress by what no double can hold: the SDK's session would end with that."""
    if not isinstance(message, types.JSONRPCNotification) or message.method != "notifications/progress":
        return False
    said = message.params or {}
    numbers = (said.get("progress"), said.get("total"))
    return any(isinstance(number, int) and abs(number) > sys.float_info.max for number in numbers)


def _is_valid(method: str, version: str, result: dict[str, Any]) -> bool:
    try:
        validate_server_result(method, version, result)
    except KeyError:
        return True
    except ValidationError:
        return False
    return True


class _Reader:
    """The read stream of the SDK."""

    def __init__(self, stream: Any, tap: Tap) -> None:
        self._stream = stream
        self._tap = tap

    @property
    def last_context(self) -> Any:
        """The context of the request that the last message answers; the SDK runs callbacks in it."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        """The next message, as the stream gives it."""
        while True:
            message: SessionMessage | Exception = await self._stream.receive()
            if not isinstance(message, SessionMessage):
                return message
            self._tap.received(message.message)
            if not _is_beyond(message.message):
                return message

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        result: bool | None = await self._stream.__aexit__(*exc_info)
        return result


class _Writer:
    """The write stream of the SDK."""

    def __init__(self, stream: Any, tap: Tap) -> None:
        self._stream = stream
        self._tap = tap

    async def send(self, item: SessionMessage, /) -> None:
        """Send one message."""
        self._tap.sent(item.message)
        await self._stream.send(item)

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        result: bool | None = await self._stream.__aexit__(*exc_info)
        return result
