"""Logging in over HTTP, for tests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcpgw.store import By
from tests.conftest import LiveGateway
from tests.support.raw_socket import RawAnswer, RawSocket

GOOD = "a horse and a battery"
BY = By("root", is_told=False)


async def send(
    gateway: LiveGateway,
    method: str,
    path: str,
    body: object = None,
    *,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> RawAnswer:
    """One request with a JSON body."""
    bearer = {} if token is None else {"Authorization": f"Bearer {token}"}
    raw = b"" if body is None else json.dumps(body).encode()
    async with await RawSocket.connect(gateway.url) as client:
        await client.request(method, path, {**bearer, **(headers or {})}, raw)
        return await client.read_answer()


async def add_user(gateway: LiveGateway, name: str = "ann", role: str = "operator") -> None:
    """A user with the password `GOOD`."""
    await gateway.services.access.accounts.add(name, role=role, password=GOOD, by=BY)
    await gateway.services.access.read_changes()


async def log_in(gateway: LiveGateway, name: str = "ann", password: str = GOOD) -> dict[str, Any]:
    """A login whose refresh token is in the body."""
    body = {"user": name, "password": password, "refresh": "body"}
    answer = await send(gateway, "POST", "/api/v1/auth/login", body)
    assert answer.status == 200, answer.body
    granted: dict[str, Any] = answer.json()
    return granted


def audited(gateway: LiveGateway) -> list[dict[str, Any]]:
    """What the audit log has; the last line may be half written still."""
    file: Path = gateway.services.config.audit.file
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
