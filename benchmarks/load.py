"""A closed loop of calls, in a process of its own that costs little: bare sockets and epoll.

`Load` stands in the benchmark's process and speaks to the loop in the other through a pipe. So many calls
are always in flight; an answer is replaced by the next call at once. Calls whose answers came in one read
are sent in one write.
"""

import gc
import select
import time
from array import array
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Self

from benchmarks.answers import first_number
from benchmarks.connections import OPENING_SECONDS, Endpoint, LoadConnection, LoadError, connect
from benchmarks.outcome import Outcome

_LATE_SECONDS = 10.0


class Load:
    """A generator with its connections open; close it after use.

    Answers that come later than `late` seconds after the end of a round are lost.

    Raises:
        LoadError: what is measured cannot be reached, or does not answer.
    """

    def __init__(
        self, endpoint: Endpoint, *, in_flight: int, connections: int = 1, late: float = _LATE_SECONDS
    ) -> None:
        self._late = late
        context = get_context("spawn")
        self._pipe, other_end = context.Pipe()
        arguments = (other_end, endpoint, in_flight, connections, late)
        self._process = context.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        other_end.close()
        try:
            self._receive(OPENING_SECONDS * 2)
        except LoadError:
            self.close()
            raise

    def run(self, seconds: float) -> Outcome:
        """One round."""
        self._pipe.send(seconds)
        outcome = self._receive(seconds + self._late + _LATE_SECONDS)
        assert isinstance(outcome, Outcome)
        return outcome

    def close(self) -> None:
        """End the process, and with it the connections."""
        self._pipe.close()
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, seconds: float) -> Any:
        if not self._pipe.poll(seconds):
            raise LoadError(f"the generator hangs: nothing for {seconds:.0f} s")
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise LoadError("the generator has ended: its traceback is above") from None
        if isinstance(answer, str):
            raise LoadError(answer)
        return answer


class _Loop:
    """The loop of the other process."""

    def __init__(self, connections: Sequence[LoadConnection], in_flight: int, late: float) -> None:
        self._connections = connections
        self._in_flight = in_flight
        self._late = int(late * 1e9)
        self._next = first_number()
        self._poll = select.epoll()
        self._by_number = {each.fileno(): each for each in connections}
        for number in self._by_number:
            self._poll.register(number, select.EPOLLIN)

    def run(self, seconds: float) -> Outcome:
        """One round: calls until `seconds` are over, then what is still open."""
        latencies = array("Q")
        clock = time.monotonic_ns
        used, begun = time.process_time(), clock()
        end, last = begun + int(seconds * 1e9), begun
        late = end + self._late
        open_calls = self._in_flight
        for place, connection in enumerate(self._connections):
            self._send(connection, len(range(place, self._in_flight, len(self._connections))), begun)
        while open_calls and (now := clock()) < late:
            for number, _ in self._poll.poll((late - now) / 1e9):
                connection = self._by_number[number]
                messages = connection.receive()
                now, ended = clock(), 0
                for message in messages:
                    started, right = connection.answers.settle(message)
                    if started is not None:
                        ended += 1
                        if right:
                            latencies.append(now - started)
                            last = now
                if ended and now < end:
                    self._send(connection, ended, now)
                else:
                    open_calls -= ended
        used = time.process_time() - used
        return self._outcome((last - begun) / 1e9 or seconds, latencies, used)

    def _send(self, connection: LoadConnection, count: int, now: int) -> None:
        first = self._next
        self._next = first + count
        numbers = range(first, first + count)
        for number in numbers:
            connection.answers.open[number] = now
        connection.send(b"".join([connection.request(number) for number in numbers]))

    def _outcome(self, seconds: float, latencies: "array[int]", used: float) -> Outcome:
        wrong = lost = 0
        sample = None
        for answers in (connection.answers for connection in self._connections):
            wrong, lost, sample = wrong + answers.wrong, lost + len(answers.open), sample or answers.sample
            answers.wrong, answers.sample = 0, None
            answers.open.clear()
        return Outcome(seconds, latencies, wrong, lost, sample, used)


def _run(pipe: Connection, endpoint: Endpoint, in_flight: int, connections: int, late: float) -> None:
    try:
        if endpoint.kind == "sdk":
            from benchmarks.sdk_client import serve  # noqa: PLC0415 -- costly, and only one target needs it

            serve(pipe, endpoint, in_flight)
            return
        opened = connect(endpoint, connections)
        try:
            loop = _Loop(opened, in_flight, late)
            gc.disable()  # nothing here makes circles, and a pause would be taken for the server's
            pipe.send(True)
            while True:
                pipe.send(loop.run(pipe.recv()))
        finally:
            for connection in opened:
                connection.close()
    except EOFError:
        return
    except (LoadError, OSError) as fault:
        pipe.send(f"{type(fault).__name__}: {fault}")
