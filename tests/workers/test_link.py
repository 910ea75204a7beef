"""The link between the supervisor and a worker: whole messages, in order, each with its own descriptor."""

import asyncio
import os
import resource
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from mcpgw.workers import link as module
from mcpgw.workers.link import Kind, Link
from tests.support.waiting import until

Message = tuple[Kind, int, bytes, int | None]


class End:
    """One end of a link, and what came out of it."""

    def __init__(self, sock: socket.socket) -> None:
        self.taken: list[Message] = []
        self.ends = 0
        self.link = Link(sock, self._take, self._end)

    def _take(self, kind: Kind, worker: int, body: bytes, descriptor: int | None) -> None:
        self.taken.append((kind, worker, body, descriptor))
        if body == b"raise":
            raise ZeroDivisionError

    def _end(self) -> None:
        self.ends += 1


class Pair:
    """Both ends; what was taken of descriptors is closed after the test."""

    def __init__(self) -> None:
        self.sockets = socket.socketpair()
        self.one, self.two = (End(sock) for sock in self.sockets)

    def close(self) -> None:
        for end in (self.one, self.two):
            end.link.close()
            for _, _, _, descriptor in end.taken:
                if descriptor is not None:
                    os.close(descriptor)


@pytest.fixture
def pair(io_loop: IOLoop) -> Iterator[Pair]:
    async def make() -> Pair:
        return Pair()

    made: Pair = io_loop.run_sync(make)
    yield made
    made.close()


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def file_of(text: str) -> int:
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.flush()
        return os.dup(file.fileno())


def text_of(descriptor: int) -> str:
    return os.pread(descriptor, 100, 0).decode()


@pytest.mark.gen_test
async def test_large_and_small_messages_with_and_without_descriptors_keep_their_order(pair: Pair) -> None:
    sent: list[tuple[bytes, str | None]] = []
    for number in range(300):
        body = bytes([number % 251]) * (number * 997 % 5000 if number % 50 else 3_000_000)
        text = f"file {number}" if number % 3 == 0 else None
        descriptor = None if text is None else file_of(text)
        pair.one.link.send(Kind.HAND_OVER, number % 7, body, descriptor)
        if descriptor is not None:
            os.close(descriptor)
        sent.append((body, text))
        if number % 40 == 0:
            await asyncio.sleep(0)
    await until(lambda: len(pair.two.taken) == 300)
    taken = [(body, None if fd is None else text_of(fd)) for _, _, body, fd in pair.two.taken]
    assert taken == sent
    assert pair.one.link.waiting_descriptors == 0


@pytest.mark.gen_test
async def test_what_cannot_be_taken_keeps_nothing_else_from_its_taker(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    for body in (b"one", b"raise", b"two"):
        pair.one.link.send(Kind.NOTE, 0, body)
    await until(lambda: len(pair.two.taken) == 3)
    assert caplog.text.count("a message of kind NOTE could not be taken") == 1
    assert pair.two.ends == 0


@pytest.mark.gen_test
async def test_a_side_that_reads_nothing_costs_a_bounded_number_of_bytes(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2_000_000)
    before = open_descriptors()
    asyncio.get_running_loop().remove_reader(pair.sockets[1].fileno())
    descriptor = file_of("x")
    for _ in range(40):
        pair.one.link.send(Kind.NOTE, 0, b"x" * 100_000, descriptor)
    os.close(descriptor)
    await until(lambda: pair.one.ends)
    pair.one.link.send(Kind.NOTE, 0, b"nothing happens")
    assert len(open_descriptors() - before) == 0, "copies that wait are closed with the link"
    assert pair.one.ends == 1


@pytest.mark.gen_test
async def test_an_end_without_a_word_is_told_once_and_all_that_was_sent_before_is_taken(pair: Pair) -> None:
    for number in range(2000):
        pair.one.link.send(Kind.NOTE, 0, b"%d" % number)
    pair.one.link.close()
    await until(lambda: pair.two.ends)
    assert [body for _, _, body, _ in pair.two.taken] == [b"%d" % number for number in range(2000)]
    assert pair.one.ends == 0, "whoever closes knows"
    assert pair.two.ends == 1


@pytest.mark.gen_test
@pytest.mark.parametrize("head", [b"\x00\x00\x00\x00\xff\x00\x00", b"\xff\xff\xff\xff\x01\x00\x00"])
async def test_what_is_no_message_ends_the_link(pair: Pair, head: bytes) -> None:
    pair.sockets[0].send(head)
    await until(lambda: pair.two.ends)
    assert pair.two.taken == []


@pytest.mark.gen_test
async def test_a_descriptor_that_finds_no_place_is_lost_and_the_others_stay_with_their_messages(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.get_running_loop().remove_reader(pair.sockets[1].fileno())
    for number in range(3):
        descriptor = file_of(str(number))
        pair.one.link.send(Kind.HAND_OVER, 0, str(number).encode(), descriptor)
        os.close(descriptor)
    await until(lambda: not pair.one.link.waiting_descriptors)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    place = os.dup(0)
    os.close(place)
    read = pair.two.link._read_once
    read()
    resource.setrlimit(resource.RLIMIT_NOFILE, (place + 1, hard))
    try:
        read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    read()
    taken = {body.decode(): fd for _, _, body, fd in pair.two.taken}
    assert {text: text_of(fd) for text, fd in taken.items() if fd is not None} == {"0": "0", "2": "2"}
    assert "1" not in taken
    assert "connection lost" in caplog.text
