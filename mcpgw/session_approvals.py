"""What one client is asked to approve: calls of others, as long as it reads the channel ``calls``.

Each such call is an ``input_request`` of the kind ``approval``, a push without an id; whoever of all that may
decide answers first, decides. Source: the wire contract, sections 3 and 4.
"""

from collections.abc import Callable

from mcpgw.access.permissions import may_approve
from mcpgw.access.tokens import Principal
from mcpgw.approvals import ApprovalRequest
from mcpgw.gateway import Gateway
from mcpgw.wire import frames

CHANNEL = "calls"


class SessionApprovals:
    """Tells one client what waits for an approval that it may give; `say` sends a frame."""

    __slots__ = ("_end", "_gateway", "_principal", "_say")

    def __init__(self, gateway: Gateway, say: Callable[[frames.InputRequest], None]) -> None:
        self._gateway = gateway
        self._say = say
        self._principal: Principal | None = None
        self._end: Callable[[], None] | None = None

    def follow(self, principal: Principal | None) -> None:
        """Tell what waits, then what comes, to somebody who may approve; None ends it."""
        approvals = self._gateway.approvals
        is_told = self._end is not None
        if principal is None or approvals is None or not may_approve(principal):
            self._stop()
            return
        self._principal = principal
        if not is_told:
            self._end = approvals.listen(self._tell)
            for request in approvals.pending(principal, self._gateway.call_settings):
                self._say(_frame(request))

    def _tell(self, request: ApprovalRequest) -> None:
        approvals, principal = self._gateway.approvals, self._principal
        if approvals is None or principal is None:
            return
        if approvals.may_decide(principal, request, self._gateway.call_settings):
            self._say(_frame(request))

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._end = self._principal = None


def _frame(request: ApprovalRequest) -> frames.InputRequest:
    return frames.InputRequest(request.id, "approval", request.message, request.members(), request.expires_at)
