"""What servers ask of one client in mid-call, and the client's answers.

Each question belongs to one call and is answered once. Who is away is asked again when they are back; who
never answers is no longer asked when the call's time for it is over. Source: the wire contract, sections 3
and 4; MCP 2025-11-25, "Elicitation", "Sampling", "Roots".
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mcpgw.backends.requests import InputAnswer, InputRequest
from mcpgw.errors import InvalidParams, QueueFull, UnknownCall, suggest
from mcpgw.logs import log_event
from mcpgw.wire import frames
from mcpgw.wire.frames import ReplyTo, now_ms
from mcpgw.wire.validation import SchemaChecker, UnusableSchemaError, definition_checker, require

_LOGGER = logging.getLogger("mcpgw.websocket")
_MOST_OPEN = 32
_CHECK_SECONDS = 0.05
_CONTENT = ("data", "content")


@dataclass(slots=True, eq=False)
class _Question:
    reply: ReplyTo
    frame: frames.InputRequest
    checker: SchemaChecker | None
    answer: asyncio.Future[InputAnswer]


class SessionInputs:
    """The questions that are open at one client; `say` sends one to it, where it is there.

    `say` raises ValueError where a question holds what JSON has not; such a one is declined.
    """

    __slots__ = ("_questions", "_say")

    def __init__(self, say: Callable[[ReplyTo, frames.InputRequest], None]) -> None:
        self._say = say
        self._questions: dict[str, _Question] = {}

    async def ask(
        self, reply: ReplyTo, request: InputRequest, server_id: str, tool_name: str, *, seconds: float
    ) -> InputAnswer:
        """Ask, and wait for the answer; whoever stops to wait takes the question back.

        `seconds` is how long that may be, for the client to know.

        Raises:
            QueueFull: as many questions are open as may be.
        """
        if len(self._questions) >= _MOST_OPEN:
            raise QueueFull(f"{_MOST_OPEN} questions wait for this client's answers")
        request_id = f"inp-{secrets.token_hex(8)}"
        until = now_ms() + round(seconds * 1000)
        named = {"serverId": server_id} | ({"toolName": tool_name} if tool_name else {})
        frame = frames.InputRequest(
            request_id, request.kind, request.message, named | _members(request), until
        )
        future: asyncio.Future[InputAnswer] = asyncio.get_running_loop().create_future()
        question = _Question(reply, frame, _checker(request, server_id), future)
        self._questions[request_id] = question
        try:
            self._tell(question)
            return await question.answer
        finally:
            del self._questions[request_id]

    def say_all(self) -> None:
        """Ask once more what was not answered: the frames may have been lost."""
        for question in self._questions.values():
            if not question.answer.done():
                self._tell(question)

    def _tell(self, question: _Question) -> None:
        try:
            self._say(question.reply, question.frame)
        except ValueError:
            server = question.frame.members.get("serverId")
            log_event(_LOGGER, logging.WARNING, "unusable question", server=server)
            question.answer.set_result(InputAnswer("decline"))

    def respond(self, response: frames.InputResponse) -> None:
        """Take an answer.

        Raises:
            UnknownCall: nothing of the kind is open, or it is answered already.
            InvalidParams: the content is not what was asked for; the question stays open.
        """
        question = self._questions.get(response.request_id)
        if question is None or question.answer.done():
            raise UnknownCall(
                f"no input request {response.request_id!r} is open{suggest(response.request_id, self.open)}"
            )
        if response.reply is not None and response.reply.id != question.reply.id:
            raise InvalidParams(
                f"the input request belongs to the call {question.reply.id!r}",
                details=[{"path": "/id", "reason": "must be that of the call"}],
            )
        content = response.content
        if response.action == "accept":
            content = content or {}
            if question.checker is not None:
                _require(question, content)
        question.answer.set_result(InputAnswer(response.action, content))

    def call_of(self, request_id: str) -> str | None:
        """The id of the call that a question belongs to; None where there is no such question."""
        question = self._questions.get(request_id)
        return None if question is None else question.reply.id

    @property
    def open(self) -> tuple[str, ...]:
        """The ids of the questions that wait for an answer."""
        return tuple(name for name, one in self._questions.items() if not one.answer.done())


def _require(question: _Question, content: Mapping[str, Any]) -> None:
    assert question.checker is not None, "asked where there is one"  # noqa: S101
    try:
        require(question.checker, content, what=f"the answer to the {question.frame.kind}", root=_CONTENT)
    except UnusableSchemaError as error:
        _warn(str(question.frame.members.get("serverId")), error)


def _members(request: InputRequest) -> dict[str, Any]:
    """What of MCP's params a client is shown, as the frame has it."""
    params = request.params
    if request.kind == "sampling":
        return {"params": dict(params)}
    if request.kind == "roots":
        return {}
    shown = {name: params[name] for name in ("mode", "url", "elicitationId") if name in params}
    return shown | ({"schema": params["requestedSchema"]} if "requestedSchema" in params else {})


def _checker(request: InputRequest, server_id: str) -> SchemaChecker | None:
    """What an accepted content is held against; None where there is nothing, or nothing to be used."""
    if request.kind != "elicitation":
        return definition_checker("client-frames", f"{request.kind}_content")
    schema = request.params.get("requestedSchema")
    if not isinstance(schema, Mapping):
        return None
    try:
        return SchemaChecker(schema, budget=_CHECK_SECONDS)
    except UnusableSchemaError as error:
        _warn(server_id, error)
        return None


def _warn(server_id: str, error: UnusableSchemaError) -> None:
    # The question can still be answered: its server looks at the answer itself, as it must anyway.
    log_event(_LOGGER, logging.WARNING, "unusable elicitation schema", server=server_id, reason=str(error))
