"""Who may come in, where several workers decide on it: changes hold in all at once, guesses count in all."""

import asyncio
import json
from pathlib import Path

import pytest

from mcpgw.access.joining import GUESSES_OF_ALL
from mcpgw.access.lockout import ACCOUNT_FREE, PAIR_FREE, Lockout
from mcpgw.access.logins import Visitor
from mcpgw.access.tickets import Tickets
from mcpgw.access.tokens import Principal
from mcpgw.errors import AuthFailed, QueueFull, RateLimited
from mcpgw.hub import Hub
from mcpgw.services import running_services
from mcpgw.settings import ServerSettings
from mcpgw.store import By
from mcpgw.workers.totals import Totals
from tests.support.waiting import until
from tests.support.workers import Workers, gateway_of_workers, office

GOOD = "a horse and a battery"
NEVER_READS = {"auth.watch_interval": 60}
"""So that a change can be known by no other way than by word."""
TOLD, UNTOLD = By("root", is_told=True), By("root", is_told=False)


def actions(workers: Workers) -> list[str]:
    """The actions in the audit log on somebody's way in."""
    lines = [json.loads(line) for line in workers.audit().splitlines()]
    return [line["what"]["action"] for line in lines if line["event"] == "access"]


@pytest.mark.gen_test(timeout=30)
async def test_a_login_in_one_worker_is_good_in_all_and_ends_in_all(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path, flags=NEVER_READS) as workers:
        one, two = (services.access for services in workers.each)
        await one.accounts.add("ann", role="operator", password=GOOD, by=TOLD)
        visitor = Visitor("127.0.0.1")
        granted = await one.logins.with_password("ann", GOOD, visitor)
        assert two.authority.verify(granted.access_token).user == "ann"
        assert await two.logins.end(granted.principal, "", visitor)
        with pytest.raises(AuthFailed):
            one.authority.verify(granted.access_token)


@pytest.mark.gen_test(timeout=30)
async def test_what_a_command_has_changed_is_told_by_the_first_worker_that_sees_it_and_audited_once(
    tmp_path: Path,
) -> None:
    async with gateway_of_workers(tmp_path, count=3, flags={"auth.watch_interval": 0.05}) as workers:
        names = [f"user-{number}" for number in range(20)]
        for name in names:  # as a command does: in the store alone
            await workers.each[0].access.accounts.add(name, role="viewer", password=None, by=UNTOLD)
            await asyncio.sleep(0.01)
        await until(
            lambda: all(set(names) <= set(services.access.authority.known.users) for services in workers.each)
        )
        await until(lambda: actions(workers).count("users.add") > len(names))
        await workers.office.heard()
        assert actions(workers).count("users.add") == len(names) + 1, "and the first admin"


@pytest.mark.gen_test(timeout=30)
async def test_changes_that_wait_for_the_audit_log_are_given_to_one_of_several(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path, flags=NEVER_READS) as workers:
        one, two = (services.store for services in workers.each)
        await one.changes.take_untold()
        for number in range(10):
            await workers.each[0].access.accounts.add(
                f"user-{number}", role="viewer", password=None, by=UNTOLD
            )
        taken = await asyncio.gather(*(store.changes.take_untold() for store in (one, two) * 5))
        numbers = [change.number for changes in taken for change in changes]
        assert len(numbers) == len(set(numbers)) == 10


@pytest.mark.gen_test(timeout=30)
async def test_a_room_whose_time_is_over_ends_once(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path, count=3, flags={"auth.watch_interval": 0.05}) as workers:
        one = workers.each[0].access
        await one.workshops.create("demo", ["tools:call:a"], host="", by=TOLD, seconds=1)
        await one.take_over()
        assert all(services.access.authority.known.rooms for services in workers.each)
        await until(lambda: "room.end" in actions(workers))
        await until(lambda: not any(services.access.authority.known.rooms for services in workers.each))
        assert actions(workers).count("room.end") == 1


@pytest.mark.gen_test(timeout=30)
async def test_failed_logins_of_an_account_count_wherever_they_were(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path, flags=NEVER_READS) as workers:
        one, two = (services.access for services in workers.each)
        await one.accounts.add("ann", role="operator", password=GOOD, by=TOLD)
        for number in range(PAIR_FREE):
            logins = (one, two)[number % 2].logins
            with pytest.raises(AuthFailed):
                await logins.with_password("ann", "wrong", Visitor("198.51.100.7"))
            await workers.office.heard()
        for access in (one, two):
            with pytest.raises(RateLimited):
                await access.logins.with_password("ann", GOOD, Visitor("198.51.100.7"))


