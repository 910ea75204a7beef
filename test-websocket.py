#!/usr/bin/env python3
"""Check a running gateway over its WebSocket, step by step, and say what to do where a step fails.

    make run                                                            in one terminal
    export MCPGW_TOKEN="$(.venv/bin/mcpgw token create --user me)"      in another
    .venv/bin/python test-websocket.py

It needs Python 3.11 and Tornado, none of the gateway's own code, and is meant to be read as an example of a
client. ``test-websocket.js`` does the same with Node. What it saves it deletes again.
Exit code: 0 all steps passed, 1 a step failed, 2 wrong usage.
"""

import argparse
import asyncio
import io
import json
import os
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

try:
    from tornado.httpclient import HTTPClientError, HTTPRequest
    from tornado.iostream import StreamClosedError
    from tornado.websocket import (
        WebSocketClientConnection,
        WebSocketClosedError,
        WebSocketError,
        websocket_connect,
    )
except ModuleNotFoundError:
    print("this script needs Tornado: use the project's own Python, or: pip install tornado", file=sys.stderr)
    sys.exit(2)

Frame = dict[str, Any]


def gateway_command() -> str:
    """How a shell finds ``mcpgw`` from here: where ``make run`` has put it beside this file, else on PATH."""
    here = Path(__file__).resolve().parent
    if not (here / ".venv/bin/mcpgw").exists():
        return "mcpgw"
    return ".venv/bin/mcpgw" if here == Path.cwd() else shlex.quote(str(here / ".venv/bin/mcpgw"))


START = "start it with: make run"
CREATE = f"{gateway_command()} token create --user me"
CREATE_ONE = f'create one: {CREATE}\nand pass it: export MCPGW_TOKEN="$({CREATE})"'
SEE_LOG = "see the gateway's log: tail logs/gateway.log"
CHECK_URL = f"check --url: another program may have this port\nif the gateway does not run, {START}"
USE_WS = f"the gateway's WebSocket ends in /ws\n{CHECK_URL}"
ADVICE = {
    "auth_failed": f"on the gateway's own machine {CREATE_ONE}",
    "token_expired": CREATE_ONE,
    "permission_denied": f"this token may not do it: {CREATE_ONE}",
    "server_not_found": "switch the memory server on: [memory] enabled = true in mcpgw.toml",
    "server_unavailable": f"the memory server is not ready: try again in some seconds\nor {SEE_LOG}",
    "draining": f"the gateway is ending; when it has ended, {START}",
}
CALL_ENDS = ("tool_response", "error")
CANCEL_TRIES = 5


class StepError(Exception):
    """A step failed: `problem` says what was wrong and `advice` what to do."""

    def __init__(self, problem: str, advice: str = SEE_LOG) -> None:
        super().__init__(problem)
        self.problem = problem
        self.advice = advice


