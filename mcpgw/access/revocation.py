"""What becomes of requests that are open while what their callers may do changes."""

from collections.abc import Callable
from typing import TypeAlias

from mcpgw.access.permissions import Sight, may_call, may_use_server
from mcpgw.access.tokens import Principal
from mcpgw.errors import AuthFailed, PermissionDenied

Judge: TypeAlias = Callable[[Principal], Principal]
"""Looks again at who was verified before; raises `AuthFailed` where the credential holds no more."""

_STOPPED = "; it was stopped, and may have run in part"


def denial(principal: Principal, judge: Judge, server: str, tool: str = "") -> PermissionDenied | None:
    """Why a request that `principal` began must not go on, by what `judge` says now; None where it may.

    It is of a tool, of a server where `tool` is empty, of all servers where both are. A request is held to
    the very credential that began it, whatever other one of the same user still holds.
    """
    try:
        present = judge(principal)
    except AuthFailed:
        return PermissionDenied(f"the credentials that began this hold no more{_STOPPED}")
    if present == principal:
        return None
    if present.held:
        return PermissionDenied(f"{present.held}{_STOPPED}")
    if tool:
        is_allowed = may_call(present, server, tool)
    elif server:
        is_allowed = may_use_server(present, server)
    else:
        is_allowed = Sight.of(present) == Sight.of(principal)
    return None if is_allowed else PermissionDenied(f"you may not do this any more{_STOPPED}")
