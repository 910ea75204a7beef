"""``fastmcp.Client`` does what a client does: ``fastmcp_client.py URL``; the token is in MCPGW_TOKEN."""

import asyncio
import json
import os
import sys
from typing import Any

from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport


async def answer(message: str, response_type: Any, params: Any, context: Any) -> Any:
    """Fill the form in."""
    return {"response": "yes"}


async def main(url: str) -> None:
    """Do everything once, and print what came of it."""
    steps: list[float] = []
    waiting = asyncio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    async def on_waiting(progress: float, total: float | None, message: str | None) -> None:
        waiting.set()

    headers = {"Authorization": f"Bearer {os.environ['MCPGW_TOKEN']}"}
    async with Client(StreamableHttpTransport(url, headers=headers), elicitation_handler=answer) as client:
        tools = await client.list_tools()
        counted = await client.call_tool("main__test_tool_with_progress", {}, progress_handler=on_progress)
        call = asyncio.create_task(client.call_tool("main__test_wait", {}, progress_handler=on_waiting))
        async with asyncio.timeout(10):
            await waiting.wait()
        call.cancel()
        await asyncio.wait({call})
        resource: Any = await client.read_resource("test://static-text")
        prompt: Any = await client.get_prompt("main__test_prompt_with_arguments", {"arg1": "a", "arg2": "b"})
        elicited: Any = await client.call_tool("main__test_elicitation", {"message": "Go on?"})
        found = {
            "tools": [tool.name for tool in tools],
            "progress": steps,
            "is_error": counted.is_error,
            "cancelled": call.cancelled(),
            "resource": resource[0].text,
            "prompt": prompt.messages[0].content.text,
            "elicited": elicited.content[0].text,
        }
    print(json.dumps(found))  # noqa: T201 - the answer


asyncio.run(main(*sys.argv[1:]))
