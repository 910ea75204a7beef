"""Whom other issuers know, and which users they are here."""

import asyncio

import pytest

from mcpgw.store import By, Store
from mcpgw.store.identities import MOST_OF_A_USER, linked_users
from tests.store.conftest import Place

ADMIN = By("root", is_told=False)
ONE, OTHER = "https://one.example.org", "https://other.example.org"


@pytest.mark.gen_test
async def test_a_subject_of_an_issuer_is_one_user_or_none(place: Place) -> None:
    store = await Store.open(place)
    for name in ("ann", "bob"):
        await store.users.add(name, role="viewer", by=ADMIN)
    identities = store.identities
    assert await identities.link(ONE, "4711", "ann", by=ADMIN)
    assert await identities.link(ONE, "4711", "ann", by=ADMIN)  # it is so already
    assert not await identities.link(ONE, "4711", "bob", by=ADMIN)
    assert not await identities.link(ONE, "4712", "nobody", by=ADMIN)
    assert not await identities.link(ONE, "", "ann", by=ADMIN)
    assert not await identities.link(ONE, "x" * 257, "ann", by=ADMIN)
    assert await identities.link(OTHER, "4711", "bob", by=ADMIN)
    assert await identities.find(ONE, "4711") == "ann"
    assert await identities.find(OTHER, "4711") == "bob"
    assert await identities.find(ONE, "471") is None
    assert await store.run(linked_users, reads=True) == {(ONE, "4711"): "ann", (OTHER, "4711"): "bob"}
    assert [(one.issuer, one.subject) for one in await identities.list("bob")] == [(OTHER, "4711")]
    assert await identities.unlink(ONE, "4711", by=ADMIN)
    assert not await identities.unlink(ONE, "4711", by=ADMIN)
    told = [(one.action, one.target) for one in await store.changes.take_untold()]
    assert told[2:] == [
        ("users.linked", f"ann {ONE} 4711"),
        ("users.linked", f"bob {OTHER} 4711"),
        ("users.unlinked", f"ann {ONE} 4711"),
    ]
    await store.close()


@pytest.mark.gen_test
async def test_a_link_goes_with_its_user_and_a_user_has_no_more_than_some(place: Place) -> None:
    store = await Store.open(place)
    await store.users.add("ann", role="viewer", by=ADMIN)
    made = [
        await store.identities.link(ONE, str(number), "ann", by=ADMIN) for number in range(MOST_OF_A_USER)
    ]
    assert all(made)
    assert not await store.identities.link(OTHER, "1", "ann", by=ADMIN)
    await store.run(lambda c: c.exec_driver_sql("DELETE FROM users WHERE name = 'ann'") and None)
    await store.users.add("ann", role="admin", by=ADMIN)  # somebody else
    assert await store.identities.list() == []
    await store.close()


@pytest.mark.gen_test
async def test_a_user_is_made_for_a_subject_once_and_never_in_the_place_of_another(place: Place) -> None:
    one, two = await Store.open(place), await Store.open(place)
    await one.users.add("ann", role="admin", by=ADMIN)

    async def make(store: Store, name: str) -> bool:
        return await store.identities.make_user(ONE, "4711", name=name, role="viewer", by=ADMIN)

    assert not await make(one, "ann")
    assert await one.identities.find(ONE, "4711") is None
    at_once = await asyncio.gather(
        make(one, "bob"),
        make(two, "bob"),
    )
    assert sorted(at_once) == [False, True]
    assert await two.identities.find(ONE, "4711") == "bob"
    assert not await make(two, "eve")
    assert [user.name for user in await one.users.list()] == ["ann", "bob"]
    await one.close()
    await two.close()
