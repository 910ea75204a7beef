"""``/api/v1/approvals``: the calls that wait for an approval, and the decisions on them."""

from mcpgw.services import require_approve

from .base import ApiHandler


class ApprovalsHandler(ApiHandler):
    """The calls that wait; for those who may decide."""

    def get(self) -> None:
        """Answer those on which the caller may decide, the oldest first.

        Raises:
            PermissionDenied: the caller has not the scope `calls:approve`.
        """
        require_approve(self.caller)
        pending = self.services.approvals.pending(self.caller, self.services.gateway.call_settings)
        self.write_json({"approvals": [request.to_json() for request in pending]})


class OneApprovalHandler(ApiHandler):
    """One call that waits."""

    async def post(self, request_id: str) -> None:
        """Decide on it, once.

        Raises:
            PermissionDenied: the caller has not the scope `calls:approve`, or it is their own call.
            UnknownCall: nothing of that id waits any more.
            InvalidParams: the hash is not that of the arguments that wait.
        """
        require_approve(self.caller)
        body = self.read_body("approval_decision")
        later = self.services.approvals.decide(
            self.caller,
            request_id,
            body["action"],
            actor=self.actor(),
            settings=self.services.gateway.call_settings,
            arguments_hash=body.get("argumentsHash"),
        )
        if later is not None:
            await later
        self.write_json({"requestId": request_id, "action": body["action"]})
