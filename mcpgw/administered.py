"""Servers as those who administer them see them, and what a change has done to them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcpgw.store import StoredServer


@dataclass(frozen=True, slots=True)
class Difference:
    """What a change has done to the servers, by their names."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def to_json(self) -> dict[str, list[str]]:
        """For events and answers; what is empty is left out."""
        members = {"added": self.added, "changed": self.changed, "removed": self.removed}
        return {name: list(names) for name, names in members.items() if names}


@dataclass(frozen=True, slots=True)
class AdministeredServer:
    """One server as its administrators see it.

    `table` is its definition as it was written, the secrets masked; None where it has none (the embedded
    memory server). `is_in_force` is false for one that the store has and that has faults.
    """

    name: str
    origin: str
    place: str
    enabled: bool
    tag: str
    table: Mapping[str, Any] | None = field(default=None, repr=False)
    stored: StoredServer | None = field(default=None, repr=False)
    is_in_force: bool = True

    def to_json(self) -> dict[str, Any]:
        """The members of a REST answer; times in milliseconds since the epoch."""
        members: dict[str, Any] = {"origin": self.origin, "place": self.place, "enabled": self.enabled}
        if self.table is not None:
            members["definition"] = dict(self.table)
        if self.stored is not None and self.origin == "store":
            members |= {
                "createdBy": self.stored.created_by,
                "createdAt": self.stored.created_at,
                "updatedBy": self.stored.updated_by,
                "updatedAt": self.stored.updated_at,
            }
        return members
