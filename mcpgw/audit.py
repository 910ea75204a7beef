"""The audit log: one JSON object a line, that says who did what, from where, and what came of it.

    audit.call(actor, server="memory", tool="memory_search", call_id="call-1", outcome="ok", seconds=0.012)

    {"time": "2026-11-21T20:54:50.123Z", "event": "call", "who": {"user": "ann", "tokenId": "t1", "client":
    "4f2a"}, "where": {"remote": "127.0.0.1"}, "what": {"server": "memory", "tool": "memory_search", "callId":
    "call-1", "ms": 12.0}, "outcome": "ok"}

Events: ``connect``, ``auth``, ``refused``, ``call``, ``approval``, ``admin``, ``access``, ``disconnect``;
beside them
``lines_lost`` with a ``count``, where lines could not be written. `outcome` is ``ok``, ``tool_error`` or the
code of an error; of ``disconnect`` it is the close code, of ``approval`` what has become of it. What is not
known is left out. Never a token; arguments of calls only where the configuration says so, and then with the
values of secret names masked.

Written by a thread from a bounded queue of its own, as `mcpgw.log_writer` has it, so that a flood of the log
takes nothing from it: never waits, never raises in the caller, counts what is lost.
"""

import atexit
import json
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Self

from mcpgw.log_values import Scalar, field_value, is_plain, without_surrogates
from mcpgw.log_writer import Complaint, Intake, Line, Writer, open_log_file, timestamp
from mcpgw.redaction import is_secret_name, redact
from mcpgw.settings import AuditSettings

EVENTS: Final = ("connect", "auth", "refused", "call", "approval", "admin", "access", "disconnect")

MAXIMUM_ARGUMENTS: Final = 4_000
"""Longest text of the arguments of a call, in characters; a longer one is cut."""

QUEUE_SIZE: Final = 8192
"""Lines that wait for the disk at most."""

OK: Final = "ok"

_LOGGER_NAME = "mcpgw.audit"
_ENCODER = json.JSONEncoder()
_DEEPEST = 32
_CUT = "…"
_MARK: Final = secrets.token_hex(16)
"""Stands for the id of a call where there is none yet; nobody can know it."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did something, and from where.

    `token_id` is the ``jti`` of the token, never the token; `client` the id of the connection; `remote` the
    address it came from. `scopes` are what the actor may do; the log has them not.
    """

    remote: str
    user: str | None = None
    token_id: str | None = None
    client: str | None = None
    scopes: frozenset[str] = frozenset()


