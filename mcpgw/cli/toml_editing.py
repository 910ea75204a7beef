"""One table put into a TOML file; everything else stays as its owner wrote it."""

import json
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

_HEADER: Final = re.compile(r"^[ \t]*\[(?!\[)([^\]\r\n]+)\]", re.MULTILINE)
_ANY_HEADER: Final = re.compile(r"^[ \t]*\[", re.MULTILINE)
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def set_table(text: str, path: Sequence[str], table: Mapping[str, Any]) -> str:
    """`text`, in which `table` stands as ``[path]``, in the place of what stood there.

    Tables inside it that have headers of their own and do not change stay as they are written. Raises
    ValueError with a sentence where `text` is no TOML, or the table that stands there is written in a way
    that cannot be replaced safely.
    """
    before = _parsed(text)
    expected = _merged(before, path, dict(table))
    old = before
    for name in path:
        old = old.get(name, {}) if isinstance(old, dict) else {}
    same = {name for name, value in table.items() if isinstance(value, dict) and old.get(name) == value}
    first, rest, kept = _cut(text, path, same)
    newline = "\r\n" if "\r\n" in text else "\n"
    own = {name: value for name, value in table.items() if name not in kept}
    block = table_text(path, own).replace("\n", newline)
    if first and not first.endswith("\n"):
        first += newline
    if first.strip() and not first.endswith(newline * 2):
        first += newline
    edited = first + block + rest
    try:
        is_right = tomllib.loads(edited) == expected
    except tomllib.TOMLDecodeError:
        is_right = False
    if not is_right:
        raise ValueError(f"has a table {'.'.join(path)} that cannot be replaced safely")
    return edited


def table(text: str, path: Sequence[str]) -> Any:
    """What stands at `path`; None where nothing does. Raises ValueError where `text` is no TOML."""
    value: Any = _parsed(text)
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    return value


def table_text(path: Sequence[str], members: Mapping[str, Any]) -> str:
    """A table as TOML; tables inside it are written on one line.

    Raises ValueError where something in it is no text, number, truth, list or table.
    """
    lines = [f"[{'.'.join(map(_key, path))}]"]
    lines += [f"{_key(name)} = {_value(value)}" for name, value in members.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)} = {_value(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        # A string of JSON is one of TOML too, but for one sign that TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value)
    raise ValueError("holds a date or time, which cannot be written safely")


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read as TOML: {error}") from None


def _merged(document: Any, path: Sequence[str], value: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise ValueError(f"{path[0]!r} stands in something that is no table")  # noqa: TRY004 - of a text
    name, *rest = path
    return {**document, name: value if not rest else _merged(document.get(name, {}), rest, value)}


def _cut(text: str, path: Sequence[str], same: Collection[str]) -> tuple[str, str, set[str]]:
    """`text` before and after the table at `path`, and which of the tables `same` inside it are still there.

    Other tables inside it are gone. Where there is none, all of `text` stands before.
    """
    kept: set[str] = set()
    starts = [match.start() for match in _ANY_HEADER.finditer(text)] + [len(text)]
    pieces = [text[: starts[0]]]
    found: int | None = None
    for start, end in pairwise(starts):
        piece = text[start:end]
        header = _HEADER.match(piece)
        names = _names(header[1]) if header else []
        if names[: len(path)] != list(path):
            pieces.append(piece)
            continue
        if found is None:
            found = len(pieces)
        if len(names) > len(path) and names[len(path)] in same:
            kept.add(names[len(path)])
            pieces.append(piece)
            continue
        # What is commented below a table belongs to the next one.
        pieces.append(piece[len(_with_values(piece)) :])
    if found is None:
        return text, "", kept
    return "".join(pieces[:found]), "".join(pieces[found:]), kept


def _with_values(piece: str) -> str:
    lines = piece.splitlines(keepends=True)
    while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    return "".join(lines)


def _names(header: str) -> list[str]:
    try:
        value: Any = tomllib.loads(f"[{header}]")
    except tomllib.TOMLDecodeError:
        return []
    names = []
    while isinstance(value, dict) and value:
        name, value = next(iter(value.items()))
        names.append(name)
    return names


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name)
