"""The check of a value that takes its time, and has the last word and the words for people: `jsonschema`.

It is imported where the quick check has not said yes, or where a stranger's schema is looked at.
"""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import regex
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from mcpgw.errors import suggest
from mcpgw.wire.schema_budget import Budget, BudgetExceededError, with_budget
from mcpgw.wire.schema_faults import SlowCheckError, UnusableSchemaError, pointer

_MOST_FAULTS = 20
_LONGEST_REASON = 200


class SlowCheck:
    """One JSON Schema; see `mcpgw.wire.validation.SchemaChecker`. One that `is_trusted` is surely a schema.

    Raises:
        UnusableSchemaError: the schema is no valid JSON Schema.
    """

    def __init__(self, schema: Mapping[str, Any], *, is_trusted: bool) -> None:
        if not isinstance(schema.get("$schema", ""), str):
            raise UnusableSchemaError("not a JSON Schema: its $schema is no text")
        dialect = validator_for(schema, default=Draft202012Validator)
        try:
            if not is_trusted:
                dialect.check_schema(dict(schema))
        except (SchemaError, RecursionError, re.error) as error:
            raise UnusableSchemaError(f"not a JSON Schema: {str(error).splitlines()[0]}") from None
        self._validator = with_budget(dialect)(dict(schema), registry=Registry())

    def faults(self, value: Any, root: tuple[object, ...], budget: float | None) -> list[dict[str, str]]:
        """Every fault of `value`; see `SchemaChecker.faults`."""
        Budget.begin(budget)
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
