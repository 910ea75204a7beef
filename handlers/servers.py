"""``/api/v1/servers``: the backend servers, looked at and administered."""

from typing import Any

from mcpgw.errors import InvalidParams, PermissionDenied
from mcpgw.services import may_see_server, require_see_server

from .base import ApiHandler


class ServerHandler(ApiHandler):
    """What all resources here have in common."""

    @property
    def may_read(self) -> bool:
        """Whether the caller may see the servers and their states."""
        return bool(self.caller.scopes & {"servers:read", "admin"})

    @property
    def may_administer(self) -> bool:
        """Whether the caller may see how servers are started or reached, and what they write to stderr."""
        return bool(self.caller.scopes & {"servers:write", "admin"})

    def require_administrator(self) -> None:
        """Refuse whoever may not administer servers.

        Raises:
            PermissionDenied: the caller has neither `servers:write` nor `admin`.
        """
        if not self.may_administer:
            raise PermissionDenied(
                "the token lacks the scope 'servers:write'", details={"missingScope": "servers:write"}
            )

    def require_visible(self, name: str) -> None:
        """Refuse a server that the caller's role denies, or that is none of those that it is for.

        Raises:
            PermissionDenied: names the rule, or the scope that is missing.
        """
        require_see_server(self.caller, name)

    async def write_server(self, name: str) -> None:
        """Answer one server with its state: to administrators with its definition too.

        Where the gateway is several processes, the state is that of the one that answers, with those of all
        under ``workers`` where they are not the same.

        Raises:
            ServerNotFound: there is none of that name.
        """
        described = self.services.administration.describe(name)
        members: dict[str, Any] = {"id": name, "origin": described.origin, "enabled": described.enabled}
        if self.may_administer:
            members |= described.to_json()
            self.set_header("Etag", f'"{described.tag}"')
        if self.may_read:
            whole, detail = self.services.whole, self.may_administer
            members |= self.state_of(name)
            if (states := (await whole.states(detail=detail)).get(name)) is not None:
                members["workers"] = states
            if "log" in members:
                members["log"] = await whole.last_lines(name)
        self.write_json(members)

    def state_of(self, name: str) -> dict[str, Any]:
        """The state of a server; one whose definition has faults has failed before it began."""
        gateway = self.services.gateway
        if name in gateway.server_ids:
            return gateway.server_status(self.caller, name).to_json(detail=self.may_administer)
        reasons = self.services.administration.faults_of(name) if self.may_administer else []
        return {"id": name, "state": "failed", "tools": 0} | (
            {"reason": "; ".join(reasons)} if reasons else {}
        )

    def tag(self) -> str | None:
        """The state that ``If-Match`` names (RFC 9110 section 13.1.1); None where any will do.

        Raises:
            InvalidParams: it is no such name.
        """
        given: str = self.request.headers.get("If-Match", "").strip()
        if given in ("", "*"):
            return None
        if len(given) < 2 or given[0] != '"' or given[-1] != '"' or '"' in given[1:-1]:  # noqa: PLR2004
            raise InvalidParams('If-Match: name one state, as ETag has it ("…")')
        return given[1:-1]

    def compute_etag(self) -> str | None:
        """A tag is that of the definition, not that of an answer."""
        return None

    def check_etag_header(self) -> bool:
        """The state may be another one while the definition is the same."""
        return False


class ServersHandler(ServerHandler):
    """All servers, each with its present state."""

    async def get(self) -> None:
        """List them."""
        gateway, administration = self.services.gateway, self.services.administration
        by_worker = await self.services.whole.states()
        servers = {status.id: status.to_json() for status in gateway.server_statuses(self.caller)}
        for described in administration.all():
            if not may_see_server(self.caller, described.name):
                continue
            state = servers.get(described.name) or self.state_of(described.name)
            state = state | {"origin": described.origin, "enabled": described.enabled}
            if (states := by_worker.get(described.name)) is not None:
                state["workers"] = states
            servers[described.name] = state
        self.write_json({"servers": list(servers.values())})

    async def post(self) -> None:
        """Add one, and begin to start it; 201."""
        body = self.read_body("server_add")
        self.require_visible(body["id"])
        await self.services.administration.add(body["id"], body["definition"], self.actor())
        self.set_status(201)
        self.set_header("Location", f"/api/v1/servers/{body['id']}")
        await self.write_server(body["id"])


class OneServerHandler(ServerHandler):
    """One server."""

    async def get(self, name: str) -> None:
        """Its state; for administrators its definition without secrets, and the last lines of its stderr."""
        if not self.may_read:
            raise PermissionDenied(
                "the token lacks the scope 'servers:read'", details={"missingScope": "servers:read"}
            )
        self.services.administration.describe(name)
        self.require_visible(name)
        await self.write_server(name)

    async def patch(self, name: str) -> None:
        """Change its definition by a JSON Merge Patch (RFC 7396)."""
        changes = self.read_body("server_change")["definition"]
        self.require_visible(name)
        await self.services.administration.change(name, changes, self.actor(), tag=self.tag())
        await self.write_server(name)

    async def delete(self, name: str) -> None:
        """Remove it; 204 when it has ended."""
        self.require_visible(name)
        await self.services.administration.remove(name, self.actor(), tag=self.tag())
        self.set_status(204)
        self.finish()


class ServerActionHandler(ServerHandler):
    """Something done to a server: ``start``, ``stop``, ``restart``, ``enable`` or ``disable``."""

    async def post(self, name: str, action: str) -> None:
        """Do it, and answer the server."""
        self.require_visible(name)
        administration, actor = self.services.administration, self.actor()
        match action:
            case "start":
                await administration.start(name, actor)
            case "stop":
                await administration.stop(name, actor)
            case "restart":
                await administration.restart(name, actor)
            case _:
                await administration.set_enabled(name, action == "enable", actor)
        await self.write_server(name)


class ServerToolsHandler(ServerHandler):
    """The tools of a server that the caller may call."""

    def get(self, name: str) -> None:
        """List them."""
        listed = self.services.gateway.list_tools(self.caller, name)
        self.write_json({"tools": [tool.to_json(server) for server, tool in listed]})


class ServerResourcesHandler(ServerHandler):
    """The resources of a server, and their templates, as MCP has them."""

    async def get(self, name: str) -> None:
        """List them."""
        gateway = self.services.gateway
        with self.services.visiting(self.caller) as caller:
            resources = await gateway.list_resources(caller, name)
            templates = await gateway.list_resource_templates(caller, name)
        self.write_json(
            {
                "resources": [{"serverId": server, **resource} for server, resource in resources],
                "resourceTemplates": [{"serverId": server, **template} for server, template in templates],
            }
        )


class ServerPromptsHandler(ServerHandler):
    """The prompts of a server, as MCP has them."""

    async def get(self, name: str) -> None:
        """List them."""
        with self.services.visiting(self.caller) as caller:
            prompts = await self.services.gateway.list_prompts(caller, name)
        self.write_json({"prompts": [{"serverId": server, **prompt} for server, prompt in prompts]})


class ServerLogsHandler(ServerHandler):
    """What a server has written to its stderr."""

    async def get(self, name: str) -> None:
        """Its last lines, with what looks like a secret masked."""
        self.require_administrator()
        self.services.administration.describe(name)
        self.require_visible(name)
        self.write_json({"lines": await self.services.whole.last_lines(name)})
