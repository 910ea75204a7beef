"""The log of events that several workers have together: one order, whatever comes and goes."""

import asyncio
from collections.abc import Iterator
from functools import partial

import pytest

from mcpgw.bus import shared
from mcpgw.bus.log_handler import BusLogHandler
from mcpgw.wire.events import Event, Position
from tests.support.gathering import Gathering, Member
from tests.support.waiting import until


@pytest.fixture
def gathering(io_loop: object) -> Iterator[Gathering]:
    """Three workers may come; those that have are ended after the test."""
    gathered = Gathering(3, clock=Clock.read)
    Clock.now = 1000.0
    yield gathered
    gathered.close()


class Clock:
    """A clock that a test moves; one for all workers."""

    now = 1000.0

    @classmethod
    def read(cls) -> float:
        return cls.now


async def all_three(gathering: Gathering) -> tuple[Member, Member, Member]:
    return await gathering.come(1), await gathering.come(2), await gathering.come(3)


def offsets(member: Member) -> list[int]:
    return [event.position.offset for event in member.heard]


@pytest.mark.gen_test
async def test_all_workers_hear_the_same_events_in_the_same_order_at_the_same_positions(
    gathering: Gathering,
) -> None:
    members = await all_three(gathering)
    for line in range(200):
        for member in members:
            member.log_line(f"{member.peers.number}.{line}")
        if line % 7 == 0:
            await asyncio.sleep(0)
    await gathering.agree(600)
    first, *others = members
    assert offsets(first) == list(range(1, 601))
    for other in others:
        assert other.lines == first.lines
        assert offsets(other) == offsets(first)
        assert other.bus.position == first.bus.position
        assert other.past() == first.past()
    for number in (1, 2, 3):
        own = [line for line in first.lines if line.startswith(f"{number}.")]
        assert own == [f"{number}.{line}" for line in range(200)], "each worker's own in its own order"


@pytest.mark.gen_test
async def test_data_owners_and_masks_come_over_as_they_were(gathering: Gathering) -> None:
    one, two, _ = await all_three(gathering)
    heard: list[Event] = []
    two.bus.listen("calls", heard.append)
    call = {"callId": "c", "user": "ann", "serverId": "s", "toolName": "t"}
    arguments = {"big": 12345678901234567890123, "text": 'ä\u2028"\\', "none": None, "part": 0.1, "in": [{}]}
    one.bus.publish("call.started", call | {"arguments": arguments}, owner="ann", masked=call)
    await until(lambda: heard)
    (event,) = heard
    assert event.data == call | {"arguments": arguments}
    assert (event.masked, event.owner) == (call, "ann")
    mine = one.bus.since(Position(event.position.epoch, 0), ("calls",)).events[0]
    assert (mine.text(), mine.text(full=False), mine.timestamp) == (
        event.text(),
        event.text(full=False),
        event.timestamp,
    )


@pytest.mark.gen_test
async def test_a_reader_goes_on_at_another_worker_where_it_was(gathering: Gathering) -> None:
    one, two, _ = await all_three(gathering)
    for line in range(10):
        (one if line % 2 else two).log_line(line)
    await gathering.agree(10)
    seen = one.heard[3].position
    replay = two.bus.since(seen, ("servers",))
    assert replay.recovered
    assert [event.position.offset for event in replay.events] == list(range(5, 11))
    assert [event.data["line"] for event in replay.events] == one.lines[4:]


@pytest.mark.gen_test
async def test_who_publishes_is_told_once_where_it_stands(gathering: Gathering) -> None:
    one, two, _ = await all_three(gathering)
    told: list[Position] = []
    message = {"user": "ann", "clientId": "c", "payload": 1}
    two.log_line("before")
    for _ in range(2):
        answer = one.bus.publish("room.message", message, channel="room:a", on_published=told.append)
        assert answer is None
    await gathering.agree(3)
    assert [position.epoch for position in told] == [one.bus.position.epoch] * 2
    log = one.bus.since(Position(one.bus.position.epoch, 0), ("room:a",)).events
    assert told == [event.position for event in log]


