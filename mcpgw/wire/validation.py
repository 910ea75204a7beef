"""JSON Schemas (2020-12), compiled once, and their faults in words.

A fault is ``{"path": "/data/params/limit", "reason": "…"}``: the path is a JSON Pointer (RFC 6901) from
the frame's root, so that a client finds the place in what it sent.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import Any

import regex
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from mcpgw.errors import InvalidParams, suggest
from mcpgw.wire.quick_check import quick_check, quick_check_of_others
from mcpgw.wire.schema_budget import Budget, BudgetExceededError, with_budget

_MOST_FAULTS = 20
_LONGEST_REASON = 200
_MOST_NODES = 20_000


class UnusableSchemaError(ValueError):
    """A schema that is no JSON Schema, or that refers to what is not in it."""


class SlowCheckError(UnusableSchemaError):
    """A check that took longer than its budget."""


def pointer(*parts: object) -> str:
    """A JSON Pointer (RFC 6901) to the place that `parts` name, the empty string for the root."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


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
        if budget is not None and not _is_handy(schema):
            raise UnusableSchemaError(
                "it is too large, or mixes unevaluatedProperties with patternProperties"
            )
        if not isinstance(schema.get("$schema", ""), str):
            raise UnusableSchemaError("not a JSON Schema: its $schema is no text")
        dialect = validator_for(schema, default=Draft202012Validator)
        try:
            dialect.check_schema(dict(schema))
        except (SchemaError, RecursionError, re.error) as error:
            raise UnusableSchemaError(f"not a JSON Schema: {str(error).splitlines()[0]}") from None
        self._validator = with_budget(dialect)(dict(schema), registry=Registry())
        self._is_right = quick_check(schema) if is_own else quick_check_of_others(schema)

    def faults(self, value: Any, *, root: tuple[object, ...] = ()) -> list[dict[str, str]]:
        """Every fault of `value` (20 at most), with paths that begin at `root`; empty where it is right.

        Raises:
            UnusableSchemaError: a reference of the schema leads nowhere or in a circle, a pattern is none, or
                the check takes longer than its budget (SlowCheckError).
        """
        if self._is_right is not None and self._is_right(value):
            return []
        Budget.begin(self._budget)
        try:
            errors = self._validator.iter_errors(value)
            # Lazily: one error can stand for a hundred thousand unknown names, and each costs a search.
            found = list(
                islice((fault for error in errors for fault in _in_words(error, root)), _MOST_FAULTS)
            )
        except BudgetExceededError:
            raise SlowCheckError("the check takes too long") from None
        except (Unresolvable, RecursionError, re.error, regex.error) as error:
            raise UnusableSchemaError(f"the schema cannot be followed: {error}") from None
        return found


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


def _in_words(error: ValidationError, root: tuple[object, ...]) -> Iterator[dict[str, str]]:
    """The faults of one error, without the value that was sent: it may be a secret, and it may be large."""
    place = (*root, *error.absolute_path)
    schema = error.schema if isinstance(error.schema, Mapping) else {}
    rule: Any = error.validator_value
    if error.validator == "required" and isinstance(error.instance, Mapping):
        for name in rule:
            # One error stands for each missing name; its message begins with the name.
            if name not in error.instance and error.message.startswith(repr(name)):
                yield {"path": pointer(*place, name), "reason": "is required"}
    elif error.validator == "anyOf" and all(part.validator == "required" for part in error.context or ()):
        yield {"path": pointer(*place, *rule[0].get("required", ())[:1]), "reason": "is required"}
    elif error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = schema.get("properties", {})
        patterns = schema.get("patternProperties", {})
        for name in error.instance:
            if name not in known and not any(Budget.search(pattern, name) for pattern in patterns):
                yield {"path": pointer(*place, name[:128]), "reason": f"is not known{suggest(name, known)}"}
    else:
        yield {"path": pointer(*place), "reason": _shortened(_broken_rule(str(error.validator), rule))}


_SENTENCES = {
    "const": "must be {}",
    "enum": "must be one of {}",
    "format": "must be a {}",
    "maxItems": "must have at most {} items",
    "maxLength": "must have at most {} characters",
    "maximum": "must be at most {}",
    "exclusiveMaximum": "must be less than {}",
    "minItems": "must have at least {} items",
    "minLength": "must have at least {} characters",
    "minimum": "must be at least {}",
    "exclusiveMinimum": "must be more than {}",
    "multipleOf": "must be a multiple of {}",
    "pattern": "must match {}",
    "type": "must be of type {}",
    "uniqueItems": "must not hold the same item twice",
}


def _broken_rule(keyword: str, rule: object) -> str:
    shown = " or ".join(rule) if keyword == "type" and isinstance(rule, list) else rule
    shown = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
    return _SENTENCES.get(keyword, f"breaks the schema's rule {keyword!r}: {{}}").format(shown)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"


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
