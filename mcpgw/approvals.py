"""Calls that wait until a person approves them.

A definition says which (``approval``, see `mcpgw.tool_policy`). Such a call stands still before it is sent;
who has the scope ``calls:approve`` is told what it is, and accepts or declines. An approval is of one call
alone: of this caller, this tool and these arguments (by their SHA-256), those that the gateway adds among
them; it can be given once, and its time is bounded. Asking, every decision and every end without one stand in
the audit log and in the events.
"""

import asyncio
import hashlib
import json
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from mcpgw.access.callers import Caller
from mcpgw.access.permissions import Sight, may_approve, require_approve
from mcpgw.access.tokens import Principal
from mcpgw.audit import Actor, Audit
from mcpgw.backends.requests import Observer
from mcpgw.bus import Bus
from mcpgw.call_record import is_short
from mcpgw.errors import InvalidParams, PermissionDenied, QueueFull, UnknownCall, suggest
from mcpgw.logs import log_event
from mcpgw.redaction import REDACTED, is_secret_name
from mcpgw.settings import CallSettings
from mcpgw.workers.peers import Peers

_LOGGER = logging.getLogger("mcpgw.calls")
PREFIX = "apr-"
"""What the id of every approval begins with."""

Decision = Literal["approved", "declined", "expired", "withdrawn"]
"""How the wait for an approval ends; ``withdrawn`` where the call itself has ended."""