class Audit:
    """The audit log while it is open; a context manager. A second `close` does nothing.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, settings: AuditSettings, *, queue_size: int = QUEUE_SIZE) -> None:
        complaint = Complaint()
        log_file = open_log_file(
            settings.file,
            _Formatter(),
            settings.max_size,
            settings.backups,
            complaint,
            flag="--audit-file",
        )
        self._with_arguments = settings.arguments
        self._intake = Intake(queue_size, complaint)
        self._writer = Writer(self._intake, [log_file], log_file, complaint)
        self._writer.start()
        self._is_open = True
        atexit.register(self.close)

    @property
    def lost(self) -> int:
        """How many lines were not written since the start: the queue or the disk was full."""
        return self._writer.lost

    def close(self) -> None:
        """Write what waits, end the thread and close the file, within some seconds."""
        if self._is_open:
            self._is_open = False
            atexit.unregister(self.close)
            self._intake.close()
            self._writer.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self, actor: Actor, *, kind: str, path: str, credentials: str, agent: str = "") -> None:
        """A connection of `kind` (``websocket``, ``sse``) is open; `credentials` names the way they came."""
        self._write(
            "connect", actor, {"kind": kind, "path": path, "credentials": credentials, "agent": agent}, OK
        )

    def auth(self, actor: Actor, *, credentials: str, outcome: str = OK) -> None:
        """Somebody proved who they are, or failed to: then `outcome` is the code of the error."""
        self._write("auth", actor, {"credentials": credentials}, outcome)

    def refused(self, actor: Actor, *, action: str, code: str, reason: str = "") -> None:
        """Something was asked for and refused: `action` is the frame's type, or method and path."""
        self._write("refused", actor, {"action": action, "reason": reason}, code)

    def call(
        self,
        actor: Actor,
        *,
        server: str,
        tool: str,
        call_id: str,
        outcome: str,
        seconds: float,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """A call has had its end; `arguments` are written only where the configuration has it."""
        milliseconds = round(seconds * 1000, 1)
        if not self._with_arguments and self._is_open and is_plain(call_id):
            before, after = _around_call(
                (actor.user, actor.token_id, actor.client), actor.remote, server, tool, outcome
            )
            now = timestamp(time.time())
            self._intake.take_text(
                f'{{"time": "{now}", {before}"callId": "{call_id}", "ms": {milliseconds!r}{after}'
            )
            return
        what: dict[str, object] = {"server": server, "tool": tool, "callId": call_id, "ms": milliseconds}
        text = _arguments_text(arguments) if self._with_arguments and arguments is not None else None
        self._write("call", actor, what, outcome, arguments=text)

    def approval(
        self,
        actor: Actor,
        *,
        request_id: str,
        user: str,
        server: str,
        tool: str,
        arguments_hash: str,
        outcome: str,
    ) -> None:
        """An approval of a call of `user` was ``asked`` for; or how that ended, and by whom.

        `outcome` is one of ``asked``, ``approved``, ``declined``, ``expired``, ``withdrawn``.
        """
        what = {
            "requestId": request_id,
            "user": user,
            "server": server,
            "tool": tool,
            "argumentsHash": arguments_hash,
        }
        self._write("approval", actor, what, outcome)

    def admin(self, actor: Actor, *, action: str, target: str = "", outcome: str = OK) -> None:
        """An operator did something: `action` such as ``servers.restart``, `target` what it was done to."""
        self._write("admin", actor, {"action": action, "target": target}, outcome)

    def access(self, actor: Actor, *, action: str, target: str = "", outcome: str = OK) -> None:
        """Somebody's way in has changed: `action` such as ``login.logout`` or ``users.role``, to `target`."""
        self._write("access", actor, {"action": action, "target": target}, outcome)

    def disconnect(self, actor: Actor, *, kind: str, code: int | None, seconds: float) -> None:
        """A connection has ended with a close code, or without one, after `seconds`."""
        what = {"kind": kind, "seconds": round(seconds, 3)}
        self._write("disconnect", actor, what, "closed" if code is None else str(code))

    def _write(
        self,
        event: str,
        actor: Actor,
        what: Mapping[str, object],
        outcome: str,
        *,
        arguments: str | None = None,
    ) -> None:
        if not self._is_open:
            return
        who = {"user": actor.user, "tokenId": actor.token_id, "client": actor.client}
        fields = _fields(who, actor.remote, what, outcome, arguments)
        self._intake.handle(Line(_LOGGER_NAME, logging.INFO, event, fields))


def _fields(
    who: Mapping[str, object],
    remote: str,
    what: Mapping[str, object],
    outcome: str,
    arguments: str | None = None,
) -> dict[str, Scalar]:
    fields: dict[str, Scalar] = {}
    for group, members in (("who.", who), ("where.", {"remote": remote}), ("what.", what)):
        for name, value in members.items():
            if value is not None and value != "":
                fields[group + name] = field_value(name, value)
    if arguments is not None:
        fields["what.arguments"] = arguments
    fields["outcome"] = field_value("outcome", outcome)
    return fields


@lru_cache(maxsize=4096)
def _around_call(
    actor: tuple[str | None, str | None, str | None], remote: str, server: str, tool: str, outcome: str
) -> tuple[str, str]:
    """What stands in the line of a call between the time and the call's id, and behind its milliseconds."""
    who = dict(zip(("user", "tokenId", "client"), actor, strict=True))
    fields = _fields(who, remote, {"server": server, "tool": tool, "callId": _MARK, "ms": 0}, outcome)
    line = _Formatter().format(Line(_LOGGER_NAME, logging.INFO, "call", fields))
    before, mark, after = line.partition(", ")[2].partition(f'"callId": "{_MARK}", "ms": 0')
    assert mark, "no text of a line is like the mark"  # noqa: S101
    return before, after


class _Formatter(logging.Formatter):
    """One JSON object: `who`, `where` and `what` as members of their own."""

    def format(self, record: logging.LogRecord) -> str:
        assert isinstance(record, Line)  # noqa: S101 - nothing else reaches the writer
        content: dict[str, Any] = {"time": record.timestamp, "event": record.event}
        for name, value in record.fields.items():
            group, dot, member = name.partition(".")
            plain = without_surrogates(value)
            if dot:
                content.setdefault(group, {})[member] = plain
            else:
                content[name] = plain
        return redact(_ENCODER.encode(content))


def _arguments_text(arguments: Mapping[str, Any]) -> str:
    """Arguments as the text of their JSON, bounded, with the values of secret names masked."""
    masking = _Masking()
    text = redact(json.dumps(masking.of("arguments", arguments)))
    is_whole = masking.left > 0 and len(text) <= MAXIMUM_ARGUMENTS
    return text if is_whole else f"{text[: MAXIMUM_ARGUMENTS - 1]}{_CUT}"


class _Masking:
    """A bounded copy of JSON: what would not fit in the line any more is not looked at."""

    def __init__(self) -> None:
        self.left = MAXIMUM_ARGUMENTS

    def of(self, name: str, value: Any, depth: int = 0) -> Any:
        """`value` under `name`, with `depth` levels above it."""
        self.left -= 1
        if not isinstance(value, Mapping | list | tuple) or is_secret_name(name):
            plain = field_value(name, value)
            self.left -= len(plain) if isinstance(plain, str) else 0
            return plain
        if depth >= _DEEPEST:
            return _CUT
        if isinstance(value, Mapping):
            copied: dict[str, Any] = {}
            for key, member in value.items():
                if self.left <= 0:
                    break
                self.left -= len(key)
                copied[key[:MAXIMUM_ARGUMENTS]] = self.of(key, member, depth + 1)
            return copied
        entries: list[Any] = []
        for member in value:
            if self.left <= 0:
                break
            entries.append(self.of("", member, depth + 1))
        return entries
