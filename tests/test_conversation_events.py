"""Random talk of several connections: events come in order and whole, and calls end once."""

import asyncio
import json
from collections import Counter
from typing import Any

from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpgw.settings import WebSocketSettings
from mcpgw.wire.events import Position
from tests.support.talk import Frame, Talk, text_result

SCOPES = ("tools:call", "events:read", "rooms:join")
CHANNELS = ("servers", "calls", "user:ann", "room:a", "room:b")
TYPES = ("server.log", "server.starting", "call.started", "room.message", "room.joined")
CALL_IDS = ("a", "b")
# A session is named by the number of the connection that it began with, a position by its offset.
WHO = st.integers(0, 1)

channels = st.sampled_from((*CHANNELS, "user:bob", "room:-", "nosuch"))
since = st.none() | st.integers(0, 60) | st.sampled_from(["", "0123456789abcdef-3", "nonsense"])
filters = st.none() | st.lists(st.sampled_from(TYPES), max_size=2)
steps = st.one_of(
    st.tuples(st.just("subscribe"), WHO, st.sampled_from(CHANNELS), since, filters),
    st.tuples(st.just("subscribe"), WHO, channels, since, filters),
    st.tuples(st.just("unsubscribe"), WHO, channels),
    st.tuples(
        st.just("publish"), WHO, channels, st.sampled_from([None, 1.5, "ä", {"in": ["side"]}, "x" * 300])
    ),
    st.tuples(st.just("call"), WHO, st.sampled_from(CALL_IDS), st.sampled_from(["say", "wait", "break"])),
    st.tuples(st.just("cancel"), WHO, st.sampled_from(CALL_IDS)),
    st.tuples(st.just("resume"), WHO, st.integers(0, 3), st.sets(st.sampled_from(CALL_IDS)), since),
    st.tuples(st.just("return"), WHO, st.sets(st.sampled_from(CALL_IDS)), since | st.just("seen")),
    st.tuples(st.just("return"), WHO, st.sets(st.sampled_from(CALL_IDS)), since | st.just("seen")),
    st.tuples(st.just("happen"), st.sampled_from(["server.log", "server.starting", "server.stopped"])),
    st.tuples(st.sampled_from(["cut", "leave"]), WHO),
    st.tuples(st.sampled_from(["turn", "release"])),
)


class Channel:
    """What one connection was told of one channel since it last subscribed to it."""

    def __init__(self, answer: Frame, types: list[str] | None) -> None:
        self.start: int = answer["data"]["offset"]
        self.types = types
        self.offsets: list[int] = []

    def take(self, frame: Frame, epoch: str) -> None:
        """One event; it is newer than the one before, whatever that was."""
        position = Position.parse(frame["id"])
        assert position is not None
        assert position.epoch == epoch
        assert not self.offsets or position.offset > self.offsets[-1]
        assert self.types is None or frame["type"] in self.types
        self.offsets.append(position.offset)


class Client:
    """One connection, and what it holds true."""

    def __init__(self, talk: Talk, number: int) -> None:
        self.talk = talk
        self.number = number
        self.session = talk.session
        self.channels: dict[str, Channel] = {}
        self.asked: dict[str, list[str] | None] = {}
        self.begun: Counter[str] = Counter()
        self.named: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.is_over = False


