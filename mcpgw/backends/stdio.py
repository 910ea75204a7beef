"""The stdio transport to one backend: a child process that speaks JSON-RPC lines on its pipes.

It has the shape of a transport of the MCP SDK (an async context manager that gives a read and a write
stream) and differs from the SDK's own where a gateway must not trust the child: a line is bounded, bytes
that are not UTF-8 cost one message and not the connection, a write never waits, notifications are bounded in
rate, stderr is drained line by line into the log, and the end of the process is seen even where a grandchild
holds the pipes. Source: MCP 2025-11-25 and 2026-07-28, "Transports: stdio" and "Lifecycle: shutdown".
"""

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
import mcp_types as types
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage

from mcpgw.backends import processes
from mcpgw.backends.child import Child, Program
from mcpgw.backends.failures import LocalFault, local_error, too_many
from mcpgw.backends.lines import LineSplitter, OversizedLine, answered_id, asked_id
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.rate_limit import RateLimit
from mcpgw.turns import in_batch

_QUEUE_HIGH = 256
_AT_ONCE = 32
_STDERR_LINE = 4096
_EDGE = 4096
_MOST_REFUSALS = 64 * 1024
"""Bytes of refusals that a child may leave unread."""
_LEFTOVER_SECONDS = 0.2
_EXIT_SECONDS = 0.05

PROCESS_ENDED: Final = "its process"
"""How a reason begins that says that the process is gone."""


class StdioTransport:
    """Starts a backend's process when entered; ends its process group, and what has left that, when left.

    `on_stderr` gets each line of the child's stderr; `on_fault` a sentence about each thing the child did
    that is no MCP; `on_end` is called at most once, when the child has ended the session, with why.
    Sizes are in bytes, times in seconds, `notification_rate` in notifications a second.

    Raises (on entering):
        OSError: the command cannot be started.
    """

    def __init__(
        self,
        command: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | Path | None,
        max_message_size: int,
        notification_rate: int,
        stop_timeout: float,
        reaper: ProcessReaper,
        on_stderr: Callable[[str], None],
        on_fault: Callable[[str], None],
        on_end: Callable[[str], None],
    ) -> None:
        self._program = Program((command, *args), env, cwd)
        self._max_message_size = max_message_size
        self._stop_timeout = stop_timeout
        self._reaper = reaper
        self._on_fault = on_fault
        self._on_end = on_end
        self._reader = MessageReader(on_end, max_waiting=2 * max_message_size)
        self._listener = _Listener(
            self._reader, LineSplitter(max_message_size), RateLimit(notification_rate), on_stderr, on_fault
        )
        self._child: Child | None = None

    def use_reader(self, make: "Callable[[Callable[[str], None], int], MessageReader]") -> None:
        """Have another reader than the SDK's; before entering. `make` takes `on_end` and the most bytes."""
        self._reader = self._listener.reader = make(self._on_end, 2 * self._max_message_size)

    @property
    def pid(self) -> int | None:
        """The process id of the child, where it was started."""
        return None if self._child is None else self._child.pid

    async def __aenter__(self) -> tuple["MessageReader", "MessageWriter"]:
        child = self._child = self._listener.child = self._reaper.start(self._program)
        try:
            await child.connect(self._listener)
        except (OSError, asyncio.CancelledError):
            await self.__aexit__(None, None, None)
            raise
        assert child.stdin is not None, "it is connected"  # noqa: S101
        assert child.stdout is not None, "it is connected"  # noqa: S101
        self._reader.attach(child.stdout)
        return self._reader, MessageWriter(child.stdin, 2 * self._max_message_size, self._reader.end)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._child is not None, "left without having been entered"  # noqa: S101
        with anyio.CancelScope(shield=True):
            await self._stop(self._child)

    async def _stop(self, child: Child) -> None:
        """End the child; whatever cuts this short, its pipes are closed and it is killed."""
        try:
            await self._end_child(child)
        finally:
            with suppress(PermissionError):  # a child that changed its user cannot be signalled
                child.close()

    async def _end_child(self, child: Child) -> None:
        """The specification's escalation: close stdin, SIGTERM, SIGKILL, with a bounded wait after each."""
        group, stdin = child.pid, child.stdin
        # It reads no more: mostly it ends at this moment, which is a better reason than that.
        closed_by_child = stdin is not None and stdin.is_closing()
        if closed_by_child and await self._listener.wait_exited(_LEFTOVER_SECONDS):
            self._reader.tell(self._listener.exit_words())
        self._reader.end(None)
        # A message that could not be sent is noticed sooner than the end of the child, which is the reason.
        if not self._reader.is_told and (reason := await self._listener.why_ended()) is not None:
            self._reader.tell(reason)
        self._reader.discard()
        # Before it ends: then they have other parents. In a thread, for it reads much of /proc.
        family: set[processes.Process] = set()
        if not self._listener.has_exited:  # else its number may be another's
            family = await asyncio.to_thread(processes.descendants, [group])
        if stdin is not None:
            stdin.close()
        for sent in (None, signal.SIGTERM, signal.SIGKILL):
            if sent is not None:
                _signal_group(group, sent)
            if await self._listener.wait_exited(self._stop_timeout):
                break
        # What the leader left behind in its group has no parent to serve any more.
        _signal_group(group, signal.SIGKILL)
        if killed := await asyncio.to_thread(processes.kill_family, family, [child.mark]):
            self._on_fault(f"{killed} processes that it had started outlived it, and were killed")
        self._reaper.remove(group)
        if stdin is not None and stdin.get_write_buffer_size():
            # What the child never read would keep the pipe open as long as a process of another group does.
            stdin.abort()


