"""Rooms whose members are in several workers: who is in them, and what is told in them once."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from mcpgw.access.guest_names import guest_user
from mcpgw.rooms import Rooms
from mcpgw.store import OpenRoom
from mcpgw.wire.events import Event
from tests.support.gathering import Gathering, Member
from tests.support.rooms import of_guests
from tests.support.waiting import until

OPS = "room:ops"


@dataclass
class Worker:
    """A worker with rooms, and what it `heard` in one."""

    member: Member
    rooms: Rooms
    heard: list[tuple[str, str]] = field(default_factory=list)

    @property
    def present(self) -> set[str]:
        return {member["clientId"] for member in self.rooms.present(OPS)}

    def hear(self, event: Event) -> None:
        about = {"clientId", "user", "room", "reason"} & event.data.keys()
        self.heard.append((event.type.name, str(event.data[min(about)])))


class Workers:
    """Workers with rooms."""

    def __init__(self) -> None:
        self.gathering = Gathering(3)

    async def come(self, number: int, rooms: dict[str, OpenRoom] | None = None) -> Worker:
        member = self.gathering.start(number)
        bus = await member.make_bus()
        worker = Worker(member, Rooms(bus, member.peers))
        bus.listen(OPS, worker.hear)
        worker.rooms.follow(rooms or {})
        await bus.begin()
        await self.gathering.be_ready(number)
        return worker


@pytest.fixture
def workers(io_loop: object) -> Iterator[Workers]:
    made = Workers()
    yield made
    made.gathering.close()


def room(**members: Any) -> dict[str, OpenRoom]:
    return {"1": of_guests(**members)}


@pytest.mark.gen_test
async def test_members_of_all_workers_are_there_for_each_and_for_one_that_comes_later(
    workers: Workers,
) -> None:
    one, two = await workers.come(1), await workers.come(2)
    one.rooms.join(OPS, "c1", "ann")
    two.rooms.join(OPS, "c2", "bob")
    one.rooms.join(OPS, "c3", "cleo")
    await until(lambda: one.present == two.present == {"c1", "c2", "c3"})
    one.rooms.leave(OPS, "c3")
    three = await workers.come(3)
    await until(lambda: one.present == two.present == three.present == {"c1", "c2"})
    assert one.heard == two.heard
    assert Counter(one.heard)["room.left", "c3"] == 1


@pytest.mark.gen_test
@pytest.mark.parametrize("dead", [1, 2])
async def test_members_of_a_worker_that_has_ended_leave_once(workers: Workers, dead: int) -> None:
    each = {number: await workers.come(number) for number in (1, 2, 3)}
    for number, worker in each.items():
        for which in range(5):
            worker.rooms.join(OPS, f"{number}.{which}", "ann")
    await until(lambda: all(len(worker.present) == 15 for worker in each.values()))
    del each[dead]
    workers.gathering.die(dead)
    left = [("room.left", f"{dead}.{which}") for which in range(5)]
    await until(lambda: all(worker.heard[15:] == left for worker in each.values()))
    again = await workers.come(dead)
    await until(lambda: len(again.present) == 10)
    await workers.gathering.agree(20)
    assert all(worker.heard[15:] == left for worker in each.values())


@pytest.mark.gen_test
async def test_members_leave_once_though_the_one_who_was_to_tell_it_ends_too(workers: Workers) -> None:
    each = {number: await workers.come(number) for number in (1, 2, 3)}
    for number, worker in each.items():
        worker.rooms.join(OPS, f"c{number}", "ann")
    await until(lambda: all(len(worker.present) == 3 for worker in each.values()))
    workers.gathering.die(2)
    workers.gathering.die(1)  # before it has heard of the other's end
    three = each[3]
    await until(lambda: len(three.heard) == 5)
    await workers.gathering.agree(5)
    assert sorted(three.heard[3:]) == [("room.left", "c1"), ("room.left", "c2")]
    assert three.present == {"c3"}


@pytest.mark.gen_test
async def test_what_a_host_does_is_told_by_one_worker_alone(workers: Workers) -> None:
    each = [await workers.come(number, room()) for number in (1, 2, 3)]
    for state in (room(frozen=True), room(frozen=True, muted={"a": "Ann"}), room(removed={"a": "Ann"}), {}):
        for worker in reversed(each):
            worker.rooms.follow(state)
    ann = guest_user("ops", "Ann", "a")
    await workers.gathering.agree(5)
    expected = [("room.frozen", "ops"), ("room.muted", ann), ("room.thawed", "ops"), ("room.kicked", ann)]
    assert all(worker.heard == [*expected, ("room.ended", "host")] for worker in each)


@pytest.mark.gen_test
async def test_what_a_host_does_is_told_once_though_the_one_who_tells_it_has_just_ended(
    workers: Workers,
) -> None:
    one, two = await workers.come(1, room()), await workers.come(2, room())
    ann, bob = guest_user("ops", "Ann", "a"), guest_user("ops", "Bob", "b")
    one.rooms.follow(room(frozen=True))
    one.rooms.follow(room(frozen=True, muted={"a": "Ann"}))
    await workers.gathering.agree(2)
    three = await workers.come(3, room(frozen=True, muted={"a": "Ann"}))
    newest = room(frozen=True, muted={"a": "Ann", "b": "Bob"})
    for worker in (two, three):
        worker.rooms.follow(newest)
    workers.gathering.die(1)
    await until(lambda: two.member.peers.is_speaker)
    for worker in (two, three):
        worker.rooms.follow(newest)
    await workers.gathering.agree(3)
    assert two.heard == [("room.frozen", "ops"), ("room.muted", ann), ("room.muted", bob)]
    workers.gathering.die(2)
    await until(lambda: three.member.peers.is_speaker)
    three.rooms.follow({})
    await workers.gathering.agree(4)
    assert three.heard == [("room.muted", bob), ("room.ended", "host")]


@pytest.mark.gen_test
async def test_a_room_that_was_told_to_have_ended_does_not_end_again(workers: Workers) -> None:
    one, two = await workers.come(1, room()), await workers.come(2, room())
    one.rooms.follow({})
    await workers.gathering.agree(1)
    two.rooms.follow(room())  # as it was read before
    workers.gathering.die(1)
    await until(lambda: two.member.peers.is_speaker)
    two.rooms.follow({})
    two.rooms.follow(room(frozen=True))
    two.rooms.follow({})
    await workers.gathering.agree(2)
    assert two.heard == [("room.ended", "host")] * 2