def printable(text: object) -> str:
    """The gateway's own words, safe for a terminal: at most 300 characters, control characters escaped."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in str(text)[:300])


def expect(frame: Frame, kind: str, **members: object) -> Frame:
    """The ``data`` of a frame that has to be of a `kind` and to have these `members`."""
    data: Frame = frame["data"]
    if frame["type"] == kind and all(data.get(name) == value for name, value in members.items()):
        return data
    if frame["type"] == "error":
        code, details = printable(data.get("code")), data.get("details")
        reason = details.get("reason") if isinstance(details, dict) else None
        because = f" ({printable(reason)})" if reason else ""
        raise StepError(f"{code}: {printable(data.get('error'))}{because}", ADVICE.get(code, SEE_LOG))
    if frame["type"] == "tool_response" and data.get("success") is False:
        raise StepError(f"the tool answered with an error: {printable(data.get('result'))}")
    raise StepError(f"a frame {printable(frame['type'])} came that was not expected")


class Connection:
    """A WebSocket to the gateway: sends frames and waits for their answers, at most `timeout` seconds."""

    def __init__(self, websocket: WebSocketClientConnection, token: str, timeout: float) -> None:
        self.websocket = websocket
        self.token = token
        self.timeout = timeout
        self.goodbye = ""

    async def send(self, kind: str, frame_id: str, data: Frame) -> None:
        """Send one frame. Its id comes back on every frame that answers it."""
        frame = {"type": kind, "id": frame_id, "data": data, "timestamp": int(time.time() * 1000)}
        try:
            await self.websocket.write_message(json.dumps(frame))
        except WebSocketClosedError:
            raise self.closed() from None

    async def receive(self, deadline: float | None = None) -> Frame:
        """The next frame, whatever it is; `deadline` is a time of ``time.monotonic``."""
        seconds = self.timeout if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(self.websocket.read_message(), seconds)
        except TimeoutError:
            raise StepError(f"no answer within {self.timeout:g} s") from None
        if message is None:
            raise self.closed()
        text = str(message)
        if len(self.token) >= 16:  # whoever answers there: what he sends back is printed without the token
            text = text.replace(self.token, "[token]")
        try:
            frame = json.loads(text)
            frame = {"data": {}, **frame, "type": str(frame["type"])}
        except (ValueError, TypeError, KeyError):
            raise StepError("what answers does not speak the gateway's protocol", CHECK_URL) from None
        if frame["type"] == "disconnect":
            self.goodbye = f": {printable(frame['data'].get('reason'))}"
        return frame

    async def request(self, kind: str, frame_id: str, data: Frame) -> Frame:
        """Send one frame and wait for its answer; frames for others and a call's progress are passed over."""
        await self.send(kind, frame_id, data)
        deadline = time.monotonic() + self.timeout
        while True:
            frame = await self.receive(deadline)
            if frame.get("id") == frame_id and frame["type"] not in ("tool_progress", "tool_log"):
                return frame

    async def call(self, tool: str, params: Frame, frame_id: str) -> Frame:
        """Call a tool of the memory server."""
        return await self.request("tool_call", frame_id, memory_call(tool, params))

    def closed(self) -> StepError:
        """What to say of a connection that the gateway has closed."""
        code = self.websocket.close_code or 1006  # RFC 6455: it ended without a close frame
        return StepError(f"the gateway closed the connection ({code}{self.goodbye})")


def memory_call(tool: str, params: Frame) -> Frame:
    """The ``data`` of a ``tool_call`` to the memory server."""
    return {"serverId": "memory", "toolName": tool, "params": params}


