"""``/api/v1/rooms``: rooms for guests, for hosts and for those who join; and the page to join at."""

from functools import cache
from importlib.resources import files
from typing import Any

from mcpgw.errors import ConfigError, InvalidParams, PermissionDenied
from mcpgw.services import (
    StoredRoom,
    described_guest,
    described_room,
    may_give,
    require_host_rooms,
)

from .auth import described
from .base import ApiHandler, BaseHandler, JsonBodies
from .security_headers import page_policy

_PAGES = {
    "": ("join.html", "text/html; charset=utf-8"),
    "join.js": ("join.js", "text/javascript; charset=utf-8"),
    "join.css": ("join.css", "text/css; charset=utf-8"),
}
_POLICY = page_policy(script="'self'", style="'self'", image="data:")
_MUTING = {"mute": True, "unmute": False}


class RoomHandler(ApiHandler):
    """What all resources for hosts have in common: whoever may host no rooms gets 403."""

    def prepare(self) -> None:
        """Refuse whoever may host no rooms.

        Raises:
            PermissionDenied: the caller has not the scope `rooms:host`.
        """
        super().prepare()
        if self.request.method != "OPTIONS":
            require_host_rooms(self.caller)

    @property
    def is_admin(self) -> bool:
        """Whether rooms of others may be seen, and opened in their names."""
        return "admin" in self.caller.scopes

    async def find(self, name: str) -> StoredRoom:
        """The open room of that name, which the caller hosts.

        Raises:
            RoomNotFound: there is none, or it is another's.
        """
        host = None if self.is_admin else self.caller.user
        return await self.services.access.workshops.find(name, host)

    async def done(self, action: str, target: str) -> None:
        """The caller has done something, which the audit log has and which is in force from now on."""
        self.services.audit.access(self.actor(), action=action, target=target)
        await self.services.access.take_over()

    def link(self, code: str) -> str:
        """Where to join. The code stands behind the sign that browsers send nobody."""
        return f"{self.public_url}/join#{code}"


class RoomsHandler(RoomHandler):
    """The rooms that the caller hosts; an admin's are all."""

    async def get(self) -> None:
        """List those that are open."""
        found = await self.services.access.workshops.all(None if self.is_admin else self.caller.user)
        self.write_json({"rooms": [described_room(room) for room in found]})

    async def post(self) -> None:
        """Open one; 201, with its code and its link, which are shown this once.

        Raises:
            PermissionDenied: guests would be allowed more than the caller; or the caller is no user of the
                store, or came with a key.
            InvalidParams: something of it cannot be.
        """
        body: dict[str, Any] = self.read_body("room")
        caller, access = self.caller, self.services.access
        host = body.get("host", caller.user if caller.role else "")
        if host != caller.user and not self.is_admin:
            raise PermissionDenied("only an admin opens rooms for other hosts, or for none")
        if caller.key or not (caller.role or self.is_admin):
            # What is given for a time, or can be revoked, is not to make what outlives it.
            raise PermissionDenied("rooms are opened by users of the gateway's own, and not with a key")
        if host != caller.user and caller.rules.deny:
            # Only the host's rules are held against guests, of whom the caller could be one.
            raise PermissionDenied("your role denies tools, so that you open rooms as their host alone")
        for scope in body["scopes"]:
            if not may_give(caller.scopes, caller.rules, scope, caller.granted):
                raise PermissionDenied(
                    f"{scope!r} is more than you may do yourself", details={"missingScope": scope}
                )
        options = {key: body[name] for name, key in _OPTIONS.items() if name in body}
        try:
            opened = await access.workshops.create(
                body["name"], body["scopes"], host=host, by=access.by(caller), **options
            )
        except ConfigError as error:
            raise InvalidParams(
                error.faults[0], details=[{"path": "/", "reason": fault} for fault in error.faults]
            ) from None
        await self.done("room.create", opened.room.name)
        self.set_status(201)
        self.set_header("Location", f"/api/v1/rooms/{opened.room.name}")
        self.write_json({**described_room(opened.room), "code": opened.code, "link": self.link(opened.code)})


_OPTIONS = {"quota": "quota", "ttl": "seconds", "maxGuests": "guests"}


class OneRoomHandler(RoomHandler):
    """One room."""

    async def get(self, name: str) -> None:
        """What it is for, and until when."""
        self.write_json(described_room(await self.find(name)))

    async def delete(self, name: str) -> None:
        """End it, with its code and its guests' tokens; 204."""
        access, room = self.services.access, await self.find(name)
        await access.workshops.end(room, by=access.by(self.caller))
        await self.done("room.end", room.name)
        self.set_status(204)
        self.finish()


class RoomActionHandler(RoomHandler):
    """Something done to a room: ``freeze``, ``thaw`` or ``code``."""

    async def post(self, name: str, action: str) -> None:
        """Do it; answers the room, with a new code its code and link."""
        access, room = self.services.access, await self.find(name)
        by, added = access.by(self.caller), dict[str, Any]()
        if action == "code":
            code = await access.workshops.renew_code(room, by=by)
            added = {"code": code, "link": self.link(code)}
        else:
            await access.workshops.set_frozen(room, action == "freeze", by=by)
        await self.done(f"room.{action}", room.name)
        self.write_json({**described_room(await self.find(name)), **added})


class RoomGuestsHandler(RoomHandler):
    """The guests of a room."""

    async def get(self, name: str) -> None:
        """List them, the first to join at the beginning."""
        room = await self.find(name)
        found = await self.services.access.workshops.guests(room)
        self.write_json({"guests": [described_guest(room, guest) for guest in found]})


class GuestActionHandler(RoomHandler):
    """Something done to a guest: ``mute``, ``unmute`` or ``kick``."""

    async def post(self, name: str, guest_name: str, action: str) -> None:
        """Do it; 204."""
        access, room = self.services.access, await self.find(name)
        guest = await access.workshops.find_guest(room, guest_name)
        by = access.by(self.caller)
        if action == "kick":
            await access.workshops.kick(room, guest, by=by)
        else:
            await access.workshops.set_muted(room, guest, _MUTING[action], by=by)
        await self.done(f"room.{action}", f"{room.name}/{guest.name}")
        self.set_status(204)
        self.finish()


class JoinHandler(JsonBodies):
    """The way into a room, for those who know its code."""

    rate = "address"

    async def post(self) -> None:
        """Let somebody in by a code and a name; 201, with a token that is good until the room ends.

        Raises:
            AuthFailed: no open room has the code.
            InvalidParams: it can be no name.
            Conflict: the name is taken, or too like one that is.
            QueueFull: the room has its guests.
            RateLimited: there were too many requests, or too many wrong codes.
        """
        body = self.read_body("join")
        joined = await self.services.access.joining.join(body["code"], body["name"], self.visitor)
        self.set_status(201)
        self.write_json(
            {
                "accessToken": joined.access_token,
                "tokenType": "Bearer",
                "expiresIn": joined.expires_in,
                **described(joined.principal),
                "name": joined.name,
                "endsAt": joined.room.ends_at,
            }
        )


class JoinPageHandler(BaseHandler):
    """The page to join at, and its parts. They hold nothing secret: the code stands behind the address."""

    def get(self, name: str = "") -> None:
        """Answer one of them."""
        file, content_type = _PAGES[name]
        self.set_header("Content-Type", content_type)
        self.set_header("Content-Security-Policy", _POLICY)
        self.finish(_text(file))


@cache
def _text(file: str) -> str:
    return files("mcpgw").joinpath("pages", file).read_text(encoding="utf-8")