@pytest.mark.gen_test
async def test_a_success_is_forgiven_everywhere_and_a_newcomer_hears_of_all_failures() -> None:
    async with office(3) as room:
        lockouts = {number: Lockout(ACCOUNT_FREE) for number in (1, 2, 3)}
        for number, lockout in lockouts.items():
            lockout.share(room.members[number], "accounts")
        for _ in range(ACCOUNT_FREE + 1):
            lockouts[1].attempt("ann")
        lockouts[2].attempt("bob")
        await until(lambda: [one.wait("ann") > 0 for one in lockouts.values()] == [True] * 3)
        await until(lambda: [len(one) for one in lockouts.values()] == [2, 2, 2])
        lockouts[3].take_back("bob")
        await until(lambda: [len(one) for one in lockouts.values()] == [1, 1, 1])

        room.lose(2)
        newcomer = Lockout(ACCOUNT_FREE)
        newcomer.share(room.enter(2), "accounts")
        room.members[2].ready()
        await until(lambda: newcomer.wait("ann") > 0)
        lockouts[1].forget("ann")
        await until(lambda: [len(one) for one in (lockouts[1], newcomer, lockouts[3])] == [0, 0, 0])


@pytest.mark.gen_test(timeout=30)
async def test_several_workers_allow_no_more_wrong_room_codes_than_one(tmp_path: Path) -> None:
    async with gateway_of_workers(tmp_path, flags=NEVER_READS) as workers:
        allowed = 0
        for number in range(GUESSES_OF_ALL + 40):
            guesses = workers.each[number % 2].access.joining.guesses
            try:
                guesses.take(f"198.51.100.{number}")
                allowed += 1
            except RateLimited:
                pass
            await asyncio.sleep(0.002)
        # Two a second come back meanwhile.
        assert GUESSES_OF_ALL <= allowed <= GUESSES_OF_ALL + 10


@pytest.mark.gen_test
async def test_the_tickets_of_all_workers_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcpgw.access.tickets._MOST", 4)
    async with office() as room:
        one, two = (Tickets(60, peers=room.members[number]) for number in (1, 2))
        ann = Principal("ann", frozenset(), float("inf"), "t")
        given = [one.give(ann, "events") for _ in range(4)]

        def refused() -> bool:
            try:
                two.take(two.give(ann, "events"), "events")
            except QueueFull:
                return True
            return False

        await until(refused)
        one.take(given[0], "events")
        await until(lambda: not refused())


@pytest.mark.gen_test
async def test_the_limits_of_connections_hold_for_all_workers_and_a_gone_one_leaves_room() -> None:
    settings = ServerSettings(max_connections=5, max_unidentified=2, max_echo=1)
    async with office(3) as room:
        hubs = {number: Hub(settings) for number in (1, 2, 3)}
        for number, hub in hubs.items():
            totals = Totals(room.members[number], "connections", hub.counts)
            hub.share(totals.elsewhere, totals.changed)
        echo, first = hubs[1].reserve("echo", None), hubs[2].reserve("websocket", None)
        assert (echo.refusal, first.refusal) == (None, None)

        def refusal(kind: str, user: str | None) -> str | None:
            place = hubs[3].reserve(kind, user)  # type: ignore[arg-type]
            place.release()
            return None if place.refusal is None else place.refusal.reason

        await until(lambda: refusal("websocket", None) is not None)
        assert refusal("websocket", None) == "the gateway has its 2 connections without credentials"
        assert refusal("echo", "ann") == "the gateway has its 1 connection of echo"
        for user in ("ann", "bob", "cyd"):
            hubs[2].reserve("websocket", user)
        await until(lambda: refusal("websocket", "dee") == "the gateway has its 5 connections")
        room.lose(2)
        await until(lambda: refusal("websocket", "dee") is None)
        echo.release()
        await until(lambda: refusal("echo", "ann") is None)


@pytest.mark.gen_test(timeout=30)
async def test_the_link_for_the_first_admin_is_made_once_and_holds_when_a_worker_begins_again(
    tmp_path: Path,
) -> None:
    async with gateway_of_workers(tmp_path, flags=NEVER_READS) as workers:
        one, two = (services.access for services in workers.each)
        assert two.first_link is None
        assert one.first_link is not None
        workers.office.lose(1)
        member = workers.office.enter(1)
        async with running_services(workers.each[0].config, member) as again:
            assert again.access.first_link is None
        granted = await two.logins.with_link(one.first_link, Visitor("127.0.0.1"))
        assert granted.principal.user == "admin"
