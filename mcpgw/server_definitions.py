"""Definitions of backend servers: ``[servers.NAME]`` of ``mcpgw.toml``, checked and made ready for use.

The rules stand in ``schemas/server-definition.json``. This module replaces references, applies the schema,
and says each fault in a sentence with its place. A sentence never holds a value: arguments, addresses,
headers and environment variables may be secrets.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
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
Isolation = Literal["shared", "user", "connection"]
Approval = Literal["never", "required", "writes"]
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
    "integer": "a whole number",
}
_SECONDS: Final = ("timeout", "idle_stop")
_IDLE_STOP: Final = 300.0
_PER_USER: Final = {"shared": 1, "user": 1, "connection": 5}
RESERVED_TOOLS: Final = frozenset({"allow", "block", "hidden", "prefix"})
"""The keys of ``[servers.NAME.tools]`` that are no tools."""


@dataclass(frozen=True)
class ToolRule:
    """How one tool differs for callers from what its server says; None is as the server says.

    `defaults` are arguments that are sent where a caller gives none, `fixed` those that no caller can change.
    """

    rename: str | None = None
    description: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict, repr=False)
    fixed: Mapping[str, Any] = field(default_factory=dict, repr=False)
    approval: Approval | None = None


@dataclass(frozen=True)
class ToolPolicy:
    """Which tools of a server callers see, and how.

    `allow`, `block` and `hidden` are patterns (``*``, ``?``) of the server's own names; None allows all.
    `prefix` stands before every name that callers see. `rules` are by the server's own names.
    """

    allow: tuple[str, ...] | None = None
    block: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    prefix: str = ""
    rules: Mapping[str, ToolRule] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerDefinition:
    """One backend server.

    With the transport ``stdio`` there is a `command`, and `args`, `env` and `cwd` are its own; with ``http``
    (Streamable HTTP) and ``sse`` (HTTP with SSE, of MCP 2024-11-05) there is a `url` with its `headers`.
    `timeout` is the default limit of one call in seconds. `isolation` says who shares one instance; `warm`,
    `max_instances` and `max_instances_per_user` are for isolated servers. A `single` one runs in one worker
    alone where there are several. `source` is the place it was read from, and `written` the table as it was
    written, with references such as ``${NAME}`` in their place.
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
    isolation: Isolation = "shared"
    warm: int = 0
    max_instances: int = 20
    max_instances_per_user: int = 1
    idle_stop: float = 0.0
    lazy: bool = False
    single: bool = False
    approval: Approval = "never"
    tools: ToolPolicy = ToolPolicy()
    source: str = field(default="", compare=False)
    written: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def to_table(self) -> dict[str, Any]:
        """The table that makes this definition, as JSON: as it was written, where it was read from one."""
        if self.written:
            return copy.deepcopy(dict(self.written))
        table: dict[str, Any] = {}
        for name in _PLAIN:
            value = getattr(self, name)
            if value != _DEFAULTS[name]:
                table[name] = value
        for name in ("env", "headers"):
            if values := getattr(self, name):
                table[name] = {key: _escaped(value) for key, value in values.items()}
        if self.args:
            table["args"] = [_escaped(argument) for argument in self.args]
        for name in ("command", "cwd", "url"):
            if (value := getattr(self, name)) is not None:
                table[name] = _escaped(str(value))
        if self.transport == "sse":
            table["transport"] = self.transport
        if self.tools != ToolPolicy():
            table["tools"] = _policy_table(self.tools)
        return table


_PLAIN: Final = (
    "enabled",
    "timeout",
    "isolation",
    "warm",
    "max_instances",
    "max_instances_per_user",
    "idle_stop",
    "lazy",
    "single",
    "approval",
)
"""The members that are written as they are."""
_DEFAULTS: Final = {row.name: row.default for row in fields(ServerDefinition) if row.default is not MISSING}


def _escaped(text: str) -> str:
    return text.replace("${", "$${")


def _policy_table(policy: ToolPolicy) -> dict[str, Any]:
    table: dict[str, Any] = {}
    if policy.allow is not None:
        table["allow"] = list(policy.allow)
    for name in ("block", "hidden"):
        if patterns := getattr(policy, name):
            table[name] = list(patterns)
    if policy.prefix:
        table["prefix"] = policy.prefix
    for tool, rule in policy.rules.items():
        members = {row.name: getattr(rule, row.name) for row in fields(rule)}
        table[tool] = {
            name: _escaped_all(value) if name in ("defaults", "fixed") else value
            for name, value in members.items()
            if value
        }
    return table


