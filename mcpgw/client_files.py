"""Backend servers from the files of desktop clients, taken as they are.

- Claude Desktop, Claude Code and Cursor: ``{"mcpServers": {NAME: {...}}}``
- VS Code: ``{"servers": {NAME: {...}}, "inputs": [...]}``, or the same inside ``"mcp"`` of its settings

Each entry becomes the same table that ``[servers.NAME]`` is, and is checked as that. What such a client knows
and the gateway does not is left out; where that may matter, a note says so.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from mcpgw.commented_json import parse_commented_json
from mcpgw.errors import suggest
from mcpgw.references import References, read_text
from mcpgw.server_definitions import NAME_RULE, ServerDefinition, define_server, is_server_name
from mcpgw.settings import expand_home

MAXIMUM_FILE_SIZE: Final = 4 * 1024 * 1024
_NAME_LENGTH: Final = 64
_PLAIN: Final = ("command", "args", "cwd", "url")
_TRANSPORTS: Final = {
    "stdio": "stdio",
    "http": "http",
    "streamable-http": "http",
    "streamable_http": "http",
    "streamableHttp": "http",
    "sse": "sse",
}
_READ: Final = (*_PLAIN, "env", "headers", "type", "transport", "disabled", "enabled")
_WITHOUT_EFFECT: Final = (
    "alwaysAllow",
    "autoApprove",
    "description",
    "dev",
    "gallery",
    "icon",
    "title",
    "version",
)


def read_client_file(
    file: Path,
    *,
    environment: Mapping[str, str],
    report: Callable[[str], None],
    note: Callable[[str], None],
) -> list[ServerDefinition]:
    """The servers in `file`; faults go to `report`, and what has no effect here goes to `note`."""
    try:
        document = parse_commented_json(read_text(file, MAXIMUM_FILE_SIZE))
    except ValueError as error:
        report(f"{file}: {error}")
        return []
    root, entries = client_entries(document)
    if not isinstance(entries, dict):
        report(f"{file}: has no object mcpServers (Claude Desktop, Cursor) or servers (VS Code)")
        return []
    references = References(environment, file.parent, _variables(file, environment))
    definitions: list[ServerDefinition] = []
    taken: dict[str, str] = {}
    for given, entry in entries.items():
        place = f"{file}: {root}.{given}" if is_server_name(given) else f"{file}: {root}[{given!r}]"
        name = fitting_name(given)
        if not is_server_name(name):
            report(f"{place}: no name can be made of this ({NAME_RULE}); give the server another one")
            continue
        if name in taken:
            report(f"{place}: becomes {name!r}, as {taken[name]!r} does; give one of them another name")
            continue
        taken[name] = given
        if name != given:
            note(f"{place}: is called {name!r} here")
        table = client_table(entry, place, report, note) if isinstance(entry, dict) else entry
        if definition := define_server(name, table, place=place, references=references, report=report):
            definitions.append(definition)
    return definitions


def fitting_name(given: str) -> str:
    """`given` with each run of characters that a server's name cannot have replaced by one ``-``."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", given).strip("_.-")[:_NAME_LENGTH].rstrip("_.-")


def client_entries(document: Any) -> tuple[str, Any]:
    """Where the servers stand in such a file, and what stands there; empty and None where none do."""
    if isinstance(document, dict):
        if "mcpServers" in document:
            return "mcpServers", document["mcpServers"]
        if "servers" in document:
            return "servers", document["servers"]
        if isinstance(document.get("mcp"), dict):
            return "mcp.servers", document["mcp"].get("servers")
    return "", None


def _variables(file: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The predefined variables of VS Code and Cursor; the workspace holds their folder of settings."""
    folder = file.absolute().parent
    workspace = folder.parent if folder.name in {".vscode", ".cursor"} else folder
    home = str(expand_home(Path("~"), environment))
    return {
        "workspaceFolder": str(workspace),
        "workspaceFolderBasename": workspace.name,
        "userHome": home,
        "pathSeparator": "/",
        "/": "/",
    }


def client_table(
    entry: Mapping[str, Any], place: str, report: Callable[[str], None], note: Callable[[str], None]
) -> dict[str, Any]:
    """The table of ``[servers.NAME]`` that says the same as `entry`, its references as they are."""
    table: dict[str, Any] = {key: entry[key] for key in _PLAIN if key in entry}
    table |= {key: _texts(entry[key]) for key in ("env", "headers") if entry.get(key) is not None}
    if "url" in table:
        for key in ("args", "env", "cwd"):
            if not table.get(key):
                table.pop(key, None)
    elif not table.get("headers"):
        table.pop("headers", None)
    if (transport := _transport(entry, place, report)) is not None:
        table["transport"] = transport
    for key in ("disabled", "enabled"):
        if isinstance(entry.get(key), bool):
            table["enabled"] = entry[key] is (key == "enabled")
        elif key in entry:
            report(f"{place} {key}: is not true or false")
    for key in sorted(entry.keys() - {*_READ, *_WITHOUT_EFFECT}):
        if "command" not in entry and "url" not in entry:
            report(f"{place} {key}: unknown key{suggest(key, _READ)}")
            continue
        advice = "; put its variables into env" if key == "envFile" else ""
        note(f"{place} {key}: has no effect here{advice}")
    return table


def _transport(entry: Mapping[str, Any], place: str, report: Callable[[str], None]) -> str | None:
    key = "type" if "type" in entry else "transport"
    given = entry.get(key)
    if isinstance(given, str) and given in _TRANSPORTS:
        return _TRANSPORTS[given]
    if given is not None:
        report(f"{place} {key}: is none of {', '.join(_TRANSPORTS)}")
    return None


def _texts(values: object) -> object:
    """`values` as a table of texts: VS Code takes numbers, and null for a variable that is not to be set."""
    if not isinstance(values, dict):
        return values
    return {name: _text(value) for name, value in values.items() if value is not None}


def _text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
