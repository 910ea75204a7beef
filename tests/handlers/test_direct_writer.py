"""What is written to one reader, over real sockets: the order, and what happens where the reader stops."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from tornado.iostream import IOStream

from mcpgw.hub import Hub, Place
from mcpgw.services import WriterParts
from mcpgw.turns import MOST_PUT_OFF, Turns, in_batch
from mcpgw.wire.deliveries import Delivery
from mcpgw.wire.events import EVENT_TYPES, Event, Position
from tests.support.parts import metrics
from tests.support.waiting import until

if TYPE_CHECKING:
    from handlers.direct_writer import DirectWriter
else:
    from mcpgw.handlers.direct_writer import DirectWriter

SMALL = 4096


class LineWriter(DirectWriter):
    """A reader who is written lines."""

    __slots__ = ()

    def lagged(self, source: str, dropped: int) -> bytes:
        """A line too."""
        return f"lagged {source} {dropped}\n".encode()


class Owner:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.rooms = 0
        self.is_slow = False

    def on_room(self) -> None:
        """There is room again."""
        self.rooms += 1

    def on_slow_reader(self) -> None:
        """Nothing was taken."""
        self.is_slow = True


class Line:
    """A writer with the other end of its socket."""

    def __init__(
        self, *, max_waiting: int = 256, write_timeout: float = 10.0, turns: Turns | None = None
    ) -> None:
        near, self.far = socket.socketpair()
        near.setblocking(False)
        self.far.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        self.stream = IOStream(near)
        self.owner = Owner()
        self.metrics = metrics()
        self.place: Place = Hub().reserve("websocket", "ann")
        parts = WriterParts(max_waiting, 1 << 20, write_timeout, self.metrics, turns or Turns())
        self.writer = LineWriter(self.stream, self.owner, self.place, parts)

    def read(self) -> list[str]:
        """The lines that have come."""
        data = b""
        try:
            while part := self.far.recv(1 << 20):
                data += part
        except BlockingIOError:
            pass
        return data.decode().splitlines()

    async def read_until(self, last: str) -> list[str]:
        """The lines up to the last one, which ends with `last`."""
        lines: list[str] = []
        rest = b""
        async with asyncio.timeout(10):
            while not lines or not lines[-1].endswith(last):
                rest += await asyncio.get_running_loop().sock_recv(self.far, 1 << 20)
                *whole, rest = rest.split(b"\n")
                lines += [line.decode() for line in whole]
        return lines

    async def fill(self) -> int:
        """Write until the kernel takes no more; answers how many lines that took."""
        count = 0
        while self.writer.is_idle:
            self.writer.send(f"filler {count} {'x' * 500}\n".encode())
            count += 1
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return count

    def dropped(self, reason: str) -> float:
        """How many were counted as dropped."""
        text = self.metrics.render()[0].decode()
        (line,) = (
            each for each in text.splitlines() if each.startswith(f'mcpgw_dropped_total{{reason="{reason}"')
        )
        return float(line.split()[1])


@contextmanager
def line(
    *, max_waiting: int = 256, write_timeout: float = 10.0, turns: Turns | None = None
) -> Iterator[Line]:
    """A writer, closed in the end."""
    made = Line(max_waiting=max_waiting, write_timeout=write_timeout, turns=turns)
    try:
        yield made
    finally:
        made.writer.closing()
        made.stream.close()
        made.far.close()


def delivery(text: str, *, type_name: str = "server.log", server: str = "a", offset: int = 1) -> Delivery:
    """An event that is written as a line."""
    event_type = EVENT_TYPES[type_name]
    event = Event(event_type, event_type.channel, {"serverId": server}, 0, Position("0" * 16, offset))
    return Delivery(event, text, f"{text}\n".encode())


async def turn() -> None:
    """Let the present turn of the loop come to its end."""
    for _ in range(2):
        await asyncio.sleep(0)


@pytest.mark.gen_test
async def test_the_first_of_a_turn_goes_out_at_once_and_the_rest_together_at_its_end_in_order() -> None:
    with line() as reader:
        reader.writer.send_event(delivery("1"))
        assert reader.read() == ["1"]
        reader.writer.send_event(delivery("2", type_name="server.started"))
        reader.writer.send(b"3\n")
        reader.writer.send_event(delivery("4", type_name="server.started"))
        reader.writer.send(b"5\n", "call:1")
        assert (reader.read(), reader.writer.is_idle) == ([], False)
        await turn()
        assert reader.read() == ["2", "3", "4", "5"], "whoever takes all is given also what is not the newest"
        assert (reader.writer.is_idle, reader.owner.rooms, reader.place.frames_out) == (True, 1, 5)
        reader.writer.send(b"6\n")
        assert reader.read() == ["6"]


@pytest.mark.gen_test
async def test_a_burst_in_one_turn_is_written_in_parts_of_bounded_size() -> None:
    with line(max_waiting=4) as reader:
        seen: list[str] = []
        for number in range(1000):
            reader.writer.send_event(delivery(str(number)))
            if number % 100 == 0:
                seen += reader.read()
                assert number - len(seen) < 100, "what waits for the end of a turn is bounded"
        await turn()
        assert seen + reader.read() == [str(number) for number in range(1000)]
        assert reader.dropped("stream") == 0


@pytest.mark.gen_test
async def test_what_a_reader_does_not_take_waits_by_its_kind_and_what_is_dropped_is_counted_at_once() -> None:
    with line(max_waiting=3) as reader:
        fillers = await reader.fill()
        reader.writer.send(b"result\n")
        for number in range(4):
            reader.writer.send_event(delivery(f"log {number}", offset=number))
            reader.writer.send_event(delivery(f"state {number}", type_name="server.started", offset=number))
        assert (reader.dropped("stream"), reader.dropped("state")) == (3, 0)
        for server in "bcd":
            reader.writer.send_event(
                delivery(f"state of {server}", type_name="server.started", server=server)
            )
        assert (reader.dropped("stream"), reader.dropped("state")) == (4, 2)
        lines = await reader.read_until("state of d")
        assert [each.split()[0] for each in lines[:fillers]] == ["filler"] * fillers
        assert lines[fillers:] == ["result", "lagged servers 6", "state of c", "state of d"]
        await until(lambda: reader.writer.is_idle)
        reader.writer.send(b"live\n")
        assert await reader.read_until("live") == ["live"]


@pytest.mark.gen_test
async def test_what_was_put_together_waits_too_where_a_control_frame_finds_no_room() -> None:
    with line() as reader:
        reader.writer.send_event(delivery("first"))
        reader.writer.send_event(delivery("second"))
        control = 0
        while not reader.stream.writing():
            reader.writer.wait_for(reader.stream.write(f"control {'x' * 200}\n".encode()))
            control += 1
        reader.writer.send(b"third\n")
        assert await reader.read_until("third") == [
            "first",
            *[f"control {'x' * 200}"] * control,
            "second",
            "third",
        ]


@pytest.mark.gen_test
async def test_a_reader_that_takes_nothing_is_told_of_and_one_that_takes_a_little_is_not() -> None:
    with line(write_timeout=0.2) as still, line(write_timeout=0.2) as slow:
        await still.fill()
        await slow.fill()
        for _ in range(20):
            slow.writer.send(b"y" * 2000)
        loop = asyncio.get_running_loop()
        while not still.owner.is_slow:
            await loop.sock_recv(slow.far, 1000)
            await asyncio.sleep(0.01)
        assert not slow.owner.is_slow


@pytest.mark.gen_test
async def test_the_last_words_alone_are_written_to_who_does_not_read() -> None:
    with line() as reader:
        fillers = await reader.fill()
        reader.writer.send(b"an answer\n")
        reader.writer.send(b"goodbye\n")
        reader.writer.say_goodbye(the_last_alone=True)
        reader.writer.send(b"too late\n")
        reader.writer.send_event(delivery("too late"))
        lines = await reader.read_until("goodbye")
        assert len(lines) == fillers + 1


@pytest.mark.gen_test
async def test_what_waits_for_the_end_of_a_turn_is_written_before_a_goodbye() -> None:
    with line() as reader:
        for text in (b"1\n", b"2\n", b"goodbye\n"):
            reader.writer.send(text)
        reader.writer.say_goodbye(the_last_alone=False)
        assert reader.read() == ["1", "2", "goodbye"]
        await turn()
        assert reader.read() == []


@pytest.mark.gen_test
async def test_a_reader_that_is_gone_harms_neither_the_writer_nor_the_other_readers() -> None:
    turns = Turns()
    with line(turns=turns) as gone, line(turns=turns) as there:
        gone.far.close()
        for number in range(5):
            gone.writer.send_event(delivery(str(number)))
            there.writer.send_event(delivery(str(number)))
        await turn()
        gone.writer.send_event(delivery("5"))
        there.writer.send_event(delivery("5"))
        assert there.read() == list("012345")


@pytest.mark.gen_test
async def test_who_waits_for_room_is_told_when_the_reader_is_gone() -> None:
    with line() as reader:
        await reader.fill()
        rooms = reader.owner.rooms
        reader.far.close()
        await until(lambda: reader.owner.rooms > rooms)
        assert not reader.writer.is_idle
        reader.writer.send(b"to nobody\n")
        assert not reader.writer.is_full


class Eager(Owner):
    """Notes whether it is told of room while it is still sending."""

    def __init__(self) -> None:
        super().__init__()
        self.is_sending = False
        self.told_amid = 0

    def on_room(self) -> None:
        """There is room again."""
        super().on_room()
        self.told_amid += self.is_sending


@pytest.mark.gen_test
@pytest.mark.parametrize("size", [10, 30_000], ids=["many", "large"])
async def test_whoever_sends_is_told_of_room_at_the_end_of_the_turn_and_never_amid_the_sending(
    size: int,
) -> None:
    with line() as reader:
        reader.writer._owner = owner = Eager()
        reader.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        owner.is_sending = True
        for number in range(200):
            reader.writer.send(f"{number} {'x' * size}\n".encode())
        owner.is_sending = False
        assert owner.rooms == 0
        lines = await reader.read_until(f"199 {'x' * size}")
        assert [each.split()[0] for each in lines] == [str(number) for number in range(200)]
        await until(lambda: reader.writer.is_idle)
        assert (owner.told_amid, owner.rooms > 0) == (0, True)


@pytest.mark.gen_test
async def test_room_is_told_of_once_for_a_turn_however_often_something_was_written_in_it() -> None:
    with line() as reader:
        for number in range(1 + 64 + 64 + 3):
            reader.writer.send(f"{number}\n".encode())
        await turn()
        assert (reader.owner.rooms, len(reader.read())) == (1, 132)
        for number in range(1 + 64):  # the last is written before the end of the turn
            reader.writer.send(f"{number}\n".encode())
        await turn()
        assert (reader.owner.rooms, len(reader.read())) == (2, 65)


@pytest.mark.gen_test
async def test_what_comes_in_a_batch_goes_out_with_its_end_and_in_parts_before_that() -> None:
    with line() as one:
        texts = [str(number) for number in range(2 * MOST_PUT_OFF + 3)]

        def work() -> None:
            for number, text in enumerate(texts[:-1]):
                one.writer.send(f"{text}\n".encode())
                seen.extend(one.read())
                assert len(seen) == (number + 1) // MOST_PUT_OFF * MOST_PUT_OFF

        seen: list[str] = []
        in_batch(work)
        one.writer.send(f"{texts[-1]}\n".encode())  # nothing waits any more
        assert seen + one.read() == texts
