"""Listeners that share an audience: prepared once, given in order, whoever comes and goes meanwhile."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from mcpgw.bus import LocalBus
from mcpgw.wire.events import Event

CALL = {"callId": "1", "user": "ann", "serverId": "s", "toolName": "t"}


@dataclass(frozen=True)
class Audience:
    """Prepares the line of a log, or nothing for those that are not its own; equal by its name."""

    name: str
    owner: str | None = None
    prepared: list[str] = field(default_factory=list, compare=False)
    counts: list[int] = field(default_factory=list, compare=False)

    def prepare(self, event: Event) -> str | None:
        """The line with the audience's name."""
        line = str(event.data.get("line", event.type.name))
        self.prepared.append(line)
        if line == "fault":
            raise ZeroDivisionError("a fault in preparing")
        return None if line == "not for us" else f"{self.name}: {line}"

    def delivered(self, _event: Event, count: int) -> None:
        """Remember how many it was."""
        self.counts.append(count)


def say(bus: LocalBus, line: str) -> None:
    bus.publish("server.log", {"serverId": "a", "level": "info", "line": line})


def test_an_event_is_prepared_once_for_all_of_an_equal_audience() -> None:
    bus = LocalBus(100, 300)
    first, equal, other = Audience("us"), Audience("us"), Audience("them")
    heard: list[Any] = []
    for audience in (first, equal, equal, other):
        bus.listen("servers", heard.append, audience)
    bus.listen("servers", lambda event: heard.append(event.data["line"]))
    say(bus, "a")
    say(bus, "not for us")
    assert sorted(heard) == ["a", "not for us", "them: a", "us: a", "us: a", "us: a"]
    assert (first.prepared, equal.prepared) == (["a", "not for us"], [])
    assert (first.counts, other.counts) == ([3], [1])
    assert bus.listeners() == {"servers": 5}


def test_where_events_have_owners_only_the_owners_audience_is_asked() -> None:
    bus = LocalBus(100, 300)
    ann, bob, all_of_them = Audience("ann", "ann"), Audience("bob", "bob"), Audience("all")
    for audience in (ann, bob, all_of_them):
        bus.listen("calls", lambda _: None, audience)
    bus.publish("call.started", CALL, owner="ann")
    bus.publish("call.cancelled", CALL | {"durationMs": 1}, owner="eve")
    bus.publish("call.failed", CALL | {"code": "timeout", "durationMs": 1})
    assert (ann.prepared, bob.prepared) == (["call.started"], [])
    assert all_of_them.prepared == ["call.started", "call.cancelled", "call.failed"]


def test_who_stops_while_an_event_goes_round_is_given_nothing_more_and_is_not_counted() -> None:
    bus = LocalBus(100, 300)
    audience = Audience("us")
    heard: list[str] = []
    stops: list[Callable[[], None]] = []

    def leaving(_line: str) -> None:
        for stop in stops:
            stop()
            stop()

    stops.append(bus.listen("servers", leaving, audience))
    stops.append(bus.listen("servers", heard.append, audience))
    bus.listen("servers", heard.append, audience)
    say(bus, "a")
    say(bus, "b")
    assert heard == ["us: a", "us: b"]
    assert audience.counts == [2, 1]
    assert bus.listeners() == {"servers": 1}


def test_who_comes_while_events_wait_to_go_round_is_given_only_what_was_published_after() -> None:
    bus = LocalBus(100, 300)
    audience = Audience("us")
    heard: list[str] = []
    late: list[str] = []

    def meddling(line: str) -> None:
        heard.append(line)
        if line == "us: a":
            say(bus, "before")
            bus.listen("servers", late.append, audience)
            say(bus, "after")

    bus.listen("servers", meddling, audience)
    say(bus, "a")
    assert heard == ["us: a", "us: before", "us: after"]
    assert late == ["us: after"]
    say(bus, "b")
    assert late == ["us: after", "us: b"]


def test_a_fault_in_preparing_or_in_one_listener_keeps_the_event_from_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = LocalBus(100, 300)
    heard: list[str] = []

    def faulty(_line: str) -> None:
        raise ZeroDivisionError("a fault in a reader")

    with caplog.at_level(logging.ERROR):
        bus.listen("servers", faulty, Audience("us"))
        bus.listen("servers", heard.append, Audience("us"))
        bus.listen("servers", lambda event: heard.append(str(event.data["line"])))
        say(bus, "a")
        say(bus, "fault")
    assert sorted(heard) == ["a", "fault", "us: a"]
    assert [record.message for record in caplog.records] == [
        "a listener of servers raised",
        "an event of servers could not be prepared",
    ]


def test_an_audience_is_forgotten_with_its_last_listener() -> None:
    bus = LocalBus(100, 300)
    first, second = Audience("us"), Audience("us")
    stop = bus.listen("servers", lambda _: None, first)
    say(bus, "a")
    stop()
    say(bus, "b")
    assert bus.listeners() == {}
    bus.listen("servers", lambda _: None, second)
    say(bus, "c")
    assert (first.prepared, second.prepared) == (["a"], ["c"])
