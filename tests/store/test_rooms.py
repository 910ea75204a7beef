"""Rooms for guests in the store."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from mcpgw.store import By, Store, StoredGuest, StoredRoom
from mcpgw.store.rooms import open_rooms
from mcpgw.store.runner import now
from tests.store.conftest import Place

BY = By("root", is_told=False)


def room(name: str = "demo", *, room_id: str = "1", seconds: float = 60, **members: Any) -> StoredRoom:
    """A room for two guests."""
    moment = now()
    return StoredRoom(
        id=room_id,
        name=name,
        host="tess",
        scopes=("tools:call:one",),
        quota_calls=60,
        quota_ms=60_000,
        max_guests=2,
        code_hash="c0de",
        created_by="tess",
        created_at=moment,
        ends_at=moment + round(seconds * 1000),
        **members,
    )


def guest(name: str, guest_id: str, room_id: str = "1") -> StoredGuest:
    """Somebody who wants to join."""
    return StoredGuest(guest_id, room_id, name, name.lower(), "127.0.0.1", now())


@pytest.mark.gen_test
async def test_a_room_is_kept_with_its_guests_and_what_was_done_to_them(place: Place) -> None:
    store = await Store.open(place)
    demo = room()
    assert await store.rooms.add(demo, most=2, by=BY) == "added"
    assert await store.rooms.add(room(room_id="2"), most=2, by=BY) == "taken"
    assert await store.rooms.add(room("other", room_id="2"), most=2, by=BY) == "added"
    assert await store.rooms.add(room("third", room_id="3"), most=2, by=BY) == "full"
    ann, bob = guest("Ann", "a"), guest("Bob", "b")
    assert await store.rooms.join(ann) == "joined"
    assert await store.rooms.join(guest("ANN", "x")) == "taken"
    assert await store.rooms.join(bob) == "joined"
    assert await store.rooms.join(guest("Cid", "c")) == "full"
    assert await store.rooms.set_muted(demo, bob, True, by=BY)
    assert await store.rooms.remove(demo, ann, by=BY)
    assert not await store.rooms.remove(demo, ann, by=BY)
    assert not await store.rooms.set_muted(demo, ann, True, by=BY)
    assert await store.rooms.join(guest("Cid", "c")) == "joined", "a removed guest makes place"
    assert await store.rooms.join(guest("Ann", "y")) == "taken", "and the name stays taken"
    assert await store.rooms.set_frozen(demo, True, by=BY)
    await store.close()

    store = await Store.open(place)
    known = {found.room.name: found for found in await store.run(open_rooms, reads=True)}
    assert known["demo"].room == replace(demo, frozen=True, guests=2)
    assert (known["demo"].muted, known["demo"].removed) == ({"b": "Bob"}, {"a": "Ann"})
    assert "c0de" not in repr(known["demo"])
    assert [one.name for one in await store.rooms.list("tess")] == ["demo", "other"]
    assert await store.rooms.list("tom") == []
    actions = [(change.action, change.target) for change in await store.changes.take_untold()]
    assert actions == [
        ("room.create", "demo"),
        ("room.create", "other"),
        ("room.mute", "demo/Bob"),
        ("room.kick", "demo/Ann"),
        ("room.freeze", "demo"),
    ]
    await store.close()


@pytest.mark.gen_test
async def test_a_room_ends_once_and_its_name_is_free_again(place: Place) -> None:
    store = await Store.open(place)
    demo, brief = room(), room("brief", room_id="2", seconds=-1)
    assert await store.rooms.add(demo, most=9, by=BY) == "added"
    assert await store.rooms.add(brief, most=9, by=BY) == "added"
    assert await store.rooms.join(guest("Ann", "a", "2")) == "ended", "its time is over"
    assert [one.name for one in await store.rooms.list()] == ["demo"]
    assert [one.name for one in await store.rooms.end_over()] == ["brief"]
    assert await store.rooms.end_over() == []
    assert await store.rooms.end(demo, by=BY)
    assert not await store.rooms.end(demo, by=BY)
    assert not await store.rooms.set_frozen(demo, True, by=BY)
    assert not await store.rooms.set_code(demo, "other", by=BY)
    assert await store.rooms.join(guest("Ann", "a")) == "ended"
    assert await store.rooms.join(guest("Ann", "a", "9")) == "ended"
    assert await store.rooms.add(room(room_id="3"), most=1, by=BY) == "added"
    await store.rooms.prune()
    assert [found.room.id for found in await store.run(open_rooms, reads=True)] == ["3"]
    await store.close()


@pytest.mark.gen_test
async def test_two_who_join_at_once_get_one_name_and_one_place(place: Place) -> None:
    stores = [await Store.open(place) for _ in range(2)]
    assert await stores[0].rooms.add(room(), most=9, by=BY) == "added"
    for names in (("Ann", "Ann"), ("Bob", "Cid")):
        outcomes = await asyncio.gather(
            *(
                store.rooms.join(guest(name, f"{name}{number}"))
                for number, (store, name) in enumerate(zip(stores, names, strict=True))
            )
        )
        assert outcomes.count("joined") == 1, outcomes
    for store in stores:
        await store.close()
