"""A quick yes to most values: JSON Schemas compiled by ``jsonschema-rs``.

It answers only whether a value is right, a hundred times faster than `jsonschema`. Where it does not say yes,
`mcpgw.wire.validation` asks `jsonschema`, which has the last word and the words for people. So a value that
the two see differently costs time and is never refused wrongly.

A stranger's schema is compiled here only where the time of a check is bounded by the size of the value: no
references, no patterns, no alternatives but those of plain values. All others are left to the check with a
budget of time.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

QuickCheck: TypeAlias = Callable[[Any], bool]
"""Whether a value surely fulfils its schema; false where it does not, or where that is not known."""

_DIALECTS: Final = (
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
)
_MOST_PARTS = 500
_MOST_ALTERNATIVES = 8
_WORDS: Final = frozenset(
    {"$comment", "$schema", "default", "deprecated", "description", "examples", "format", "title"}
    | {"readOnly", "writeOnly"}
)
"""Keywords that refuse nothing: `format` only describes, as the gateway has it."""
_BOUNDS: Final = frozenset({"minItems", "maxItems", "minLength", "maxLength"})
_LIMITS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_TYPES: Final = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})


def quick_check(schema: Mapping[str, Any]) -> QuickCheck | None:
    """Compile a schema of the gateway's own; None where the library cannot."""
    import jsonschema_rs  # noqa: PLC0415 - some MiB, which a gateway without clients does not need

    try:
        validator = jsonschema_rs.validator_for(
            dict(schema), validate_formats=False, pattern_options=jsonschema_rs.RegexOptions()
        )
    except (ValueError, jsonschema_rs.ReferencingError):
        return None

    def check(value: Any) -> bool:
        try:
            return validator.is_valid(value)
        except ValueError:  # a value that it cannot read, such as half of a surrogate pair
            return False

    return check


def quick_check_of_others(schema: Mapping[str, Any]) -> QuickCheck | None:
    """Compile a stranger's schema; None where a check of it could take longer than its value is worth."""
    dialect = schema.get("$schema", _DIALECTS[0])
    if not isinstance(dialect, str) or dialect.rstrip("#") not in _DIALECTS:
        return None
    return quick_check(schema) if _is_plain(schema) else None


def _is_plain(schema: Mapping[str, Any]) -> bool:
    waiting: list[Any] = [schema]
    for _ in range(_MOST_PARTS):
        if not waiting:
            return True
        part = waiting.pop()
        if isinstance(part, bool):
            continue
        if not isinstance(part, Mapping):
            return False
        for keyword, rule in part.items():
            if keyword == "properties" and isinstance(rule, Mapping):
                waiting.extend(rule.values())
            elif keyword in {"items", "additionalProperties"}:
                waiting.append(rule)
            elif not _is_plain_rule(keyword, rule):
                return False
    return False


def _is_plain_rule(keyword: str, rule: Any) -> bool:
    """Whether a rule looks at one value alone, and both libraries have the same opinion of it."""
    if keyword in _WORDS:
        return True
    if keyword == "type":
        return rule in _TYPES if isinstance(rule, str) else _are_texts(rule) and _TYPES.issuperset(rule)
    if keyword in {"required", "enum"}:
        return _are_texts(rule)
    if keyword == "const":
        return isinstance(rule, str)
    if keyword in _BOUNDS:
        return isinstance(rule, int) and not isinstance(rule, bool)
    if keyword in _LIMITS:
        return isinstance(rule, int | float) and not isinstance(rule, bool)
    if keyword == "anyOf":
        return isinstance(rule, list) and len(rule) <= _MOST_ALTERNATIVES and all(map(_is_scalar, rule))
    return False


def _is_scalar(schema: Any) -> bool:
    """Whether a schema looks at nothing inside of a value."""
    return isinstance(schema, Mapping) and all(
        keyword != "anyOf" and _is_plain_rule(keyword, rule) for keyword, rule in schema.items()
    )


def _are_texts(rule: Any) -> bool:
    return isinstance(rule, list) and len(rule) <= _MOST_PARTS and all(isinstance(one, str) for one in rule)
