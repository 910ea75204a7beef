"""From an option and the values of its inputs to the table of a server definition.

The publisher's text is never a reference: a catalog that says ``${HOME}`` or ``${file:/etc/passwd}`` gets
that text and no more. What the installing admin gives may hold references (``${NAME}``, ``${env:NAME}``,
``${file:PATH}``); they stay as they are written, and are replaced when the server is started.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mcpgw.catalogs.model import Argument, Input, Option, Slot, Template, slots_of
from mcpgw.errors import InvalidParams, suggest
from mcpgw.wire.validation import pointer

_REFERENCE: Final = re.compile(r"\$\{")
_WITH_REFERENCE: Final = re.compile(r"(?<!\$)\$\{")

Given = str | bool | int | float | Sequence[str]
"""What can be given for an input."""


@dataclass(frozen=True, slots=True)
class _Text:
    """A text, and whether the admin wrote it."""

    content: str
    is_trusted: bool


def make_table(option: Option, values: Mapping[str, Given]) -> dict[str, Any]:
    """The table of ``[servers.NAME]`` that `option` makes with `values`.

    Raises:
        InvalidParams: an input is missing, unknown, or not one of its choices; ``details`` has every fault.
    """
    if option.refused:
        raise InvalidParams(f"this option cannot be installed: {option.refused}")
    chosen = _choose(option.inputs, values)
    table: dict[str, Any] = {}
    if option.command:
        table["command"] = _join(option.command, chosen)
        words = [word for argument in option.arguments for word in _words(argument, chosen)]
        table |= {"args": words} if words else {}
        table |= _filled("env", option.environment, chosen)
        if option.folder:
            table["cwd"] = _join(option.folder, chosen)
    else:
        table["url"] = _join(option.url, chosen)
        table |= _filled("headers", option.headers, chosen)
    table["transport"] = option.transport
    if not option.enabled:
        table["enabled"] = False
    return table


_Chosen = Mapping[str, tuple[_Text, ...]]


def _choose(inputs: Sequence[Input], values: Mapping[str, Given]) -> _Chosen:
    """The texts of each input that has a value; one that is not repeated has one text."""
    known = {row.name: row for row in inputs}
    faults = [
        {"path": pointer("values", name[:128]), "reason": f"is not known{suggest(name, known)}"}
        for name in values
        if name not in known
    ]
    chosen: dict[str, tuple[_Text, ...]] = {}
    for row in inputs:
        given = _given(values[row.name]) if row.name in values else ()
        path = pointer("values", row.name)
        if len(given) > 1 and not row.repeated:
            faults.append({"path": path, "reason": "must be one value, and no list"})
        elif row.choices and any(text not in row.choices and not _refers(text) for text in given):
            faults.append({"path": path, "reason": f"must be one of {', '.join(row.choices)}"})
        elif given:
            chosen[row.name] = tuple(_Text(text, is_trusted=True) for text in given)
        elif row.default:
            default = row.default if isinstance(row.default, tuple) else (row.default,)
            chosen[row.name] = tuple(_Text(text, is_trusted=False) for text in default)
        elif row.required:
            faults.append({"path": path, "reason": "is required"})
    if faults:
        first = faults[0]
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InvalidParams(f"{first['path']} {first['reason']}{more}", details=faults)
    return chosen


def _given(value: Given) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) if value else ()
    if isinstance(value, bool):
        return (str(value).lower(),)
    if isinstance(value, int | float):
        return (str(value),)
    return tuple(value)


def _refers(text: str) -> bool:
    return _WITH_REFERENCE.search(text) is not None


def _words(argument: Argument, chosen: _Chosen) -> Iterator[str]:
    if argument.switch and [text.content for text in chosen.get(argument.switch, ())] != ["true"]:
        return
    if any(name not in chosen for name in argument.needs):
        return
    names = {slot.name for slot in argument.slots()}
    if any(name not in chosen for name in names):
        return
    # Lists go side by side; an input with one value goes with each.
    rounds = max((len(chosen[name]) for name in names), default=1)
    for turn in range(rounds):
        now = {name: (chosen[name][min(turn, len(chosen[name]) - 1)],) for name in names}
        for word in argument.words:
            yield _join(word, now)


def _filled(key: str, templates: Mapping[str, Template], chosen: _Chosen) -> dict[str, Any]:
    """The texts whose blanks all have a value, as the member `key`; nothing where there are none."""
    filled = {
        name: _join(template, chosen)
        for name, template in templates.items()
        if all(slot.name in chosen for slot in slots_of(template))
    }
    return {key: filled} if filled else {}


def _join(template: Template, chosen: _Chosen) -> str:
    """The text of `template`, in which nothing but the admin's words can be a reference."""
    parts = [part for piece in template for part in _parts(piece, chosen)]
    text = "".join(part.content for part in parts)
    trusted = [part.is_trusted for part in parts for _ in part.content]
    return _REFERENCE.sub(
        lambda match: match[0] if all(trusted[match.start() : match.end()]) else "$${", text
    )


def _parts(piece: str | Slot, chosen: _Chosen) -> Iterator[_Text]:
    if isinstance(piece, str):
        yield _Text(piece, is_trusted=False)
        return
    for place, text in enumerate(chosen[piece.name]):
        if place:
            yield _Text(",", is_trusted=False)
        whole = ":" not in text.content or _refers(text.content)
        if piece.form == "volume-target" and not whole:
            yield _Text(text.content.split(":")[1], text.is_trusted)
        else:
            yield text
        if piece.form == "volume" and whole:
            yield _Text(":", is_trusted=False)
            yield text
