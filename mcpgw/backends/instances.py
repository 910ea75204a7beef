"""The instances of one server: who shares one, how many there may be, and when one is not needed any more.

A ``shared`` server has one instance for everybody. One with the isolation ``user`` or ``connection`` has an
instance for each; such an instance is never given to another, for it may hold what the first has left in it.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mcpgw.backends.backend import Backend
from mcpgw.backends.requests import Asker
from mcpgw.backends.slots import Slots
from mcpgw.backends.status import BackendState, InstanceStatus
from mcpgw.errors import QueueFull
from mcpgw.server_definitions import ServerDefinition

_RETRY_AFTER_MS = 1000


class Instance:
    """One instance: its backend, the line in front of it, and whose it is (`key`; None: nobody's yet).

    `on_demand` says that somebody waits for its start, `has_listed` that it was ready once.
    """

    def __init__(self, backend: Backend, slots: Slots) -> None:
        self.backend = backend
        self.slots = slots
        self.key: str | None = None
        self.user: str | None = None
        self.connection: str | None = None
        self.on_demand = False
        self.has_listed = False
        self.uses = 0
        self.idle_since = time.monotonic()
        self.timer: asyncio.TimerHandle | None = None

    @property
    def status(self) -> InstanceStatus:
        """The present state."""
        status = self.backend.status
        return InstanceStatus(status.state, status.since, self.user, self.uses)


class Instances:
    """The instances of the server `definition`; `make` makes one, which is then started here.

    `on_owned` is told when an instance becomes somebody's, `on_change` when there is one less.
    """

    def __init__(
        self,
        definition: ServerDefinition,
        make: Callable[[], Instance],
        *,
        on_owned: Callable[[Instance], None],
        on_change: Callable[[], None],
    ) -> None:
        self.definition = definition
        self._make = make
        self._on_owned = on_owned
        self._on_change = on_change
        self._owned: dict[str, Instance] = {}
        self._spare: dict[Instance, None] = {}
        self._ending: dict[asyncio.Task[None], Instance] = {}
        self._closed = False

    def __iter__(self) -> Iterator[Instance]:
        yield from self._owned.values()
        yield from self._spare

    def __len__(self) -> int:
        return len(self._owned) + len(self._spare)

    @property
    def is_shared(self) -> bool:
        """Whether all share one instance."""
        return self.definition.isolation == "shared"

    @property
    def is_ending(self) -> bool:
        """Whether some instance is on its way out."""
        return bool(self._ending)

    def define(self, definition: ServerDefinition) -> None:
        """Go by a definition that needs no other instances."""
        self.definition = definition
        for instance in self:
            self._watch_idle(instance)

    def find(self, asker: Asker) -> Instance | None:
        """The instance of this caller, where there is one."""
        return self._owned.get(self.key(asker))

    def claim(self, asker: Asker) -> Instance:
        """The instance of this caller; one that waits ready becomes theirs, or a new one is started.

        Raises:
            QueueFull: there are as many as there may be.
        """
        key = self.key(asker)
        instance = self._owned.get(key)
        if instance is not None:
            if instance.backend.state is not BackendState.STOPPED:
                return instance
            self.drop(instance)  # its supervision has ended, which nobody has asked for
        if not self.is_shared:
            self._require_room_for(asker.user)
        if self._spare and not self.is_shared:
            # The one that is ready, or will be first.
            ready = [spare for spare in self._spare if spare.backend.state.takes_calls]
            instance = ready[0] if ready else next(iter(self._spare))
            del self._spare[instance]
        else:
            instance = self._make()
        instance.key = key
        instance.on_demand = True
        if not self.is_shared:
            instance.user = asker.user
            if self.definition.isolation == "connection":
                instance.connection = asker.connection
        self._owned[key] = instance
        self._on_owned(instance)
        self._start(instance)
        self._watch_idle(instance)
        self.fill()
        return instance

    def fill(self, least: int = 0) -> None:
        """Start instances that wait ready: as many as are to be warm, at least `least`."""
        if self.is_shared or self._closed:
            return
        wanted = max(self.definition.warm, least)
        while len(self._spare) < wanted and len(self) < self.definition.max_instances:
            instance = self._make()
            self._spare[instance] = None
            self._start(instance)
            self._watch_idle(instance)

    @contextmanager
    def in_use(self, instance: Instance) -> Iterator[None]:
        """Keep an instance from being stopped inside the block."""
        self.begin_use(instance)
        try:
            yield
        finally:
            self.end_use(instance)

    def begin_use(self, instance: Instance) -> None:
        """Keep an instance from being stopped until `end_use`."""
        instance.uses += 1
        if instance.timer is not None:
            instance.timer.cancel()
            instance.timer = None

    def end_use(self, instance: Instance) -> None:
        """It is used once less."""
        instance.uses -= 1
        instance.idle_since = time.monotonic()
        self._watch_idle(instance)

    def drop_connection(self, connection: str) -> None:
        """A connection is gone: so is the instance that was its own."""
        for instance in list(self._owned.values()):
            if instance.connection == connection:
                self.drop(instance)

    def drop(self, instance: Instance) -> asyncio.Task[None]:
        """Forget an instance, and end it in the background."""
        self._spare.pop(instance, None)
        if instance.key is not None and self._owned.get(instance.key) is instance:
            del self._owned[instance.key]
        if instance.timer is not None:
            instance.timer.cancel()
            instance.timer = None
        task = asyncio.create_task(instance.backend.stop(), name=f"stop {self.definition.name}")
        self._ending[task] = instance
        task.add_done_callback(lambda done: self._ending.pop(done, None))
        self._on_change()
        return task

    async def drop_all(self) -> None:
        """End every instance; returns when all are gone."""
        for instance in list(self):
            self.drop(instance)
        if self._ending:
            await asyncio.wait(set(self._ending))

    async def close(self) -> None:
        """End every instance for good."""
        self._closed = True
        await self.drop_all()

    def key(self, asker: Asker) -> str:
        """What the instance of this caller is kept under."""
        match self.definition.isolation:
            case "user":
                return asker.user
            case "connection":
                return f"{asker.user}\0{asker.connection}"
        return ""

    def _start(self, instance: Instance) -> None:
        """Start an instance, unless it was waiting ready."""
        if instance.backend.state is not BackendState.IDLE:
            return
        definition = self.definition
        # Two processes of one owner may fight over what is the owner's: the old one goes first.
        before = {
            task
            for task, ending in self._ending.items()
            if ending.key is not None and ending.key == instance.key
        }
        if not self.is_shared:
            # Those on their way out count until they are gone.
            own = {
                task
                for task, ending in self._ending.items()
                if ending.user is not None and ending.user == instance.user
            }
            if own and self._owned_by(instance.user) + len(own) > definition.max_instances_per_user:
                before |= own
            if len(self) + len(self._ending) > definition.max_instances:
                before |= self._ending.keys()
        instance.backend.start(_all(before) if before else None)

    def _owned_by(self, user: str | None) -> int:
        return sum(instance.user == user for instance in self._owned.values())

    def _require_room_for(self, user: str) -> None:
        definition = self.definition
        own = self._owned_by(user)
        leaving = sum(instance.user == user for instance in self._ending.values())
        # One may wait for each that is on its way out, and no more: they would pile up.
        if own >= definition.max_instances_per_user or own + leaving >= 2 * definition.max_instances_per_user:
            raise QueueFull(
                f"{own + leaving} instances of the server {definition.name!r} are yours, as many as may be",
                retry_after_ms=_RETRY_AFTER_MS,
            )
        count, both = len(self), len(self) + len(self._ending)
        if (not self._spare and count >= definition.max_instances) or both >= 2 * definition.max_instances:
            raise QueueFull(
                f"{both} instances of the server {definition.name!r} run, one for each of those who use "
                "it: try again later",
                retry_after_ms=_RETRY_AFTER_MS,
            )

    # --- what is not needed any more -----------------------------------------------------------------------

    def _watch_idle(self, instance: Instance) -> None:
        seconds = self.definition.idle_stop
        if instance.timer is not None:
            instance.timer.cancel()
            instance.timer = None
        if seconds and not instance.uses:
            loop = asyncio.get_running_loop()
            instance.timer = loop.call_later(seconds, self._stop_idle, instance)

    def _stop_idle(self, instance: Instance) -> None:
        instance.timer = None
        is_kept_warm = instance in self._spare and len(self._spare) <= self.definition.warm
        # One that takes longer to start than it may be idle would never be ready.
        is_starting = instance.backend.state is BackendState.STARTING
        if not instance.uses and not is_kept_warm and not is_starting and not instance.backend.resources.uris:
            self.drop(instance)
        else:
            self._watch_idle(instance)


async def _all(tasks: set[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)