@pytest.mark.gen_test
async def test_a_publisher_that_raises_when_it_is_told_harms_no_other_event(
    gathering: Gathering, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, _ = await all_three(gathering)
    told: list[Position] = []

    def fail(_: Position) -> None:
        raise ZeroDivisionError

    two.bus.on_foreign(lambda *_: fail(one.bus.position))
    data = {"serverId": "a", "level": "info", "line": "x"}
    for published in (fail, told.append):
        one.bus.publish("server.log", data, on_published=published)
    await gathering.agree(2)
    assert [position.offset for position in told] == [2]
    assert "could not be told where it stands" in caplog.text
    assert "a server.log of worker 1 could not be taken" in caplog.text


@pytest.mark.gen_test
async def test_a_newcomer_is_told_the_past_and_misses_and_doubles_nothing_meanwhile(
    gathering: Gathering,
) -> None:
    one, two = await gathering.come(1), await gathering.come(2)
    for line in range(50):
        one.log_line(f"before {line}")
    await gathering.agree(50)
    three = gathering.start(3)
    one.log_line("before there is a log")
    await three.make_bus()
    told: list[Position] = []
    for line in range(20):
        two.log_line(f"while {line}")
        three.bus.publish(
            "server.log", {"serverId": "a", "level": "info", "line": f"own {line}"}, on_published=told.append
        )
        if line % 5 == 4:
            await asyncio.sleep(0)
        if line == 10:
            beginning = asyncio.create_task(three.bus.begin())
    await beginning
    await gathering.be_ready(3)
    one.log_line("after")
    await gathering.agree(92)
    assert three.past() == one.past() == two.past()
    assert [offset for offset, _ in three.past()] == list(range(1, 93))
    own = [offset for offset, line in one.past() if line.startswith("own")]
    assert [position.offset for position in told] == own
    assert offsets(three) == sorted(set(offsets(three)))
    assert three.bus.since(one.heard[0].position, ("servers",)).recovered


@pytest.mark.gen_test
async def test_what_the_others_have_forgotten_a_newcomer_has_forgotten(gathering: Gathering) -> None:
    one = await gathering.come(1, max_events=10)
    for line in range(30):
        one.log_line(line)
    one.bus.publish("room.message", {"user": "a", "clientId": "c", "payload": 1}, channel="room:a")
    await gathering.agree(31)
    two = await gathering.come(2, max_events=10)
    epoch = two.bus.position.epoch
    for bus in (one.bus, two.bus):
        assert not bus.since(Position(epoch, 19), ("servers",)).recovered
        assert bus.since(Position(epoch, 20), ("servers",)).recovered
        assert bus.since(Position(epoch, 0), ("room:a",)).recovered
    Clock.now += 200
    one.log_line("young")
    await gathering.agree(32)
    Clock.now += 150
    three = await gathering.come(3)
    assert [line for _, line in three.past()] == ["young"], "what is too old is told no more"
    assert not three.bus.since(Position(epoch, 29), ("servers",)).recovered
    Clock.now += 200
    three.log_line("younger")
    await gathering.agree(33)
    assert not three.bus.since(Position(epoch, 31), ("servers",)).recovered, "and no younger than it is"


@pytest.mark.gen_test
async def test_a_newcomer_is_told_the_newest_state_and_what_is_shared_beside_the_log(
    gathering: Gathering,
) -> None:
    one = await gathering.come(1)
    for worker in (1, 2):
        for name in ("starting", "stopped"):
            one.bus.publish(f"server.{name}", {"serverId": "a", "worker": worker})
    state: list[object] = []
    one.bus.share_state("numbers", lambda: [1, 2], state.append)
    await gathering.agree(4)
    two = gathering.start(2)
    await two.make_bus()
    two.bus.share_state("numbers", list, state.append)
    await two.bus.begin()
    assert state == [[1, 2]]
    latest = [(event.type.name, event.data["worker"]) for event in two.bus.latest("servers")]
    assert latest == [("server.stopped", 1), ("server.stopped", 2)]


@pytest.mark.gen_test
async def test_where_the_teller_of_the_past_ends_another_one_tells_it(gathering: Gathering) -> None:
    one, two = await gathering.come(1), await gathering.come(2)
    one.log_line("told")
    await gathering.agree(1)
    three = gathering.start(3)
    gathering.die(1)
    await three.make_bus()
    await three.bus.begin()
    assert three.past() == two.past() == [(1, "told")]


@pytest.mark.gen_test
async def test_the_past_that_was_meant_for_a_predecessor_is_not_taken(gathering: Gathering) -> None:
    one = await gathering.come(1)
    one.log_line("first")
    await gathering.agree(1)
    gathering.start(2)
    two = gathering.switchboard
    await asyncio.sleep(0)
    gathering.die(2)
    again = gathering.start(2)
    one.log_line("second")
    await again.make_bus()
    await again.bus.begin()
    await gathering.agree(2)
    assert again.past() == one.past() == [(1, "first"), (2, "second")]
    assert two.ready == {1}


@pytest.mark.gen_test
async def test_where_nobody_is_left_who_could_tell_the_log_begins_where_it_stands(
    gathering: Gathering,
) -> None:
    one = await gathering.come(1)
    for line in range(5):
        one.log_line(line)
    await gathering.agree(5)
    epoch = one.bus.position.epoch
    two = gathering.start(2)
    gathering.die(1)
    await two.make_bus()
    await two.bus.begin()
    assert two.bus.position == Position(epoch, 5)
    assert not two.bus.since(Position(epoch, 3), ("servers",)).recovered
    two.log_line("on")
    await gathering.agree(6)
    assert two.past() == [(6, "on")]
    assert not two.bus.since(Position(epoch, 4), ("servers",)).recovered
    assert two.bus.since(Position(epoch, 5), ("servers",)).recovered


@pytest.mark.gen_test
async def test_a_teller_that_hangs_keeps_a_newcomer_waiting_for_a_while_only(
    gathering: Gathering, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared, "PAST_SECONDS", 0.1)
    one = await gathering.come(1)
    one.log_line("unknown")
    await gathering.agree(1)
    two = gathering.start(2)
    asyncio.get_running_loop().remove_reader(one.peers._link._socket.fileno())
    await two.make_bus()
    await two.bus.begin()
    assert "nobody tells" in caplog.text
    assert two.past() == []
    assert not two.bus.since(Position(two.bus.position.epoch, 0), ("servers",)).recovered


@pytest.mark.gen_test
async def test_when_all_have_ended_a_new_run_of_the_log_begins_for_all_who_come(gathering: Gathering) -> None:
    one, _ = await gathering.come(1), await gathering.come(2)
    one.log_line("lost")
    await gathering.agree(1)
    epoch = one.bus.position.epoch
    gathering.die(1)
    gathering.die(2)
    one = gathering.start(1)
    await one.make_bus()
    one.log_line("new")
    await one.bus.begin()
    await gathering.agree(1)
    assert one.bus.position.epoch != epoch
    two = await gathering.come(2)  # while the first is not ready
    two.log_line("newer")
    await gathering.agree(2)
    assert one.bus.position == two.bus.position
    assert one.past() == [(1, "new"), (2, "newer")]
    assert two.past()[-1] == (2, "newer")


@pytest.mark.gen_test
async def test_what_a_worker_has_said_last_comes_before_the_news_of_its_end(gathering: Gathering) -> None:
    one, two, _ = await all_three(gathering)
    order: list[object] = []
    one.bus.on_foreign(lambda _, event: order.append(event.data["line"]))
    one.peers.on_gone(order.append)
    for line in range(500):
        two.log_line(line)
    await asyncio.sleep(0)  # so that it is sent
    gathering.die(2)
    await gathering.agree(500)
    await until(lambda: 2 in order)
    assert order == [*map(str, range(500)), 2]


@pytest.mark.gen_test
async def test_half_of_a_message_of_a_worker_that_ends_is_nothing(gathering: Gathering) -> None:
    one, two, three = await all_three(gathering)
    link = two.peers._link
    two.log_line("whole")
    await gathering.agree(1)
    link._socket.send(b"\x00\x00\x10\x00\x05\x00\x00half")
    gathering.die(2)
    three.log_line("after")
    await gathering.agree(2)
    assert one.past() == three.past() == [(1, "whole"), (2, "after")]


@pytest.mark.gen_test
async def test_that_one_worker_ends_is_told_to_its_own_readers_and_moves_no_position(
    gathering: Gathering,
) -> None:
    one, two, _ = await all_three(gathering)
    one.log_line("before")
    await gathering.agree(1)
    heard: dict[int, list[tuple[str, int]]] = {1: [], 2: []}

    def take(told: list[tuple[str, int]], event: Event) -> None:
        told.append((event.type.name, event.position.offset))

    for member in (one, two):
        member.bus.listen("gateway", partial(take, heard[member.peers.number]))
    one.bus.publish("gateway.draining", {"state": "draining"})
    two.log_line("after")
    await gathering.agree(2)
    assert heard == {1: [("gateway.draining", 1)], 2: []}
    assert one.past() == two.past()


@pytest.mark.gen_test
async def test_what_all_see_for_themselves_is_told_by_one_of_those_who_are_there(
    gathering: Gathering,
) -> None:
    _, two, three = await all_three(gathering)
    heard: list[Event] = []
    three.bus.listen("config", heard.append)
    for expected in (1, 2):
        for member in gathering.members.values():
            member.bus.publish("config.applied", {"source": "file"})
        await gathering.agree(expected)
        if expected == 1:
            gathering.die(1)
            await until(lambda: two.peers.is_speaker)
    three.bus.publish("config.applied", {"source": "rest"})
    await until(lambda: len(heard) == 3)
    assert [event.data["source"] for event in heard] == ["file", "file", "rest"]


@pytest.mark.gen_test
async def test_warnings_of_every_worker_are_told_while_somebody_reads_them_anywhere(
    gathering: Gathering,
) -> None:
    one, two, _ = await all_three(gathering)
    handler = BusLogHandler(one.bus, one.peers)
    BusLogHandler(two.bus, two.peers)
    publish = handler._publish
    heard: list[Event] = []
    publish({"level": "warning", "logger": "l", "message": "nobody"})
    stop = two.bus.listen("system", heard.append)
    await until(lambda: handler._elsewhere)
    publish({"level": "warning", "logger": "l", "message": "somebody"})
    await until(lambda: heard)
    stop()
    await until(lambda: not handler._elsewhere)
    publish({"level": "warning", "logger": "l", "message": "nobody again"})
    one.log_line("end")
    await gathering.agree(2)
    assert [event.data["message"] for event in heard] == ["somebody"]
