"""Servers over HTTP that are restarted, or whose port is closed for a while."""

import asyncio
import time
from collections.abc import Callable

import pytest

from tests.support.chaos import ALONE, SOON, code_of, connected, servers_of, text_of, watching, web_server
from tests.support.gateway_process import GatewayProcess
from tests.support.socket_client import tool_call

StartProcess = Callable[..., GatewayProcess]
META = {"handshake": '["progressToken"]', "2026-07-28": '["progressToken"]'}


@pytest.mark.parametrize("era", ["handshake", "2026-07-28"])
@pytest.mark.gen_test(timeout=40)
async def test_a_server_restarted_between_two_calls_is_nothing_to_its_users(
    gateway_process: StartProcess, era: str
) -> None:
    async with web_server(*(["--handshake"] if era == "handshake" else [])) as web:
        gateway = gateway_process(configuration=ALONE + f"[servers.web]\nurl = {web.url!r}\n")
        async with connected(gateway) as client:
            assert await text_of(client, "web", "meta") == META[era]
            version = (await servers_of(gateway))["web"]["protocolVersion"]
            assert (version < "2026") == (era == "handshake")
            await web.replace()
            began = time.monotonic()
            # Its session is lost, or its stream of changes: the call is sent again, on the next one.
            assert await text_of(client, "web", "meta", call_id="again") == META[era]
            assert time.monotonic() - began < 2 * SOON


@pytest.mark.gen_test(timeout=40)
async def test_a_port_that_is_closed_for_a_while_refuses_at_once_and_is_found_when_it_opens(
    gateway_process: StartProcess,
) -> None:
    closed_for = 3.5
    async with web_server() as web:
        gateway = gateway_process(
            configuration=ALONE + f"[servers.web]\nurl = {web.url!r}\n",
            arguments=["--backends-retry-maximum", "1", "--backends-failed-after", "3"],
        )
        async with watching(gateway) as watch, connected(gateway) as client:
            await client.send(tool_call("web", "wait", call_id="waits"))
            await text_of(client, "web", "meta", call_id="before")
            web.kill()
            closed_at = time.monotonic()
            assert code_of(await client.end_of("waits", seconds=2)) == "outcome_unknown"
            attempt = 0
            while time.monotonic() - closed_at < closed_for:
                attempt += 1
                began = time.monotonic()
                refused = await client.call("web", "rich", call_id=f"closed-{attempt}")
                assert code_of(refused) == "server_unavailable"
                assert refused["data"].get("retryAfterMs", 0) <= 1000
                assert time.monotonic() - began < 2 * SOON
                await asyncio.sleep(0.1)
            await watch.until("status_update", "web")
            assert (await servers_of(gateway))["web"]["state"] == "failed"
            await web.start()
            # Nobody does anything; it is back.
            await watch.until("restarted", "web", seconds=4)
            assert code_of(await client.call("web", "rich", call_id="after")) == "answered"
