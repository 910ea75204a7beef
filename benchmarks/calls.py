"""Tool calls a second and their latency: the SDK's client on a backend directly, and through the gateway.

    python -m benchmarks.calls [--seconds 3] [--rounds 3]

Both sides call the same echo server (`echo_server.py`) in a closed loop, with 1, 16 and 64 calls in flight.
The rounds of the two sides take turns in one run, so that a machine whose speed drifts drifts for both;
what is to be quoted is the ratio. The gateway runs as a process of its own, with everything on that a
default installation has; only the limits of one user's calls and frames are raised.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from mcp import Client, StdioServerParameters
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from benchmarks.support import UNBOUND, gateway, medians, processor_seconds

ECHO_SERVER = Path(__file__).with_name("echo_server.py")
TEXT = "x" * 60
IN_FLIGHT = (1, 16, 64)
CALLS_A_SOCKET = 16

Call = Callable[[], Awaitable[None]]


async def closed_loop(calls: list[Call], seconds: float) -> tuple[float, float]:
    """Keep every one of `calls` busy for `seconds`; answers calls a second and the median latency in ms."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def worker(call: Call) -> None:
        while (started := time.perf_counter()) < end:
            await call()
            latencies.append(time.perf_counter() - started)

    begun = time.perf_counter()
    await asyncio.gather(*(worker(call) for call in calls))
    return len(latencies) / (time.perf_counter() - begun), statistics.median(latencies) * 1000


@asynccontextmanager
async def direct(_url: str, _token: str, in_flight: int) -> AsyncIterator[list[Call]]:
    """Calls of the SDK's client on a backend of its own."""
    parameters = StdioServerParameters(command=sys.executable, args=[str(ECHO_SERVER)])
    async with Client(parameters) as client:
        await client.list_tools()

        async def call() -> None:
            result = await client.call_tool("echo", {"text": TEXT})
            assert not result.is_error

        yield [call] * in_flight


class Socket:
    """One WebSocket of the gateway that keeps many calls in flight."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self._connection = connection
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._next = 0
        self._reader = asyncio.create_task(self._read())

    async def call(self) -> None:
        """One call, from its frame to its answer."""
        self._next += 1
        call_id = str(self._next)
        self._waiting[call_id] = asyncio.get_running_loop().create_future()
        data = {"serverId": "echo", "toolName": "echo", "params": {"text": TEXT}}
        self._connection.write_message(json.dumps({"type": "tool_call", "id": call_id, "data": data}))
        await self._waiting[call_id]

    async def _read(self) -> None:
        while (message := await self._connection.read_message()) is not None:
            frame = json.loads(message)
            if "id" in frame:
                assert frame["type"] == "tool_response", frame
                self._waiting.pop(frame["id"]).set_result(None)

    def close(self) -> None:
        """End it."""
        self._reader.cancel()
        self._connection.close()


@asynccontextmanager
async def through_gateway(url: str, token: str, in_flight: int) -> AsyncIterator[list[Call]]:
    """Calls over as many sockets as the default limit of calls on one socket asks for."""
    request = HTTPRequest(url, headers={"Authorization": f"Bearer {token}"})
    sockets = [Socket(await websocket_connect(request)) for _ in range(-(-in_flight // CALLS_A_SOCKET))]
    yield [sockets[number % len(sockets)].call for number in range(in_flight)]
    for socket in sockets:
        socket.close()


async def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each side")
    options = parser.parse_args()
    limits = ("calls.rate", "calls.burst", "websocket.frames_rate", "websocket.frames_burst")
    echo = {"echo": [sys.executable, str(ECHO_SERVER)]}
    with gateway(dict.fromkeys(limits, UNBOUND), echo) as server:
        url = f"ws://127.0.0.1:{server.port}{server.path}"
        token, pid = server.token("benchmark", "tools:call"), server.pid
        print("in flight | direct: calls/s, ms | gateway: calls/s, ms, CPU µs a call | gateway/direct")
        for in_flight in IN_FLIGHT:
            sides: dict[str, list[tuple[float, float, float]]] = {"direct": [], "gateway": []}
            for _ in range(options.rounds):
                for name, side in (("direct", direct), ("gateway", through_gateway)):
                    async with side(url, token, in_flight) as calls:
                        await closed_loop(calls, options.seconds / 5)
                        before = processor_seconds(pid)
                        rate, latency = await closed_loop(calls, options.seconds)
                        used = processor_seconds(pid) - before
                        sides[name].append((rate, latency, used / (rate * options.seconds) * 1e6))
            ratio = statistics.median(
                gateway[0] / plain[0]
                for plain, gateway in zip(sides["direct"], sides["gateway"], strict=True)
            )
            a, b = medians(sides["direct"]), medians(sides["gateway"])
            direct_side, gateway_side = f"{a[0]:8.0f} {a[1]:8.2f}", f"{b[0]:8.0f} {b[1]:8.2f} {b[2]:8.0f}"
            print(f"{in_flight:9} | {direct_side} | {gateway_side} | {ratio:6.2f}")


if __name__ == "__main__":
    asyncio.run(main())
