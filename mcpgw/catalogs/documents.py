"""The text of a catalog, JSON or YAML, as plain JSON values. It is a stranger's: nothing in it may do harm.

YAML is read by PyYAML's safe loader, with less: no aliases (a few lines of them can stand for gigabytes), no
member twice, no values that JSON has not.
"""

import math
from typing import Any, Final

import yaml

from mcpgw.catalogs.model import CatalogFault
from mcpgw.commented_json import parse_commented_json
from mcpgw.references import is_unicode

_DEEPEST: Final = 64
_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_document(text: str) -> Any:
    """The JSON value of `text`, which is JSON (comments let through) or YAML 1.1.

    Raises:
        CatalogFault: it is neither, or holds what it must not; with the place where that is known.
    """
    begin = text.lstrip("\ufeff \t\r\n")[:2]
    try:
        value = parse_commented_json(text.lstrip("\ufeff")) if _is_json(begin) else _parse_yaml(text)
    except CatalogFault:
        raise
    except ValueError as error:
        raise CatalogFault(f"is no JSON: {error}") from None
    _check(value, 0)
    return value


def _is_json(begin: str) -> bool:
    return begin[:1] in ("{", "[", '"') or begin in ("//", "/*")


class _Loader(_Base):  # type: ignore[misc] # one of two classes, as PyYAML was built
    """The safe loader without times, which JSON has not, and with each member once."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in _Base.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise CatalogFault(f"{_place(key.start_mark)}: the name of a member is not text")
            if key.value in names:
                raise CatalogFault(
                    f"{_place(key.start_mark)}: the member {key.value[:64]!r} stands twice in one object"
                )
            names.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return {key if isinstance(key, str) else str(key): value for key, value in mapping.items()}


def _parse_yaml(text: str) -> Any:
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Base):
            if isinstance(event, yaml.AliasEvent):
                raise CatalogFault(f"{_place(event.start_mark)}: aliases (*NAME) are not taken")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise CatalogFault(f"is nested deeper than {_DEEPEST} levels")
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a narrowed safe loader
    except yaml.MarkedYAMLError as error:
        place = "" if error.problem_mark is None else f"{_place(error.problem_mark)}: "
        raise CatalogFault(f"is neither JSON nor YAML: {place}{error.problem}") from None
    except yaml.YAMLError as error:
        raise CatalogFault(f"is neither JSON nor YAML: {str(error).splitlines()[0]}") from None


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _check(value: Any, depth: int) -> None:
    """Refuse what is no JSON, or could not be kept as JSON."""
    if depth > _DEEPEST:
        raise CatalogFault(f"is nested deeper than {_DEEPEST} levels")
    if isinstance(value, dict):
        for name, member in value.items():
            _check(name, depth + 1)
            _check(member, depth + 1)
    elif isinstance(value, list):
        for member in value:
            _check(member, depth + 1)
    elif isinstance(value, str):
        if not is_unicode(value):
            raise CatalogFault("holds half of a surrogate pair")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise CatalogFault("holds a number that JSON has not")
    elif value is not None and not isinstance(value, bool | int):
        raise CatalogFault(f"holds a value that JSON has not ({type(value).__name__})")