class World:
    """A gateway without sockets, two clients at a time, and all that is ever published."""

    def __init__(self) -> None:
        first = Talk(scopes=SCOPES, websocket=WebSocketSettings(max_calls=2))
        self.gateway, self.bus = first.gateway, first.bus
        self.published = list(self.bus.since(Position(self.bus.position.epoch, 0), CHANNELS).events)
        for channel in CHANNELS:
            self.bus.listen(channel, self.published.append)
        self.filters: dict[str, dict[str, list[str] | None]] = {}
        self.members: dict[tuple[str, str], int] = {}
        self.clients = [Client(first, 0)]
        self.clients.append(self._newcomer())

    def _newcomer(self) -> Client:
        return Client(self.clients[0].talk.again(scopes=SCOPES), len(self.clients))

    def client(self, who: int) -> Client:
        """One of the two that were last to come; another comes in the place of one that is gone."""
        client = self.clients[-1 - who]
        if client.is_over:
            client = self._newcomer()
            self.clients.append(client)
        return client

    def say(self, client: Client, kind: str, identifier: str | None = None, **data: Any) -> None:
        frame: Frame = {"type": kind, "data": data}
        if identifier is not None:
            frame["id"] = identifier
        client.talk.conversation.receive(json.dumps(frame))

    def position(self, since: int | str | None) -> dict[str, str]:
        if since is None:
            return {}
        return {"since": since if isinstance(since, str) else f"{self.bus.position.epoch}-{since}"}

    async def step(self, what: str, *rest: Any) -> None:
        """Let one thing happen."""
        if what in ("turn", "release"):
            for future in self.gateway.waiting if what == "release" else ():
                if not future.done():
                    future.set_result(text_result("done"))
            for _ in range(3):
                await asyncio.sleep(0)
        elif what == "happen":
            data = {"serverId": "s"} | ({"level": "info", "line": "x"} if rest[0] == "server.log" else {})
            self.bus.publish(rest[0], data)
        else:
            self._by_client(what, self.client(rest[0]), *rest[1:])
        self.check()

    def _by_client(self, what: str, client: Client, *rest: Any) -> None:
        if what in ("cut", "leave"):
            client.talk.conversation.lost(None if what == "cut" else 1000)
            client.is_over = True
        elif what == "return":
            self._return(client, *rest)
        elif what == "subscribe":
            channel, since, types = rest
            client.asked[channel] = types
            wanted = {} if types is None else {"filter": {"types": types}}
            self.say(client, "subscribe", f"sub {channel}", channel=channel, **self.position(since), **wanted)
        elif what == "unsubscribe":
            self.say(client, "unsubscribe", channel=rest[0])
        elif what == "publish":
            self.say(client, "publish", "publish", channel=rest[0], payload=rest[1])
        elif what == "call":
            call_id, tool = rest
            client.begun[call_id] += 1
            params = {"key": call_id, "text": call_id}
            self.say(client, "tool_call", call_id, serverId="script", toolName=tool, params=params)
        elif what == "cancel":
            client.named[rest[0]] += 1
            self.say(client, "cancel", rest[0])
        else:
            number, pending, since = rest
            session = self.clients[number].session if number < len(self.clients) else "none"
            self._resume(client, session, pending, since)

    def _return(self, client: Client, pending: set[str], since: int | str | None) -> None:
        """The socket breaks, something happens, and the client comes back for what it was given before."""
        client.talk.conversation.lost(None)
        client.is_over = True
        self.bus.publish("server.starting", {"serverId": "s"})
        self.clients.append(self._newcomer())
        if since == "seen":
            since = max(
                (offset for each in client.channels.values() for offset in each.offsets), default=None
            )
        self._resume(self.clients[-1], client.session, pending, since)

    def _resume(self, client: Client, session: str, pending: set[str], since: int | str | None) -> None:
        client.named.update(pending)
        data = {"session": session, "pending": sorted(pending), **self.position(since)}
        self.say(client, "resume", "resume", **data)

    def check(self) -> None:
        """Hold what everybody was told against what was published."""
        for client in self.clients:
            for frame in client.talk.recorder.take():
                self._take(client, frame)
            if client.talk.recorder.closed is not None and not client.is_over:
                client.talk.conversation.lost(int(client.talk.recorder.closed[0]))
                client.is_over = True
            if not client.is_over:
                for name, channel in client.channels.items():
                    self._check_channel(client, name, channel)
        # A cancel that finds no call is refused under its id; an end that is named at a resume comes again.
        for call_id in CALL_IDS:
            begun = sum(client.begun[call_id] + client.named[call_id] for client in self.clients)
            assert sum(client.ends[call_id] for client in self.clients) <= begun

    def _take(self, client: Client, frame: Frame) -> None:
        kind, data = frame["type"], frame.get("data", {})
        if kind == "status":
            client.session = data["session"]
        elif kind == "subscribed":
            name, types = data["channel"], self.filters.setdefault(client.session, {})
            if frame.get("id", "").startswith("sub "):
                types[name] = client.asked[name]
            else:
                note("resumed with a channel")
            client.channels[name] = Channel(frame, types[name])
            if name.startswith("room:"):
                # What was said before somebody came in is not for them.
                joined = self.members.setdefault((client.session, name), max(self._own_comings(client)))
                client.channels[name].start = max(client.channels[name].start, joined)
        elif kind == "unsubscribed":
            del client.channels[data["channel"]]
            self.members.pop((client.session, data["channel"]), None)
        elif kind == "published":
            [said] = [event for event in self.published if event.position.offset == data["offset"]]
            assert (said.type.name, said.channel) == ("room.message", data["channel"])
        elif "channel" in frame:
            client.channels[frame["channel"]].take(frame, self.bus.position.epoch)
        elif kind == "tool_response" or (kind == "error" and frame.get("id") in CALL_IDS):
            client.ends[frame["id"]] += 1

    def _check_channel(self, client: Client, name: str, channel: Channel) -> None:
        # Whether clients hear of their own coming in is left to the gateway.
        own = self._own_comings(client)
        expected = [
            event.position.offset
            for event in self.published
            if event.channel == name
            and event.position.offset > channel.start
            and (channel.types is None or event.type.name in channel.types)
        ]
        told = [offset for offset in channel.offsets if offset > channel.start and offset not in own]
        assert told == [offset for offset in expected if offset not in own]

    def _own_comings(self, client: Client) -> set[int]:
        return {
            event.position.offset
            for event in self.published
            if event.type.name == "room.joined" and event.data["clientId"] == f"c-{client.talk.number}"
        }

    async def end(self) -> None:
        """Let every call come to its end."""
        for _ in range(3):  # what was begun last has still to reach its tool
            await self.step("release")
        for client in self.clients:
            await client.talk.conversation.wait_settled()
        self.check()
        for client in self.clients:
            if not client.is_over:
                assert not client.begun - client.ends, "every call of a connection that lasts has an end"
            client.talk.conversation.lost(1000)
        self.clients[0].talk.sessions.close()


@settings(max_examples=100, print_blob=False)
@given(st.lists(steps, max_size=30))
def test_no_talk_of_clients_raises_nor_loses_or_doubles_or_disorders_an_event(script: list[Any]) -> None:
    async def run() -> None:
        world = World()
        for what, *rest in script:
            await world.step(what, *rest)
        await world.end()

    asyncio.run(run())
