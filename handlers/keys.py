"""``/api/v1/keys``: the API keys of the caller; an admin's are everybody's."""

from typing import Any

from mcpgw.errors import ConfigError, InvalidParams, KeyNotFound, PermissionDenied
from mcpgw.services import described_key, require_covered

from .base import ApiHandler


class KeysHandler(ApiHandler):
    """All keys that the caller may see."""

    async def get(self) -> None:
        """List them, without their secrets."""
        user = None if "admin" in self.caller.scopes else self.caller.user
        found = await self.services.access.keys.list(user)
        self.write_json({"keys": [described_key(key) for key in found]})

    async def post(self) -> None:
        """Make one; 201, with the key itself, which is shown this once.

        Raises:
            PermissionDenied: it would allow more than the caller may, or be another user's; or the caller has
                not logged in and is no admin, or came with a key.
            InvalidParams: something of it cannot be.
        """
        body: dict[str, Any] = self.read_body("key")
        user = body.get("user", self.caller.user)
        if user != self.caller.user:
            self.require_admin()
        require_covered(self.caller, body["scopes"])
        if self.caller.key or not (self.caller.login or "admin" in self.caller.scopes):
            # What is given for a time, or can be revoked, is not to make what outlives it.
            raise PermissionDenied("keys are made by users who have logged in, and not with a key or a token")
        access, seconds = self.services.access, body.get("ttl")
        try:
            secret, kept = await access.keys.create(
                user, body["name"], body["scopes"], seconds=seconds, by=access.by(self.caller)
            )
        except ConfigError as error:
            raise InvalidParams(
                error.faults[0], details=[{"path": "/", "reason": fault} for fault in error.faults]
            ) from None
        self.services.audit.access(self.actor(), action="keys.create", target=kept.id)
        await access.take_over()
        self.set_status(201)
        self.set_header("Location", f"/api/v1/keys/{kept.id}")
        self.write_json({"key": secret, **described_key(kept)})


class OneKeyHandler(ApiHandler):
    """One key."""

    async def delete(self, key_id: str) -> None:
        """Revoke it; 204, and what is open of it ends.

        Raises:
            KeyNotFound: there is none of this id, or it is another user's.
        """
        access = self.services.access
        kept = await access.keys.get(key_id)
        is_mine = kept is not None and (kept.user == self.caller.user or "admin" in self.caller.scopes)
        if kept is None or kept.revoked_at or not is_mine:
            raise KeyNotFound(f"no key {key_id[:32]!r} of yours")
        if self.caller.key and self.caller.key != key_id and "admin" not in self.caller.scopes:
            raise PermissionDenied("a key may revoke itself, and no other key")
        await access.keys.revoke(key_id, by=access.by(self.caller))
        self.services.audit.access(self.actor(), action="keys.revoke", target=key_id)
        await access.take_over()
        self.set_status(204)
        self.finish()
