"""What a server asks of a program in mid-call, what a program is asked to approve, and its answers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, get_args

from mcpgw.wire import strict_json

Say: TypeAlias = Callable[[str, str | None, Mapping[str, Any]], bool]
Action: TypeAlias = Literal["accept", "decline", "cancel"]
_ACTIONS: Final = frozenset(get_args(Action))
_MOST_DECISIONS: Final = 1000


@dataclass(frozen=True, slots=True)
class InputRequest:
    """A server asks for something; `kind` is ``elicitation``, ``sampling`` or ``roots``.

    Of the kind ``approval`` it is a call of somebody else, with ``user``, ``toolName`` and ``arguments`` in
    `data`.

    `schema` is the JSON Schema of an elicitation's form, `params` those of MCP's ``sampling/createMessage``.
    `data` is all of it as it came; `expires_at` in milliseconds since the epoch.
    """

    kind: str
    message: str
    server: str
    schema: Mapping[str, Any] | None
    params: Mapping[str, Any] | None
    expires_at: int | None
    data: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class InputAnswer:
    """The answer; `content` is the form, MCP's ``CreateMessageResult``, or ``{"roots": [...]}``."""

    action: Action
    content: Mapping[str, Any] | None = field(default=None, repr=False)


OnInput: TypeAlias = Callable[[InputRequest], InputAnswer | Awaitable[InputAnswer]]
"""Answers; what it raises ends the call."""
OnApproval: TypeAlias = Callable[[InputRequest], InputAnswer | Awaitable[InputAnswer | None] | None]
"""Decides on a call that waits; None leaves it to others."""
_DECLINE = InputAnswer("decline")


class Inputs:
    """The questions of one connection's calls: each is handed to a callback once, and its answer is sent.

    `say` sends a frame, by its type, the id of the call, and its data. `on_approval` is asked about the calls
    of others; what it raises goes to the event loop's handler of exceptions, for no call of this program has
    caused it.
    """

    def __init__(self, say: Say, on_approval: OnApproval | None = None) -> None:
        self._say = say
        self._on_approval = on_approval
        self._decisions: dict[str, Mapping[str, Any] | None] = {}
        self._deciding: dict[str, asyncio.Task[None]] = {}
        self._answers: dict[str, Mapping[str, Any]] = {}
        self._asked: dict[str, asyncio.Task[None]] = {}
        self._calls: dict[str, str] = {}

    def call_of(self, request_id: object) -> str | None:
        """The id of the call that a question belongs to."""
        return self._calls.get(request_id) if isinstance(request_id, str) else None

    def ask(
        self,
        call: str,
        data: Mapping[str, Any],
        on_input: OnInput | None,
        on_fault: Callable[[Exception], None],
    ) -> None:
        """Take a question; one that is asked again (the answer was lost) has the same answer."""
        request_id = data.get("requestId")
        if not isinstance(request_id, str):
            return
        self._calls[request_id] = call
        if (answer := self._answers.get(request_id)) is not None:
            self._say("input_response", call, answer)
        elif request_id not in self._asked:
            answering = self._answer(call, request_id, data, on_input, on_fault)
            self._asked[request_id] = asyncio.create_task(answering, name=f"answer to {request_id}")

    def forget(self, call: str) -> None:
        """A call has ended: nobody waits for its answers any more."""
        for request_id in [name for name, owner in self._calls.items() if owner == call]:
            del self._calls[request_id]
            self._answers.pop(request_id, None)
            if (task := self._asked.pop(request_id, None)) is not None:
                task.cancel()

    def approve(self, data: Mapping[str, Any]) -> None:
        """Take a call of somebody else that waits for an approval; told again, it has the same decision."""
        request_id = data.get("requestId")
        if self._on_approval is None or not isinstance(request_id, str):
            return
        if request_id in self._decisions:
            if (answer := self._decisions[request_id]) is not None:
                self._say("input_response", None, answer)
        elif request_id not in self._deciding:
            deciding = self._decide(request_id, data, self._on_approval)
            task = self._deciding[request_id] = asyncio.create_task(
                deciding, name=f"decision on {request_id}"
            )
            task.add_done_callback(lambda _: self._deciding.pop(request_id, None))

    def refused(self, request_id: object, error: Exception) -> None:
        """The gateway does not take a decision: the program hears of it, unless it only came too late."""
        if isinstance(request_id, str) and self._decisions.get(request_id) is not None:
            _report(f"the decision on {request_id} was refused", error)

    def close(self) -> None:
        """The connection is over for good: nobody waits for decisions any more."""
        for task in self._deciding.values():
            task.cancel()

    async def _decide(self, request_id: str, data: Mapping[str, Any], on_approval: OnApproval) -> None:
        answer: Mapping[str, Any] | None = None
        try:
            given = on_approval(_read(data))
            if not isinstance(given, InputAnswer | None):
                given = await given
            if given is not None:
                answer = _checked(request_id, given)
                self._say("input_response", None, answer)
        except Exception as fault:  # noqa: BLE001 - not hidden: the loop's handler is told
            _report("a callback for approvals has failed", fault)
        self._decisions[request_id] = answer
        if len(self._decisions) > _MOST_DECISIONS:
            del self._decisions[next(iter(self._decisions))]

    async def _answer(
        self,
        call: str,
        request_id: str,
        data: Mapping[str, Any],
        on_input: OnInput | None,
        on_fault: Callable[[Exception], None],
    ) -> None:
        try:
            given = _DECLINE if on_input is None else on_input(_read(data))
            if not isinstance(given, InputAnswer):
                given = await given
            answer = _checked(request_id, given)
            self._answers[request_id] = answer
            self._say("input_response", call, answer)
        except Exception as fault:  # noqa: BLE001 - not hidden: it is raised by the call that gave the callback
            on_fault(fault)


def _checked(request_id: str, answer: object) -> Mapping[str, Any]:
    """The data of the frame that answers; it can be written as often as it is asked for.

    Raises:
        TypeError: `answer` is none, or something in it is no JSON value.
        ValueError: it has another action, or is no JSON.
    """
    if not isinstance(answer, InputAnswer):
        raise TypeError(f"the answer to a question is an InputAnswer, not {type(answer).__name__}")
    if answer.action not in _ACTIONS:
        raise ValueError("the action of an answer is accept, decline or cancel")
    data: dict[str, Any] = {"requestId": request_id, "action": answer.action}
    if answer.content is not None:
        data["content"] = dict(answer.content)
    text = strict_json.dumps_given(data)
    text.encode()  # a lone surrogate fails here (RFC 8259 section 8.2), as ValueError
    # A copy: what the program changes afterwards is no part of its answer.
    copied: dict[str, Any] = strict_json.loads(text)
    return copied


def _report(words: str, fault: Exception) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": words, "exception": fault})


def _read(data: Mapping[str, Any]) -> InputRequest:
    schema, params, expires_at = (data.get(name) for name in ("schema", "params", "expiresAt"))
    return InputRequest(
        kind=str(data.get("kind")),
        message=str(data.get("message", "")),
        server=str(data.get("serverId", "")),
        schema=schema if isinstance(schema, dict) else None,
        params=params if isinstance(params, dict) else None,
        expires_at=expires_at if isinstance(expires_at, int) else None,
        data=data,
    )
