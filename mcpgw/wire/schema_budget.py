"""JSON Schemas of others, checked within a budget of time.

A tool's schema comes from its backend, and the values from a client. Together they can ask for more work than
there is time: a pattern that goes back over its text again and again, references that fan out. Every rule of
such a schema looks at the clock, and patterns are searched with a time limit, so that no check holds up the
event loop.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import regex
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

# The regex module looks at the wall clock: a busy machine must not end a search that has hardly begun.
_SHORTEST_SEARCH = 0.1

Rule = Callable[[Any, Any, Any, Any], Any]


class BudgetExceededError(Exception):
    """A check has taken longer than it may."""


class Budget:
    """The processor time of one check, in seconds; checks do not overlap, for none awaits anything."""

    deadline = float("inf")

    @classmethod
    def begin(cls, seconds: float | None) -> None:
        """Start the clock of a check; None bounds nothing."""
        cls.deadline = float("inf") if seconds is None else time.thread_time() + seconds

    @classmethod
    def look(cls) -> None:
        """Raise `BudgetExceededError` where the time is over."""
        if time.thread_time() > cls.deadline:
            raise BudgetExceededError

    @classmethod
    def search(cls, pattern: str, text: str) -> bool:
        """Whether `pattern` is found in `text`.

        Raises:
            BudgetExceededError: the search takes too long.
            regex.error: the pattern is none.
        """
        left = cls.deadline - time.thread_time()
        try:
            return (
                _compiled(pattern).search(
                    text, timeout=None if left == float("inf") else max(_SHORTEST_SEARCH, left)
                )
                is not None
            )
        except TimeoutError:
            raise BudgetExceededError from None


@cache
def with_budget(dialect: type[Validator]) -> type[Validator]:
    """`dialect` with rules that keep to the budget, and none whose time grows with the value's square."""
    rules: Mapping[str, Rule] = dialect.VALIDATORS
    bounded = {name: _looking(rule) for name, rule in rules.items()}
    replaced: Mapping[str, Rule] = {
        "uniqueItems": _unique_items,
        "items": _items_unless_too_many(rules["items"]) if "items" in rules else _unique_items,
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    }
    bounded |= {name: _looking(rule) for name, rule in replaced.items() if name in rules}
    changed: type[Validator] = extend(dialect, bounded)  # type: ignore[no-untyped-call]
    return changed


@cache
def _compiled(pattern: str) -> "regex.Pattern[str]":
    return regex.compile(pattern)


def _looking(rule: Rule) -> Rule:
    def check(validator: Any, wanted: Any, instance: Any, schema: Any) -> Any:
        Budget.look()
        return rule(validator, wanted, instance, schema)

    return check


def _items_unless_too_many(rule: Rule) -> Rule:
    def check(validator: Any, wanted: Any, instance: Any, schema: Any) -> Any:
        # A list that is too long is refused for that, by `maxItems`; its items are not worth a look.
        if isinstance(instance, list) and len(instance) > schema.get("maxItems", len(instance)):
            return ()
        return rule(validator, wanted, instance, schema)

    return check


def _pattern(validator: Any, pattern: str, instance: object, _schema: object) -> Iterator[ValidationError]:
    if (
        isinstance(instance, str)
        and validator.is_type(instance, "string")
        and not Budget.search(pattern, instance)
    ):
        yield ValidationError("does not match")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: object, _schema: object
) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, part in patterns.items():
            for name, value in instance.items():
                if Budget.search(pattern, name):
                    yield from validator.descend(value, part, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, allowed: Any, instance: object, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extra = (
        name
        for name in instance
        if name not in known and not any(Budget.search(pattern, name) for pattern in patterns)
    )
    if validator.is_type(allowed, "object"):
        for name in extra:
            yield from validator.descend(instance[name], allowed, path=name)
    elif not allowed and next(extra, None) is not None:
        yield ValidationError("has unknown members")


def _unique_items(
    _validator: Any, wanted: bool, items: object, _schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if wanted and isinstance(items, list) and len({_identity(item) for item in items}) < len(items):
        yield ValidationError("has equal items")


def _identity(value: Any) -> object:
    """What is equal for equal JSON values alone; 1 is 1.0 and is not true (JSON Schema, section 4.2.2)."""
    if isinstance(value, dict):
        return "object", frozenset((name, _identity(part)) for name, part in value.items())
    if isinstance(value, list):
        return "array", tuple(map(_identity, value))
    return (type(value) if isinstance(value, bool) else None), value
