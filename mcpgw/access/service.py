"""Everything that decides who may come in, built and ended together."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from sqlalchemy import Connection, select

from mcpgw.access.accounts import Accounts
from mcpgw.access.authority import Authority, Known, KnownUser
from mcpgw.access.issuers import Issuers, IssuerSettings
from mcpgw.access.joining import Joining
from mcpgw.access.keys import Keys
from mcpgw.access.logins import Logins
from mcpgw.access.oidc import OpenIdLogins
from mcpgw.access.passwords import Passwords
from mcpgw.access.tickets import Purpose, Tickets
from mcpgw.access.tokens import Principal, Tokens
from mcpgw.access.workshops import Workshops
from mcpgw.access.xsrf import XsrfTokens
from mcpgw.audit import Actor, Audit
from mcpgw.logs import log_event
from mcpgw.roles import Role
from mcpgw.settings import DAY, AuthSettings
from mcpgw.store import By, OpenRoom, Store, StoreError
from mcpgw.store.identities import linked_users
from mcpgw.store.keys import good_keys
from mcpgw.store.logins import revoked_since
from mcpgw.store.rooms import open_rooms
from mcpgw.store.runner import now
from mcpgw.store.tables import USERS
from mcpgw.workers.peers import Peers

_LOGGER = logging.getLogger("mcpgw.access")
_COMMAND_LINE = "command line"
_GATEWAY = "gateway"
_MARGIN_SECONDS = 60.0
_TELL_SECONDS = 0.25
_LAST_SECONDS = 2.0
_OTHERS_SECONDS = 2.0
_CHANGED = "access"


class AccessService:
    """Users, logins and tickets of one gateway, and the journal that tells of changes made elsewhere.

    `first_link` is the secret of the link for the first admin, as long as nobody has ever come in.
    `on_change` is called with `Authority.review` whenever somebody may now do more or less than before, and
    `on_rooms` before it with the rooms that are open to guests, of which there may be `max_rooms`.
    `peers` are the other workers, which are told of every change, and read it too.
    """

    def __init__(
        self,
        store: Store,
        tokens: Tokens,
        *,
        audit: Audit,
        settings: AuthSettings,
        roles: Callable[[], Mapping[str, Role]],
        issuers: Issuers,
        on_change: Callable[[Callable[[Principal], Principal]], None],
        on_rooms: Callable[[Mapping[str, OpenRoom]], None],
        max_rooms: int,
        peers: Peers,
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._audit = audit
        self._settings = settings
        self._roles = roles
        self._on_change = on_change
        self._on_rooms = on_rooms
        self._passwords = Passwords()
        self._seen = -1
        self._seen_roles: Mapping[str, Role] = {}
        self._seen_issuers: Mapping[str, IssuerSettings] = {}
        self._has_untold = False
        self._over: frozenset[str] = frozenset()
        self._reading = asyncio.Lock()
        self._peers = peers
        self.first_link: str | None = None
        self.issuers = issuers
        self.authority = Authority(tokens, roles, issuers=issuers)
        self.logins = Logins(
            store,
            tokens,
            authority=self.authority,
            passwords=self._passwords,
            audit=audit,
            settings=settings,
            refresh_known=self.read_changes,
            take_over=self.take_over,
            peers=peers,
        )
        self.openid = OpenIdLogins(
            store,
            self.logins,
            issuers,
            audit=audit,
            settings=settings,
            roles=roles,
            key=tokens.derived_key("openid login"),
        )
        self.tickets = Tickets(settings.ticket_time, peers=peers)
        self.keys = Keys(store)
        self.workshops = Workshops(store, tokens, roles, most=max_rooms)
        self.joining = Joining(store, tokens, authority=self.authority, audit=audit, peers=peers)
        self.xsrf = XsrfTokens(tokens.derived_key("xsrf"))
        peers.answer(_CHANGED, lambda *_: self._read_changes())

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
        """Hold everybody to what the store and the configuration have now, in all workers.

        Raises:
            StoreError: the store cannot be read; what was known stays.
        """
        await self._read_changes()
        # Whoever is told that something is done may ask another worker next.
        await self._peers.ask_all(_CHANGED, seconds=_OTHERS_SECONDS)

    async def _read_changes(self) -> bool:
        """Hold everybody to what there is now; whether there was something new. Raises StoreError."""
        async with self._reading:
            newest, roles = await self._store.changes.newest(), self._roles()
            issuers = self.issuers.settings
            is_same = roles is self._seen_roles and issuers is self._seen_issuers
            if newest == self._seen and is_same:
                if self._has_untold:
                    await self._tell_untold()
                return False
            has_changed = newest != self._seen
            if has_changed:
                self.authority.learn(await self._store.run(self._read, reads=True))
                self._has_untold = True
                self._on_rooms(self._open_rooms())
            # The audit log has what was changed before what came of it, unless the store keeps it waiting.
            telling = asyncio.create_task(self._tell_untold(), name="access changes")
            try:
                await asyncio.wait({telling}, timeout=_TELL_SECONDS)
                self._on_change(self.authority.review)
                self._seen, self._seen_roles, self._seen_issuers = newest, roles, issuers
            finally:
                await telling
            return has_changed

    async def _follow(self) -> None:
        """Read what has changed, and have the others read it as soon."""
        if await self._read_changes():
            await self._peers.ask_all(_CHANGED, seconds=_OTHERS_SECONDS)

    async def take_over(self) -> None:
        """Hold everybody to a change that is in the store already.

        Where that cannot be read in this moment `watch` does it, as soon as it can: the change is made, and
        whoever made it is not to be told otherwise.
        """
        try:
            await self.read_changes()
        except StoreError as error:
            log_event(_LOGGER, logging.ERROR, "changes unread", reason=error.message)

    async def prepare(self) -> None:
        """Read everything for the first time, and let the first admin in where nobody has ever been.

        Raises:
            StoreError: the store cannot be read or written.
        """
        # A new link ends the one before: what was shown must outlive a worker that begins again.
        if self._tokens.can_issue and self._peers.is_first and not self._peers.present:
            self.first_link = await self.accounts.first_link()
        await self._read_changes()

    async def watch(self) -> None:
        """Look for changes again and again, until cancelled."""
        told = ""
        while True:
            await asyncio.sleep(self._settings.watch_interval)
            fault = ""
            # One after the other: what cannot be written keeps nothing from being read.
            for work in (self._end_rooms, self._follow):
                try:
                    await work()
                except StoreError as error:
                    fault = error.message
                    if not told:  # the store's own log has each
                        log_event(_LOGGER, logging.ERROR, "changes unread", reason=fault)
                except Exception as error:
                    # Whoever ended here would let all in for good whose rights are taken from now on.
                    fault = repr(type(error))
                    if fault != told:
                        _LOGGER.exception("changes could not be taken over")
            told = fault

    def _open_rooms(self) -> dict[str, OpenRoom]:
        """The rooms that are known, without those whose time is over."""
        moment = now()
        known = self.authority.known.rooms
        return {room_id: found for room_id, found in known.items() if moment < found.room.ends_at}

    async def _end_rooms(self) -> None:
        """End the rooms whose time is over."""
        rooms = self._open_rooms()
        over = self.authority.known.rooms.keys() - rooms.keys()
        if not over:
            return
        if over != self._over:
            # Before the store is asked, which may fail: who is in there has to go in any case.
            self._over = frozenset(over)
            self._on_rooms(rooms)
            self._on_change(self.authority.review)
        for room in await self._store.rooms.end_over():
            self._audit.access(Actor(_GATEWAY, room.host or None), action="room.end", target=room.name)

    async def tidy(self) -> None:
        """Forget what is over.

        Raises:
            StoreError: the store cannot be used.
        """
        self.logins.sweep()
        self.joining.sweep()
        self.tickets.sweep()
        await self.note_used()
        if not self._peers.is_first:
            return
        await self._store.logins.prune()
        await self._store.rooms.prune()
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
        query = select(USERS.c.name, USERS.c.role, USERS.c.disabled, USERS.c.created_at)
        users = {
            row.name: KnownUser(row.role, bool(row.disabled), row.created_at)
            for row in connection.execute(query)
        }
        # Older ones have no access token any more that holds, whichever gateway has issued it, and whatever
        # `auth.access_time` was then.
        around = DAY + self._settings.leeway + _MARGIN_SECONDS
        revoked = frozenset(revoked_since(connection, now() - round(around * 1000)))
        keys = {key.hash: key for key in good_keys(connection)}
        rooms = {found.room.id: found for found in open_rooms(connection)}
        return Known(users, revoked, keys, linked_users(connection), rooms)

    async def _tell_untold(self) -> None:
        """Write into the audit log what others have changed; later, where the store cannot be written."""
        if not self._has_untold:
            return
        with suppress(StoreError):  # it is in the log
            for change in await self._store.changes.take_untold():
                actor = Actor(_COMMAND_LINE, change.by)
                self._audit.access(actor, action=change.action, target=change.target)
            self._has_untold = False


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
        asyncio.create_task(access.issuers.keep_fresh(), name="access issuers"),
        asyncio.create_task(tidy_again_and_again(), name="access tidy"),
    ]
    try:
        yield access
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(StoreError, TimeoutError):  # it is in the log, or the store answers nothing
            async with asyncio.timeout(_LAST_SECONDS):
                await access.note_used()
        access.issuers.close()
        access.close()
