"""The file of a desktop client (``mcpServers``; VS Code's ``servers``) as a catalog.

What such a file refers to (``${TOKEN}``, ``${env:TOKEN}``, ``${input:key}``, ``${userHome}``) becomes an
input: an installing admin says what it is, and nothing of this machine's environment goes into a server
because a file that came from elsewhere asks for it.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from mcpgw.catalogs.model import (
    Argument,
    CatalogFault,
    Entry,
    Input,
    Option,
    ReadCatalog,
    Slot,
    Template,
    Transport,
    dictionaries,
    text_of,
    texts,
)
from mcpgw.client_files import client_entries, client_table
from mcpgw.redaction import is_secret_name

FORMAT: Final = "client"

_REFERENCE: Final = re.compile(r"\$\$\{|\$\{([^{}]*)\}")
_VARIABLE: Final = re.compile(r"(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
_SEPARATORS: Final = ("/", "pathSeparator")
_TRANSPORTS: Final[Mapping[str, Transport]] = {"stdio": "stdio", "http": "http", "sse": "sse"}


def is_client(document: Any) -> bool:
    """Whether `document` is of this format."""
    return isinstance(client_entries(document)[1], dict)


def read_client(document: Any) -> ReadCatalog:
    """The entries; each takes the questions of VS Code's ``inputs`` with it."""
    root, servers = client_entries(document)
    inputs = dictionaries((document["mcp"] if root.startswith("mcp.") else document).get("inputs"))
    entries, notes = [], []
    for name, server in servers.items():
        try:
            entries.append(_entry(name, server, inputs))
        except CatalogFault as fault:
            notes.append(f"{name[:128]}: {fault}")
    return ReadCatalog(FORMAT, tuple(entries), notes=tuple(notes))


def _entry(name: str, server: Any, inputs: list[dict[str, Any]]) -> Entry:
    if not isinstance(server, dict):
        raise CatalogFault("is no object")
    if not name or len(name) > 256:  # noqa: PLR2004 - as many characters as the store keeps
        raise CatalogFault("has no name that can be kept")
    return Entry(
        name,
        {"server": server, "inputs": inputs},
        title=text_of(server.get("title"), 200),
        description=text_of(server.get("description"), 1000),
        version=text_of(server.get("version"), 255),
    )


def client_options(document: Mapping[str, Any]) -> list[Option]:
    """The one way that an entry has: its command or its address."""
    faults: list[str] = []
    notes: list[str] = []
    table = client_table(
        document["server"],
        "the entry",
        lambda fault: faults.append(fault.removeprefix("the entry").lstrip(": ")),
        lambda note: notes.append(note.removeprefix("the entry").lstrip(": ")),
    )
    return [_Reading(table, dictionaries(document.get("inputs")), tuple(notes)).option(faults)]


class _Reading:
    """One entry while it is read: the inputs so far."""

    def __init__(
        self, table: Mapping[str, Any], questions: list[dict[str, Any]], notes: tuple[str, ...]
    ) -> None:
        self._table = table
        self._notes = notes
        self._questions = {row["id"]: row for row in questions if isinstance(row.get("id"), str)}
        self._inputs: dict[str, Input] = {}

    def option(self, faults: list[str]) -> Option:
        table = self._table
        is_local = isinstance(table.get("command"), str)
        default: Transport = "stdio" if is_local else "http"
        for key, kind in (("args", list), ("env", dict), ("headers", dict)):
            if key in table and not isinstance(table[key], kind):
                faults.append(f"{key}: is not {'a list' if kind is list else 'a table'}")
        if is_local == isinstance(table.get("url"), str):
            faults.append("has neither command nor url, or both")
        if faults:
            return Option("entry", default, refused="; ".join(faults), is_private=True)
        return Option(
            "entry",
            _TRANSPORTS.get(str(table.get("transport")), default),
            command=self._template(table.get("command", "")),
            arguments=tuple(Argument((self._template(word),)) for word in texts(table.get("args"))),
            environment=self._named("env"),
            folder=self._template(text_of(table.get("cwd"), 4096)),
            url=self._template(table.get("url", "")),
            headers=self._named("headers"),
            inputs=tuple(self._inputs.values()),
            enabled=table.get("enabled") is not False,
            notes=self._notes,
            is_private=True,
        )

    def _named(self, key: str) -> dict[str, Template]:
        rows = self._table.get(key, {})
        is_secret = key == "headers"
        return {
            name: self._template(value, is_secret=is_secret or is_secret_name(name))
            for name, value in rows.items()
            if isinstance(value, str)
        }

    def _template(self, text: str, *, is_secret: bool = False) -> Template:
        parts: list[str | Slot] = []
        end = 0
        for match in _REFERENCE.finditer(text):
            parts.append(text[end : match.start()])
            parts.append("${" if match[1] is None else self._blank(match[1], is_secret=is_secret))
            end = match.end()
        return tuple(part for part in (*parts, text[end:]) if part != "")

    def _blank(self, body: str, *, is_secret: bool) -> str | Slot:
        if body in _SEPARATORS:
            return "/"
        if body.startswith("input:"):
            asked = self._question(body.removeprefix("input:"), is_secret=is_secret)
        elif match := _VARIABLE.fullmatch(body):
            secret = is_secret or is_secret_name(match[1])
            default = match[2] or None
            asked = Input(match[1], required=default is None, secret=secret, default=default)
        else:
            # Among them ${file:PATH}: of another machine, or not the publisher's to read.
            asked = Input(body[:128], required=True, secret=is_secret or body.startswith("file:"))
        known = self._inputs.setdefault(asked.name, asked)
        return Slot(known.name)

    def _question(self, name: str, *, is_secret: bool) -> Input:
        row = self._questions.get(name, {})
        default = text_of(row.get("default")) or None
        return Input(
            name[:128],
            description=text_of(row.get("description")),
            required=default is None,
            secret=is_secret or row.get("password") is True,
            default=default,
            choices=tuple(texts(row.get("options"))),
        )