def _escaped_all(value: Any) -> Any:
    if isinstance(value, str):
        return _escaped(value)
    if isinstance(value, Mapping):
        return {key: _escaped_all(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_escaped_all(part) for part in value]
    return value


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
    report_at: Callable[[JsonPath, str], None] | None = None,
) -> ServerDefinition | None:
    """The definition that `table` (TOML or JSON) makes for the server `name`.

    Every fault goes to `report` as a sentence that begins with `place`; then the answer is None. Where there
    is `report_at`, it is given the path of each and the sentence without its place.
    """
    faults: list[tuple[JsonPath, str]] = []
    replaced, broken = _replace(table, references, faults)
    # A reference that could not be replaced was reported; its text says nothing more.
    faults += [
        (path, sentence)
        for path, sentence in _faults(replaced)
        if not any(path[: len(other)] == other for other in broken)
    ]
    for path, sentence in faults:
        report(f"{place} {_dotted(path)}: {sentence}" if path else f"{place}: {sentence}")
        if report_at is not None:
            report_at(path, sentence)
    if faults or not isinstance(replaced, dict):
        return None
    written = dict(table) if isinstance(table, dict) else {}
    return _definition(name, replaced, written, place, references)


def _definition(
    name: str,
    table: Mapping[str, Any],
    written: Mapping[str, Any],
    place: str,
    references: References,
) -> ServerDefinition:
    command = table.get("command")
    if command is not None and (command.startswith("~/") or "/" in command):
        command = str(references.path(command))
    timeout = table.get("timeout")
    isolation: Isolation = table.get("isolation", "shared")
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
        isolation=isolation,
        warm=table.get("warm", 0),
        max_instances=table.get("max_instances", 20),
        max_instances_per_user=table.get("max_instances_per_user", _PER_USER[isolation]),
        idle_stop=float(table.get("idle_stop", 0.0 if isolation == "shared" else _IDLE_STOP)),
        lazy=table.get("lazy", False),
        single=table.get("single", False),
        approval=table.get("approval", "never"),
        tools=_policy(table.get("tools", {})),
        source=place,
        written=MappingProxyType(copy.deepcopy(dict(written))),
    )


def _policy(table: Mapping[str, Any]) -> ToolPolicy:
    return ToolPolicy(
        allow=tuple(table["allow"]) if "allow" in table else None,
        block=tuple(table.get("block", ())),
        hidden=tuple(table.get("hidden", ())),
        prefix=table.get("prefix", ""),
        rules=MappingProxyType(
            {name: ToolRule(**rule) for name, rule in table.items() if name not in RESERVED_TOOLS}
        ),
    )


def _replace(
    table: object, references: References, faults: list[tuple[JsonPath, str]]
) -> tuple[object, set[JsonPath]]:
    """`table` with its references replaced, and the paths of the texts where one could not be."""
    broken: set[JsonPath] = set()

    def replaced(value: object, path: JsonPath) -> object:
        if isinstance(value, str):
            if not is_unicode(value):
                broken.add(path)
                faults.append((path, "is not Unicode text"))
                return value
            try:
                return references.replace(value)
            except UnresolvedReferenceError as fault:
                broken.add(path)
                faults.extend((path, sentence) for sentence in fault.sentences)
                return value
        if isinstance(value, dict):
            return {key: replaced(part, (*path, str(key))) for key, part in value.items()}
        if isinstance(value, list):
            return [replaced(part, (*path, index)) for index, part in enumerate(value)]
        return value

    if not isinstance(table, dict):
        return table, broken
    done = {key: replaced(value, (key,)) if key in _REPLACED else value for key, value in table.items()}
    if isinstance(tools := table.get("tools"), dict):
        done["tools"] = {
            tool: {
                key: replaced(value, ("tools", str(tool), key)) if key in ("defaults", "fixed") else value
                for key, value in rule.items()
            }
            if isinstance(rule, dict)
            else rule
            for tool, rule in tools.items()
        }
    return done, broken


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
    if not found:
        found = dict.fromkeys(_rule_faults(table))
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


def _sentence(  # noqa: PLR0912 - one sentence a keyword
    keyword: str, expected: Any, instance: Any, path: JsonPath
) -> str:
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
        case "minimum":
            return f"is below the least, {expected}"
        case "maximum":
            return f"is above the most, {expected}{' seconds' if path[-1] in _SECONDS else ''}"
        case "maxLength":
            return f"is longer than {expected} characters"
    raise AssertionError(f"no sentence for the schema keyword {keyword!r}")


def _rule_faults(table: Mapping[str, Any]) -> Iterator[tuple[JsonPath, str]]:
    """What no schema says."""
    if "url" in table:
        for sentence in _address_faults(table["url"]):
            yield ("url",), sentence
    if table.get("isolation", "shared") == "shared":
        for key in ("warm", "max_instances", "max_instances_per_user"):
            if key in table:
                yield (key,), 'goes with isolation = "user" or "connection" only'
    else:
        if table.get("warm", 0) > table.get("max_instances", 20):
            yield ("warm",), "is above max_instances"
        if table.get("single"):
            yield (
                ("single",),
                'goes with isolation = "shared" only: the instances of a user are all in one worker anyway',
            )
    seen: dict[str, str] = {}
    for tool, rule in table.get("tools", {}).items():
        if tool in RESERVED_TOOLS:
            continue
        name = rule.get("rename", tool)
        if name in seen:
            yield ("tools", tool, "rename"), f"is the name of {seen[name]!r} too"
        seen[name] = tool
        for argument in rule.get("defaults", {}).keys() & rule.get("fixed", {}).keys():
            yield ("tools", tool, "defaults", argument), "stands in fixed too"


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
