"""Definitions of backend servers: ``[servers.NAME]`` of ``mcpgw.toml``, checked and made ready for use.

The rules stand in ``schemas/server-definition.json``. This module replaces references, applies the schema,
and says each fault in a sentence with its place. A sentence never holds a value: arguments, addresses,
headers and environment variables may be secrets.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from mcpgw.errors import suggest
from mcpgw.references import References, UnresolvedReferenceError, is_unicode

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError

Transport = Literal["stdio", "http", "sse"]
JsonPath = tuple[str | int, ...]

MEMORY_SERVER: Final = "memory"
NAME_RULE: Final = "letters, digits, '_', '.' and '-', at most 64, a letter or digit first"
SERVER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""A server's name; to be used with ``fullmatch``."""

_REPLACED: Final = ("command", "args", "env", "cwd", "url", "headers")
_TYPES: Final = {
    "object": "a table",
    "array": "a list",
    "string": "text",
    "boolean": "true or false",
    "number": "a number",
}


@dataclass(frozen=True)
class ServerDefinition:
    """One backend server.

    With the transport ``stdio`` there is a `command`, and `args`, `env` and `cwd` are its own; with ``http``
    (Streamable HTTP) and ``sse`` (HTTP with SSE, of MCP 2024-11-05) there is a `url` with its `headers`.
    `timeout` is the default limit of one call in seconds. `source` is the place it was read from.
    """

    name: str
    transport: Transport
    command: str | None = None
    args: tuple[str, ...] = field(default=(), repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: Path | None = None
    url: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    enabled: bool = True
    timeout: float | None = None
    source: str = ""


def is_server_name(name: str) -> bool:
    """Whether `name` can be that of a backend server."""
    return SERVER_NAME.fullmatch(name) is not None


def define_server(
    name: str,
    table: object,
    *,
    place: str,
    references: References,
    report: Callable[[str], None],
) -> ServerDefinition | None:
    """The definition that `table` (TOML or JSON) makes for the server `name`.

    Every fault goes to `report` as a sentence that begins with `place`; then the answer is None.
    """
    faults: list[str] = []
    replaced, broken = _replace(table, references, faults)
    for path, sentence in _faults(replaced):
        # A reference that could not be replaced was reported; its text says nothing more.
        if not any(path[: len(other)] == other for other in broken):
            faults.append(f"{_dotted(path)}: {sentence}" if path else f": {sentence}")
    for fault in faults:
        report(place + ("" if fault.startswith(":") else " ") + fault)
    if faults or not isinstance(replaced, dict):
        return None
    return _definition(name, replaced, place, references)


def _definition(name: str, table: Mapping[str, Any], place: str, references: References) -> ServerDefinition:
    command = table.get("command")
    if command is not None and (command.startswith("~/") or "/" in command):
        command = str(references.path(command))
    timeout = table.get("timeout")
    return ServerDefinition(
        name=name,
        transport=table.get("transport", "stdio" if command is not None else "http"),
        command=command,
        args=tuple(table.get("args", ())),
        env=MappingProxyType(dict(table.get("env", {}))),
        cwd=references.path(table["cwd"]) if "cwd" in table else None,
        url=table.get("url"),
        headers=MappingProxyType(dict(table.get("headers", {}))),
        enabled=table.get("enabled", True),
        timeout=None if timeout is None else float(timeout),
        source=place,
    )


def _replace(table: object, references: References, faults: list[str]) -> tuple[object, set[JsonPath]]:
    """`table` with its references replaced, and the paths of the texts where one could not be."""
    broken: set[JsonPath] = set()

    def replaced(value: object, path: JsonPath) -> object:
        if isinstance(value, str):
            if not is_unicode(value):
                broken.add(path)
                faults.append(f"{_dotted(path)}: is not Unicode text")
                return value
            try:
                return references.replace(value)
            except UnresolvedReferenceError as fault:
                broken.add(path)
                faults.extend(f"{_dotted(path)}: {sentence}" for sentence in fault.sentences)
                return value
        if isinstance(value, dict):
            return {key: replaced(part, (*path, str(key))) for key, part in value.items()}
        if isinstance(value, list):
            return [replaced(part, (*path, index)) for index, part in enumerate(value)]
        return value

    if not isinstance(table, dict):
        return table, broken
    return {
        key: replaced(value, (key,)) if key in _REPLACED else value for key, value in table.items()
    }, broken


@cache
def _validator() -> "Draft202012Validator":
    # jsonschema costs tens of milliseconds, which a command that reads no definition need not pay.
    from jsonschema import Draft202012Validator  # noqa: PLC0415

    schema = json.loads(files("mcpgw.schemas").joinpath("server-definition.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def _faults(table: object) -> list[tuple[JsonPath, str]]:
    """Path and sentence of everything in `table` that is wrong, each once, in order of their paths."""
    if not isinstance(table, dict):
        return [((), "is not a table")]
    found = {fault: None for error in _validator().iter_errors(table) for fault in _sentences(error)}
    if not found and "url" in table:
        found = {(("url",), sentence): None for sentence in _address_faults(table["url"])}
    return sorted(found, key=lambda fault: [str(part) for part in fault[0]])


def _sentences(error: "ValidationError") -> Iterator[tuple[JsonPath, str]]:
    path: JsonPath = tuple(error.absolute_path)
    instance: Any = error.instance
    expected: Any = error.validator_value
    if "propertyNames" in error.absolute_schema_path:
        yield (*path, str(instance)), f"cannot be the name of {_named(path)}"
    elif error.validator == "additionalProperties":
        known = error.schema["properties"] if isinstance(error.schema, dict) else {}
        for key in instance.keys() - known.keys():
            yield (*path, key), f"unknown key{suggest(key, known)}"
    elif error.validator == "dependentRequired":
        for key in instance.keys() & expected.keys():
            [needed] = expected[key]
            # Without either, one sentence says so already.
            if needed not in instance and ("command" in instance or "url" in instance):
                yield (key,), f"goes with {needed} only"
    else:
        yield path, _sentence(str(error.validator), expected, instance, path)


def _sentence(keyword: str, expected: Any, instance: Any, path: JsonPath) -> str:
    match keyword:
        case "type":
            return f"is not {_TYPES[expected]}"
        case "oneOf" if "command" in instance:
            return "has both command and url; a server is either started (command) or reached (url)"
        case "oneOf":
            return "has neither command (a server to start) nor url (a server to reach)"
        case "minLength":
            return "is empty"
        case "enum":
            return f"is none of {', '.join(expected)}"
        case "const":
            return "is stdio where a command is given"
        case "pattern":
            return "is not an http:// or https:// address"
        case "not" if "const" in expected:
            return "is http or sse where a url is given"
        case "not":
            return f"holds a character that cannot stand in {_held(path)}"
        case "exclusiveMinimum":
            return f"is not above {expected} (unit: seconds)"
        case "maximum":
            return f"is above the most, {expected} seconds"
    raise AssertionError(f"no sentence for the schema keyword {keyword!r}")


def _address_faults(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        complete = bool(parts.hostname) and parts.port != 0
    except ValueError:
        complete = False
    if not complete:
        yield "is not a complete address: its host or port is wrong"


def _named(path: JsonPath) -> str:
    return "an HTTP header field" if path[:1] == ("headers",) else "an environment variable"


def _held(path: JsonPath) -> str:
    return {
        "headers": "a header (printable ASCII, no space at its ends)",
        "url": "an address (a space or control character)",
    }.get(str(path[0]), "text for a program (NUL)")


def _dotted(path: JsonPath) -> str:
    """`path` as people write it: ``env.KEY``, ``args[2]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
