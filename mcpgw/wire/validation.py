"""JSON Schemas (2020-12), compiled once, and their faults in words.

A fault is ``{"path": "/data/params/limit", "reason": "…"}``: the path is a JSON Pointer (RFC 6901) from
the frame's root, so that a client finds the place in what it sent.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from mcpgw.errors import InvalidParams
from mcpgw.wire.quick_check import quick_check, quick_check_of_others
from mcpgw.wire.schema_faults import SlowCheckError, UnusableSchemaError, pointer

if TYPE_CHECKING:
    from mcpgw.wire.slow_check import SlowCheck

__all__ = [
    "SchemaChecker",
    "SlowCheckError",
    "UnusableSchemaError",
    "definition_checker",
    "load_schema",
    "pointer",
    "require",
]

_MOST_NODES = 20_000


class SchemaChecker:
    """One JSON Schema, ready to check many values.

    The dialect is the one that ``$schema`` names, else 2020-12 (as MCP 2025-11-25 and later have it). Nothing
    is ever fetched: a ``$ref`` that leaves the document makes the schema unusable. `budget` bounds the time
    of one check in seconds, for schemas of others; one of the gateway's own (`is_own`) needs none.

    Raises:
        UnusableSchemaError: the schema is no valid JSON Schema, or too large to be checked on the way.
    """

    def __init__(
        self, schema: Mapping[str, Any], *, budget: float | None = None, is_own: bool = False
    ) -> None:
        self._budget = budget
        self._made: SlowCheck | None = None
        if budget is not None and not _is_handy(schema):
            raise UnusableSchemaError(
                "it is too large, or mixes unevaluatedProperties with patternProperties"
            )
        self._schema = schema
        self._is_own = is_own
        if not is_own:
            self._slow()
        self._is_right = quick_check(schema) if is_own else quick_check_of_others(schema)

    def faults(self, value: Any, *, root: tuple[object, ...] = ()) -> list[dict[str, str]]:
        """Every fault of `value` (20 at most), with paths that begin at `root`; empty where it is right.

        Raises:
            UnusableSchemaError: a reference of the schema leads nowhere or in a circle, a pattern is none, or
                the check takes longer than its budget (SlowCheckError).
        """
        if self._is_right is not None and self._is_right(value):
            return []
        return self._slow().faults(value, root, self._budget)

    def _slow(self) -> "SlowCheck":
        """The check that has the words; one of the gateway's own schemas is made when it refuses first."""
        if self._made is None:
            from mcpgw.wire.slow_check import SlowCheck  # noqa: PLC0415 - jsonschema, and what it needs

            self._made = SlowCheck(self._schema, is_trusted=self._is_own)
        return self._made


def _is_handy(schema: Mapping[str, Any]) -> bool:
    """Whether a schema of others is small enough to be compiled on the event loop, and every rule bounded."""
    nodes, waiting, names = 0, [schema], set[str]()
    while waiting:
        part: Any = waiting.pop()
        nodes += 1
        if isinstance(part, Mapping):
            names.update(part)
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
        if nodes > _MOST_NODES:
            return False
    return not {"unevaluatedProperties", "patternProperties"} <= names


@cache
def load_schema(name: str) -> dict[str, Any]:
    """The schema file `name` (such as ``client-frames``) of the package ``mcpgw.schemas``."""
    text = files("mcpgw.schemas").joinpath(f"{name}.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


@cache
def definition_checker(schema_name: str, definition: str) -> SchemaChecker:
    """The checker of one entry of ``$defs`` in a schema file, such as ``client-frames`` and ``tool_call``."""
    schema = load_schema(schema_name)
    definitions = {"$schema": schema["$schema"], "$defs": schema["$defs"]}
    return SchemaChecker(definitions | {"$ref": f"#/$defs/{definition}"}, is_own=True)


def require(checker: SchemaChecker, value: Any, *, what: str, root: tuple[object, ...] = ()) -> None:
    """Refuse `value` where it breaks its schema.

    Raises:
        InvalidParams: with every fault in ``details`` and the first one in words.
    """
    if found := checker.faults(value, root=root):
        first = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InvalidParams(f"{what}: {first['path'] or 'the value'} {first['reason']}{more}", details=found)