class Check:
    """The steps. Each returns nothing, or a remark, or raises `StepError`."""

    def __init__(self, url: str, token: str, timeout: float) -> None:
        self.url = url
        self.token = token
        self.timeout = timeout
        self.project = f"test-websocket-{secrets.token_hex(4)}"
        self.saved_id = ""
        self.connection: Connection

    async def connect(self) -> None:
        """Open the WebSocket, without credentials."""
        host = urlsplit(self.url).netloc
        request = HTTPRequest(self.url, connect_timeout=0, request_timeout=0, follow_redirects=False)
        try:
            websocket = await asyncio.wait_for(websocket_connect(request), self.timeout)
        except TimeoutError:
            raise StepError(f"nothing answered at {host} within {self.timeout:g} s", CHECK_URL) from None
        except ConnectionRefusedError:
            raise StepError(f"nothing listens at {host}", f"the gateway does not run: {START}") from None
        except socket.gaierror:
            raise StepError(f"the host of {host} is not known", "check --url") from None
        except HTTPClientError as error:
            if error.code == 403:
                advice = "use 127.0.0.1 in --url, or list the host's name in server.allowed_hosts"
                raise StepError(f"the gateway at {host} refused the host's name (HTTP 403)", advice) from None
            problem = f"{host} answered with HTTP {error.code} and opened no WebSocket"
            raise StepError(problem, USE_WS) from None
        except WebSocketError:
            raise StepError(f"{host} answered with a page and opened no WebSocket", USE_WS) from None
        except (OSError, StreamClosedError):
            raise StepError(f"{host} does not speak WebSocket", CHECK_URL) from None
        if websocket.protocol is not None:
            websocket.protocol.set_nodelay(True)  # else TCP keeps the second of two small frames back
        self.connection = Connection(websocket, self.token, self.timeout)

    async def status(self) -> None:
        """The gateway greets first, and asks for credentials."""
        expect(await self.connection.receive(), "status", requiresAuth=True)

    async def ping(self) -> None:
        """A ping is answered before auth too."""
        expect(await self.connection.request("ping", "ping-1", {}), "pong")

    async def call_before_auth(self) -> None:
        """A call is refused as long as the gateway does not know who calls."""
        frame = await self.connection.call("memory_search", {"project": self.project}, "early-1")
        expect(frame, "error", code="auth_required")

    async def auth(self) -> None:
        """Prove who we are with a token."""
        if not self.token:
            raise StepError("the token is missing", CREATE_ONE)
        frame = await self.connection.request("auth", "auth-1", {"token": self.token})
        expect(frame, "status", authenticated=True)

    async def list_tools(self) -> None:
        """The memory server's tools are there."""
        deadline = time.monotonic() + self.timeout
        while True:
            frame = await self.connection.request("list_tools", "list-1", {"serverId": "memory"})
            # A gateway that has just started may still be starting its memory server.
            if frame["data"].get("code") != "server_unavailable" or time.monotonic() + 0.25 > deadline:
                break
            await asyncio.sleep(0.25)
        tools = {tool["name"] for tool in expect(frame, "tools")["tools"]}
        if missing := sorted({"memory_save", "memory_search"} - tools):
            raise StepError(f"not in the list: {', '.join(missing)}", ADVICE["permission_denied"])

    async def memory_save(self) -> None:
        """Call a tool that writes."""
        params = {"project": self.project, "content": "The quick brown fox was here."}
        frame = await self.connection.call("memory_save", params, "save-1")
        self.saved_id = expect(frame, "tool_response", success=True)["result"]["memory"]["id"]

    async def memory_search(self) -> None:
        """Call a tool that reads."""
        params = {"project": self.project, "query": "brown fox"}
        frame = await self.connection.call("memory_search", params, "search-1")
        memories = expect(frame, "tool_response", success=True)["result"]["memories"]
        if [memory["id"] for memory in memories] != [self.saved_id]:
            raise StepError(f"one memory was saved and {len(memories)} others were found")

    async def unknown_tool(self) -> None:
        """A name with a typing error is refused, and the right one is told."""
        data = expect(
            await self.connection.call("memory_serch", {}, "typo-1"), "error", code="tool_not_found"
        )
        if "'memory_search'" not in data["error"]:
            raise StepError(f"the nearest name is not told: {printable(data['error'])}")

    async def cancel(self) -> str | None:
        """A call that is cancelled at once has exactly one end."""
        data = memory_call("memory_search", {"project": self.project})
        for attempt in range(CANCEL_TRIES):
            frame_id, next_id = f"cancel-{attempt}", f"after-cancel-{attempt}"
            await self.connection.send("tool_call", frame_id, data)
            await self.connection.send("cancel", frame_id, {})
            # A second call: by the time it is answered, a wrong second end of the first would have come.
            await self.connection.send("tool_call", next_id, data)
            ends: list[Frame] = []
            next_ended = False
            deadline = time.monotonic() + self.timeout
            while not (ends and next_ended):
                frame = await self.connection.receive(deadline)
                if frame["type"] not in CALL_ENDS or frame["data"].get("code") == "unknown_call":
                    continue  # unknown_call: the cancel came too late; it answers the cancel, not the call
                next_ended = next_ended or frame.get("id") == next_id
                if frame.get("id") == frame_id:
                    ends.append(frame)
            if len(ends) > 1:
                raise StepError(f"the call had {len(ends)} ends")
            if ends[0]["data"].get("code") == "cancelled":
                return None
            expect(ends[0], "tool_response", success=True)
        return f"each of {CANCEL_TRIES} calls was faster than its cancel"

    async def memory_delete(self) -> None:
        """Leave the gateway as it was."""
        frame = await self.connection.call("memory_delete", {"id": self.saved_id}, "delete-1")
        if expect(frame, "tool_response", success=True)["result"]["deleted"] is not True:
            raise StepError("the memory that was saved is gone already")

    async def close(self) -> None:
        """Say goodbye; the gateway says it too."""
        websocket = self.connection.websocket
        websocket.close(1000)
        try:
            async with asyncio.timeout(self.timeout):
                while await websocket.read_message() is not None:
                    pass
        except TimeoutError:
            raise StepError(f"the gateway did not close within {self.timeout:g} s") from None
        if websocket.close_code != 1000:
            raise StepError(f"the connection ended with the code {websocket.close_code} instead of 1000")


@dataclass
class Result:
    """What came of a step; `passed` is None where it was not run. `ms` are milliseconds."""

    name: str
    passed: bool | None = None
    ms: float | None = None
    problem: str | None = None
    advice: str | None = None
    remark: str | None = None


