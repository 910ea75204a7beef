"""Questions to the REST routes of the running gateway."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from mcpgw.cli.connection import Connection

SECONDS: Final = 30.0
SLOW_SECONDS: Final = 180.0
"""For what has to be fetched from elsewhere, or waits for programs to end."""


def route(*parts: str, **query: str | int | None) -> str:
    """The path of a route below ``/api/v1``, each part quoted, with what is not None or empty of `query`."""
    asked = {name: str(value) for name, value in query.items() if value not in (None, "")}
    path = "/api/v1/" + "/".join(quote(part, safe="") for part in parts)
    return path + (f"?{urlencode(asked)}" if asked else "")


def ask(
    connection: Connection, method: str, path: str, *, body: Any = None, seconds: float = SECONDS
) -> dict[str, Any]:
    """The JSON that a route answers; empty where it answers nothing.

    Raises:
        ClientError: with the code of what went wrong.
    """
    from mcpgw.client import ask as ask_rest  # noqa: PLC0415 - after --help

    return asyncio.run(
        ask_rest(
            connection.url, connection.token, method, path, body=body, timeout=seconds, tls=connection.tls
        )
    )


def member(answer: Mapping[str, Any], name: str, kind: type, connection: Connection) -> Any:
    """The member `name` of an answer, which is a `kind`.

    Raises:
        NotAGateway: it is not there, or of another type.
    """
    from mcpgw.client import NotAGateway  # noqa: PLC0415

    value = answer.get(name)
    if not isinstance(value, kind):
        raise NotAGateway(connection.url, f"it answered without {name}")
    return value
