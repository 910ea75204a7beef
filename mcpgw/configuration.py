"""The configuration while the gateway runs: what is in force, and how it becomes another one.

It comes from the places that `mcpgw.config` names, and from the store, which has the settings that were
changed by REST: stronger than the defaults, and weaker than everything else. A change is checked as a whole
first. Where it has a fault, nothing of it is in force.

Not every setting can change while the gateway runs. Those in `LIVE` do; a change of another one waits for a
restart, and is told. So do a live setting, and a server, that break a rule with one that waits.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mcpgw.access.configured_scopes import access_faults
from mcpgw.access.permissions import ADMIN, is_admin
from mcpgw.administered import Difference
from mcpgw.administration import Administration, Publish
from mcpgw.audit import OK, Actor, Audit
from mcpgw.config import Config, rule_faults, server_faults, with_values
from mcpgw.errors import (
    ConfigError,
    Conflict,
    Draining,
    GatewayError,
    InternalError,
    InvalidParams,
    PermissionDenied,
    suggest,
)
from mcpgw.gateway import Gateway
from mcpgw.logs import change_log_level, log_event
from mcpgw.server_definitions import ServerDefinition
from mcpgw.setting_values import read_value
from mcpgw.settings import SETTINGS, Value
from mcpgw.store import Store, StoredSetting, StoreError
from mcpgw.workers.peers import Peers

_LOGGER = logging.getLogger("mcpgw.config")
_BY_NAME: Final = {setting.name: setting for setting in SETTINGS}
_STORED: Final = "the store"
_ANOTHER: Final = "another worker"
"""The source of a change that another process of the gateway was asked for, and has told."""
_CHANGED: Final = "configuration"

LIVE: Final = frozenset(
    {
        "server.allowed_origins",
        "server.allowed_hosts",
        "server.public_url",
        "server.hsts_time",
        "server.trusted_proxies",
        "server.proxy_headers",
        "server.drain_timeout",
        "log.level",
        "auth.timeout",
        "auth.max_attempts",
        "websocket.ping_interval",
        "websocket.pong_timeout",
        "websocket.max_batch",
        "websocket.max_depth",
        "websocket.max_calls",
        "websocket.max_refusals",
        "websocket.max_errors",
        "websocket.read_timeout",
        "websocket.write_timeout",
        "websocket.echo",
        "websocket.compression",
        "websocket.compression_minimum",
        "calls.timeout",
        "calls.input_timeout",
        "calls.approval_timeout",
        "calls.approve_own",
        "calls.max_approvals",
        "calls.retry_wait",
        "events.heartbeat",
        "events.retry",
        "events.max_waiting",
        "events.max_waiting_size",
        "metrics.public",
        "mcp.enabled",
        "memory.enabled",
        "servers.stdio",
    }
)
"""The settings that can change while the gateway runs: for what begins from then on."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What a change has done: to servers, to settings in force, and what waits for a restart."""

    servers: Difference
    settings: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For events and answers; what is empty is left out."""
        members: dict[str, Any] = {
            "servers": self.servers.to_json(),
            "settings": list(self.settings),
            "needsRestart": list(self.needs_restart),
        }
        return {name: value for name, value in members.items() if value}


def with_stored(config: Config, stored: Mapping[str, StoredSetting]) -> Config:
    """`config` with the settings of the store where nothing stronger has them.

    Raises:
        ConfigError: one of them is no value, or does not go with another setting.
    """
    values: dict[str, Value] = {}
    sources: dict[str, str] = {}
    faults: list[str] = []
    for name, row in stored.items():
        setting = _BY_NAME.get(name)
        if setting is None or name not in LIVE or name in config.sources:
            continue
        try:
            values[name] = read_value(setting, row.value, text=False)
        except ValueError as error:
            faults.append(f"{_STORED}: {name}: {error}")
        sources[name] = f"{_STORED} ({row.updated_by})" if row.updated_by else _STORED
    if faults:
        raise ConfigError(faults)
    if not values:
        return config
    made = with_values(config, values, sources)
    if broken := tuple(rule_faults(made)):
        raise ConfigError(broken)
    return made


class Configuration:
    """The configuration in force, and what was wrong with the last that was to take its place.

    `loaded` is as it was read, `in_force` with the settings of the store, of which `stored` has the rows.
    `peers` are other processes with the same files and store: what one is asked to take over, all do.
    """

    def __init__(
        self,
        loaded: Config,
        in_force: Config,
        stored: Mapping[str, StoredSetting],
        *,
        store: Store,
        gateway: Gateway,
        administration: Administration,
        audit: Audit,
        publish: Publish,
        faults: tuple[str, ...] = (),
        peers: Peers | None = None,
    ) -> None:
        self._loaded = loaded
        self._in_force = in_force
        self._wanted = in_force
        self._stored = dict(stored)
        self._store = store
        self._gateway = gateway
        self._administration = administration
        self._audit = audit
        self._publish = publish
        self._faults = faults
        self._changing = asyncio.Lock()
        self._is_closed = False
        self._peers = peers or Peers()
        self._peers.answer(_CHANGED, lambda _, again: self.follow(again=bool(again)))

    @property
    def in_force(self) -> Config:
        """What holds now."""
        return self._in_force

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong: with the last change that was refused, and with servers of the store."""
        return (*self._faults, *self._administration.faults)

    @property
    def needs_restart(self) -> tuple[str, ...]:
        """The settings that have another value after a restart."""
        return tuple(_different(self._in_force, self._wanted))

    def files(self) -> tuple[Path, ...]:
        """The files that it was read from."""
        return self._loaded.files

    def describe(self) -> Iterator[dict[str, Any]]:
        """Each setting for people and programs: a secret's value is true where it has one."""
        wanted = self._wanted
        for setting in SETTINGS:
            value = self._in_force.value(setting)
            member: dict[str, Any] = {
                "name": setting.name,
                "value": bool(value) if setting.secret else _json(value),
                "source": self._in_force.sources.get(setting.name, "default"),
                "secret": setting.secret,
                "live": setting.name in LIVE,
                "default": _json(setting.default),
                "help": setting.help,
            }
            if setting.unit:
                member["unit"] = setting.unit
            if wanted.value(setting) != value:
                member["afterRestart"] = True if setting.secret else _json(wanted.value(setting))
            yield member

    async def reload(self, actor: Actor | None = None) -> Applied:
        """Read everything anew, and take over what is other; `actor` where somebody has asked for it.

        Raises:
            PermissionDenied: the actor may not.
            Conflict: it has faults, which ``details`` lists; the old one is in force.
            StoreError: what the store has to forget could not be written.
        """
        async with self._audited("config.reload", "", actor):
            try:
                async with self._changing:
                    return await self._reload("file" if actor is None else "rest")
            finally:
                if actor is not None:  # each watches the files itself
                    await self._peers.ask_all(_CHANGED, True)

    async def change(self, values: Mapping[str, Any], actor: Actor) -> Applied:
        """Change settings by name, and keep that; None gives one back its default.

        Raises:
            PermissionDenied: the actor may not.
            Conflict: a setting stands in a stronger place, or cannot change while the gateway runs.
            InvalidParams: a value is none; ``details`` has each.
            StoreError: it cannot be kept; nothing was changed.
        """
        async with self._audited("config.change", ", ".join(sorted(values))[:256], actor):
            async with self._changing:
                self._check_places(values)
                rows = dict(self._stored)
                for name, value in values.items():
                    rows.pop(name, None)
                    if value is not None:
                        rows[name] = StoredSetting(name, value, actor.user or "", 0)
                wanted = self._checked(values, rows)
                await self._store.settings.change(values, by=actor.user or "")
                self._stored = rows
                applied = await self._take_over(wanted, "rest")
            await self._peers.ask_all(_CHANGED, False)
            return applied

    async def follow(self, *, again: bool = False) -> None:
        """Take over the settings that another process has changed in the store; `again`, the files too.

        Whoever has changed them has told that.

        Raises:
            StoreError: the store cannot be used; what was in force stays.
        """
        async with self._changing:
            stored = await self._store.settings.all()
            if self._is_closed or (stored == self._stored and not again):
                return
            self._stored = stored
            with suppress(Conflict):
                await self._reload(_ANOTHER, again=again)

    async def close(self) -> None:
        """Take no changes any more; returns when what is under way has ended."""
        self._is_closed = True
        async with self._changing:
            pass
        await self._administration.close()

    # --- inside --------------------------------------------------------------------------------------------

    async def _reload(self, source: str, *, again: bool = True) -> Applied:
        read_again = self._loaded.read_again if again else None
        try:
            # It reads files.
            loaded = self._loaded if read_again is None else await asyncio.to_thread(read_again)
            wanted = with_stored(loaded, self._stored)
            if faults := access_faults(wanted.roles, wanted.issuers):
                raise ConfigError(faults)  # noqa: TRY301 - one way for all that is wrong with it
        except ConfigError as error:
            self._refuse(error)
            raise Conflict(
                "the configuration has faults; the old one is in force", details=list(error.faults)
            ) from None
        try:
            applied = await self._take_over(wanted, source)
        except StoreError as error:
            self._refuse(ConfigError([error.message]))
            raise
        self._loaded = loaded
        return applied

    async def _take_over(self, wanted: Config, source: str) -> Applied:
        before = self._in_force
        in_force, waiting = _as_far_as_rules_allow(before, wanted)
        live = list(_different(before, in_force))
        # First, since it may fail: then nothing is in force.
        servers = await self._administration.apply(in_force)
        self._wanted, self._in_force, self._faults = wanted, in_force, waiting
        for reason in waiting:
            log_event(_LOGGER, logging.WARNING, "waits for a restart", reason=reason)
        if "log.level" in live:
            change_log_level(in_force.log.level)
        if in_force.calls != before.calls:
            self._gateway.change_call_settings(in_force.calls)
        applied = Applied(servers, tuple(live), self.needs_restart)
        log_event(
            _LOGGER,
            logging.INFO,
            "applied",
            source=source,
            servers=applied.servers.to_json(),
            settings=", ".join(applied.settings),
            needs_restart=", ".join(applied.needs_restart),
        )
        if source != _ANOTHER:
            self._publish("config.applied", {"source": source, **applied.to_json()})
        return applied

    def _refuse(self, error: ConfigError) -> None:
        self._faults = error.faults
        for fault in error.faults:
            log_event(_LOGGER, logging.ERROR, "fault", reason=fault)
        self._publish("config.error", {"faults": list(error.faults)})

    def _check_places(self, values: Mapping[str, Any]) -> None:
        unknown = [name for name in values if name not in _BY_NAME]
        if unknown:
            raise _invalid([(name, f"unknown setting{suggest(name, _BY_NAME)}") for name in unknown])
        for name in values:
            if name not in LIVE:
                raise Conflict(
                    f"{name} cannot change while the gateway runs: write it into the configuration file "
                    f"({_BY_NAME[name].environment_name} in the environment), and start the gateway anew"
                )
            if name in self._loaded.sources:
                place = self._loaded.sources[name]
                raise Conflict(f"{name} is set by {place}: change it there", details={"place": place})

    def _checked(self, values: Mapping[str, Any], rows: Mapping[str, StoredSetting]) -> Config:
        faults: list[tuple[str, str]] = []
        for name, value in values.items():
            if value is not None:
                try:
                    read_value(_BY_NAME[name], value, text=False)
                except ValueError as error:
                    faults.append((name, str(error)))
        if faults:
            raise _invalid(faults)
        try:
            return with_stored(self._loaded, rows)
        except ConfigError as error:
            raise InvalidParams(
                f"the settings do not go together: {error.faults[0]}",
                details=[{"path": "/settings", "reason": fault} for fault in error.faults],
            ) from None

    @asynccontextmanager
    async def _audited(self, action: str, target: str, actor: Actor | None) -> AsyncIterator[None]:
        outcome = InternalError.code
        try:
            if actor is not None and not is_admin(actor):
                raise PermissionDenied(
                    f"the token lacks the scope {ADMIN!r}", details={"missingScope": ADMIN}
                )
            if self._is_closed or self._gateway.draining:
                raise Draining("the gateway is ending and takes no changes", retry_after_ms=1000)
            yield
            outcome = OK
        except GatewayError as error:
            outcome = error.code
            raise
        finally:
            if actor is not None:
                self._audit.admin(actor, action=action, target=target, outcome=outcome)


