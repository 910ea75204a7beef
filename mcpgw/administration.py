"""Servers added, changed, removed and switched while the gateway runs.

    Administration.add("time", {"command": "uvx", "args": ["mcp-server-time"]}, actor)

What comes this way is checked as the configuration file is, kept in the store before it is in force, told as
an event, and written to the audit log. Who may do what:

- `admin` may do everything;
- `servers:write` may start, stop, restart, enable and disable every server, and add, change and remove those
  that are reached over HTTP. It may write no reference such as ``${NAME}`` and move none, send what is secret
  in a server's definition to no other address, and take away nothing that guards a server: its approvals, its
  isolation, allow, block, fixed arguments, and the names of its tools.

It may remove such a server all the same, and add one of the same name without what was secret in it.
A program is code that runs with the rights of the gateway, so a command is for `admin` alone.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from mcpgw.access.permissions import require_write_servers
from mcpgw.administered import AdministeredServer, Difference
from mcpgw.administration_rules import merged, parted, require_rights, tag_of, without_masks
from mcpgw.audit import OK, Actor, Audit
from mcpgw.config import Config
from mcpgw.errors import (
    Conflict,
    Draining,
    DuplicateId,
    GatewayError,
    InternalError,
    InvalidParams,
    PreconditionFailed,
    ServerNotFound,
    suggest,
)
from mcpgw.gateway import Gateway
from mcpgw.logs import log_event
from mcpgw.roster import Roster, define_stored, make_roster, stored_place
from mcpgw.server_definitions import NAME_RULE, is_server_name
from mcpgw.server_masks import shown_table
from mcpgw.store import Store, StoredServer
from mcpgw.workers.peers import Peers

_LOGGER = logging.getLogger("mcpgw.administration")

Publish = Callable[[str, Mapping[str, Any]], object]
"""Publishes an event; `mcpgw.bus.Bus.publish`."""

_CHANGED: Final = "servers"
_ACTION: Final = "server action"
_ACTION_SECONDS: Final = 15.0
"""How long others are waited for that end a server."""


class Administration:
    """The servers of a gateway, as their administrators change them.

    `gateway` runs the servers of `roster`, which `config`, `stored` and `switches` have made. `peers` are
    other processes with the same store: what one has changed, all take over.
    """

    def __init__(
        self,
        gateway: Gateway,
        store: Store,
        audit: Audit,
        publish: Publish,
        *,
        config: Config,
        stored: Iterable[StoredServer],
        switches: Mapping[str, bool],
        roster: Roster,
        peers: Peers | None = None,
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._audit = audit
        self._publish = publish
        self._config = config
        self._stored = {row.name: row for row in stored}
        self._switches = dict(switches)
        self._roster = roster
        self._changing = asyncio.Lock()
        self._turns: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()
        self._is_closed = False
        self._peers = peers or Peers()
        self._peers.answer(_CHANGED, lambda *_: self.follow())
        self._peers.answer(_ACTION, lambda _, told: self._act_here(*told))

    @property
    def faults(self) -> tuple[str, ...]:
        """Why servers that the store has are not in force."""
        return self._roster.faults

    # --- what there is -------------------------------------------------------------------------------------

    def describe(self, name: str) -> AdministeredServer:
        """One server, in force or not.

        Raises:
            ServerNotFound: there is none of that name.
        """
        entry = self._roster.entries.get(name)
        if entry is not None:
            table = None if entry.origin == "embedded" else parted(entry.definition.to_table())[0]
            return AdministeredServer(
                name,
                entry.origin,
                entry.place,
                entry.definition.enabled,
                tag_of(table, enabled=entry.definition.enabled),
                None if table is None else shown_table(table),
                entry.stored,
            )
        if (row := self._stored.get(name)) is not None:
            tag = tag_of(row.table, enabled=row.enabled)
            shown = shown_table(row.table)
            return AdministeredServer(
                name, "store", stored_place(name), row.enabled, tag, shown, row, is_in_force=False
            )
        known = {*self._roster.entries, *self._stored}
        raise ServerNotFound(f"no server {name[:64]!r}{suggest(name, known)}")

    def all(self) -> list[AdministeredServer]:
        """All servers, those of the store that have faults too."""
        return [self.describe(name) for name in dict.fromkeys((*self._roster.entries, *self._stored))]

    def faults_of(self, name: str) -> list[str]:
        """Why a server of the store is not in force."""
        place = stored_place(name)
        return [fault.removeprefix(place).lstrip(": ") for fault in self.faults if fault.startswith(place)]

    # --- changes -------------------------------------------------------------------------------------------

    async def add(self, name: str, table: Mapping[str, Any], actor: Actor) -> None:
        """Add the server `name`, defined by `table` as ``[servers.NAME]`` would, keep it, and start it.

        Raises:
            PermissionDenied: the actor may not.
            InvalidParams: name or table have faults; ``details`` has each.
            DuplicateId: the name is taken.
            StoreError: it cannot be kept; nothing was changed.
        """
        async with self._audited("servers.add", name, actor):
            require_write_servers(actor)
            if not is_server_name(name):
                reason = f"is no name of a server ({NAME_RULE})"
                raise InvalidParams(f"{name[:64]!r} {reason}", details=[{"path": "/id", "reason": reason}])
            require_rights(actor, None, table)
            async with self._changing:
                row = None
                while row is None:
                    if name in self._roster.entries or name in self._stored:
                        raise DuplicateId(f"there is a server {name!r} already ({self.describe(name).place})")
                    self._refuse_ambiguous(name)
                    await self._checked(name, without_masks(table, {}))
                    row = await self._put(None, name, table, actor)
                done = await self._take_over()
            await self._finish(done)

    async def change(
        self, name: str, changes: Mapping[str, Any], actor: Actor, *, tag: str | None = None
    ) -> None:
        """Change a definition by a JSON Merge Patch (RFC 7396): null takes a member away.

        Secrets that are sent back masked stay what they are. `tag` is the state that the actor has seen.

        Raises:
            PermissionDenied: the actor may not.
            ServerNotFound: there is none of that name.
            Conflict: it stands in the configuration file; PreconditionFailed: it has changed since `tag`.
            InvalidParams: the definition would have faults; ``details`` has each.
            StoreError: it cannot be kept; nothing was changed.
        """
        async with self._audited("servers.change", name, actor):
            require_write_servers(actor)
            async with self._changing:
                done = None
                while done is None:
                    row = self._stored_row(name, tag)
                    present = {**row.table, "enabled": row.enabled}
                    table = merged(present, without_masks(changes, present))
                    require_rights(actor, present, table)
                    await self._checked(name, table)
                    if await self._put(row, name, table, actor):
                        done = await self._take_over()
            await self._finish(done)

    async def remove(self, name: str, actor: Actor, *, tag: str | None = None) -> None:
        """Remove a server; returns when it has ended.

        Raises:
            PermissionDenied, ServerNotFound, Conflict, PreconditionFailed, StoreError: see `change`.
        """
        async with self._audited("servers.remove", name, actor):
            require_write_servers(actor)
            async with self._changing:
                row = self._stored_row(name, tag)
                require_rights(actor, row.table, None)
                while not await self._store.servers.delete_after(row):
                    await self._catch_up()
                    row = self._stored_row(name, tag)
                    require_rights(actor, row.table, None)
                del self._stored[name]
                done = await self._take_over()
            await self._finish(done)

    async def set_enabled(self, name: str, enabled: bool, actor: Actor) -> None:
        """Switch a server on or off, and remember it; nothing happens where it is so already.

        Of a server of the configuration file the switch is remembered beside it, until the file says
        something else than before.

        Raises:
            PermissionDenied: the actor may not.
            ServerNotFound: there is none of that name.
            StoreError: it cannot be kept; nothing was changed.
        """
        async with self._audited(f"servers.{'enable' if enabled else 'disable'}", name, actor):
            require_write_servers(actor)
            async with self._changing:
                self.describe(name)
                entry = self._roster.entries.get(name)
                if entry is None or entry.origin == "store":
                    row = self._stored[name]
                    if row.enabled != enabled:
                        await self._store.servers.set_enabled(name, enabled, by=actor.user or "")
                        self._stored[name] = await self._store.servers.get(name) or row
                elif entry.definition.enabled != enabled:
                    await self._switch(name, enabled, actor)
                done = await self._take_over()
            await self._finish(done)

    async def start(self, name: str, actor: Actor) -> None:
        """Begin to start a server that is idle or was stopped.

        Raises:
            PermissionDenied: the actor may not.
            ServerNotFound: there is none of that name.
            ServerUnavailable: it is disabled.
        """
        await self._act("start", name, actor)

    async def stop(self, name: str, actor: Actor) -> None:
        """End a server until it is started again, or the gateway is; returns when it has ended.

        Raises:
            PermissionDenied, ServerNotFound: see `start`.
        """
        await self._act("stop", name, actor)

    async def restart(self, name: str, actor: Actor) -> None:
        """End a server, and begin to start it anew.

        Raises:
            PermissionDenied, ServerNotFound, ServerUnavailable: see `start`.
        """
        await self._act("restart", name, actor)

    async def apply(self, config: Config) -> Difference:
        """Take over another configuration; servers that are the same in it run on untouched."""
        async with self._changing:
            # Whoever changes what the file says of a server means it: a switch of before is over.
            before = self._config.servers
            over = [
                name
                for name in self._switches
                if name in before
                and (name not in config.servers or config.servers[name].enabled != before[name].enabled)
            ]
            if over:
                await self._store.switches.forget(over)
                for name in over:
                    del self._switches[name]
            self._config = config
            done = await self._take_over(again=True)
        await self._settle(done)
        return done

    async def follow(self) -> None:
        """Take over what another process has written into the store, which has checked and told it.

        Raises:
            StoreError: the store cannot be read; nothing has changed.
        """
        async with self._changing:
            await self._catch_up()
        await self._settle(self._unsettled())

    async def close(self) -> None:
        """Take no changes any more; returns when what is under way has ended."""
        self._is_closed = True
        for lock in (self._changing, *self._turns.values()):
            async with lock:
                pass

    # --- inside --------------------------------------------------------------------------------------------

    async def _act(self, verb: str, name: str, actor: Actor) -> None:
        async with self._audited(f"servers.{verb}", name, actor):
            require_write_servers(actor)
            if not self.describe(name).is_in_force:
                raise Conflict(f"the server {name!r} has faults and is not in force: mend it first")
            acts = [self._act_here(verb, name)]
            if not self._gateway.definition(name).single:  # else it is passed on to where it runs
                acts.append(self._act_elsewhere(verb, name))
            await asyncio.gather(*acts)

    async def _act_elsewhere(self, verb: str, name: str) -> None:
        await self._peers.ask_all(_ACTION, [verb, name], seconds=_ACTION_SECONDS)

    async def _act_here(self, verb: str, name: str) -> None:
        gateway = self._gateway
        actions = {
            "start": gateway.start_server,
            "stop": gateway.stop_server,
            "restart": gateway.restart_server,
        }
        async with self._in_turn(name):
            await actions[verb](name)

    async def _put(
        self, known: StoredServer | None, name: str, table: Mapping[str, Any], actor: Actor
    ) -> StoredServer | None:
        """Keep a definition in the place of `known`; None where another process was faster, which is then
        caught up with.
        """
        kept, enabled = parted(table)
        by = actor.user or ""
        row = await self._store.servers.put_after(known, name, kept, enabled=enabled, by=by)
        if row is None:
            await self._catch_up()
        else:
            self._stored[name] = row
        return row

    async def _catch_up(self) -> None:
        """Know what the store has now."""
        rows, switches = await self._store.servers.list(), await self._store.switches.all()
        stored = {row.name: row for row in rows}
        if (stored, switches) != (self._stored, self._switches):
            self._stored, self._switches = stored, switches
            await self._take_over()

    def _unsettled(self) -> Difference:
        """Where the gateway runs something else than the roster has."""
        entries, running = self._roster.entries, set(self._gateway.server_ids)
        return Difference(
            tuple(name for name in entries if name not in running),
            tuple(
                name
                for name, entry in entries.items()
                if name in running and self._gateway.definition(name) != entry.definition
            ),
            tuple(name for name in running if name not in entries),
        )

    async def _switch(self, name: str, enabled: bool, actor: Actor) -> None:
        configured = self._config.servers.get(name)
        if enabled == (configured is None or configured.enabled):
            await self._store.switches.forget([name])
            self._switches.pop(name, None)
        else:
            await self._store.switches.put(name, enabled, by=actor.user or "")
            self._switches[name] = enabled

    def _stored_row(self, name: str, tag: str | None) -> StoredServer:
        """What the store has of a server that can be changed here."""
        server = self.describe(name)
        if tag is not None and tag != server.tag:
            raise PreconditionFailed(
                f"the server {name!r} has changed since it was read: read it again",
                details={"tag": server.tag},
            )
        if server.origin != "store" or server.stored is None:
            raise Conflict(
                f"the server {name!r} is defined by {server.place}: change it there; here it can be enabled, "
                "disabled, started, stopped and restarted",
                details={"place": server.place},
            )
        return server.stored

    def _refuse_ambiguous(self, name: str) -> None:
        """Refuse a name by which a server could take over what another one has at ``/mcp``."""
        separator = self._config.mcp.separator
        for other in {*self._roster.entries, *self._stored}:
            one, two = name + separator, other + separator
            if one.startswith(two) or two.startswith(one):
                reason = f"tools of it and of {other!r} could have one name at /mcp: choose another name"
                raise InvalidParams(f"{name!r}: {reason}", details=[{"path": "/id", "reason": reason}])

    async def _checked(self, name: str, table: Mapping[str, Any]) -> None:
        faults: list[str] = []
        details: list[dict[str, str]] = []
        # It may read files.
        made = await asyncio.to_thread(define_stored, self._config, name, table, faults, details)
        if made is None:
            raise InvalidParams(faults[0].removeprefix(f"{stored_place(name)} "), details=details)

    async def _take_over(self, *, again: bool = False) -> Difference:
        """Make the roster anew, with all that definitions refer to read `again`, and tell what is other."""
        stored, switches, known = tuple(self._stored.values()), dict(self._switches), self._roster
        roster = await asyncio.to_thread(
            make_roster, self._config, stored, switches, known=known, again=again
        )
        for fault in roster.faults:
            if fault not in self._roster.faults:
                log_event(_LOGGER, logging.WARNING, "server left out", reason=fault)
        before, after = self._roster.entries, roster.entries
        self._roster = roster
        return Difference(
            tuple(name for name in after if name not in before),
            tuple(
                name for name in after if name in before and after[name].definition != before[name].definition
            ),
            tuple(name for name in before if name not in after),
        )

    async def _settle(self, done: Difference) -> None:
        """Have the gateway run what the roster has."""
        await asyncio.gather(
            *(self._settle_one(name) for name in (*done.added, *done.changed, *done.removed))
        )

    async def _settle_one(self, name: str) -> None:
        # Whatever has happened while this waited, the roster of now is what counts.
        async with self._in_turn(name):
            if self._is_closed:
                return
            entry = self._roster.entries.get(name)
            if name not in self._gateway.server_ids:
                if entry is not None:
                    await self._gateway.add_server(entry.definition)
                return
            if entry is None:
                await self._gateway.remove_server(name)
                return
            wanted, present = entry.definition, self._gateway.definition(name)
            if wanted.enabled != present.enabled and wanted == replace(present, enabled=wanted.enabled):
                switch = self._gateway.enable_server if wanted.enabled else self._gateway.disable_server
                await switch(name)
            else:
                await self._gateway.replace_server(wanted)

    @asynccontextmanager
    async def _in_turn(self, name: str) -> AsyncIterator[None]:
        """One thing at a time happens to a server."""
        lock = self._turns.setdefault(name, asyncio.Lock())
        self._waiting[name] += 1
        try:
            async with lock:
                yield
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name], self._turns[name]

    @asynccontextmanager
    async def _audited(self, action: str, name: str, actor: Actor) -> AsyncIterator[None]:
        outcome = InternalError.code
        try:
            if self._is_closed or self._gateway.draining:
                raise Draining("the gateway is ending and takes no changes", retry_after_ms=1000)
            yield
            outcome = OK
        except GatewayError as error:
            outcome = error.code
            raise
        finally:
            self._audit.admin(actor, action=action, target=name, outcome=outcome)

    async def _finish(self, done: Difference) -> None:
        """Have the gateway run what the roster has, here and in all workers, and tell it."""
        await asyncio.gather(self._settle(done), self._peers.ask_all(_CHANGED))
        if done:
            self._publish("config.updated", {"source": "rest", "servers": done.to_json()})
