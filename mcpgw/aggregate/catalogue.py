"""What a visitor finds: tools, resources and prompts of the servers, under the visitor's names for them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import mcp_types as types
from mcp.shared.exceptions import MCPError
from mcp.shared.uri_template import InvalidUriTemplate, UriTemplate
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from mcpgw.access.callers import Caller
from mcpgw.aggregate.envelope import Result, for_nobody_else, give
from mcpgw.aggregate.failures import RESOURCE_NOT_FOUND
from mcpgw.aggregate.names import Names, address_at, split_address, with_own_addresses
from mcpgw.aggregate.relay import Context
from mcpgw.aggregate.sessions import connection_of
from mcpgw.aggregate.visits import Visit, visit_of
from mcpgw.audit import Audit
from mcpgw.errors import GatewayError, InvalidParams, PermissionDenied
from mcpgw.gateway import Gateway

_SHOWN = 128


class Catalogue:
    """Lists what `gateway` has, and finds it again by its name; `separator` joins server and name.

    `audit` is told who asks for a tool of a server that is hidden from them.
    """

    def __init__(self, gateway: Gateway, separator: str, audit: Audit) -> None:
        self._gateway = gateway
        self._separator = separator
        self._audit = audit

    def names(self, visit: Visit) -> Names:
        """How names are joined and split for this visitor."""
        return Names(self._separator, visit.server_id)

    # --- lists ---------------------------------------------------------------------------------------------

    async def list_tools(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        """Every tool that the visitor may call."""
        _require_first_page(params)
        visit = visit_of(context)
        names = self.names(visit)
        connection = caller_of(context).connection
        found = self._gateway.list_tools(visit.principal, visit.server_id, connection=connection)
        tools = ({**tool.raw, "name": names.joined(server, tool.name)} for server, tool in found)
        return give(self._listed(context, "tools", _unambiguous(tools)), types.ListToolsResult(tools=[]))

    async def list_resources(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        """Every resource of the servers that the visitor may call."""
        _require_first_page(params)
        visit = visit_of(context)
        found = await self._gateway.list_resources(caller_of(context), visit.server_id)
        listed = _addressed(visit, found, "uri")
        return give(self._listed(context, "resources", listed), types.ListResourcesResult(resources=[]))

    async def list_templates(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        """Every template of resources of the servers that the visitor may call."""
        _require_first_page(params)
        visit = visit_of(context)
        found = await self._gateway.list_resource_templates(caller_of(context), visit.server_id)
        listed = _addressed(visit, found, "uriTemplate")
        stand_in = types.ListResourceTemplatesResult(resource_templates=[])
        return give(self._listed(context, "resourceTemplates", listed), stand_in)

    async def list_prompts(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListPromptsResult:
        """Every prompt of the servers that the visitor may call."""
        _require_first_page(params)
        visit = visit_of(context)
        names = self.names(visit)
        found = await self._gateway.list_prompts(caller_of(context), visit.server_id)
        prompts = ({**one, "name": names.joined(server, str(one.get("name")))} for server, one in found)
        listed = self._listed(context, "prompts", _unambiguous(prompts))
        return give(listed, types.ListPromptsResult(prompts=[]))

    def _listed(self, context: Context, member: str, entries: Sequence[Mapping[str, Any]]) -> Result:
        return for_nobody_else(context.protocol_version, {member: list(entries)})

    def input_schema(self, visit: Visit, name: str) -> Mapping[str, Any] | None:
        """The schema of a tool's arguments, for the headers that repeat them; None where there is none.

        Raises:
            InvalidParams: there is no such tool, or there are several.
            ServerUnavailable: its server is not ready.
        """
        server, own_name = self.find_tool(visit, name)
        tools = self._gateway.list_tools(visit.principal, server)
        return next((tool.input_schema for _, tool in tools if tool.name == own_name), None)

    # --- finding -------------------------------------------------------------------------------------------

    def find_tool(self, visit: Visit, name: str) -> tuple[str, str]:
        """The server of a tool, and its own name for it.

        Raises:
            InvalidParams: no server's name stands first, or several servers have a tool of this name.
        """
        splits = self.names(visit).splits(name, self._servers(visit))
        found = splits if len(splits) == 1 else [one for one in splits if self._has_tool(visit, *one)]
        if not splits and self.names(visit).splits(name, self._gateway.server_ids):
            # The visitor is told what is told of any name that is none; the operator hears more.
            action = f"tools/call {name[:_SHOWN]}"
            self._audit.refused(visit.actor, action=action, code=PermissionDenied.code)
        return _only(found, splits, name, "tool")

    def _has_tool(self, visit: Visit, server: str, name: str) -> bool:
        try:
            return any(tool.name == name for _, tool in self._gateway.list_tools(visit.principal, server))
        except GatewayError:
            return False

    async def find_prompt(self, context: Context, name: str) -> tuple[str, str]:
        """The server of a prompt, and its own name for it.

        Raises:
            InvalidParams: no server's name stands first, or several servers have a prompt of this name.
        """
        visit = visit_of(context)
        splits = self.names(visit).splits(name, self._servers(visit))
        found = splits
        if len(splits) > 1:
            listed = await self._gateway.list_prompts(caller_of(context), None)
            known = {(server, one.get("name")) for server, one in listed}
            found = [one for one in splits if one in known]
        return _only(found, splits, name, "prompt")

    async def locate(self, context: Context, address: str) -> tuple[str, str]:
        """The server that has the resource at `address`, and its own URI for it.

        Raises:
            InvalidParams: several servers have it.
            MCPError: none has it.
        """
        visit = visit_of(context)
        if visit.server_id is not None:
            return visit.server_id, address
        if (found := split_address(address, self._servers(visit))) is not None:
            return found
        caller = caller_of(context)
        resources = await self._gateway.list_resources(caller, None)
        servers = dict.fromkeys(server for server, entry in resources if entry.get("uri") == address)
        if not servers:
            templates = await self._gateway.list_resource_templates(caller, None)
            servers = dict.fromkeys(
                server for server, entry in templates if _fits(entry.get("uriTemplate"), address)
            )
        if len(servers) == 1:
            return next(iter(servers)), address
        if servers:
            ways = " or ".join(address_at(server, address) for server in servers)
            raise InvalidParams(f"several servers have this resource: ask for {ways}"[:2000])
        is_modern = context.protocol_version in MODERN_PROTOCOL_VERSIONS
        raise MCPError(
            code=types.INVALID_PARAMS if is_modern else RESOURCE_NOT_FOUND,
            message=f"Resource not found: {address[:_SHOWN]}",
            data={"uri": address},
        )

    def _servers(self, visit: Visit) -> frozenset[str]:
        return frozenset(name for name in self._gateway.server_ids if visit.may_see(name))


def _only(
    found: Sequence[tuple[str, str]], splits: Sequence[tuple[str, str]], name: str, what: str
) -> tuple[str, str]:
    """The one that was found; where none was, the longest server of `splits` says what is wrong."""
    if len(found) > 1:
        servers = sorted(server for server, _ in found)
        raise InvalidParams(
            f"the {what} {name[:_SHOWN]!r} could be that of {' or '.join(servers)}: "
            f"go to one alone, such as /mcp/{servers[0]}"
        )
    if not splits:
        raise InvalidParams(f"there is no {what} {name[:_SHOWN]!r}")
    return found[0] if found else splits[0]


def _unambiguous(entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those whose name no other has: it would lead to one of two servers."""
    listed = list(entries)
    times = Counter(entry["name"] for entry in listed)
    return [entry for entry in listed if times[entry["name"]] == 1]


def caller_of(context: Context) -> Caller:
    """Who makes a request."""
    meta = (context.params or {}).get("_meta")
    return visit_of(context).caller(connection_of(context).session_id, meta if isinstance(meta, dict) else {})


def _addressed(
    visit: Visit, found: Sequence[tuple[str, Mapping[str, Any]]], member: str
) -> list[dict[str, Any]]:
    if visit.server_id is not None:
        return [dict(entry) for _, entry in found]
    return list(with_own_addresses(found, member))


def _fits(template: object, uri: str) -> bool:
    if template == uri:  # a completion names the template itself
        return True
    try:
        return isinstance(template, str) and UriTemplate.parse(template).match(uri) is not None
    except InvalidUriTemplate:
        return False


def _require_first_page(params: types.PaginatedRequestParams | None) -> None:
    if params is not None and params.cursor is not None:
        raise InvalidParams("no list has a second page: there is no such cursor")
