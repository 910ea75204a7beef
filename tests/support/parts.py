"""What conversations and sessions work with, made for tests that need no gateway around them."""

import tempfile
from pathlib import Path

from mcpgw.audit import Audit
from mcpgw.metrics import Metrics
from mcpgw.rate_limit import UserLimits
from mcpgw.settings import AuditSettings
from mcpgw.tracing import Tracing
from mcpgw.wire.events import CHANNELS, EVENT_TYPES
from mcpgw.wire.frames import CLIENT_TYPES, SERVER_TYPES

AUDIT = Audit(AuditSettings(file=Path(tempfile.mkdtemp(prefix="mcpgw-tests-")) / "audit.jsonl"))
"""One audit log for all such tests of a run."""

TRACING = Tracing()


def metrics(*servers: str) -> Metrics:
    """Metrics of their own."""
    types = [*CLIENT_TYPES, *SERVER_TYPES, *EVENT_TYPES]
    return Metrics(servers=servers, frame_types=types, channels=[*CHANNELS, "user", "room"])


def no_limits() -> UserLimits:
    """Rates that no test comes to."""
    return UserLimits(1e6, 10**6, 1e6, 10**6)