def steps_of(check: Check) -> list[tuple[str, str, Callable[[], Awaitable[str | None]]]]:
    """Every step: its name, the name of the step that it cannot do without, and what it does."""
    return [
        ("connect", "", check.connect),
        ("status comes first", "connect", check.status),
        ("ping", "connect", check.ping),
        ("call before auth is refused", "connect", check.call_before_auth),
        ("auth", "connect", check.auth),
        ("list_tools", "auth", check.list_tools),
        ("memory_save", "list_tools", check.memory_save),
        ("memory_search", "memory_save", check.memory_search),
        ("unknown tool is refused", "list_tools", check.unknown_tool),
        ("cancel", "list_tools", check.cancel),
        ("memory_delete", "memory_save", check.memory_delete),
        ("close", "connect", check.close),
    ]


async def run(check: Check, report: Callable[[Result], None]) -> list[Result]:
    """Run the steps one by one and `report` each."""
    results: list[Result] = []
    passed = {""}
    for name, needed, step in steps_of(check):
        result = Result(name)
        if needed in passed:
            started = time.perf_counter()
            try:
                result.remark = await step()
                result.passed = True
                passed.add(name)
            except StepError as error:
                result.passed, result.problem, result.advice = False, error.problem, error.advice
            except (KeyError, TypeError, AttributeError) as error:
                # An answer without the members that the protocol promises.
                result.passed, result.problem, result.advice = False, f"malformed answer: {error!r}", SEE_LOG
            result.ms = round((time.perf_counter() - started) * 1000, 1)
        else:
            result.remark = f"not run: it needs {needed}"
        results.append(result)
        report(result)
    return results


def show(result: Result) -> None:
    """Print one step as a line, and what to do below it; the summary counts what was not run."""
    green, red, plain = ("\033[32m", "\033[31m", "\033[0m") if colours() else ("", "", "")
    if result.passed is None:
        return
    if result.passed:
        remark = f"  ({result.remark})" if result.remark else ""
        print(f"{green}✓{plain} {result.name}  {result.ms:.1f} ms{remark}", flush=True)
    else:
        advice = str(result.advice).replace("\n", "\n    ")
        print(f"{red}✗{plain} {result.name}  {result.ms:.1f} ms: {result.problem}\n  → {advice}", flush=True)


def colours() -> bool:
    """Colour only on a terminal, and never where it is not wanted (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def socket_url(text: str) -> str:
    """The address of the WebSocket: ``http`` becomes ``ws``, and a missing path ``/ws``."""
    try:
        url = urlsplit(text)
        usable = url.scheme in ("ws", "wss", "http", "https") and url.hostname and url.port != 0
    except ValueError:
        usable = False
    if not usable or text.split() != [text] or url.username is not None or url.query or url.fragment:
        raise argparse.ArgumentTypeError("give an address such as ws://127.0.0.1:3000/ws")
    path = "/ws" if url.path in ("", "/") else url.path
    return url._replace(scheme=url.scheme.replace("http", "ws"), path=path).geturl()


def seconds(text: str) -> float:
    """A time between 0.1 and 600 seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 600:
        raise argparse.ArgumentTypeError("give seconds, 0.1 to 600")
    return value


def main() -> int:
    """Read the options, run the steps, and answer the exit code."""
    parser = argparse.ArgumentParser(description="Check a running gateway over its WebSocket.")
    url = os.environ.get("MCPGW_URL") or "ws://127.0.0.1:3000/ws"
    parser.add_argument("--url", type=socket_url, default=url, help="else MCPGW_URL; now: %(default)s")
    parser.add_argument("--token", help="else MCPGW_TOKEN, which no other user of the machine can see")
    parser.add_argument("--timeout", type=seconds, default=10.0, help="seconds for each wait (10)")
    parser.add_argument("--json", action="store_true", help="print a report as JSON instead")
    options = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    token = (options.token or os.environ.get("MCPGW_TOKEN") or "").strip()
    check = Check(options.url, token, options.timeout)
    results = asyncio.run(run(check, (lambda _: None) if options.json else show))
    good, bad = (sum(result.passed is wanted for result in results) for wanted in (True, False))
    if options.json:
        steps = [asdict(result) for result in results]
        report = {"url": options.url, "passed": good == len(results), "steps": steps}
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        others = f", {bad} failed, {len(results) - good - bad} not run" if bad else ""
        print(f"{good} of {len(results)} steps passed{others} ({options.url})")
    return 0 if good == len(results) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
