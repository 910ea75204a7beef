"""What a server lists beside its tools, kept until it changes."""

from collections.abc import Callable, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

import mcp_types as types

from mcpgw.backends.backend import Backend
from mcpgw.backends.status import ListKind

_LISTS: Final[
    Mapping[ListKind, tuple[str, str, Callable[[types.PaginatedRequestParams], types.ClientRequest]]]
] = {
    "resources": ("resources", "resources", lambda params: types.ListResourcesRequest(params=params)),
    "templates": (
        "resources",
        "resourceTemplates",
        lambda params: types.ListResourceTemplatesRequest(params=params),
    ),
    "prompts": ("prompts", "prompts", lambda params: types.ListPromptsRequest(params=params)),
}
"""Each list: the capability that it goes with, where a page holds it, and its request."""


def capability_of(kind: ListKind) -> str:
    """What a server says that it can do, if it has such a list."""
    return _LISTS[kind][0]


class KeptLists:
    """The lists of a server's backends, each as it was sent."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Backend, dict[ListKind, list[dict[str, Any]]]] = WeakKeyDictionary()
        self._last: WeakKeyDictionary[Backend, dict[ListKind, list[dict[str, Any]]]] = WeakKeyDictionary()

    def drop(self, backend: Backend) -> None:
        """Its lists may be other ones now."""
        self._kept.pop(backend, None)

    def last(self, backend: Backend, kind: ListKind) -> list[dict[str, Any]]:
        """The last list that `backend` gave, which may be an old one; none where it never did."""
        return self._last.get(backend, {}).get(kind, [])

    async def get(self, backend: Backend, kind: ListKind) -> list[dict[str, Any]]:
        """A list of `backend`, which is asked for it where it is not known.

        Raises:
            ServerUnavailable, OutcomeUnknown, ToolExecutionError, TooLarge: why not.
        """
        kept = self._kept.setdefault(backend, {})
        if kind not in kept:
            connection = await backend.connection(0)
            capability, member, page = _LISTS[kind]
            if capability not in backend.status.capabilities:
                return []
            listed = await backend.guarded(connection, connection.list_all(member, page))
            self._last.setdefault(backend, {})[kind] = listed
            if self._kept.get(backend) is not kept:
                return listed  # it has changed meanwhile
            kept[kind] = listed
        return kept[kind]
