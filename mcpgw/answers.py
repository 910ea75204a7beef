"""What a client's frame asks of the servers, asked of the gateway; and the answer, as a frame."""

from mcpgw.access.callers import Caller
from mcpgw.backends.requests import Observer
from mcpgw.backends.tools import ToolResult
from mcpgw.call_record import CallRecord
from mcpgw.gateway import Gateway
from mcpgw.wire import frames
from mcpgw.wire.frames import ServerFrame


async def answer(
    gateway: Gateway,
    caller: Caller,
    frame: frames.ServerRequest,
    observer: Observer,
    record: CallRecord | None = None,
) -> ServerFrame:
    """Ask, and make the frame of the answer; `record` is that of a tool's call.

    Raises:
        GatewayError: with the code of what went wrong.
    """
    match frame:
        case frames.ListResources(server_id=server_id):
            resources = await gateway.list_resources(caller, server_id)
            templates = await gateway.list_resource_templates(caller, server_id)
            return frames.Resources(
                tuple({"serverId": server, **one} for server, one in resources),
                tuple({"serverId": server, **one} for server, one in templates),
            )
        case frames.ListPrompts(server_id=server_id):
            prompts = await gateway.list_prompts(caller, server_id)
            return frames.Prompts(tuple({"serverId": server, **one} for server, one in prompts))
        case frames.ReadResource(server_id=server_id, uri=uri):
            found = await gateway.read_resource(
                caller, server_id, uri, observer=observer, timeout_ms=frame.timeout_ms
            )
            return frames.Resource(server_id, uri, found)
        case frames.GetPrompt(server_id=server_id, name=name):
            found = await gateway.get_prompt(
                caller, server_id, name, frame.arguments, observer=observer, timeout_ms=frame.timeout_ms
            )
            return frames.Prompt(server_id, name, found)
        case frames.Complete(server_id=server_id):
            found = await gateway.complete(caller, server_id, frame.ref, frame.argument, frame.context)
            return frames.Completion(server_id, found)
        case frames.ToolCall(server_id=server_id, tool_name=tool_name):
            result = await gateway.call_tool(
                caller, server_id, tool_name, frame.params, timeout_ms=frame.timeout_ms, observer=observer
            )
            return tool_response(frame, result, record)


def tool_response(
    frame: frames.ToolCall, result: ToolResult, record: CallRecord | None
) -> frames.ToolResponse:
    """The frame of what a tool has answered."""
    return frames.ToolResponse(
        server_id=frame.server_id,
        tool_name=frame.tool_name,
        content=result.content,
        duration_ms=0 if record is None else record.duration_ms,
        structured_content=result.structured_content,
        has_structured_content=result.has_structured_content,
        is_error=result.is_error,
        meta=result.meta,
    )