def hash_of(arguments: Mapping[str, Any]) -> str:
    """The SHA-256, in hexadecimal, of the arguments as JSON with sorted names and no spaces."""
    text = json.dumps(arguments, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """One call that waits; times in milliseconds since the epoch.

    `arguments` are all that its server is sent, with secrets masked; `hidden` the JSON Pointers of what is
    masked. Where `is_private`, not even the caller is to see them.
    """

    id: str
    user: str
    server_id: str
    tool_name: str
    arguments: Mapping[str, Any] = field(repr=False)
    hidden: tuple[str, ...] = field(repr=False)
    is_private: bool
    arguments_hash: str
    asked_at: int
    expires_at: int

    @property
    def message(self) -> str:
        """What is asked for, in words."""
        return f"{self.user} asks to call {self.tool_name} of {self.server_id}"

    def members(self) -> dict[str, Any]:
        """What is to be approved, as JSON."""
        return self.named() | {
            "arguments": dict(self.arguments),
            "hidden": list(self.hidden),
            "argumentsHash": self.arguments_hash,
        }

    def named(self) -> dict[str, Any]:
        """Whose call of what it is, as JSON."""
        return {"user": self.user, "serverId": self.server_id, "toolName": self.tool_name}

    def to_json(self) -> dict[str, Any]:
        """All of it, for lists."""
        times = {"askedAt": self.asked_at, "expiresAt": self.expires_at}
        return {"requestId": self.id, "message": self.message} | self.members() | times


@dataclass(slots=True, eq=False)
class _Waiting:
    request: ApprovalRequest
    decision: asyncio.Future[tuple[Decision, Actor]]


Listener = Callable[[ApprovalRequest], None]

_ASKED: Final = "approval asked"
_ENDED: Final = "approval ended"
_DECIDED: Final = "approval decided"


class Approvals:
    """The calls that wait for an approval, and those who give it.

    A call waits in one process; the others, `peers`, know of it, and hand a decision on to that one.
    """

    def __init__(self, bus: Bus, audit: Audit, peers: Peers | None = None) -> None:
        self._bus = bus
        self._audit = audit
        self._waiting: dict[str, _Waiting] = {}
        self._elsewhere: dict[str, tuple[int, ApprovalRequest]] = {}
        self._listeners: dict[object, Listener] = {}
        self._peers = peers = peers or Peers()
        peers.listen(_ASKED, self._hear_asked)
        peers.listen(_ENDED, self._hear_ended)
        peers.answer(_DECIDED, lambda _, told: self._decide_here(*told))
        peers.on_came(self._tell_newcomer)
        peers.on_gone(self._forget_worker)

    async def ask(
        self,
        caller: Caller,
        server_id: str,
        tool_name: str,
        arguments: Mapping[str, Any],
        *,
        settings: CallSettings,
        observer: Observer,
        seconds_left: float = math.inf,
        secret: Collection[str] = (),
        is_private: bool = False,
    ) -> None:
        """Wait until this call is approved.

        `arguments` are all that the server is to be sent. Those called `secret` are the gateway's own: nobody
        sees them, and their mask stands in the hash, for a short secret could be guessed from one. Where
        `is_private`, the caller does not see what the gateway has added. The call ends in `seconds_left`.

        Raises:
            PermissionDenied: it was declined, or nobody approved it in time.
            QueueFull: as many calls wait as may.
        """
        principal = caller.principal
        own = sum(one.request.user == principal.user for one in self._waiting.values())
        waiting = len(self._waiting) + len(self._elsewhere)
        if waiting >= settings.max_approvals or own >= max(1, settings.max_approvals // 4):
            raise QueueFull("too many calls wait for an approval", retry_after_ms=1000)
        now = time.time_ns() // 1_000_000
        shown, hidden = _shown(arguments, secret)
        request = ApprovalRequest(
            PREFIX + secrets.token_hex(12),
            principal.user,
            server_id,
            tool_name,
            shown,
            hidden,
            is_private,
            hash_of(_without(arguments, secret)),
            now,
            now + round(min(settings.approval_timeout, seconds_left) * 1000),
        )
        asker = Actor("", principal.user, principal.token_id)
        here = _Waiting(request, asyncio.get_running_loop().create_future())
        self._waiting[request.id] = here
        outcome: Decision = "withdrawn"
        decided_by = asker
        try:
            self._tell_asked(request, asker)
            observer.approval_asked(request.id, request.expires_at)
            try:
                async with asyncio.timeout(settings.approval_timeout):
                    outcome, decided_by = await here.decision
            except TimeoutError:
                outcome = "expired"
        finally:
            del self._waiting[request.id]
            # Who decided has been told that it counts, also where the time was over in the same moment.
            if here.decision.done() and not here.decision.cancelled():
                outcome, decided_by = here.decision.result()
            self._tell_ended(request, outcome, decided_by)
        if outcome == "expired":
            raise PermissionDenied(f"nobody approved the call within {settings.approval_timeout:g} s")
        if outcome == "declined":
            raise PermissionDenied("the call was not approved")
        if hash_of(_without(arguments, secret)) != request.arguments_hash:
            raise PermissionDenied("the approval is of other arguments")

    def decide(
        self,
        principal: Principal,
        request_id: str,
        action: str,
        *,
        actor: Actor,
        settings: CallSettings,
        arguments_hash: str | None = None,
    ) -> Awaitable[None] | None:
        """Approve (``accept``) or not (``decline``).

        Answers None where that is done. Of a call that waits in another process, that one has the last word:
        await what is answered, which raises as this. `arguments_hash` makes sure that the decision is on what
        the approver has seen.

        Raises:
            PermissionDenied: the caller may not approve, or it is their own call.
            UnknownCall: nothing of that id waits, or it is decided already.
            InvalidParams: it is another action, or the hash is another one.
            ServerUnavailable: the process in which the call waits does not answer.
        """
        require_approve(principal)
        worker, request = self._find(request_id)
        if request is None:
            known = [one.id for one in self.pending(principal, settings)]
            raise UnknownCall(f"no approval {request_id[:64]!r} is asked for{suggest(request_id, known)}")
        if action not in ("accept", "decline"):
            reason = "must be accept or decline"
            raise InvalidParams(f"the action {reason}", details=[{"path": "/data/action", "reason": reason}])
        if not Sight.of(principal).shows_tool(request.server_id, request.tool_name):
            raise PermissionDenied("the call is of a tool that is not for you")
        if not self.may_decide(principal, request, settings):
            raise PermissionDenied("nobody approves a call of their own: see calls.approve_own")
        if arguments_hash is not None and arguments_hash != request.arguments_hash:
            reason = "is not that of the arguments that wait"
            raise InvalidParams(
                f"argumentsHash {reason}", details=[{"path": "/argumentsHash", "reason": reason}]
            )
        by = [actor.remote, actor.user, actor.token_id, actor.client]
        if worker != self._peers.number:
            return self._peers.ask(worker, _DECIDED, [request_id, action, by])
        self._decide_here(request_id, action, by)
        return None

    def pending(self, principal: Principal, settings: CallSettings) -> list[ApprovalRequest]:
        """What waits for a decision that `principal` may make, the oldest first."""
        here = (one.request for one in self._waiting.values() if not one.decision.done())
        elsewhere = (request for _, request in self._elsewhere.values())
        found = [one for one in (*here, *elsewhere) if self.may_decide(principal, one, settings)]
        return sorted(found, key=lambda one: one.asked_at)

    @staticmethod
    def may_decide(principal: Principal, request: ApprovalRequest, settings: CallSettings) -> bool:
        """Whether the decision may be that of `principal`: nobody's own call, unless the settings say so, and
        none of a tool that `principal` is not shown.
        """
        return (
            may_approve(principal)
            and (settings.approve_own or request.user != principal.user)
            and Sight.of(principal).shows_tool(request.server_id, request.tool_name)
        )

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` told of every call that begins to wait; call the answer to end that."""
        key = object()
        self._listeners[key] = listener

        def end() -> None:
            self._listeners.pop(key, None)

        return end

    def _tell_asked(self, request: ApprovalRequest, actor: Actor) -> None:
        known = request.members() | {"requestId": request.id, "expiresAt": request.expires_at}
        masked = {name: value for name, value in known.items() if name not in ("arguments", "hidden")}
        is_told = not request.is_private and is_short([known["arguments"], known["hidden"]])
        shown = known if is_told else masked
        self._bus.publish("call.approval_requested", shown, owner=request.user, masked=masked)
        self._record(request, actor, "asked")
        if not self._peers.is_alone:
            self._peers.tell(_ASKED, _told(request))
        self._tell_listeners(request)

    def _tell_listeners(self, request: ApprovalRequest) -> None:
        for listener in tuple(self._listeners.values()):
            listener(request)

    # --- what waits elsewhere ------------------------------------------------------------------------------

    def _find(self, request_id: str) -> tuple[int, ApprovalRequest | None]:
        """The number of the process where something waits that is not decided, and what it is."""
        here = self._waiting.get(request_id)
        if here is not None:
            return self._peers.number, None if here.decision.done() else here.request
        return self._elsewhere.get(request_id, (0, None))

    def _decide_here(self, request_id: str, action: str, by: list[Any]) -> None:
        waiting = self._waiting.get(request_id)
        if waiting is None or waiting.decision.done():
            raise UnknownCall(f"no approval {request_id[:64]!r} is asked for")
        waiting.decision.set_result(("approved" if action == "accept" else "declined", Actor(*by)))

    def _hear_asked(self, worker: int, told: Mapping[str, Any]) -> None:
        request = ApprovalRequest(**{**told, "hidden": tuple(told["hidden"])})
        if request.id not in self._elsewhere:
            self._elsewhere[request.id] = worker, request
            self._tell_listeners(request)

    def _hear_ended(self, _: int, request_id: str) -> None:
        self._elsewhere.pop(request_id, None)

    def _tell_newcomer(self, worker: int) -> None:
        for one in self._waiting.values():
            self._peers.tell(_ASKED, _told(one.request), to=worker)

    def _forget_worker(self, worker: int) -> None:
        self._elsewhere = {name: one for name, one in self._elsewhere.items() if one[0] != worker}

    # --- what is told --------------------------------------------------------------------------------------

    def _tell_ended(self, request: ApprovalRequest, outcome: Decision, actor: Actor) -> None:
        self._peers.tell(_ENDED, request.id)
        data: dict[str, Any] = request.named() | {"requestId": request.id}
        if outcome in ("approved", "declined"):
            data["by"] = actor.user or ""
        if outcome != "approved":
            data["reason"] = outcome
        name = "call.approved" if outcome == "approved" else "call.declined"
        self._bus.publish(name, data, owner=request.user, masked=data)
        self._record(request, actor, outcome)

    def _record(self, request: ApprovalRequest, actor: Actor, outcome: str) -> None:
        self._audit.approval(
            actor,
            request_id=request.id,
            user=request.user,
            server=request.server_id,
            tool=request.tool_name,
            arguments_hash=request.arguments_hash,
            outcome=outcome,
        )
        log_event(
            _LOGGER,
            logging.INFO,
            "approval",
            request=request.id,
            user=request.user,
            by=actor.user if outcome in ("approved", "declined") else None,
            server=request.server_id,
            tool=request.tool_name,
            outcome=outcome,
        )


def _told(request: ApprovalRequest) -> dict[str, Any]:
    """All of it for another process."""
    return {one.name: getattr(request, one.name) for one in fields(request)}


def _without(arguments: Mapping[str, Any], secret: Collection[str]) -> Mapping[str, Any]:
    """`arguments` with a mask in the place of those called `secret`."""
    return {**arguments, **dict.fromkeys(secret, REDACTED)}


def _shown(arguments: Mapping[str, Any], secret: Collection[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`arguments` for the eyes of who decides, and the JSON Pointers (RFC 6901) of what is masked in them.

    Those called `secret` are masked whole. Elsewhere a caller chooses the names: a secret one masks a text or
    a number, and never what is nested, for much could be hidden in that.
    """
    hidden: list[str] = []

    def masked(value: Any, path: str, is_secret: bool) -> Any:
        if isinstance(value, Mapping):
            return {
                name: masked(part, f"{path}/{_pointer(name)}", is_secret_name(name))
                for name, part in value.items()
            }
        if isinstance(value, list):
            return [masked(part, f"{path}/{index}", is_secret) for index, part in enumerate(value)]
        if not is_secret or isinstance(value, bool | None):
            return value
        hidden.append(path)
        return REDACTED

    shown = masked({name: value for name, value in arguments.items() if name not in secret}, "", False)
    hidden += [f"/{_pointer(name)}" for name in secret]
    return {name: shown.get(name, REDACTED) for name in arguments}, tuple(sorted(hidden))


def _pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
