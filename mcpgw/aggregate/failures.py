"""The gateway's errors as those of JSON-RPC 2.0 and MCP.

What a backend said itself goes through as it is: its code, its message and its data. The gateway's own
errors have their stable code in ``data.code``; the numbers are those that MCP has for their kind.
"""

import logging
import secrets

from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, REQUEST_TIMEOUT

from mcpgw.errors import (
    CallTimeout,
    GatewayError,
    InternalError,
    InvalidParams,
    NotFound,
    ToolExecutionError,
)

_LOGGER = logging.getLogger("mcpgw.mcp")
GATEWAY_ERROR = -32000
"""What MCP has no number for; in the range that JSON-RPC leaves to servers."""
RESOURCE_NOT_FOUND = -32002
"""Revisions before 2026-07-28; later ones have "invalid params" (SEP-2164)."""


def as_mcp_error(error: GatewayError) -> MCPError:
    """`error` for an MCP client."""
    details = error.details if isinstance(error.details, dict) else {}
    if isinstance(error, ToolExecutionError) and isinstance(code := details.get("code"), int):
        return MCPError(
            code=code, message=str(details.get("message", error.message)), data=details.get("data")
        )
    data = error.to_data()
    del data["error"]
    return MCPError(code=_number(error), message=error.message, data=data)


def _number(error: GatewayError) -> int:
    match error:
        case InvalidParams() | NotFound():
            return INVALID_PARAMS
        case CallTimeout():
            return REQUEST_TIMEOUT
        case InternalError():
            return INTERNAL_ERROR
    return GATEWAY_ERROR


def as_internal_error(fault: Exception) -> MCPError:
    """A fault of the gateway: its traceback is in the log, the client has the id that stands there."""
    fault_id = secrets.token_hex(4)
    _LOGGER.error("internal error %s", fault_id, exc_info=fault)
    return as_mcp_error(InternalError(f"a fault of the gateway; its log has it under the id {fault_id}"))
