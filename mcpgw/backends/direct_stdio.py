"""The stdio transport without streams: lines of the child go straight to a `DirectDispatcher`.

Starting, ending and all bounds are those of `StdioTransport`. An answer to a call of a tool is parsed once,
by msgspec; whatever that does not take, or is anything else, goes the ordinary way with its own checks. What
is written in one batch, or one turn of the event loop, goes out in one write.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import mcp_types as types
import msgspec
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage

from mcpgw.backends.direct_dispatcher import DirectDispatcher
from mcpgw.backends.failures import LocalFault, local_error
from mcpgw.backends.stdio import MessageReader, MessageWriter, StdioTransport
from mcpgw.backends.tap import Tap
from mcpgw.turns import MOST_PUT_OFF, put_off

_MOST_HANDLED = 256


class _Answer(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """An answer with a result, and nothing else."""

    jsonrpc: Literal["2.0"]
    id: int
    result: dict[str, Any]


_DECODE = msgspec.json.Decoder(_Answer).decode


class DirectStdio:
    """Enters a transport to a child and gives the dispatcher on its pipes, for the SDK's session."""

    def __init__(self, transport: StdioTransport, tap: Tap) -> None:
        self._transport = transport
        self.dispatcher = DirectDispatcher(tap, self._on_handled)
        transport.use_reader(self._make_reader)

    async def __aenter__(self) -> DirectDispatcher:
        reader, writer = await self._transport.__aenter__()
        self.dispatcher.attach(GatheredWriter(writer, reader.end, self.dispatcher))
        return self.dispatcher

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._transport.__aexit__(exc_type, exc_value, traceback)

    def _make_reader(self, on_end: Callable[[str], None], max_waiting: int) -> MessageReader:
        self._reader = DirectReader(self.dispatcher, on_end, max_waiting=max_waiting)
        return self._reader

    def _on_handled(self) -> None:
        if self.dispatcher.handling <= _MOST_HANDLED // 2:
            self._reader.resume()


class DirectReader(MessageReader):
    """Gives what comes to the dispatcher, in the turn in which it was read."""

    def __init__(
        self, dispatcher: DirectDispatcher, on_end: Callable[[str], None], *, max_waiting: int
    ) -> None:
        super().__init__(on_end, max_waiting=max_waiting)
        self._dispatcher = dispatcher

    def take(self, line: bytes) -> bool:
        """Take the answer to a call, where the line is nothing else."""
        try:
            answer = _DECODE(line)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return False
        return self._dispatcher.take_result(answer.id, answer.result)

    def put(self, message: SessionMessage, size: int) -> None:  # noqa: ARG002 - nothing waits here
        """Take any other message."""
        self._dispatcher.receive(message.message)
        if self._dispatcher.handling > _MOST_HANDLED:
            self.pause()

    def end(self, reason: str | None) -> None:
        """No more messages will come, for a `reason` of the child's."""
        super().end(reason)
        self._dispatcher.close()


class GatheredWriter:
    """Writes to the child's stdin, all of one batch or turn of the loop at once, and never waits for it.

    A child that leaves more than the writer's `max_waiting` bytes unread is taken for hung: `give_up`.
    """

    def __init__(
        self, writer: MessageWriter, give_up: Callable[[str], None], dispatcher: DirectDispatcher
    ) -> None:
        self._pipe = writer.pipe
        self._max_waiting = writer.max_waiting
        self._give_up = give_up
        self._dispatcher = dispatcher
        self._lines: list[bytes] = []
        self._ids: list[types.RequestId] = []
        self._size = 0
        self._unread = 0

    def write(self, line: bytes, request_id: types.RequestId | None = None) -> None:
        """Write one message at the end of this batch or turn; where that cannot be done, its request ends."""
        if len(self._lines) >= MOST_PUT_OFF:
            self._flush()  # before this one is added: whoever waits for it is not known yet
        if not self._lines:
            self._unread = self._pipe.get_write_buffer_size()
        if self._unread + self._size > self._max_waiting:
            self._give_up("it does not read its stdin")
            raise _not_sent()
        if self._pipe.is_closing():
            raise _not_sent()
        if not self._lines and not put_off(self._flush):
            asyncio.get_running_loop().call_soon(self._flush)
        self._lines.append(line)
        self._size += len(line)
        if request_id is not None:
            self._ids.append(request_id)

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        ids, self._ids = self._ids, []
        self._size = 0
        if not lines:
            return
        if not self._pipe.is_closing():
            unread = self._pipe.get_write_buffer_size()
            self._pipe.write(lines[0] if len(lines) == 1 else b"".join(lines))
            # Where nothing waited, it is written at once: a pipe that is closed now has taken nothing of it.
            if unread or not self._pipe.is_closing():
                return
        for request_id in ids:
            self._dispatcher.not_sent(request_id, _not_sent().error)


def _not_sent() -> MCPError:
    return MCPError.from_error_data(local_error(LocalFault.NOT_SENT, "its stdin takes no more"))