def make_reloader(configuration: Configuration) -> Callable[[], Any]:
    """What `watch_files` calls: a reload whose faults are told already."""

    async def reload() -> None:
        with suppress(Conflict, Draining, StoreError):
            await configuration.reload()

    return reload


def _as_far_as_rules_allow(before: Config, wanted: Config) -> tuple[Config, tuple[str, ...]]:
    """What of `wanted` can be in force beside the settings of `before` that cannot change now.

    A live setting that breaks a rule with one of those keeps its value, a server its definition. Also why
    servers do not have the definition that they are to have.
    """
    values = {name: before.value(_BY_NAME[name]) for name in _BY_NAME}
    servers: dict[str, ServerDefinition] = {}

    def config() -> Config:
        return replace(with_values(wanted, values, {}), servers=servers)

    live = [name for name in _different(before, wanted) if name in LIVE]
    is_other = True
    while live and is_other:  # one may have to wait for another one
        is_other = False
        for names in (live, *([name] for name in live)):
            present = dict(values)
            values |= {name: wanted.value(_BY_NAME[name]) for name in names}
            if not any(rule_faults(config())):
                live = [name for name in live if name not in names]
                is_other = True
                break
            values = present
    faults: list[str] = []
    for name, definition in wanted.servers.items():
        found = list(server_faults(config(), definition))
        if not found:
            servers[name] = definition
            continue
        faults += [f"{fault}: this waits for a restart" for fault in found]
        if (present_one := before.servers.get(name)) is not None:
            servers[name] = present_one
    return config(), tuple(faults)


def _different(one: Config, other: Config) -> Iterator[str]:
    for setting in SETTINGS:
        if one.value(setting) != other.value(setting):
            yield setting.name


def _invalid(faults: list[tuple[str, str]]) -> InvalidParams:
    details = [{"path": f"/settings/{name.replace('.', '/')}", "reason": reason} for name, reason in faults]
    return InvalidParams(f"{faults[0][0]}: {faults[0][1]}", details=details)


def _json(value: Value) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
