"""A server with the tools, prompts and resources that the scenarios of the MCP conformance suite ask for.

It speaks Streamable HTTP in both protocol eras, on a port of its own choice that it prints as its first line;
with ``--stdio`` it speaks over stdin and stdout instead, with ``--handshake`` in the older era alone. Names
and contents are those of the suite's scenarios (npm ``@modelcontextprotocol/conformance``). ``--record FILE``
gets a line for each `tool_test_wait` that was begun or cancelled.
"""

import argparse
import asyncio
import hashlib
import hmac
import json
import secrets
import socket
import warnings
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import mcp_types as types
import uvicorn
from mcp.server.connection import allowed_log_levels
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.runner import serve_loop
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourceUpdated,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

warnings.simplefilter("ignore", MCPDeprecationWarning)  # sampling, roots and logs are still used

Context = ServerRequestContext[Any, Any]
Json = dict[str, Any]

# One red pixel, and a WAV of one sample.
IMAGE: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
)
AUDIO: Final = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
NAME_FORM: Final = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
NO_ARGUMENTS: Final = {"type": "object"}
SCHEMA_2020_12: Final = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
DEFAULTS: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    },
    "required": [],
}
_TITLED: Final = [{"const": "value1", "title": "First"}, {"const": "value2", "title": "Second"}]
ENUMS: Final = {
    "type": "object",
    "properties": {
        "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
        "titledSingle": {"type": "string", "oneOf": _TITLED},
        "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["One", "Two"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": ["option1", "option2"]}},
        "titledMulti": {"type": "array", "items": {"anyOf": _TITLED}},
    },
    "required": [],
}
SCHEMAS: Final[Mapping[str, Json]] = {
    "json_schema_2020_12_tool": SCHEMA_2020_12,
    "test_sampling": {"type": "object", "properties": {"prompt": {"type": "string"}}},
    "test_elicitation": {"type": "object", "properties": {"message": {"type": "string"}}},
    "test_custom_header": {
        "type": "object",
        "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
        "required": ["region"],
    },
}


def text(words: str) -> Json:
    """A block of text."""
    return {"type": "text", "text": words}


def embedded(uri: str, mime_type: str, words: str) -> Json:
    """A block with a resource in it."""
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime_type, "text": words}}


