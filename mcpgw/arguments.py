"""The arguments of a call, held against the schema of its tool.

Within a budget of time: the schema is a stranger's.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

from mcpgw.backends.tools import Tool
from mcpgw.logs import log_event
from mcpgw.wire.validation import SchemaChecker, SlowCheckError, UnusableSchemaError, require

_LOGGER = logging.getLogger("mcpgw.gateway")
_CHECK_SECONDS = 0.05
"""Most processor time of one check of arguments; what takes longer is left to the backend."""
_NEW: Final = object()
_SLOW_CHECKS = 3
"""Checks of one tool that may take too long before its schema is used no more."""


class ArgumentChecks:
    """Checks arguments; remembers the compiled schema of each tool as long as the tool is there."""

    def __init__(self) -> None:
        self._checkers: WeakKeyDictionary[Tool, SchemaChecker | object | None] = WeakKeyDictionary()
        self._slow: WeakKeyDictionary[Tool, int] = WeakKeyDictionary()

    def check(self, server_id: str, tool: Tool, arguments: Mapping[str, Any]) -> None:
        """Hold `arguments` against the schema of `tool`; a schema that cannot be used is left to the server.

        Raises:
            InvalidParams: they break it; `details` lists every fault.
        """
        checker = self._checkers.get(tool, _NEW)
        if checker is _NEW:
            checker = self._checkers[tool] = self._checker(server_id, tool)
        if not isinstance(checker, SchemaChecker):
            return
        try:
            require(checker, arguments, what=f"the arguments of {tool.name!r}", root=("data", "params"))
        except SlowCheckError as error:
            # The value may be to blame, or a busy machine: the schema has more than one chance.
            self._slow[tool] = self._slow.get(tool, 0) + 1
            if self._slow[tool] >= _SLOW_CHECKS:
                self._checkers[tool] = None
            _warn(server_id, tool, error)
        except UnusableSchemaError as error:
            self._checkers[tool] = None
            _warn(server_id, tool, error)

    @staticmethod
    def _checker(server_id: str, tool: Tool) -> SchemaChecker | None:
        try:
            return SchemaChecker(tool.input_schema, budget=_CHECK_SECONDS)
        except UnusableSchemaError as error:
            _warn(server_id, tool, error)
            return None


def _warn(server_id: str, tool: Tool, error: UnusableSchemaError) -> None:
    # Such a tool can still be called: its backend checks the arguments itself, as it must anyway.
    log_event(
        _LOGGER,
        logging.WARNING,
        "unusable input schema",
        server=server_id,
        tool=tool.name,
        reason=str(error),
    )
