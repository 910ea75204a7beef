"""The workers that own servers which run in one alone, as a worker that uses these sees them."""

import asyncio
import logging
import secrets
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
from opentelemetry.propagate import inject

from mcpgw.backends.requests import Asker, InputAnswer, InputRequest, Observer
from mcpgw.backends.single_notes import Asked, Snapshot
from mcpgw.backends.tools import Tool
from mcpgw.errors import GatewayError, error_of
from mcpgw.workers.freight import Freight
from mcpgw.workers.peers import Peers, WorkerGoneError

_LOGGER = logging.getLogger("mcpgw.backend")

Happened = tuple[str, Mapping[str, Any], str | None]
"""What has happened to a server: its name, data, and the one user whom it concerns."""


class NotBegunError(Exception):
    """The owner has begun nothing: it has been started again, or is ending, or has no such server."""


class Mirror(Protocol):
    """A server of another worker, as it is told of."""

    owner: int

    @property
    def id(self) -> str:
        """Its name."""

    def take_state(
        self, run: str, snapshot: Snapshot | None, tools: Mapping[str, Tool] | None, event: Happened | None
    ) -> None:
        """It is like this now; what is None is as before. `run` names the life of the owner."""

    def owner_gone(self) -> None:
        """Its owner has ended."""


class Owners:
    """Asks other workers for what their servers do, and gives what they tell to those who mirror these."""

    def __init__(self, peers: Peers, freight: Freight) -> None:
        self.peers = peers
        self._freight = freight
        self._mirrors: dict[str, Mirror] = {}
        self._open: dict[int, _Asked] = {}
        # A worker that was started again must not be given the ends of what it had asked for before.
        self._last_number = secrets.randbits(48)
        freight.listen("state", self._take_state)
        freight.listen("heard", self._heard)
        freight.listen("ask", self._ask)
        freight.listen("withdrawn", self._withdrawn)
        freight.listen("end", self._end)
        peers.on_gone(self._gone)

    def add(self, mirror: Mirror) -> None:
        """Give `mirror` what is told of its server, in the place of another one, and have that told."""
        self._mirrors[mirror.id] = mirror
        self.tell(mirror.owner, "want", mirror.id)

    def remove(self, mirror: Mirror) -> None:
        """Tell it nothing more."""
        if self._mirrors.get(mirror.id) is mirror:
            del self._mirrors[mirror.id]

    def tell(self, owner: int, kind: str, data: Any) -> None:
        """Tell an owner something that needs no answer; see `single_notes`."""
        self._freight.tell(owner, kind, data)

    async def ask(  # noqa: PLR0917 - called in one place
        self, mirror: Mirror, run: str, asked: Asked, asker: Asker, given: Any, observer: Observer
    ) -> Any:
        """Have something done at a server of another worker; answers its JSON. To be cancelled at any time.

        Raises:
            NotBegunError: it was not begun.
            WorkerGoneError: the owner has ended: it may have been done.
            GatewayError: how it ended.
        """
        owner, trace = mirror.owner, dict[str, str]()
        inject(trace)
        self._last_number += 1
        number = self._last_number
        open_one = _Asked(self._freight, owner, number, observer)
        self._open[number] = open_one
        try:
            begin = (mirror.id, run, number, asked, asker.user, asker.connection, given, trace or None)
            self._freight.tell(owner, "begin", begin)
            return await open_one.end
        except asyncio.CancelledError:
            self._freight.tell(owner, "cancel", number)
            raise
        finally:
            del self._open[number]
            open_one.close()

    # --- what owners tell ----------------------------------------------------------------------------------

    def _take_state(self, sender: int, data: list[Any]) -> None:
        server_id, run, snapshot, tools, event = data
        mirror = self._mirrors.get(server_id)
        if mirror is None or mirror.owner != sender:
            return
        if sender not in self.peers.present:
            return  # what it is asked for now is lost; it tells all when it has come
        mirror.take_state(
            run,
            None if snapshot is None else msgspec.convert(snapshot, Snapshot),
            None if tools is None else {raw["name"]: Tool.from_json(raw) for raw in tools},
            None if event is None else tuple(event),
        )

    def _heard(self, sender: int, data: list[Any]) -> None:
        number, method, arguments = data
        if (asked := self._found(sender, number)) is not None:
            getattr(asked.observer, method)(*arguments)

    def _ask(self, sender: int, data: list[Any]) -> None:
        number, question, kind, message, params, key = data
        if (asked := self._found(sender, number)) is not None:
            asked.ask(question, InputRequest(kind, message, params, key))

    def _withdrawn(self, sender: int, data: list[Any]) -> None:
        number, question = data
        if (asked := self._found(sender, number)) is not None:
            asked.withdraw(question)

    def _end(self, sender: int, data: list[Any]) -> None:
        number, how, value = data
        asked = self._found(sender, number)
        if asked is None or asked.end.done():
            return
        if how == "result":
            asked.end.set_result(value)
        elif how == "fault":
            asked.end.set_exception(error_of(value))
        else:
            asked.end.set_exception(NotBegunError())

    def _found(self, sender: int, number: int) -> "_Asked | None":
        asked = self._open.get(number)
        return asked if asked is not None and asked.owner == sender else None

    def _gone(self, worker: int) -> None:
        for asked in self._open.values():
            if asked.owner == worker and not asked.end.done():
                asked.end.set_exception(WorkerGoneError(worker))
        for mirror in tuple(self._mirrors.values()):
            if mirror.owner == worker:
                mirror.owner_gone()


class _Asked:
    """Something that another worker was asked for, and what it has asked for meanwhile."""

    def __init__(self, freight: Freight, owner: int, number: int, observer: Observer) -> None:
        self._freight = freight
        self.owner = owner
        self._number = number
        self.observer = observer
        self.end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._questions: dict[int, asyncio.Task[None]] = {}

    def ask(self, question: int, request: InputRequest) -> None:
        """Have the caller answer."""
        task = asyncio.create_task(self._answer(question, request), name=f"question {question}")
        self._questions[question] = task
        task.add_done_callback(lambda _: self._questions.pop(question, None))

    def withdraw(self, question: int) -> None:
        """The server does not wait for the answer any more."""
        if (task := self._questions.get(question)) is not None:
            task.cancel()

    def close(self) -> None:
        """It is over: nobody is asked any more."""
        for task in tuple(self._questions.values()):
            task.cancel()

    async def _answer(self, question: int, request: InputRequest) -> None:
        try:
            answer = await self.observer.input_required(request)
        except GatewayError:  # the caller is gone, or may not be asked
            answer = InputAnswer("decline")
        except Exception:
            # The server waits for an answer; the log here has what was wrong.
            _LOGGER.exception("input not asked for")
            answer = InputAnswer("cancel")
        self._freight.tell(self.owner, "answer", (self._number, question, answer.action, answer.content))
