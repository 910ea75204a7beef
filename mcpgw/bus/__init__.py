"""The log of events: what has happened, in one order, for everyone who may know of it."""

from mcpgw.bus.bus import Audience, Bus, Replay
from mcpgw.bus.local import LocalBus

__all__ = ["Audience", "Bus", "LocalBus", "Replay"]
