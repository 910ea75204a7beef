"""The sessions of clients that are away, kept for the time in which they may come back."""

import asyncio
from collections import Counter, OrderedDict

from mcpgw.access.revocation import Judge
from mcpgw.errors import AuthFailed
from mcpgw.kept_ends import SharedLimit
from mcpgw.session import Session
from mcpgw.session_events import Outlet
from mcpgw.settings import SessionSettings


class SessionStore:
    """Every session that can be resumed: those of open connections, and those that were parked.

    A parked session ends after the resume time. Where there are too many, the longest parked one of the user
    who has most ends earlier, so that nobody's sessions give way to another's flood of them.
    """

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._live: dict[str, Session] = {}
        self._parked: OrderedDict[str, tuple[Session, asyncio.TimerHandle]] = OrderedDict()
        self._limit = SharedLimit(settings.max_total_result_bytes)

    def __len__(self) -> int:
        return len(self._live) + len(self._parked)

    @property
    def parked(self) -> int:
        """How many sessions wait for their clients."""
        return len(self._parked)

    @property
    def kept_bytes(self) -> int:
        """Memory that the kept ends of calls of all sessions take, in bytes."""
        return self._limit.size

    def add(self, session: Session) -> None:
        """A connection has begun with this session."""
        self._live[session.id] = session
        session.ends.share(self._limit)

    def remove(self, session: Session) -> None:
        """The session is over, and cannot be resumed."""
        self._live.pop(session.id, None)
        parked = self._parked.pop(session.id, None)
        if parked is not None:
            parked[1].cancel()
        session.end()

    def review(self, judge: Judge) -> None:
        """Hold every session to what its user may do by now; those whose credentials hold no more end.

        Also those whose connection is being closed: nobody is to come back to them.
        """
        for session in [*self._live.values(), *(parked for parked, _ in self._parked.values())]:
            try:
                session.review(judge)
            except AuthFailed:
                self.remove(session)

    def park(self, session: Session) -> None:
        """The connection is gone: keep its session for a client that comes back."""
        self._live.pop(session.id, None)
        timer = asyncio.get_running_loop().call_later(self._settings.resume_time, self.remove, session)
        self._parked[session.id] = (session, timer)
        while len(self._parked) > self._settings.max_sessions:
            self.remove(self._first_to_go())

    def take(self, session_id: str, user: str) -> Session | None:
        """The session that `user` may go on with, now live; None where there is none of that id."""
        parked = self._parked.get(session_id)
        session = self._live.get(session_id) if parked is None else parked[0]
        if session is None or session.user != user:
            return None
        if parked is not None:
            parked[1].cancel()
            del self._parked[session_id]
        self._live[session_id] = session
        return session

    def outlet_of(self, session_id: str, user: str) -> Outlet | None:
        """The connection that a session of `user` speaks through now; None where there is none."""
        session = self._live.get(session_id)
        return None if session is None or session.user != user else session.outlet

    def sweep(self) -> None:
        """Forget the ends of calls that clients whose connections live have read long ago."""
        for session in self._live.values():
            session.ends.drop_read()

    def close(self) -> None:
        """End every session."""
        for session in [*self._live.values(), *(parked[0] for parked in self._parked.values())]:
            self.remove(session)

    def _first_to_go(self) -> Session:
        parked = [session for session, _ in self._parked.values()]
        user, _ = Counter(session.user for session in parked).most_common(1)[0]
        return next(session for session in parked if session.user == user)
