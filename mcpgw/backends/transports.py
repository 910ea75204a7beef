"""The transport to the server of a definition."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from mcpgw.backends.http import HttpTransport
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.backends.stdio import StdioTransport
from mcpgw.server_definitions import ServerDefinition
from mcpgw.settings import BackendSettings


def transport_to(
    definition: ServerDefinition,
    settings: BackendSettings,
    *,
    reaper: ProcessReaper,
    longest_call: float,
    on_stderr: Callable[[str], None],
    on_fault: Callable[[str], None],
    on_end: Callable[[str], None],
) -> AbstractAsyncContextManager[Any]:
    """What the SDK's client is given to reach a server; see `StdioTransport` and `HttpTransport`."""
    if definition.transport == "stdio":
        assert definition.command is not None, "a stdio definition has a command"  # noqa: S101
        return StdioTransport(
            definition.command,
            definition.args,
            env=definition.env,
            cwd=definition.cwd,
            max_message_size=settings.max_message_size,
            notification_rate=settings.notifications_per_second,
            stop_timeout=settings.stop_timeout,
            reaper=reaper,
            on_stderr=on_stderr,
            on_fault=on_fault,
            on_end=on_end,
        )
    assert definition.url is not None, "a definition over HTTP has a url"  # noqa: S101
    return HttpTransport(
        definition.url,
        definition.headers,
        is_legacy=definition.transport == "sse",
        connect_timeout=settings.connect_timeout,
        read_timeout=longest_call,
        max_message_size=settings.max_message_size,
        notification_rate=settings.notifications_per_second,
        most_connections=settings.http_connections,
        on_fault=on_fault,
        on_end=on_end,
    )
