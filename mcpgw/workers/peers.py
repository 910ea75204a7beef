"""The workers of one gateway, as each of them sees the others.

Everything of one user is in one worker, where the user is *at home*: connections, sessions, limits, calls. So
what belongs to a user is never shared. What is left is said in notes: to one worker, to all others, or as a
question that is answered.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final
from zlib import crc32

import msgspec

from mcpgw.errors import GatewayError, InternalError, ServerUnavailable, error_of

_LOGGER = logging.getLogger("mcpgw.workers")

ASK_SECONDS: Final = 5.0
"""How long an answer of another worker is waited for, where nothing else is said."""

OnNote = Callable[[int, Any], None]
"""Takes the number of the worker that says something, and what."""
OnQuestion = Callable[[int, Any], Any | Awaitable[Any]]
"""Takes the number of the worker that asks, and what; answers JSON, now or later, or raises GatewayError."""
OnWorker = Callable[[int], None]
"""Takes the number of a worker that has come, or has gone."""


class WorkerGoneError(ServerUnavailable):
    """The worker that was asked has ended, or does not answer."""

    def __init__(self, number: int) -> None:
        super().__init__(f"worker {number} of the gateway does not answer; it may be starting again")


class _Note(msgspec.Struct, omit_defaults=True, array_like=True):
    """What one worker says to another: `question` numbers what is to be answered, `answer` says to which."""

    topic: str
    data: Any = None
    question: int = 0
    answer: int = 0
    fault: dict[str, Any] | None = None


_ENCODE = msgspec.json.Encoder().encode
_DECODE = msgspec.json.Decoder(_Note).decode


class Peers:
    """The other workers. Made by itself it is that of a gateway with one process: there are none.

    `number` counts from 1; `count` is how many workers there are to be, `present` which others are there now.
    """

    def __init__(self, number: int = 1, count: int = 1) -> None:
        self.number = number
        self.count = count
        self.present: set[int] = set()
        self._speaker = number
        self._listeners: dict[str, OnNote] = {}
        self._answerers: dict[str, OnQuestion] = {}
        self._on_came: list[OnWorker] = []
        self._on_gone: list[OnWorker] = []
        self._on_speaker: list[OnWorker] = []
        self._asked: dict[int, tuple[int, asyncio.Future[Any]]] = {}
        self._last_question = 0
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def is_alone(self) -> bool:
        """Whether the gateway is this one process."""
        return self.count == 1

    @property
    def is_first(self) -> bool:
        """Whether it is for this worker to do what is to be done once."""
        return self.number == 1

    @property
    def is_speaker(self) -> bool:
        """Whether this worker tells what is to be told once; with its end another one does.

        All agree on it, as seen from any place in the order of events and notes: where one has ended, what
        it has told comes before another one is the speaker.
        """
        return self._speaker == self.number

    def home_of(self, name: str) -> int:
        """The worker where a user is at home; so with servers that are there once, and with addresses."""
        return crc32(name.encode("utf-8", "surrogatepass")) % self.count + 1

    # --- notes ---------------------------------------------------------------------------------------------

    def listen(self, topic: str, listener: OnNote) -> None:
        """Have `listener` given what others tell of `topic`."""
        self._listeners[topic] = listener

    def answer(self, topic: str, answerer: OnQuestion) -> None:
        """Have `answerer` answer what others ask of `topic`."""
        self._answerers[topic] = answerer

    def on_came(self, listener: OnWorker) -> None:
        """Have `listener` told of each worker that has come: at the start, and after it had ended."""
        self._on_came.append(listener)

    def on_gone(self, listener: OnWorker) -> None:
        """Have `listener` told of each worker that has ended."""
        self._on_gone.append(listener)

    def on_speaker(self, listener: OnWorker) -> None:
        """Have `listener` told when this worker becomes the speaker, with the number of this worker."""
        self._on_speaker.append(listener)

    def tell(self, topic: str, data: Any = None, *, to: int = 0) -> None:
        """Tell one worker, or all others. They hear it in the order in which this one tells and publishes."""
        if not self.is_alone:
            self._send(to, _Note(topic, data))

    async def ask(self, to: int, topic: str, data: Any = None, *, seconds: float | None = ASK_SECONDS) -> Any:
        """Ask one other worker, and wait for its answer, without a bound where `seconds` is None.

        Raises:
            WorkerGoneError: it is not there, ends meanwhile, or does not answer in time.
            GatewayError: it has refused, with the code of that.
        """
        if to not in self.present:
            raise WorkerGoneError(to)
        self._last_question += 1
        question = self._last_question
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[question] = to, answered
        self._send(to, _Note(topic, data, question=question))
        try:
            async with asyncio.timeout(seconds):
                return await answered
        except TimeoutError:
            raise WorkerGoneError(to) from None
        finally:
            del self._asked[question]

    async def ask_all(self, topic: str, data: Any = None, *, seconds: float = ASK_SECONDS) -> dict[int, Any]:
        """Ask all other workers; what those say who answer in time, by their numbers."""
        asked = sorted(self.present)
        answers = await asyncio.gather(
            *(self.ask(to, topic, data, seconds=seconds) for to in asked), return_exceptions=True
        )
        given: dict[int, Any] = {}
        for number, answer in zip(asked, answers, strict=True):
            if not isinstance(answer, BaseException):
                given[number] = answer
            elif not isinstance(answer, GatewayError):
                raise answer
        return given

    # --- what comes ----------------------------------------------------------------------------------------

    def take_note(self, sender: int, body: bytes) -> None:
        """Take what another worker has said."""
        note = _DECODE(body)
        if note.answer:
            self._take_answer(note)
        elif note.question:
            task = asyncio.create_task(self._answer(sender, note), name=f"answer {note.topic}")
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        elif (listener := self._listeners.get(note.topic)) is not None:
            try:
                listener(sender, note.data)
            except Exception:
                # A fault in one matter must not end the link, and with it all others.
                _LOGGER.exception("what worker %s told of %s could not be taken", sender, note.topic)

    def has_come(self, number: int) -> None:
        """Another worker is there."""
        self.present.add(number)
        self._call(self._on_came, number)

    def has_gone(self, number: int) -> None:
        """Another worker has ended: nobody waits for its answers any more."""
        self.present.discard(number)
        for to, answered in list(self._asked.values()):
            if to == number and not answered.done():
                answered.set_exception(WorkerGoneError(number))
        self._call(self._on_gone, number)

    def speaks(self, number: int) -> None:
        """That worker tells now what is to be told once."""
        self._speaker = number
        if self.is_speaker:
            self._call(self._on_speaker, number)

    def _call(self, listeners: list[OnWorker], number: int) -> None:
        for listener in listeners:
            try:
                listener(number)
            except Exception:
                # What one makes of it must keep none of the others from hearing it.
                _LOGGER.exception("what has become of worker %s could not be taken", number)

    def _take_answer(self, note: _Note) -> None:
        _, answered = self._asked.get(note.answer, (0, None))
        if answered is None or answered.done():
            return
        if note.fault is None:
            answered.set_result(note.data)
        else:
            answered.set_exception(error_of(note.fault))

    async def _answer(self, sender: int, note: _Note) -> None:
        answer = _Note(note.topic, answer=note.question)
        try:
            given = self._answerers[note.topic](sender, note.data)
            answer.data = await given if inspect.isawaitable(given) else given
        except GatewayError as error:
            answer.fault = error.to_data()
        except Exception:
            # Whoever asks is told, and the log here has all of it.
            _LOGGER.exception("a question of worker %s about %s could not be answered", sender, note.topic)
            answer.fault = InternalError("a fault of another worker; the log has it").to_data()
        self._send(sender, answer)

    def _send(self, to: int, note: _Note) -> None:
        self.send_note(to, _ENCODE(note))

    def send_note(self, to: int, body: bytes) -> None:
        """Send a note that is bytes already; nobody is there to take it where the gateway is one process."""
