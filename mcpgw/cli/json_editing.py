"""One member put into a file of JSON with comments; everything else stays as its owner wrote it."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mcpgw.commented_json import parse_commented_json

_SPACE: Final = re.compile(r"(?:[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING: Final = re.compile(r'"(?:\\.|[^"\\])*"')
_TOKEN: Final = re.compile(r'"(?:\\.|[^"\\])*"|//[^\r\n]*|/\*.*?\*/|(?P<bracket>[\[{\]}])', re.DOTALL)
"""What decides where an object or a list ends: its brackets, and what may hold some that are none."""
_OTHER_VALUE: Final = re.compile(r"[^\s,\[\]{}/\"]+")
_INDENTATION: Final = re.compile(r"^([ \t]+)\S", re.MULTILINE)
_DEFAULT_INDENTATION: Final = "  "


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of an object: its name, and where in the text its name begins and its value lies."""

    name: str
    start: int
    value: int
    end: int


def set_member(text: str, path: Sequence[str], value: Any) -> str:
    """`text`, in which the member that `path` leads to is `value`; what is missing on the way is made.

    Comments, trailing commas, line ends and the order of members stay. An empty `text` counts as ``{}``.

    Raises ValueError with a sentence where `text` is no JSON with comments, or something on the way is no
    object.
    """
    if not _without_space(text):
        return json.dumps(_nested(path, value), indent=2, ensure_ascii=False) + "\n"
    before = parse_commented_json(text)
    _check_way(before, path)
    edited = _Editor(text).set(path, value)
    # Whatever the editor does not foresee, no file is ever written that says anything else.
    if parse_commented_json(edited) != _merged(before, path, value):
        raise ValueError("is written in a way that cannot be edited safely")
    return edited


def member(text: str, path: Sequence[str]) -> Any:
    """What stands at `path`; None where nothing does. Raises as `set_member` does."""
    if not _without_space(text):
        return None
    value = parse_commented_json(text)
    _check_way(value, path)
    for name in path:
        if name not in value:
            return None
        value = value[name]
    return value


def _without_space(text: str) -> str:
    return text[_end_of_space(text, 0) :]


def _check_way(value: Any, path: Sequence[str]) -> None:
    for place, name in enumerate(path):
        if not isinstance(value, dict):
            raise ValueError(f"{'.'.join(path[:place]) or 'what it holds'} is no object")  # noqa: TRY004 - of a text
        if name not in value:
            return
        value = value[name]


def _nested(path: Sequence[str], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


def _merged(document: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    name, *rest = path
    inner = value if not rest else _merged(document.get(name, {}), rest, value)
    return {**document, name: inner}


class _Editor:
    """One text that has been parsed, and so is known to be well-formed."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._newline = "\r\n" if "\r\n" in text else "\n"
        found = _INDENTATION.search(text)
        self._unit = found[1] if found else _DEFAULT_INDENTATION

    def set(self, path: Sequence[str], value: Any) -> str:
        start, depth = _end_of_space(self._text, 0), 0
        for depth, name in enumerate(path, start=1):
            members = list(self._members(start))
            known = next((row for row in members if row.name == name), None)
            if known is None:
                return self._added(start, members, depth, name, _nested(path[depth:], value))
            if depth == len(path):
                return self._text[: known.value] + self._shown(value, depth) + self._text[known.end :]
            start = known.value
        raise AssertionError("a path has a name")

    def _added(self, start: int, members: list[_Member], depth: int, name: str, value: Any) -> str:
        """The text with one more member at the end of the object that begins at `start`.

        Comments behind what was its last member stay there.
        """
        text = self._text
        entry = f"{json.dumps(name, ensure_ascii=False)}: {self._shown(value, depth)}"
        line = self._newline + self._unit * depth
        comma_before, comma_after, end = "", "", start + 1
        if members:
            end = members[-1].end
            comma = _end_of_space(text, end)
            if text[comma] == ",":
                comma_after, end = ",", comma + 1
            else:
                comma_before = ","
        closing = _end_of_space(text, end)
        comments = text[end:closing].rstrip()
        space = text[end + len(comments) : closing]
        if "\n" not in space:
            space = self._newline + self._unit * (depth - 1)
        return f"{text[:end]}{comma_before}{comments}{line}{entry}{comma_after}{space}{text[closing:]}"

    def _shown(self, value: Any, depth: int) -> str:
        lines = json.dumps(value, indent=self._unit, ensure_ascii=False).split("\n")
        return (self._newline + self._unit * depth).join(lines)

    def _members(self, start: int) -> Iterator[_Member]:
        """The members of the object that begins at `start`."""
        place = _end_of_space(self._text, start + 1)
        while self._text[place] != "}":
            name = _STRING.match(self._text, place)
            assert name is not None, "the text was parsed"  # noqa: S101
            colon = _end_of_space(self._text, name.end())
            value = _end_of_space(self._text, colon + 1)
            end = self._end_of_value(value)
            yield _Member(json.loads(name[0]), place, value, end)
            place = _end_of_space(self._text, end)
            if self._text[place] == ",":
                place = _end_of_space(self._text, place + 1)

    def _end_of_value(self, start: int) -> int:
        """Where the value that begins at `start` ends."""
        if self._text[start] not in "[{":
            match = (_STRING if self._text[start] == '"' else _OTHER_VALUE).match(self._text, start)
            assert match is not None, "the text was parsed"  # noqa: S101
            return match.end()
        open_ones = 0
        for token in _TOKEN.finditer(self._text, start):
            if (bracket := token["bracket"]) is not None:
                open_ones += 1 if bracket in "[{" else -1
                if not open_ones:
                    return token.end()
        raise AssertionError("the text was parsed")


def _end_of_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    assert match is not None, "the pattern matches nothing too"  # noqa: S101
    return match.end()
