"""The schema of a stranger's tool as a part of another document.

A tool's schema is a document of its own: ``#/$defs/x`` in it begins at its own root. Inside another document
every such reference has to lead there. What cannot be moved so (it refers to elsewhere, has names of its own
for its parts, is of a dialect that cannot be said in 2020-12, or is too large) becomes a schema that allows
everything: it describes less, and nothing false. Source: JSON Schema 2020-12, core, sections 8.2 and 9.3;
OpenAPI 3.1.1, "Schema Object".
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from mcpgw.wire.validation import UnusableSchemaError

_ONE = frozenset(
    (
        "additionalItems",
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    )
)
_LIST = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
_NAMED = frozenset(("$defs", "definitions", "dependentSchemas", "patternProperties", "properties"))
_NAMES_OF_PARTS = frozenset(("$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef"))
_OLDER = re.compile(r"draft-0[3-7]")
_MOST_PARTS = 5_000
_DEEPEST = 64
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def moved(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    """`schema` as it stands at `place`, a JSON Pointer into the other document as a fragment (``#/…``).

    Raises:
        UnusableSchemaError: it cannot stand there.
    """
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - for the page of tools alone

    result = _Move(schema, place).whole()
    try:
        is_schema = Draft202012Validator(Draft202012Validator.META_SCHEMA).is_valid(result)
    except RecursionError:
        is_schema = False
    if not is_schema:
        raise UnusableSchemaError("it is no JSON Schema of 2020-12")
    return result


class _Move:
    def __init__(self, schema: Mapping[str, Any], place: str) -> None:
        self._schema = schema
        self._place = place
        self._is_older = _OLDER.search(str(schema.get("$schema", ""))) is not None
        self._parts = 0
        self._seen: set[str] = set()
        self._wanted: set[str] = set()

    def whole(self) -> dict[str, Any]:
        result = self._part(self._schema, "", 0)
        if not isinstance(result, dict) or not self._wanted <= self._seen:
            raise UnusableSchemaError("a reference of it leads nowhere")
        return result

    def _part(self, schema: Any, pointer: str, depth: int) -> Any:
        self._parts += 1
        if self._parts > _MOST_PARTS or depth > _DEEPEST:
            raise UnusableSchemaError("it is too large, or nested too deep")
        self._seen.add(pointer)
        if not isinstance(schema, Mapping):
            return schema
        if _NAMES_OF_PARTS.intersection(schema) or (pointer and "$id" in schema):
            raise UnusableSchemaError("it has names of its own for its parts")
        if self._is_older and isinstance(schema.get("$ref"), str):
            return {"$ref": self._led(schema["$ref"])}  # up to draft-07 nothing beside it counts
        result: dict[str, Any] = {}
        for name, value in schema.items():
            if name not in ("$schema", "$id", "$vocabulary", "$comment"):
                result[name] = self._member(name, value, f"{pointer}/{_escaped(name)}", depth + 1)
        if isinstance(result.get("items"), list):
            result["prefixItems"] = result.pop("items")
            if "additionalItems" in result:
                result["items"] = result.pop("additionalItems")
        if "default" in result and not _goes_with(result["default"], result):
            del result["default"]
        return result

    def _member(self, name: str, value: Any, pointer: str, depth: int) -> Any:
        if name == "$ref":
            return self._led(value)
        if name in _LIST or (name == "items" and isinstance(value, list)):
            if not isinstance(value, list):
                raise UnusableSchemaError(f"its {name} is no list")
            return [self._part(part, f"{pointer}/{index}", depth) for index, part in enumerate(value)]
        if name in _ONE:
            return self._part(value, pointer, depth)
        if name in _NAMED:
            if not isinstance(value, Mapping):
                raise UnusableSchemaError(f"its {name} is no object")
            return {key: self._part(part, f"{pointer}/{_escaped(key)}", depth) for key, part in value.items()}
        return value

    def _led(self, reference: Any) -> str:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise UnusableSchemaError("it refers to what is not in it")
        pointer = reference[1:]
        if "%" in pointer:
            raise UnusableSchemaError("a reference of it is spelled in a way that is not followed")
        self._wanted.add(pointer)
        return self._place + pointer


def _goes_with(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a default is of the type of its schema and one of its values; readers refuse others."""
    if "enum" in schema and value not in schema["enum"]:
        return False
    kinds = schema.get("type")
    if kinds is None:
        return True
    names = kinds if isinstance(kinds, list) else [kinds]
    types = tuple(part for name in names for part in _TYPES.get(str(name), ()))
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
