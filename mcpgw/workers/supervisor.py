"""The process above the workers: starts them, starts them again, and ends them together.

It serves no client. Sockets to listen on are its own and are inherited by every worker, so that no connection
is lost with a worker that ends: the next one takes it. With a socket for each (SO_REUSEPORT) the kernel would
reset what waits in the queue of the one that ended.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from mcpgw.logs import log_event
from mcpgw.workers.link import Kind
from mcpgw.workers.place import Place
from mcpgw.workers.switchboard import Switchboard

_LOGGER = logging.getLogger("mcpgw.workers")
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 30.0
_WELL_AFTER: Final = 10.0
"""Seconds after which a worker that ends has not failed at its start."""
_END_SECONDS: Final = 15.0
"""Time that workers have to end their servers and logs, after the grace for open calls."""
_KILL_SECONDS: Final = 5.0


class SupervisorError(Exception):
    """A worker could not begin; it has said why, and `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a worker ended with {code}")
        self.code = code


class Supervisor:
    """Keeps `count` workers alive; `command` starts one, which finds its `Place` in its environment.

    `drain_timeout` is the time in seconds that open calls have when the gateway ends.
    """

    def __init__(
        self, command: Sequence[str], count: int, listening: Sequence[socket.socket], *, drain_timeout: float
    ) -> None:
        self._command = tuple(command)
        self._count = count
        self._listening = tuple(listening)
        self._drain_timeout = drain_timeout
        self._switchboard = Switchboard(count, self._on_change, self._on_lost)
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._changed = asyncio.Event()
        self._has_begun = False
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self, on_listening: Callable[[], None]) -> None:
        """Run the workers until SIGTERM or SIGINT has come and all of them have ended.

        `on_listening` is called when all take clients. A second signal cuts their grace short.

        Raises:
            SupervisorError: the gateway cannot be started as it is configured.
        """
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for one in signals:
            loop.add_signal_handler(one, self._on_signal)
        keeping: list[asyncio.Task[None]] = []
        try:
            # One alone makes what is made once: keys, the tables of the store, the first admin's link.
            keeping.append(asyncio.create_task(self._keep(1), name="worker 1"))
            await self._until(lambda: 1 in self._switchboard.ready, keeping)
            keeping += [
                asyncio.create_task(self._keep(number), name=f"worker {number}")
                for number in range(2, self._count + 1)
            ]
            await self._until(lambda: len(self._switchboard.ready) == self._count, keeping)
            self._has_begun = True
            self._switchboard.send_all(Kind.GO)
            await self._until(lambda: len(self._switchboard.settled) == self._count, keeping)
            if not self._ending.is_set():
                on_listening()
                self._switchboard.send(1, Kind.SETTLED)
            await self._until(self._ending.is_set, keeping)
        finally:
            self._ending.set()
            for sock in self._listening:
                sock.close()
            await self._end(keeping)
            self._switchboard.close()
            for one in signals:
                loop.remove_signal_handler(one)

    def _on_signal(self) -> None:
        (self._hurry if self._ending.is_set() else self._ending).set()

    def _on_change(self, number: int) -> None:
        self._changed.set()
        if self._has_begun and number not in self._switchboard.settled:
            self._switchboard.send(number, Kind.GO)

    def _on_lost(self, number: int) -> None:
        """A worker has closed its link, or does not read: without it it is none, and has to go."""
        self._switchboard.disconnect(number)
        process = self._processes.get(number)
        if process is not None and not self._ending.is_set():
            # It may be about to end, with some last lines of its log.
            asyncio.get_running_loop().call_later(_KILL_SECONDS, _kill, process)

    async def _until(self, condition: Callable[[], bool], keeping: Sequence[asyncio.Task[None]]) -> None:
        """Wait until something is true of the workers; or until the gateway is to end, or cannot begin."""
        ending = asyncio.create_task(self._ending.wait())
        try:
            while not condition() and not self._ending.is_set():
                self._changed.clear()
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait([changed, ending, *keeping], return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                for task in keeping:
                    if task.done():
                        task.result()
        finally:
            ending.cancel()

    # --- one worker ----------------------------------------------------------------------------------------

    async def _keep(self, number: int) -> None:
        """Have a worker run, and again whenever it has ended, after a pause that grows while it fails."""
        pause = _FIRST_PAUSE
        while not self._ending.is_set():
            started = time.monotonic()
            code = await self._run_one(number)
            if self._ending.is_set():
                return
            if not self._has_begun and code > 0:
                raise SupervisorError(code)
            lived = time.monotonic() - started
            pause = _FIRST_PAUSE if lived >= _WELL_AFTER else min(2 * pause, _LONGEST_PAUSE)
            log_event(
                _LOGGER, logging.ERROR, "worker ended", worker=number, code=code, again_in=round(pause, 2)
            )
            try:
                async with asyncio.timeout(pause):
                    await self._ending.wait()
            except TimeoutError:
                pass

    async def _run_one(self, number: int) -> int:
        """Run one worker to its end; answers its exit code, negative for a signal; 0 where none began."""
        own, its = socket.socketpair()
        listening = tuple(sock.fileno() for sock in self._listening)
        with its:
            place = Place(number, self._count, its.fileno(), listening)
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    env=os.environ | place.to_environment(),
                    pass_fds=(its.fileno(), *listening),
                )
            except OSError as error:
                own.close()
                reason = error.strerror or type(error).__name__
                log_event(_LOGGER, logging.ERROR, "worker not started", worker=number, reason=reason)
                return 0
        self._processes[number] = process
        self._switchboard.connect(number, own)
        if self._ending.is_set():  # it was being started when all others were told
            self._switchboard.send(number, Kind.END)
        log_event(_LOGGER, logging.INFO, "worker started", worker=number, pid=process.pid)
        try:
            return await process.wait()
        finally:
            self._switchboard.disconnect(number)
            self._changed.set()

    # --- the end -------------------------------------------------------------------------------------------

    async def _end(self, keeping: Sequence[asyncio.Task[None]]) -> None:
        """End all workers, side by side; those that do not end are killed."""
        self._switchboard.send_all(Kind.END)
        waiting = asyncio.gather(*keeping, return_exceptions=True)
        hurried = asyncio.create_task(self._hurry.wait())
        either: list[asyncio.Future[Any]] = [waiting, hurried]
        await asyncio.wait(
            either,
            timeout=self._drain_timeout + _END_SECONDS,
            return_when=asyncio.FIRST_COMPLETED,
        )
        hurried.cancel()
        if not waiting.done():
            self._switchboard.send_all(Kind.END, b"now")
            await asyncio.wait([waiting], timeout=_END_SECONDS if self._hurry.is_set() else _KILL_SECONDS)
        for number, process in self._processes.items():
            if process.returncode is None:
                log_event(_LOGGER, logging.ERROR, "worker killed", worker=number)
                process.kill()
        await waiting
        for outcome in waiting.result():
            if isinstance(outcome, BaseException) and not isinstance(outcome, SupervisorError):
                raise outcome


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()


def worker_command() -> list[str]:
    """The command that started this process, for one that does the same with a place among others."""
    return [sys.executable, *sys.orig_argv[1:]]
