"""What servers offer beside their tools, as a program asks for it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

from mcpgw.client.inputs import OnInput
from mcpgw.client.request import member

ANSWER_SECONDS: Final = 30.0
LIST_SECONDS: Final = 90.0


class Offers(ABC):
    """Lists, resources, prompts and completion; each method raises `ClientError`.

    What is answered is MCP's own JSON, of lists with the ``serverId`` in each entry. `on_input` answers what
    a server asks meanwhile; see `Gateway.call`. Cancelling the awaiting task cancels the request.
    """

    @property
    @abstractmethod
    def _base(self) -> str:
        """The gateway's address."""

    @abstractmethod
    async def _request(
        self, kind: str, data: Mapping[str, Any], *, limit: float | None, on_input: OnInput | None = None
    ) -> Mapping[str, Any]:
        """Send one request and wait for the data of its answer, at most `limit` seconds."""

    async def list_tools(self, server: str | None = None) -> list[dict[str, Any]]:
        """The tools of one server, or of all, as section 3 of the wire contract has them."""
        answer = await self._request("list_tools", _of(server), limit=ANSWER_SECONDS)
        tools: list[dict[str, Any]] = member(answer, "tools", self._base)
        return tools

    async def list_resources(self, server: str | None = None) -> list[dict[str, Any]]:
        """The resources of one server, or of all."""
        answer = await self._request("list_resources", _of(server), limit=LIST_SECONDS)
        resources: list[dict[str, Any]] = member(answer, "resources", self._base)
        return resources

    async def list_resource_templates(self, server: str | None = None) -> list[dict[str, Any]]:
        """The templates of resources of one server, or of all."""
        answer = await self._request("list_resources", _of(server), limit=LIST_SECONDS)
        templates: list[dict[str, Any]] = member(answer, "resourceTemplates", self._base)
        return templates

    async def list_prompts(self, server: str | None = None) -> list[dict[str, Any]]:
        """The prompts of one server, or of all."""
        answer = await self._request("list_prompts", _of(server), limit=LIST_SECONDS)
        prompts: list[dict[str, Any]] = member(answer, "prompts", self._base)
        return prompts

    async def read_resource(
        self, server: str, uri: str, *, on_input: OnInput | None = None
    ) -> list[dict[str, Any]]:
        """What a resource holds: its contents, each with a ``text`` or a ``blob``."""
        data = {"serverId": server, "uri": uri}
        answer = await self._request("read_resource", data, limit=None, on_input=on_input)
        contents: list[dict[str, Any]] = member(answer, "contents", self._base)
        return contents

    async def get_prompt(
        self,
        server: str,
        name: str,
        arguments: Mapping[str, str] | None = None,
        *,
        on_input: OnInput | None = None,
    ) -> dict[str, Any]:
        """A prompt, filled in: its ``messages``, and a ``description`` where it has one."""
        data = {"serverId": server, "name": name, "arguments": dict(arguments or {})}
        answer = dict(await self._request("get_prompt", data, limit=None, on_input=on_input))
        member(answer, "messages", self._base)
        return answer

    async def complete(
        self,
        server: str,
        ref: Mapping[str, str],
        argument: str,
        value: str,
        *,
        known: Mapping[str, str] | None = None,
    ) -> list[str]:
        """How the `value` of an `argument` may go on.

        `ref` is ``{"type": "ref/prompt", "name": …}`` or ``{"type": "ref/resource", "uri": …}``; `known` are
        values of other arguments.
        """
        data: dict[str, Any] = {
            "serverId": server,
            "ref": dict(ref),
            "argument": {"name": argument, "value": value},
        }
        if known is not None:
            data["context"] = {"arguments": dict(known)}
        answer = await self._request("complete", data, limit=None)
        values: list[str] = member(answer, "values", self._base)
        return values


def _of(server: str | None) -> dict[str, str]:
    return {} if server is None else {"serverId": server}
