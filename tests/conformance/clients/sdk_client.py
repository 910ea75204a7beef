"""``mcp.Client`` does what a client does: ``sdk_client.py URL auto|legacy``; the token is in MCPGW_TOKEN."""

import asyncio
import json
import os
import sys
from typing import Any

import httpx2
import mcp_types as types
from mcp.client import Client, ClientRequestContext
from mcp.client.streamable_http import streamable_http_client


async def answer(context: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
    """Fill the form in."""
    return types.ElicitResult(action="accept", content={"response": "yes"})


async def main(url: str, mode: Any) -> None:
    """Do everything once, and print what came of it."""
    steps: list[float] = []
    waiting = asyncio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    async def on_waiting(progress: float, total: float | None, message: str | None) -> None:
        waiting.set()

    headers = {"Authorization": f"Bearer {os.environ['MCPGW_TOKEN']}"}
    async with httpx2.AsyncClient(headers=headers, timeout=30) as http:
        transport = streamable_http_client(url, http_client=http)
        async with Client(transport, mode=mode, elicitation_callback=answer) as client:
            tools = await client.list_tools()
            counted = await client.call_tool(
                "main__test_tool_with_progress", {}, progress_callback=on_progress
            )
            call = asyncio.create_task(client.call_tool("main__test_wait", {}, progress_callback=on_waiting))
            async with asyncio.timeout(10):
                await waiting.wait()
            call.cancel()
            await asyncio.wait({call})
            resource = await client.read_resource("test://static-text")
            prompt = await client.get_prompt("main__test_prompt_with_arguments", {"arg1": "a", "arg2": "b"})
            elicited = await client.call_tool("main__test_elicitation", {"message": "Go on?"})
            found = {
                "tools": [tool.name for tool in tools.tools],
                "progress": steps,
                "is_error": counted.is_error,
                "cancelled": call.cancelled(),
                "resource": resource.contents[0].model_dump(exclude_none=True).get("text"),
                "prompt": prompt.messages[0].content.model_dump(exclude_none=True).get("text"),
                "elicited": elicited.content[0].model_dump(exclude_none=True).get("text"),
            }
    print(json.dumps(found))  # noqa: T201 - the answer


asyncio.run(main(*sys.argv[1:]))
