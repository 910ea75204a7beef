"""Resources that are watched: from one instance to the next, by whom they are, and when nobody does."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from mcpgw.backends import watch
from mcpgw.backends.requests import Asker
from mcpgw.backends.server import Server
from mcpgw.backends.watch import WatchedResources
from mcpgw.errors import ToolExecutionError
from mcpgw.server_definitions import ServerDefinition
from tests.support.backends import Announced, methods, recorded, scripted, serving, use
from tests.support.waiting import until

ANN, BOB = Asker("ann", "connection of ann"), Asker("bob", "connection of bob")


def isolated(isolation: Any, *options: object, **changes: Any) -> ServerDefinition:
    """A scripted server with an instance for each."""
    return replace(scripted(*options), isolation=isolation, **changes)


def updates(announced: Announced) -> list[str | None]:
    """Whom each change of a resource concerned."""
    return [user for name, _, user in announced.entries if name == "resource_updated"]


def watched(server: Server) -> set[str]:
    """What all instances together watch."""
    return {uri for instance in server._instances for uri in instance.backend.resources.uris}


@pytest.mark.parametrize("isolation", ["shared", "user", "connection"])
@pytest.mark.gen_test(timeout=20)
async def test_what_is_watched_is_watched_by_the_next_instance_too(
    io_loop: IOLoop, tmp_path: Path, isolation: Any
) -> None:
    record = tmp_path / "record"

    def subscribed() -> int:
        return methods(recorded(record)).count("resources/subscribe")

    async with serving(isolated(isolation, "--record", record)) as server:
        await server.watch_resource(ANN, "note:one")
        assert subscribed() == 1
        await server.restart()
        await until(lambda: subscribed() == 2, seconds=5, what="watching after a restart")
        await server.stop()
        server.start()
        await until(lambda: subscribed() == 3, seconds=5, what="watching after a stop")
        await server.unwatch_resource(ANN, "note:one")
        await until(lambda: "resources/unsubscribe" in methods(recorded(record)), seconds=5)
        await server.restart()
        await until(lambda: server.state.takes_calls or isolation != "shared")
        await server.watch_resource(ANN, "note:two")
        assert subscribed() == 4


@pytest.mark.gen_test(timeout=20)
async def test_what_waits_warm_watches_once_it_is_somebodys(io_loop: IOLoop, tmp_path: Path) -> None:
    announced = Announced()
    async with serving(isolated("user", warm=1), announced=announced) as server:
        await server.watch_resource(ANN, "note:one")
        await server.watch_resource(BOB, "note:two")
        [anns] = [one for one in server._instances if one.user == "ann"]
        assert anns.backend.resources.uris == ("note:one",)
        await use(server, "touch", {"uri": "note:two"}, user="bob")
        await until(lambda: updates(announced) == ["bob"])


@pytest.mark.gen_test(timeout=20)
async def test_an_instance_that_was_watched_is_stopped_when_nobody_uses_it(io_loop: IOLoop) -> None:
    async with serving(isolated("user", idle_stop=0.2)) as server:
        await server.watch_resource(ANN, "note:one")
        held = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() - held > 0.6)
        assert len(server._instances) == 1, "it is watched"
        server.connection_ended(ANN.connection)
        await until(lambda: not len(server._instances), seconds=3)


@pytest.mark.parametrize("isolation", ["shared", "user"])
@pytest.mark.gen_test(timeout=20)
async def test_nothing_is_left_of_a_connection_that_ends_while_its_watching_begins(
    io_loop: IOLoop, isolation: Any
) -> None:
    async with serving(isolated(isolation, lazy=True)) as server:
        waiting = asyncio.create_task(server.watch_resource(ANN, "note:one"))
        await asyncio.sleep(0)
        server.connection_ended(ANN.connection)
        await asyncio.wait({waiting})
        waiting.exception()
        assert not server.watchers
        assert not watched(server)


@pytest.mark.gen_test(timeout=20)
async def test_two_who_begin_at_once_are_one_and_end_with_one_word(io_loop: IOLoop) -> None:
    async with serving(isolated("user", lazy=True)) as server:
        await asyncio.gather(*(server.watch_resource(ANN, "note:one") for _ in range(2)))
        assert watched(server) == {"note:one"}
        await server.unwatch_resource(ANN, "note:one")
        assert not watched(server)
        assert not server.watchers


@pytest.mark.gen_test(timeout=20)
async def test_what_cannot_be_watched_is_refused_to_each_who_wants_it(io_loop: IOLoop) -> None:
    async with serving(scripted()) as server:
        ends = await asyncio.gather(
            *(server.watch_resource(asker, "no:thing") for asker in (ANN, BOB, ANN)), return_exceptions=True
        )
        assert [type(end) for end in ends] == [ToolExecutionError] * 3
        assert not server.watchers
        assert not watched(server)
        await server.watch_resource(ANN, "note:one")
        assert watched(server) == {"note:one"}


@pytest.mark.gen_test(timeout=20)
async def test_one_who_gives_up_takes_nothing_from_another_of_the_same_connection(io_loop: IOLoop) -> None:
    async with serving(isolated("user", lazy=True)) as server:
        first, second = (asyncio.create_task(server.watch_resource(ANN, "note:one")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert watched(server) == {"note:one"}


class _Stream:
    """A stream of 2026-07-28 that ends as soon as it is there."""

    async def __aenter__(self) -> "_Stream":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def __aiter__(self) -> "_Stream":
        return self

    async def __anext__(self) -> None:
        raise StopAsyncIteration


@pytest.mark.parametrize("tells_of_lists", [False, True])
@pytest.mark.gen_test(timeout=20)
async def test_a_stream_that_ends_is_opened_again_and_what_was_missed_is_said(
    io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch, tells_of_lists: bool
) -> None:
    monkeypatch.setattr(watch, "_LISTEN_PAUSE", 0.05)
    opened: list[Any] = []
    missed: list[str] = []

    def listen(**asked: Any) -> _Stream:
        opened.append(asked["resource_subscriptions"])
        return _Stream()

    changes = SimpleNamespace(list_changed=tells_of_lists, subscribe=True)
    capabilities = SimpleNamespace(tools=changes, prompts=changes, resources=changes)
    connection: Any = SimpleNamespace(
        is_modern=True, capabilities=capabilities, client=SimpleNamespace(listen=listen)
    )
    resources = WatchedResources()
    resources.want(frozenset({"note:one"}))
    keeping = asyncio.create_task(resources.keep(connection, print, missed.append))
    await resources.watching("note:one")
    await until(lambda: len(opened) > 2, seconds=3, what="opening it again")
    if tells_of_lists:
        await until(lambda: {"tools", "prompts", "resources"} <= set(missed), seconds=3)
    else:
        assert not missed
    keeping.cancel()
    await asyncio.wait({keeping})
