"""Whether a backend that says nothing is still there.

A server is asked by ``ping``, or by ``server/discover`` in the revisions that have no ping; never by listing
its tools, which may cost it much. A message of its own is as good as an answer.
"""

import asyncio
import time
from collections.abc import Callable

from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from mcpgw.backends.connection import Connection
from mcpgw.backends.failures import is_unanswered
from mcpgw.settings import BackendSettings


async def watch_health(
    connection: Connection,
    settings: BackendSettings,
    *,
    on_health: Callable[[bool], None],
    on_lost: Callable[[str], None],
) -> None:
    """Probe a backend at an interval, without end.

    `on_health` is told after each probe whether it was answered; `on_lost` once, when it is to be started
    again: so many probes in a row were not answered, and nobody waits for what it may still be working on.
    """
    if not settings.health_interval:
        return
    failures, silent_since = 0, 0.0
    while True:
        await asyncio.sleep(settings.health_interval)
        if not failures and time.monotonic() - connection.heard_at < settings.health_interval:
            continue
        asked = time.monotonic()
        if await _answers(connection, settings.health_timeout) or connection.heard_at > asked:
            failures = 0
            on_health(True)
            continue
        failures += 1
        silent_since = silent_since if failures > 1 else asked
        on_health(False)
        # A server of one thread may be at work on a call, and answers nothing meanwhile. That call has a time
        # limit of its own. What was sent since then it has not begun.
        if failures >= settings.health_failures and not connection.is_waiting_since(silent_since):
            on_lost(f"it did not answer {failures} probes of its health")
            return


async def _answers(connection: Connection, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await connection.probe()
    except TimeoutError:
        return False
    except MCPError as error:
        return not is_unanswered(error)  # an error is an answer; a connection that is gone tells of itself
    except ValidationError:
        return True
    return True
