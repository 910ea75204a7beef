"""JSON as desktop clients keep it: with comments and trailing commas (VS Code's JSON with Comments)."""

import json
import re
from typing import Any, Final

_COMMENT: Final = re.compile(r'"(?:\\.|[^"\\])*"|(?P<gone>//[^\r\n]*|/\*.*?\*/)', re.DOTALL)
_TRAILING_COMMA: Final = re.compile(
    # A comma that follows no value stays, so that [,] and [1,,] are the faults that they are in JSON.
    r'"(?:\\.|[^"\\])*"|[\[{:,]\s*,|(?P<gone>,)(?=\s*[\]}])',
    re.DOTALL,
)


def parse_commented_json(text: str) -> Any:
    """The JSON value of `text`, with comments and trailing commas let through.

    Raises ValueError with a sentence that has line and column, or the name of a member that stands twice.
    """
    plain = _TRAILING_COMMA.sub(_blank, _COMMENT.sub(_blank, text))
    try:
        return json.loads(plain, object_pairs_hook=_members, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError("is nested too deep") from None


def _blank(match: re.Match[str]) -> str:
    """Blanks in place of what goes, so that lines and columns stay true."""
    return match[0] if match["gone"] is None else re.sub(r"[^\r\n]", " ", match[0])


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"the member {name!r} stands twice in one object")
        members[name] = value
    return members


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
