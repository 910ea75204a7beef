#!/usr/bin/env python3
"""Show a running gateway live: its servers, its events, calls, and a network cable that is pulled out.

    make run                                                  in one terminal
    export MCPGW_TOKEN="$(mcpgw token create --user me)"      in another
    .venv/bin/python examples/live_demo.py

It uses the project's own client (``mcpgw.client``) and is meant to be read as an example of it;
``test-websocket.py`` speaks the same protocol without. What it saves it deletes again.
Exit code: 0 all went well, 1 something did not, 2 wrong usage.
"""

# ruff: noqa: T201 - it prints: that is its work

import argparse
import asyncio
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from mcpgw.client import GAP, ClientError, Gateway, Progress, Refused, Subscription

OUTAGE_SECONDS = 1.0


class Cable:
    """A network cable between the client and the gateway, which can be pulled out and put back."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._plugged = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self.url = ""

    @asynccontextmanager
    async def laid(self) -> AsyncIterator["Cable"]:
        """The cable, with `url` at its near end."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self.pull_out()
            await asyncio.gather(*self._carrying)

    def pull_out(self) -> None:
        """Lose whatever is on its way."""
        self._plugged = False
        for writer in self._writers:
            writer.transport.abort()

    def put_back(self) -> None:
        """Let new connections through again."""
        self._plugged = True

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._plugged:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))
        self._writers -= {writer, far_writer}

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


def printable(value: object) -> str:
    """Words of a gateway or a server, safe for a terminal: one line, at most 200 characters."""
    return "".join(sign if sign.isprintable() else " " for sign in str(value)[:200])


def show(title: str, text: object = "") -> None:
    """One line of what happens."""
    print(f"{title:<22}{printable(text)}".rstrip(), flush=True)


async def follow(events: Subscription) -> None:
    """Print the events of a channel until the task is cancelled."""
    async for event in events:
        if event.type == GAP:
            show(f"  {event.channel}", "events are missing for good: what follows is the present state")
        else:
            shown = ", ".join(
                f"{name}={event.data[name]}"
                for name in ("serverId", "toolName", "state", "tools", "success", "durationMs", "message")
                if name in event.data
            )
            show(f"  {event.type}", shown)


async def memory(gateway: Gateway, tool: str, params: dict[str, Any]) -> Any:
    """Call a tool of the memory server, and show how long it took."""

    def on_progress(progress: Progress) -> None:
        show(f"  {tool}", f"{progress.progress} of {progress.total or '?'}")

    started = time.perf_counter()
    answer = await gateway.call("memory", tool, params, on_progress=on_progress, timeout=30)
    show(f"called {tool}", f"{(time.perf_counter() - started) * 1000:.1f} ms, success={answer.success}")
    if not answer.success:
        raise RuntimeError(f"{tool}: {printable(answer.result)}")
    return answer.result


async def demonstrate(gateway: Gateway, cable: Cable | None) -> None:
    """Everything that is shown, one after the other."""
    status = await gateway.status()
    show("connected", f"as {status['user']}, {await gateway.ping() * 1000:.1f} ms away")
    tools = await gateway.list_tools()
    show("tools", ", ".join(f"{tool['serverId']}/{tool['name']}" for tool in tools))
    project = f"live-demo-{secrets.token_hex(4)}"
    async with gateway.subscribe("servers") as servers, gateway.subscribe("calls") as calls:
        following = [asyncio.create_task(follow(events)) for events in (servers, calls)]
        try:
            text = "a word that outlives a broken network"
            saved = await memory(gateway, "memory_save", {"project": project, "content": text})
            try:
                if cable is not None:
                    await outage(gateway, cable, project)
                await speak_in_a_room(gateway)
            finally:
                await memory(gateway, "memory_delete", {"id": saved["memory"]["id"]})
            await gateway.ping()  # what the call has told is there too
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)


async def outage(gateway: Gateway, cable: Cable, project: str) -> None:
    """Pull the cable, ask for something, put the cable back: the call is answered, once."""
    show("cable pulled out")
    cable.pull_out()
    call = asyncio.create_task(memory(gateway, "memory_search", {"project": project}))
    await asyncio.sleep(OUTAGE_SECONDS)
    if call.done():
        raise RuntimeError("a call was answered without a network")
    show("cable put back", f"after {OUTAGE_SECONDS:g} s; the call still waits")
    cable.put_back()
    found = (await call)["memories"]
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} memories were found instead of 1")


async def speak_in_a_room(gateway: Gateway) -> None:
    """Say something to everyone in a room, and hear it."""
    try:
        async with gateway.subscribe("room:live-demo", types=["room.message"]) as room:
            await gateway.publish("room:live-demo", {"hello": "everyone"})
            async with asyncio.timeout(10):
                message = await anext(room)
            show("heard in the room", f"{message.data['user']}: {message.data['payload']}")
    except Refused:
        show("no rooms", "this token has not the scope rooms:join")


async def run(url: str, token: str) -> int:
    """Connect, through a cable of our own where there is no TLS, and show everything."""
    parts = urlsplit(url)
    try:
        if parts.scheme in ("https", "wss") or parts.hostname is None:
            async with Gateway(url, token) as gateway:
                await demonstrate(gateway, None)
        else:
            cable = Cable(parts.hostname, parts.port or 80)
            async with cable.laid(), Gateway(cable.url, token, longest_pause=1.0) as gateway:
                await demonstrate(gateway, cable)
    except ClientError as error:
        print(f"{error.code}: {printable(error.message)}", file=sys.stderr)
        return 1
    except (RuntimeError, KeyError, TypeError, TimeoutError) as error:
        print(f"not as it should be: {printable(repr(error))}", file=sys.stderr)
        return 1
    show("all went well")
    return 0


def main() -> int:
    """Read the options and answer the exit code."""
    parser = argparse.ArgumentParser(description="Show a running gateway live.")
    url = os.environ.get("MCPGW_URL") or "http://127.0.0.1:3000"
    parser.add_argument("--url", default=url, help="else MCPGW_URL; now: %(default)s")
    options = parser.parse_args()
    token = (os.environ.get("MCPGW_TOKEN") or "").strip()
    if not token:
        print('MCPGW_TOKEN is not set: export MCPGW_TOKEN="$(mcpgw token create --user me)"', file=sys.stderr)
        return 2
    try:
        return asyncio.run(run(options.url, token))
    except ValueError as error:
        print(printable(error), file=sys.stderr)
        return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