class _Listener:
    """Listens to a child: cuts what it writes into lines and hands each on."""

    def __init__(
        self,
        reader: "MessageReader",
        lines: LineSplitter,
        notifications: RateLimit,
        on_stderr: Callable[[str], None],
        on_fault: Callable[[str], None],
    ) -> None:
        self.reader = reader
        self._stdout = lines
        self._stderr = LineSplitter(_STDERR_LINE)
        self._notifications = notifications
        self._on_stderr = on_stderr
        self._on_fault = on_fault
        self._exited = asyncio.Event()
        self._stdout_closed = False
        self._ending: str | None = None
        self.child: Child | None = None

    def pipe_data_received(self, fd: int, data: bytes, /) -> None:
        if fd == 1:
            in_batch(self._receive_lines, data)
        else:
            for line in self._stderr.feed(data):
                kept = line.head if isinstance(line, OversizedLine) else line
                self._on_stderr(kept.decode("utf-8", "replace").rstrip("\r"))

    def pipe_connection_lost(self, fd: int, _exc: Exception | None, /) -> None:
        if fd == 0:
            # What it wrote before is still to be read; no call can reach it any more.
            self._end_in(_LEFTOVER_SECONDS, "it closed its stdin")
        elif fd == 1:
            self._stdout_closed = True
            # Its end is mostly seen a moment later, and then the reason can be named.
            self._end_in(0 if self._exited.is_set() else _EXIT_SECONDS, "it closed its stdout")
        elif (rest := self._stderr.flush()) is not None:
            self._on_stderr(rest.decode("utf-8", "replace"))

    def process_exited(self) -> None:
        self._exited.set()
        # What it wrote before it died is still in the pipe; a grandchild may hold that open for ever.
        self._end_in(0 if self._stdout_closed else _LEFTOVER_SECONDS, "")

    def _end_in(self, seconds: float, reason: str) -> None:
        self._ending = self._ending or reason

        def end() -> None:
            self.reader.end(self.exit_words() if self._exited.is_set() else reason)

        if seconds:
            asyncio.get_running_loop().call_later(seconds, end)
        else:
            end()

    @property
    def has_exited(self) -> bool:
        """Whether the process has ended."""
        return self._exited.is_set()

    async def why_ended(self) -> str | None:
        """Why the child ends the session, once its exit had a moment to be seen; None where it does not."""
        if self._ending is None:
            return None
        return self.exit_words() if await self.wait_exited(_LEFTOVER_SECONDS) else self._ending

    async def wait_exited(self, timeout: float) -> bool:  # noqa: ASYNC109 - a bound on one step of stopping
        """Wait until the process has ended, at most `timeout` seconds; tells whether it has."""
        with anyio.move_on_after(timeout):
            await self._exited.wait()
        return self._exited.is_set()

    def exit_words(self) -> str:
        """How it ended."""
        code = None if self.child is None else self.child.returncode
        if code is not None and code < 0:
            return f"{PROCESS_ENDED} was ended by signal {-code}"
        return f"{PROCESS_ENDED} ended with exit code {code}"

    def _receive_lines(self, chunk: bytes) -> None:
        for line in self._stdout.feed(chunk):
            self._receive(line)

    def _receive(self, line: bytes | OversizedLine) -> None:
        if isinstance(line, OversizedLine):
            self._refuse_oversized(line)
            return
        if self.reader.take(line) or not line or line.isspace():
            return
        message = self._parse(line)
        if message is None:
            return
        is_answer = isinstance(message, types.JSONRPCResponse | types.JSONRPCError)
        if not is_answer and not self._notifications.admit():
            if isinstance(message, types.JSONRPCRequest):  # the child may wait for its answer
                self._refuse(message.id, too_many())
            return
        if dropped := self._notifications.take_refused():
            self._on_fault(f"it sent notifications or requests faster than the limit: {dropped} were dropped")
        self.reader.put(SessionMessage(message), len(line))

    def _refuse(self, request_id: types.RequestId, error: types.ErrorData) -> None:
        stdin = None if self.child is None else self.child.stdin
        if stdin is None or stdin.is_closing():
            return
        if stdin.get_write_buffer_size() <= _MOST_REFUSALS:
            answer = types.JSONRPCError(jsonrpc="2.0", id=request_id, error=error)
            stdin.write(answer.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")

    def _parse(self, line: bytes) -> types.JSONRPCMessage | None:
        parse = types.jsonrpc_message_adapter.validate_json
        with suppress(ValueError):
            return parse(line, by_name=False)
        # A byte that is no UTF-8 inside a string must not cost the whole answer.
        text = line.decode("utf-8", "replace")
        with suppress(ValueError):
            return parse(text, by_name=False)
        # The line itself may hold arguments of a call, and is not for the log.
        self._on_fault(f"its stdout held a line of {len(line)} bytes that is no JSON-RPC message")
        if (request_id := asked_id(line)) is not None:  # the child may wait for its answer
            refused = types.ErrorData(
                code=types.INVALID_REQUEST, message="the request is no JSON-RPC message"
            )
            self._refuse(request_id, refused)
            return None
        error = types.ErrorData(code=types.PARSE_ERROR, message="the answer is no JSON-RPC message")
        self._answer_for(line[:_EDGE], line[-_EDGE:], error)
        return None

    def _refuse_oversized(self, line: OversizedLine) -> None:
        self._on_fault(f"its stdout held a line of {line.size} bytes, over the limit; it was dropped")
        message = f"the answer has {line.size} bytes, over the limit of one message"
        self._answer_for(line.head, line.tail, local_error(LocalFault.TOO_LARGE, message))

    def _answer_for(self, head: bytes, tail: bytes, error: types.ErrorData) -> None:
        """End the call that an unusable line answers, so that it need not wait for its deadline."""
        request_id = answered_id(head, tail)
        if request_id is not None:
            answer = types.JSONRPCError(jsonrpc="2.0", id=request_id, error=error)
            self.reader.put(SessionMessage(answer), 0)


class MessageReader:
    """The SDK's read stream: messages in the order of the wire, bounded by pausing the child's stdout.

    `max_waiting` is in bytes of messages that were received and not yet taken.
    """

    def __init__(self, on_end: Callable[[str], None], *, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._taken = 0
        self._messages: deque[tuple[SessionMessage | Exception, int]] = deque()
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._is_told = False
        self._on_end = on_end
        self._pipe: asyncio.ReadTransport | None = None
        self._paused = False

    @property
    def is_told(self) -> bool:
        """Whether it was said why the child has ended the session."""
        return self._is_told

    def attach(self, pipe: asyncio.ReadTransport) -> None:
        """Name the pipe that is paused while too many messages wait."""
        self._pipe = pipe

    def take(self, line: bytes) -> bool:  # noqa: ARG002 - for readers that do
        """Deal with a line of the child's that is not parsed yet; false where it is to be parsed first."""
        return False

    def put(self, message: SessionMessage, size: int) -> None:
        """Add a message of `size` bytes."""
        if self._ended:
            return
        self._messages.append((message, size))
        self._size += size
        self._wake()
        if len(self._messages) > _QUEUE_HIGH or self._size > self._max_waiting:
            self.pause()

    def pause(self) -> None:
        """Let the child wait with what it writes."""
        if self._pipe is not None and not self._paused:
            self._paused = True
            self._pipe.pause_reading()

    def end(self, reason: str | None) -> None:
        """No more messages will come, for a `reason` of the child's; those that wait are still read."""
        if not self._ended:
            self._ended = True
            if reason is not None:
                self.tell(reason)
            self._wake()

    def tell(self, reason: str) -> None:
        """Say why the child has ended the session, unless that was said."""
        if not self._is_told:
            self._is_told = True
            self._on_end(reason)

    def discard(self) -> None:
        """Drop what waits, and let the child write on so that it can come to its end."""
        self._messages.clear()
        self._size = 0
        self.resume()

    async def receive(self) -> SessionMessage | Exception:
        """The next message.

        Raises:
            anyio.EndOfStream: the child has closed its stdout or ended.
        """
        self._taken += 1
        if self._taken % _AT_ONCE == 0:
            await asyncio.sleep(0)  # messages that all wait already would otherwise be handled in one go
        while not self._messages:
            if self._ended:
                raise anyio.EndOfStream
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message, size = self._messages.popleft()
        self._size -= size
        if len(self._messages) <= _QUEUE_HIGH // 2 and self._size <= self._max_waiting:
            self.resume()
        return message

    async def aclose(self) -> None:
        """End reading."""
        self.end(None)
        self.discard()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def resume(self) -> None:
        """Let the child write on."""
        if self._paused and self._pipe is not None and not self._pipe.is_closing():
            self._pipe.resume_reading()
        self._paused = False


class MessageWriter:
    """The SDK's write stream: each message is given to the pipe at once, and never waits for the child.

    A child that leaves more than `max_waiting` bytes unread is taken for hung: `give_up` ends the session.
    """

    def __init__(
        self, pipe: asyncio.WriteTransport, max_waiting: int, give_up: Callable[[str], None]
    ) -> None:
        self.pipe = pipe
        self.max_waiting = max_waiting
        self._give_up = give_up

    async def send(self, item: SessionMessage, /) -> None:
        """Write one message.

        Raises:
            MCPError: the pipe is closed or the child has stopped reading, and the message is a request: it
                was not sent.
            anyio.BrokenResourceError: the same, for any other message.
        """
        unread = self.pipe.get_write_buffer_size()
        if unread > self.max_waiting:
            self._give_up("it does not read its stdin")
        elif not self.pipe.is_closing():
            line = item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
            self.pipe.write(line)
            # Where nothing waited, it is written at once: a pipe that is closed now has taken nothing of it.
            if unread or not self.pipe.is_closing():
                return
        if isinstance(item.message, types.JSONRPCRequest):
            raise MCPError.from_error_data(local_error(LocalFault.NOT_SENT, "its stdin takes no more"))
        raise anyio.BrokenResourceError

    async def aclose(self) -> None:
        """Nothing to do: the transport closes the pipe when it is left."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
