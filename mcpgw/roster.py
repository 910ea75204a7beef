"""Which servers a gateway has: those of its configuration, and those that were added while it ran.

Where both name one server, the configuration has it, and the added one waits until its name is free. What
keeps a stored definition from being a server is a fault, which is told and keeps nobody else away.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from mcpgw.config import Config, server_faults
from mcpgw.references import References
from mcpgw.server_definitions import MEMORY_SERVER, JsonPath, ServerDefinition, define_server
from mcpgw.store import StoredServer

Origin = Literal["file", "store", "embedded"]

STORE_PLACE: Final = "the store"
"""Where a definition stands that was added while the gateway ran."""

# -P: a mcp.py or token.py of the current folder must not stand in for the real one, nor be run.
MEMORY_PROGRAM: tuple[str, ...] = (sys.executable, "-P", "-m", "mcpgw.backends.memory")
"""The command of the embedded memory server, and what it gets before its options."""


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """One server: its definition as it is in force, and where that stands.

    `stored` is what the store has under its name, whether or not that is in force.
    """

    definition: ServerDefinition
    origin: Origin
    stored: StoredServer | None = None

    @property
    def place(self) -> str:
        """Where its definition stands, for people."""
        return self.definition.source


@dataclass(frozen=True, slots=True)
class Roster:
    """All servers by name; `faults` are sentences about stored definitions that are not in force."""

    entries: Mapping[str, RosterEntry] = field(default_factory=dict)
    faults: tuple[str, ...] = ()

    @property
    def definitions(self) -> list[ServerDefinition]:
        """The definitions that are in force."""
        return [entry.definition for entry in self.entries.values()]


EMPTY: Final = Roster()


def make_roster(
    config: Config,
    stored: Iterable[StoredServer],
    switches: Mapping[str, bool],
    *,
    known: Roster = EMPTY,
    again: bool = True,
) -> Roster:
    """The servers of `config` and of the store; `switches` tell which of the former were switched on or off.

    Of a stored server that is `known` already what it refers to is read `again` or not; where that cannot be
    read any more, the server stays as it was. Reads files: not for the event loop.
    """
    entries: dict[str, RosterEntry] = {}
    faults: list[str] = []
    for definition in configured_servers(config):
        origin: Origin = "file" if definition.name in config.servers else "embedded"
        enabled = switches.get(definition.name, definition.enabled)
        if enabled != definition.enabled:
            definition = replace(definition, enabled=enabled)  # noqa: PLW2901 - the same server
        entries[definition.name] = RosterEntry(definition, origin)
    for row in stored:
        if (taken := entries.get(row.name)) is not None:
            entries[row.name] = replace(taken, stored=row)
            faults.append(
                f"{stored_place(row.name)}: the name {row.name!r} is taken by {taken.place}, which has it"
            )
            continue
        present = _same(known.entries.get(row.name), row)
        made = None if again else present
        if made is None:
            made = define_stored(config, row.name, {**row.table, "enabled": row.enabled}, faults)
        if made is None and present is not None and not any(server_faults(config, present)):
            made = present
        if made is not None:
            entries[row.name] = RosterEntry(replace(made, enabled=row.enabled), "store", row)
    return Roster(entries, tuple(faults))


def _same(entry: RosterEntry | None, row: StoredServer) -> ServerDefinition | None:
    """The definition that was made of what the store still has."""
    if entry is None or entry.origin != "store" or entry.stored is None or entry.stored.table != row.table:
        return None
    return entry.definition


def configured_servers(config: Config) -> list[ServerDefinition]:
    """The servers of the configuration, with the embedded memory server before them where it is enabled."""
    definitions = list(config.servers.values())
    if config.memory.enabled:
        database = config.data.dir / "memory.db"
        memory = ServerDefinition(
            name=MEMORY_SERVER,
            transport="stdio",
            command=MEMORY_PROGRAM[0],
            args=(*MEMORY_PROGRAM[1:], "--database", str(database)),
            source="the embedded memory server (memory.enabled)",
        )
        definitions.insert(0, memory)
    return definitions


def define_stored(
    config: Config,
    name: str,
    table: Mapping[str, Any],
    faults: list[str],
    details: list[dict[str, str]] | None = None,
) -> ServerDefinition | None:
    """The definition that a table makes that came while the gateway ran; None where it has `faults`.

    Relative paths begin at the data folder. `details` get the path of each fault, as a JSON Pointer, and its
    reason.
    """

    def report_at(path: JsonPath, sentence: str) -> None:
        if details is not None:
            details.append({"path": pointer(("definition", *path)), "reason": sentence})

    definition = define_server(
        name,
        dict(table),
        place=stored_place(name),
        references=References(config.environment, config.data.dir.absolute()),
        report=faults.append,
        report_at=report_at,
    )
    if definition is None:
        return None
    refused = list(server_faults(config, definition))
    faults += refused
    if details is not None:
        details += [{"path": "/definition", "reason": sentence} for sentence in refused]
    return None if refused else definition


def stored_place(name: str) -> str:
    """Where the definition of `name` stands in the store, for people."""
    return f"{STORE_PLACE}: [servers.{name}]"


def pointer(path: JsonPath) -> str:
    """`path` as a JSON Pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
