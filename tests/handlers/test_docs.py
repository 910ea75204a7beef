"""``/docs``: the page that shows the OpenAPI document, in a real browser."""

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.support.browser import chromium
from tests.support.gateway_process import GatewayProcess
from tests.support.raw_socket import fetch

PARTS = {
    "/docs": "text/html",
    "/docs/": "text/html",
    "/docs/api.js": "text/javascript",
    "/docs/api.css": "text/css",
}


class Browser:
    """One page of a browser, driven by the Chrome DevTools Protocol."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self._connection = connection
        self._last = 0
        self.complaints: list[str] = []

    async def do(self, method: str, **params: Any) -> dict[str, Any]:
        """Have a method of the protocol done, and answer its result."""
        self._last += 1
        await self._connection.write_message(
            json.dumps({"id": self._last, "method": method, "params": params})
        )
        async with asyncio.timeout(10):
            while True:
                message = await self._connection.read_message()
                assert isinstance(message, str), "the browser has gone"
                said = json.loads(message)
                if said.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                    self.complaints.append(json.dumps(said["params"]))
                if said.get("id") == self._last:
                    return dict(said["result"])

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = await self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + 10
        while not await self.evaluate(expression):
            text = await self.evaluate("document.body.innerText")
            assert time.monotonic() < deadline, f"not {expression}: {text[:2000]} {self.complaints}"
            await asyncio.sleep(0.05)


@asynccontextmanager
async def browsing(url: str, folder: Path) -> AsyncIterator[Browser]:
    """A browser that shows `url`."""
    program, variables = chromium()
    process = await asyncio.create_subprocess_exec(
        program,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
        "about:blank",
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        env={**os.environ, **variables},
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(20):
            while (found := re.search(rb"127\.0\.0\.1:(\d+)/", await process.stderr.readline())) is None:
                pass
        answer = await fetch(f"http://127.0.0.1:{int(found[1])}", "/json")
        [page] = [one for one in answer.json() if one["type"] == "page"]
        connection = await websocket_connect(page["webSocketDebuggerUrl"])
        browser = Browser(connection)
        for domain in ("Runtime", "Log", "Page"):
            await browser.do(f"{domain}.enable")
        await browser.do("Page.navigate", url=url)
        await browser.until("document.readyState === 'complete'")
        try:
            yield browser
        finally:
            connection.close()
    finally:
        process.kill()
        await process.communicate()


@pytest.mark.gen_test
async def test_its_parts_are_there_for_everybody_and_refer_to_nothing_elsewhere(
    shared_gateway: GatewayProcess,
) -> None:
    for path, content_type in PARTS.items():
        answer = await fetch(shared_gateway.url, path)
        assert (answer.status, answer.headers["content-type"]) == (200, f"{content_type}; charset=utf-8")
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert not re.search(rb"https?://", answer.body)
        assert (
            await fetch(shared_gateway.url, path, headers={"If-None-Match": answer.headers["etag"]})
        ).status == 304
    assert (await fetch(shared_gateway.url, "/docs/api.html")).status == 404
    assert (await fetch(shared_gateway.url, "/docs/../setup.py")).status == 404


@pytest.mark.gen_test(timeout=60)
async def test_a_tool_is_found_and_called_in_the_browser(
    shared_gateway: GatewayProcess, tmp_path: Path
) -> None:
    async with browsing(f"{shared_gateway.url}/docs", tmp_path / "profile") as browser:
        token = shared_gateway.token(scopes=["tools:call", "servers:read"])
        await browser.evaluate("document.getElementById('token').value = 'wrong'")
        await browser.evaluate("document.querySelector('#login button').click()")
        await browser.until("document.getElementById('notice').className === 'bad'")
        complaints_of_401 = len(browser.complaints)
        await browser.evaluate(f"document.getElementById('token').value = {json.dumps(token)}")
        await browser.evaluate("document.querySelector('#login button').click()")
        await browser.until("document.querySelectorAll('details.operation').length > 30")
        await browser.evaluate(
            "document.getElementById('search').value = '/memory/tools/memory_search';"
            "document.getElementById('search').dispatchEvent(new Event('input'))"
        )
        await browser.until("document.querySelectorAll('details.operation').length === 1")
        await browser.evaluate("document.querySelector('details.operation').open = true")
        await browser.until("document.querySelector('textarea') !== null")
        body = json.loads(await browser.evaluate("document.querySelector('textarea').value"))
        body["params"] |= {"project": "p", "query": "nothing"}
        for stream, wanted in ((False, '"success": true'), (True, '"type":"tool_response"')):
            await browser.evaluate(
                f"document.querySelector('textarea').value = {json.dumps(json.dumps(body))};"
                f"document.querySelector('[name=stream]').checked = {json.dumps(stream)};"
                "document.querySelector('details form').requestSubmit()"
            )
            await browser.until(
                f"document.querySelector('details form + div').textContent.includes({json.dumps(wanted)})"
            )
        assert browser.complaints[complaints_of_401:] == []
