"""Users in the store, and the journal of what was changed."""

import asyncio
import time

import pytest

from mcpgw.store import By, Store
from tests.store.conftest import Place

ADMIN = By("root", is_told=False)
GATEWAY = By("gateway", is_told=True)


@pytest.mark.gen_test
async def test_a_user_is_added_once_and_changed_and_the_journal_has_each_change_once(place: Place) -> None:
    store = await Store.open(place)
    assert await store.changes.newest() == 0
    assert await store.users.add("ann", role="viewer", by=ADMIN)
    assert not await store.users.add("ann", role="admin", by=ADMIN)
    assert await store.users.set_role("ann", "operator", by=GATEWAY)
    assert await store.users.set_password("ann", "$hash$", by=ADMIN)
    assert await store.users.set_disabled("ann", True, by=ADMIN)
    assert not await store.users.set_role("bob", "viewer", by=ADMIN)
    ann = await store.users.get("ann")
    assert ann is not None
    assert (ann.role, ann.password_hash, ann.disabled) == ("operator", "$hash$", True)
    assert "$hash$" not in repr(ann)
    assert await store.changes.newest() == 4
    untold = await store.changes.take_untold()
    assert [(one.by, one.action, one.target) for one in untold] == [
        ("root", "users.add", "ann"),
        ("root", "users.password", "ann"),
        ("root", "users.disable", "ann"),
    ]
    assert await store.changes.take_untold() == []
    await store.close()


@pytest.mark.gen_test
async def test_the_journal_forgets_what_is_old_but_never_its_newest_number(place: Place) -> None:
    store = await Store.open(place)
    for role in ("a", "b", "c"):
        await store.users.add(role, role=role, by=ADMIN)
    await store.changes.take_untold()
    await store.run(lambda c: c.exec_driver_sql("UPDATE access_changes SET at = 1") and None)
    await store.changes.prune()
    assert await store.changes.newest() == 3
    await store.users.add("d", role="d", by=ADMIN)
    assert await store.changes.newest() == 4
    await store.close()


@pytest.mark.gen_test
async def test_a_link_lets_in_once_and_not_twice_at_the_same_time_nor_late_nor_the_disabled(
    place: Place,
) -> None:
    store = await Store.open(place)
    await store.users.add("ann", role="viewer", by=ADMIN)
    later = round(time.time() * 1000) + 60_000
    await store.users.set_link("ann", "h1", expires_at=later, by=ADMIN)
    taken = await asyncio.gather(*(store.users.take_link("h1", password_hash="$p$") for _ in range(5)))
    assert [one.name for one in taken if one is not None] == ["ann"]
    assert (await store.users.get("ann")).password_hash == "$p$"  # type: ignore[union-attr]
    await store.users.set_link("ann", "h2", expires_at=1, by=ADMIN)
    assert await store.users.take_link("h2") is None
    assert await store.users.take_link("") is None
    await store.users.set_link("ann", "h3", expires_at=later, by=ADMIN)
    await store.users.set_disabled("ann", True, by=ADMIN)
    await store.users.set_disabled("ann", False, by=ADMIN)
    assert await store.users.take_link("h3") is None
    await store.close()
