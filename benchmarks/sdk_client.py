"""The client of the MCP SDK in place of the load generator: what a Python program has without a gateway."""

import asyncio
import time
from array import array
from multiprocessing.connection import Connection

from mcp import Client, StdioServerParameters

from benchmarks.answers import first_number, text_of
from benchmarks.connections import Endpoint
from benchmarks.outcome import Outcome


def serve(pipe: Connection, endpoint: Endpoint, in_flight: int) -> None:
    """Run a round for each number of seconds that comes through `pipe`, until it is closed."""
    asyncio.run(_serve(pipe, endpoint, in_flight))


async def _serve(pipe: Connection, endpoint: Endpoint, in_flight: int) -> None:
    if endpoint.url:
        client = Client(endpoint.url)
    else:
        command, *arguments = endpoint.command
        client = Client(StdioServerParameters(command=command, args=arguments))
    async with client:
        await client.list_tools()  # the client holds results against the tools' schemas
        pipe.send(True)
        loop = asyncio.get_running_loop()
        while True:
            try:
                seconds = await loop.run_in_executor(None, pipe.recv)
            except EOFError:
                return
            pipe.send(await _round(client, in_flight, seconds))


async def _round(client: Client, in_flight: int, seconds: float) -> Outcome:
    latencies = array("Q")
    wrong: list[str] = []
    number = first_number()
    clock = time.monotonic_ns
    used, begun = time.process_time(), clock()
    end = begun + int(seconds * 1e9)

    async def worker() -> None:
        nonlocal number
        while (started := clock()) < end:
            number += 1
            text = text_of(number).decode()
            result = await client.call_tool("echo", {"text": text})
            if not result.is_error and [getattr(block, "text", None) for block in result.content] == [text]:
                latencies.append(clock() - started)
            else:
                wrong.append(repr(result)[:300])

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    sample = wrong[0] if wrong else None
    used = time.process_time() - used
    return Outcome((clock() - begun) / 1e9, latencies, len(wrong), 0, sample, used)
