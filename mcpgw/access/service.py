"""Everything that decides who may come in, built and ended together."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from sqlalchemy import Connection, select

from mcpgw.access.accounts import Accounts
from mcpgw.access.authority import Authority, Known, KnownUser
from mcpgw.access.keys import Keys
from mcpgw.access.logins import Logins
from mcpgw.access.passwords import Passwords
from mcpgw.access.permissions import check_scope
from mcpgw.access.tickets import Purpose, Tickets
from mcpgw.access.tokens import Principal, Tokens
from mcpgw.audit import Actor, Audit
from mcpgw.errors import ConfigError
from mcpgw.logs import log_event
from mcpgw.roles import Role
from mcpgw.settings import AuthSettings
from mcpgw.store import By, Store, StoreError
from mcpgw.store.keys import good_keys
from mcpgw.store.logins import revoked_since
from mcpgw.store.runner import now
from mcpgw.store.tables import USERS

_LOGGER = logging.getLogger("mcpgw.access")
_COMMAND_LINE = "command line"
_MARGIN_SECONDS = 60.0


def role_faults(roles: Mapping[str, Role]) -> list[str]:
    """Every scope of a role that is none, with its place."""
    faults: list[str] = []
    for role in roles.values():
        for scope in sorted(role.scopes):
            try:
                check_scope(scope)
            except ConfigError as error:
                faults.extend(f"{role.source} scopes: {fault}" for fault in error.faults)
    return faults


class AccessService:
    """Users, logins and tickets of one gateway, and the journal that tells of changes made elsewhere.

    `first_link` is the secret of the link for the first admin, as long as nobody has ever come in.
    `on_change` is called with `Authority.review` whenever somebody may now do more or less than before.
    """

    def __init__(
        self,
        store: Store,
        tokens: Tokens,
        *,
        audit: Audit,
        settings: AuthSettings,
        roles: Callable[[], Mapping[str, Role]],
        on_change: Callable[[Callable[[Principal], Principal]], None],
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._audit = audit
        self._settings = settings
        self._roles = roles
        self._on_change = on_change
        self._passwords = Passwords()
        self._seen = -1
        self._seen_roles: Mapping[str, Role] = {}
        self._reading = asyncio.Lock()
        self.first_link: str | None = None
        self.authority = Authority(tokens, roles)
        self.logins = Logins(
            store,
            tokens,
            authority=self.authority,
            passwords=self._passwords,
            audit=audit,
            settings=settings,
            refresh_known=self.read_changes,
        )
        self.tickets = Tickets(settings.ticket_time)
        self.keys = Keys(store)

    @property
    def accounts(self) -> Accounts:
        """The users, for those who administer them."""
        return Accounts(self._store, self._passwords, self._roles())

    def by(self, principal: Principal) -> By:
        """Who makes a change that this gateway writes into its own audit log."""
        return By(principal.user, is_told=True)

    def ticket(self, principal: Principal, purpose: Purpose, remote: str) -> str:
        """A ticket for one connection.

        Raises:
            QueueFull: too many were not used yet.
        """
        secret = self.tickets.give(principal, purpose)
        actor = Actor(remote, principal.user, principal.token_id)
        self._audit.access(actor, action="ticket.make", target=purpose)
        return secret

    def take_ticket(self, secret: str, purpose: Purpose) -> Principal:
        """Who a ticket is for, and what they may do now; it is used up.

        Raises:
            AuthFailed: it does not hold.
        """
        principal = self.authority.review(self.tickets.take(secret, purpose))
        self.authority.require_time(principal)
        return principal

    async def read_changes(self) -> None:
        """Hold everybody to what the store and the configuration have now.

        Raises:
            StoreError: the store cannot be read; what was known stays.
        """
        async with self._reading:
            newest, roles = await self._store.changes.newest(), self._roles()
            if newest == self._seen and roles is self._seen_roles:
                return
            if newest != self._seen:
                self.authority.learn(await self._store.run(self._read, reads=True))
                await self._tell_untold()
            if roles is not self._seen_roles:
                for fault in role_faults(roles):  # such a scope allows nothing
                    log_event(_LOGGER, logging.ERROR, "role fault", reason=fault)
            self._seen, self._seen_roles = newest, roles
            self._on_change(self.authority.review)

    async def prepare(self) -> None:
        """Read everything for the first time, and let the first admin in where nobody has ever been.

        Raises:
            StoreError: the store cannot be read or written.
        """
        if self._tokens.can_issue:
            self.first_link = await self.accounts.first_link()
        await self.read_changes()

    async def watch(self) -> None:
        """Look for changes again and again, until cancelled."""
        failed = False
        while True:
            await asyncio.sleep(self._settings.watch_interval)
            try:
                await self.read_changes()
                failed = False
            except StoreError as error:
                if not failed:  # the store's own log has each
                    log_event(_LOGGER, logging.ERROR, "changes unread", reason=error.message)
                failed = True

    async def tidy(self) -> None:
        """Forget what is over.

        Raises:
            StoreError: the store cannot be used.
        """
        self.logins.sweep()
        await self.note_used()
        await self._store.logins.prune()
        await self._store.changes.prune()

    async def note_used(self) -> None:
        """Keep when keys were used last.

        Raises:
            StoreError: the store cannot be written; what was to be kept is forgotten.
        """
        await self._store.keys.note_used(self.authority.take_used())

    def close(self) -> None:
        """Take no logins any more."""
        self._passwords.close()

    def _read(self, connection: Connection) -> Known:
        query = select(USERS.c.name, USERS.c.role, USERS.c.disabled)
        users = {row.name: KnownUser(row.role, bool(row.disabled)) for row in connection.execute(query)}
        # Older ones have no access token any more that holds.
        around = self._settings.access_time + self._settings.leeway + _MARGIN_SECONDS
        revoked = frozenset(revoked_since(connection, now() - round(around * 1000)))
        return Known(users, revoked, {key.hash: key for key in good_keys(connection)})

    async def _tell_untold(self) -> None:
        for change in await self._store.changes.take_untold():
            actor = Actor(_COMMAND_LINE, change.by)
            self._audit.access(actor, action=change.action, target=change.target)


@asynccontextmanager
async def running_access(access: AccessService, *, tidy_interval: float) -> AsyncIterator[AccessService]:
    """Know what the store has, and hear of changes, inside the block.

    Raises:
        ConfigError: a role has a scope that is none.
        StoreError: the store cannot be read.
    """
    await access.prepare()

    async def tidy_again_and_again() -> None:
        while True:
            await asyncio.sleep(tidy_interval)
            with suppress(StoreError):  # it is in the log; the next time may be better
                await access.tidy()

    tasks = [
        asyncio.create_task(access.watch(), name="access"),
        asyncio.create_task(tidy_again_and_again(), name="access tidy"),
    ]
    try:
        yield access
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(StoreError):  # it is in the log
            await access.note_used()
        access.close()
