"""The log of events: what has happened, in one order, for everyone who may know of it."""

from mcpgw.bus.bus import Audience, Bus, Replay
from mcpgw.bus.local import LocalBus
from mcpgw.bus.shared import SharedBus

__all__ = ["Audience", "Bus", "LocalBus", "Replay", "SharedBus"]