def elicitation(message: str, schema: Json) -> Json:
    """A question to the user, as revision 2026-07-28 has it."""
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def sampling(prompt: str, most: int = 100) -> Json:
    """A question to the user's model."""
    messages = [{"role": "user", "content": text(prompt)}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": most}}


ROOTS: Final = {"method": "roots/list", "params": {}}


class ConformanceServer:
    """The server, and what changes in it."""

    def __init__(self, record: Path | None = None) -> None:
        self._record = record
        self.bus = InMemorySubscriptionBus()
        self._key = secrets.token_bytes(32)
        self._extra_tool = False
        self._extra_prompt = False
        self.server: Server[Any] = Server(
            "conformance",
            version="1.0.0",
            instructions="Call the tools by the names of the scenarios.",
            on_list_tools=self.list_tools,
            on_call_tool=self.call_tool,
            on_list_resources=self.list_resources,
            on_list_resource_templates=self.list_templates,
            on_read_resource=self.read_resource,
            on_subscribe_resource=self.subscribe,
            on_unsubscribe_resource=self.unsubscribe,
            on_subscriptions_listen=ListenHandler(self.bus),
            on_list_prompts=self.list_prompts,
            on_get_prompt=self.get_prompt,
            on_completion=self.complete,
            on_set_logging_level=self.set_level,
        )

    # --- tools ---------------------------------------------------------------------------------------------

    async def list_tools(self, context: Context, params: Any) -> Any:
        """Every method ``tool_NAME``."""
        names = [name.removeprefix("tool_") for name in dir(self) if name.startswith("tool_")]
        names.sort(key=lambda name: name in SCHEMAS)  # the suite calls the first without any arguments
        names += ["test_dynamic_tool"] if self._extra_tool else []
        tools = [
            {
                "name": name,
                "description": f"For the scenario of {name}.",
                "inputSchema": SCHEMAS.get(name, NO_ARGUMENTS),
            }
            for name in names
        ]
        return _cacheable({"tools": tools})

    async def call_tool(self, context: Context, params: types.CallToolRequestParams) -> Any:
        """Run one tool."""
        run: Callable[[Context, Json], Awaitable[Any]] | None = getattr(self, f"tool_{params.name}", None)
        if run is None:
            raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown tool: {params.name}")
        answer = await run(context, dict(context.params or {}))
        return _complete(answer if isinstance(answer, dict) else {"content": answer})

    async def tool_test_simple_text(self, context: Context, params: Json) -> Any:
        return [text("This is a simple text response for testing.")]

    async def tool_test_image_content(self, context: Context, params: Json) -> Any:
        return [{"type": "image", "data": IMAGE, "mimeType": "image/png"}]

    async def tool_test_audio_content(self, context: Context, params: Json) -> Any:
        return [{"type": "audio", "data": AUDIO, "mimeType": "audio/wav"}]

    async def tool_test_embedded_resource(self, context: Context, params: Json) -> Any:
        words = "This is an embedded resource content."
        return [embedded("test://embedded-resource", "text/plain", words)]

    async def tool_test_multiple_content_types(self, context: Context, params: Json) -> Any:
        return [
            text("Multiple content types test:"),
            {"type": "image", "data": IMAGE, "mimeType": "image/png"},
            embedded("test://mixed-content-resource", "application/json", '{"test": "data", "value": 123}'),
        ]

    async def tool_test_tool_with_logging(self, context: Context, params: Json) -> Any:
        for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await self._log(context, words)
            await asyncio.sleep(0.02)
        return [text("Tool with logging executed successfully")]

    tool_test_logging_tool = tool_test_tool_with_logging

    async def tool_test_tool_with_progress(self, context: Context, params: Json) -> Any:
        for done in (0, 50, 100):
            await context.session.report_progress(done, 100, f"Completed step {done} of 100")
            await asyncio.sleep(0.02)
        return [text(str((params.get("_meta") or {}).get("progressToken")))]

    async def tool_test_error_handling(self, context: Context, params: Json) -> Any:
        words = "This tool intentionally returns an error for testing"
        return {"content": [text(words)], "isError": True}

    async def tool_test_sampling(self, context: Context, params: Json) -> Any:
        prompt = params.get("arguments", {}).get("prompt", "")
        asked = types.CreateMessageRequestParams(
            messages=[
                types.SamplingMessage(role="user", content=types.TextContent(type="text", text=prompt))
            ],
            max_tokens=100,
        )
        if context.protocol_version in MODERN_PROTOCOL_VERSIONS:
            if not isinstance(answer := _responses(params).get("completion"), dict):
                return _asks({"completion": sampling(prompt)})
            return [text(f"LLM response: {answer['content']['text']}")]
        result = await self._ask(context, types.CreateMessageRequest(params=asked), types.CreateMessageResult)
        return [text(f"LLM response: {result.content.text}")]

    async def tool_test_elicitation(self, context: Context, params: Json) -> Any:
        form = {
            "type": "object",
            "properties": {"response": {"type": "string", "description": "User's response"}},
            "required": ["response"],
        }
        return await self._elicit(
            context, params.get("arguments", {}).get("message", ""), form, "User response"
        )

    async def tool_test_elicitation_sep1034_defaults(self, context: Context, params: Json) -> Any:
        return await self._elicit(context, "Please fill in", DEFAULTS, "Elicitation completed")

    async def tool_test_elicitation_sep1330_enums(self, context: Context, params: Json) -> Any:
        return await self._elicit(context, "Please choose", ENUMS, "Elicitation completed")

    async def tool_json_schema_2020_12_tool(self, context: Context, params: Json) -> Any:
        return [text("schema")]

    async def tool_test_custom_header(self, context: Context, params: Json) -> Any:
        return [text(str(params.get("arguments", {}).get("region")))]

    async def tool_test_missing_capability(self, context: Context, params: Json) -> Any:
        has = context.session.client_capabilities
        if has is None or has.sampling is None:
            raise MCPError(
                code=types.MISSING_REQUIRED_CLIENT_CAPABILITY,
                message="this tool needs the client's sampling",
                data={"requiredCapabilities": {"sampling": {}}},
            )
        return [text("sampling is there")]

    async def tool_test_streaming_elicitation(self, context: Context, params: Json) -> Any:
        await context.session.report_progress(1, 2, "about to ask")
        if "answer" in _responses(params):
            return [text("thank you")]
        return _asks({"answer": elicitation("Go on?", NAME_FORM)})

    async def tool_test_trigger_tool_change(self, context: Context, params: Json) -> Any:
        self._extra_tool = not self._extra_tool
        await self.bus.publish(ToolsListChanged())
        return [text("the tools have changed")]

    async def tool_test_trigger_prompt_change(self, context: Context, params: Json) -> Any:
        self._extra_prompt = not self._extra_prompt
        await self.bus.publish(PromptsListChanged())
        return [text("the prompts have changed")]

    async def tool_test_trigger_resource_change(self, context: Context, params: Json) -> Any:
        await self.bus.publish(ResourceUpdated("test://watched-resource"))
        return [text("the resource has changed")]

    async def tool_test_wait(self, context: Context, params: Json) -> Any:
        """Wait for ever, so that it can be cancelled."""
        self._note("begun")
        try:
            await context.session.report_progress(1, 2, "waiting")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self._note("cancelled")
            raise

    async def tool_test_resource_link(self, context: Context, params: Json) -> Any:
        return {
            "content": [
                {
                    "type": "resource_link",
                    "uri": "test://static-text",
                    "name": "static",
                    "annotations": {"audience": ["user"], "priority": 0.5},
                    "_meta": {"example.org/kept": [1, None]},
                }
            ],
            "structuredContent": {"kept": {"null": None}},
            "_meta": {"example.org/trace": "kept"},
        }

    # --- questions of revision 2026-07-28 ------------------------------------------------------------------

    async def tool_test_input_required_result_elicitation(self, context: Context, params: Json) -> Any:
        answer = _responses(params).get("user_name")
        if not isinstance(answer, dict):
            return _asks({"user_name": elicitation("What is your name?", NAME_FORM)})
        return [text(f"Hello, {answer.get('content', {}).get('name', answer.get('action'))}!")]

    async def tool_test_input_required_result_sampling(self, context: Context, params: Json) -> Any:
        answer = _responses(params).get("capital_question")
        if not isinstance(answer, dict):
            return _asks({"capital_question": sampling("What is the capital of France?")})
        return [text(answer["content"]["text"])]

    async def tool_test_input_required_result_list_roots(self, context: Context, params: Json) -> Any:
        answer = _responses(params).get("client_roots")
        if not isinstance(answer, dict):
            return _asks({"client_roots": ROOTS})
        return [text(", ".join(root["uri"] for root in answer["roots"]))]

    async def tool_test_input_required_result_request_state(self, context: Context, params: Json) -> Any:
        if "confirm" not in _responses(params):
            form = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
            return _asks({"confirm": elicitation("Please confirm", form)}, self._sign("confirm"))
        self._check(params, "confirm")
        return [text("state-ok")]

    async def tool_test_input_required_result_tampered_state(self, context: Context, params: Json) -> Any:
        if "confirm" not in _responses(params):
            form = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
            return _asks({"confirm": elicitation("Please confirm", form)}, self._sign("tampered"))
        self._check(params, "tampered")
        return [text("state-ok")]

    async def tool_test_input_required_result_multiple_inputs(self, context: Context, params: Json) -> Any:
        asked = {
            "user_name": elicitation("What is your name?", NAME_FORM),
            "greeting": sampling("Generate a greeting", 50),
            "client_roots": ROOTS,
        }
        if not asked.keys() <= _responses(params).keys():
            return _asks(asked, self._sign("multiple"))
        self._check(params, "multiple")
        return [text("all three")]

    async def tool_test_input_required_result_multi_round(self, context: Context, params: Json) -> Any:
        responses = _responses(params)
        if "step2" in responses:
            self._check(params, "round-2")
            return [text("done")]
        if "step1" in responses:
            self._check(params, "round-1")
            form = {"type": "object", "properties": {"color": {"type": "string"}}, "required": ["color"]}
            question = elicitation("Step 2: What is your favorite color?", form)
            return _asks({"step2": question}, self._sign("round-2"))
        return _asks({"step1": elicitation("Step 1: What is your name?", NAME_FORM)}, self._sign("round-1"))

    async def tool_test_input_required_result_capabilities(self, context: Context, params: Json) -> Any:
        has = context.session.client_capabilities
        asked = {}
        if has is not None and has.elicitation is not None:
            asked["user_name"] = elicitation("What is your name?", NAME_FORM)
        if has is not None and has.sampling is not None:
            asked["greeting"] = sampling("Generate a greeting")
        if not asked or asked.keys() <= _responses(params).keys():
            return [text("nothing to ask")]
        return _asks(asked)

    # --- resources -----------------------------------------------------------------------------------------

    async def list_resources(self, context: Context, params: Any) -> Any:
        """The three that are always there."""
        uris = ("test://static-text", "test://static-binary", "test://watched-resource")
        resources = [{"uri": uri, "name": uri.removeprefix("test://")} for uri in uris]
        return _cacheable({"resources": resources})

    async def list_templates(self, context: Context, params: Any) -> Any:
        """The one template."""
        template = {"uriTemplate": "test://template/{id}/data", "name": "template"}
        return _cacheable({"resourceTemplates": [template]})

    async def read_resource(self, context: Context, params: types.ReadResourceRequestParams) -> Any:
        """One resource."""
        uri = params.uri
        content: Json = {"uri": uri, "mimeType": "text/plain"}
        if uri == "test://static-text":
            content["text"] = "This is the content of the static text resource."
        elif uri == "test://static-binary":
            content |= {"mimeType": "image/png", "blob": IMAGE}
        elif uri == "test://watched-resource":
            content["text"] = "Watched resource content"
        elif uri.startswith("test://template/") and uri.endswith("/data"):
            identifier = uri.removeprefix("test://template/").removesuffix("/data")
            told = {"id": identifier, "templateTest": True, "data": f"Data for ID: {identifier}"}
            content |= {"mimeType": "application/json", "text": json.dumps(told)}
        else:
            modern = context.protocol_version in MODERN_PROTOCOL_VERSIONS
            code = types.INVALID_PARAMS if modern else -32002
            raise MCPError(code=code, message=f"Resource not found: {uri}", data={"uri": uri})
        return _cacheable({"contents": [content]})

    async def subscribe(self, context: Context, params: Any) -> types.EmptyResult:
        """Say yes; `tool_test_trigger_resource_change` tells of a change."""
        return types.EmptyResult()

    async def unsubscribe(self, context: Context, params: Any) -> types.EmptyResult:
        """Say yes."""
        return types.EmptyResult()

    # --- prompts -------------------------------------------------------------------------------------------

    async def list_prompts(self, context: Context, params: Any) -> Any:
        """Every method ``prompt_NAME``."""
        names = [name.removeprefix("prompt_") for name in dir(self) if name.startswith("prompt_")]
        names += ["test_dynamic_prompt"] if self._extra_prompt else []
        arguments = {
            "test_prompt_with_arguments": ("arg1", "arg2"),
            "test_prompt_with_embedded_resource": ("resourceUri",),
        }
        prompts = [
            {
                "name": name,
                "description": f"For the scenario of {name}.",
                "arguments": [{"name": one, "required": True} for one in arguments.get(name, ())],
            }
            for name in names
        ]
        return _cacheable({"prompts": prompts})

    async def get_prompt(self, context: Context, params: types.GetPromptRequestParams) -> Any:
        """One prompt."""
        make: Callable[[Json, Json], Any] | None = getattr(self, f"prompt_{params.name}", None)
        if make is None:
            raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown prompt: {params.name}")
        made = make(dict(params.arguments or {}), dict(context.params or {}))
        if isinstance(made, dict):
            return made
        return _complete({"messages": [{"role": "user", "content": block} for block in made]})

    def prompt_test_simple_prompt(self, arguments: Json, params: Json) -> Any:
        return [text("This is a simple prompt for testing.")]

    def prompt_test_prompt_with_arguments(self, arguments: Json, params: Json) -> Any:
        shown = f"arg1='{arguments.get('arg1')}', arg2='{arguments.get('arg2')}'"
        return [text(f"Prompt with arguments: {shown}")]

    def prompt_test_prompt_with_embedded_resource(self, arguments: Json, params: Json) -> Any:
        words = "Embedded resource content for testing."
        return [
            embedded(arguments.get("resourceUri", ""), "text/plain", words),
            text("Please process the embedded resource above."),
        ]

    def prompt_test_prompt_with_image(self, arguments: Json, params: Json) -> Any:
        image = {"type": "image", "data": IMAGE, "mimeType": "image/png"}
        return [image, text("Please analyze the image above.")]

    def prompt_test_input_required_result_prompt(self, arguments: Json, params: Json) -> Any:
        answer = _responses(params).get("user_context")
        if not isinstance(answer, dict):
            form = {"type": "object", "properties": {"context": {"type": "string"}}, "required": ["context"]}
            return _asks({"user_context": elicitation("What context should the prompt use?", form)})
        return [text(f"Use this context: {answer.get('content', {}).get('context')}")]

    async def complete(self, context: Context, params: types.CompleteRequestParams) -> Any:
        """What begins as the argument does."""
        known = ("paris", "park", "party")
        values = [value for value in known if value.startswith(params.argument.value)]
        return _complete({"completion": {"values": values, "total": len(values), "hasMore": False}})

    async def set_level(self, context: Context, params: Any) -> types.EmptyResult:
        """Say yes."""
        return types.EmptyResult()

    # --- helpers -------------------------------------------------------------------------------------------

    def _note(self, line: str) -> None:
        if self._record is not None:
            with self._record.open("a", encoding="utf-8") as record:
                record.write(line + "\n")

    async def _log(self, context: Context, words: str) -> None:
        if "info" in allowed_log_levels(context.protocol_version, context.meta):
            params = types.LoggingMessageNotificationParams(level="info", data=words)
            await context.session.send_notification(
                types.LoggingMessageNotification(params=params), related_request_id=context.request_id
            )

    async def _ask(self, context: Context, request: Any, result: Any) -> Any:
        related = ServerMessageMetadata(related_request_id=context.request_id)
        return await context.session.send_request(request, result, metadata=related)

    async def _elicit(self, context: Context, message: str, schema: Any, words: str) -> Any:
        if context.protocol_version in MODERN_PROTOCOL_VERSIONS:
            responses = _responses(dict(context.params or {}))
            if not isinstance(answer := responses.get("form"), dict):
                return _asks({"form": elicitation(message, schema)})
            action, content = answer.get("action"), answer.get("content") or {}
        else:
            params = types.ElicitRequestFormParams(message=message, requested_schema=schema)
            result = await self._ask(context, types.ElicitRequest(params=params), types.ElicitResult)
            action, content = result.action, result.content or {}
        return [text(f"{words}: action={action}, content={json.dumps(content)}")]

    def _sign(self, words: str) -> str:
        return f"{words}.{hmac.new(self._key, words.encode(), hashlib.sha256).hexdigest()}"

    def _check(self, params: Json, words: str) -> None:
        if not hmac.compare_digest(str(params.get("requestState")), self._sign(words)):
            raise MCPError(code=types.INVALID_PARAMS, message="the requestState is not as it was given")


def _complete(result: Json) -> Json:
    return {"resultType": "complete"} | result


def _cacheable(result: Json) -> Json:
    return {"resultType": "complete", "ttlMs": 1000, "cacheScope": "public"} | result


def _responses(params: Json) -> Json:
    return params.get("inputResponses") or {}


def _asks(requests: Json, state: str | None = None) -> Json:
    asked: Json = {"resultType": "input_required", "inputRequests": requests}
    return asked if state is None else asked | {"requestState": state}


async def serve_http(server: Server[Any]) -> None:
    """Serve on a free port of this machine, and print it."""
    listening = socket.create_server(("127.0.0.1", 0))
    app = server.streamable_http_app(host="127.0.0.1")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    print(listening.getsockname()[1], flush=True)  # noqa: T201 - this is how it is found
    await uvicorn.Server(config).serve(sockets=[listening])


async def serve_stdio(server: Server[Any], *, handshake: bool) -> None:
    """Serve stdin and stdout."""
    options = server.create_initialization_options()
    async with stdio_server() as (read, write):
        if handshake:
            await serve_loop(server, read, write, lifespan_state={}, init_options=options)
        else:
            await server.run(read, write, options)


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stdio", action="store_true")
    parser.add_argument("--handshake", action="store_true")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    server = ConformanceServer(options.record).server
    if options.stdio:
        asyncio.run(serve_stdio(server, handshake=options.handshake))
    else:
        asyncio.run(serve_http(server))


if __name__ == "__main__":
    main()
