"""What a supervisor makes of a backend that fails, hangs, is frozen, floods or comes back."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from mcpgw.backends.backend import Backend
from mcpgw.backends.connection import Connection
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.errors import OutcomeUnknown, ServerUnavailable
from mcpgw.server_definitions import ServerDefinition
from tests.servers.scripted_http import scripted_http
from tests.support.backends import (
    alive,
    call,
    children,
    open_files,
    pid_of,
    ready,
    running,
    scripted,
    serving,
    settings,
    use,
)
from tests.support.waiting import until

QUICK: dict[str, Any] = {"health_interval": 0.1, "health_timeout": 0.1}


@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_fails_again_and_again_has_failed_and_is_found_when_it_comes_back(
    io_loop: IOLoop, tmp_path: Path
) -> None:
    note = tmp_path / "may-start"
    definition = scripted("--at-start", "die-unless", "--unless", note)
    states: list[str] = []
    async with running(definition, wait=False, failed_after=3, retry_maximum=0.3) as [backend]:
        backend._on_state = lambda: states.append(backend.state.value)
        await until(lambda: backend.state == "failed")
        assert backend.failures == 3
        assert backend.status.full_reason == "its process ended with exit code 3: scripted cannot start"
        assert backend.status.last_lines == ("scripted cannot start",) * 3
        with pytest.raises(ServerUnavailable) as refused:
            await call(backend, "echo")
        assert refused.value.details["state"] == "failed"
        assert refused.value.retry_after_ms is not None
        # It is looked after at the longest pause, and called failed all the while.
        await until(lambda: backend.failures == 5)
        assert set(states[states.index("failed") :]) == {"failed"}
        note.touch()
        await ready(backend, seconds=5)
        assert states[-2:] == ["failed", "ready"]
        await call(backend, "echo")


@pytest.mark.parametrize(
    "stray", [asyncio.CancelledError("stray"), BaseExceptionGroup("stray", [asyncio.CancelledError()])]
)
@pytest.mark.gen_test(timeout=20)
async def test_a_stray_cancellation_ends_one_session_and_not_the_supervision(
    io_loop: IOLoop, stray: BaseException
) -> None:
    async with running(scripted()) as [backend]:
        hold, strays = backend._hold, [stray]

        async def failing(connection: Connection) -> None:
            if strays:
                raise strays.pop()
            await hold(connection)

        backend._hold = failing  # type: ignore[method-assign]
        os.kill(await pid_of(backend), signal.SIGKILL)
        await until(lambda: not strays)
        await ready(backend, seconds=5)
        await call(backend, "echo")


@pytest.mark.gen_test(timeout=20)
async def test_a_listener_that_fails_is_logged_and_ends_nothing(
    io_loop: IOLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    reaper = ProcessReaper()
    backend = Backend(scripted(), settings(), reaper=reaper, longest_call=60, announce=fail, on_state=fail)
    try:
        backend.start()
        await ready(backend)
        os.kill(await pid_of(backend), signal.SIGKILL)
        await until(lambda: not backend.state.takes_calls)
        await ready(backend)
        await call(backend, "grow", {"name": "late"})
        await until(lambda: "late" in backend.tools)
    finally:
        await backend.stop()
        reaper.close()
    assert "a listener failed" in caplog.messages


@pytest.mark.gen_test(timeout=20)
async def test_a_server_whose_supervision_has_ended_is_begun_anew_with_the_next_call(io_loop: IOLoop) -> None:
    async with serving(scripted()) as server:
        [instance] = server._instances
        assert instance.backend._task is not None
        instance.backend._task.cancel()
        await until(lambda: instance.backend.state == "stopped")
        await use(server, "echo")


@pytest.mark.gen_test(timeout=20)
async def test_the_last_lines_of_a_failed_server_are_fifty_and_without_secrets(io_loop: IOLoop) -> None:
    program = (
        "import sys; [print('line', n, 'api_key=hush', file=sys.stderr) for n in range(80)]; sys.exit(1)"
    )
    definition = ServerDefinition(name="x", transport="stdio", command="python3", args=("-S", "-c", program))
    async with running(definition, wait=False, failed_after=1, retry_maximum=30) as [backend]:
        await until(lambda: backend.state == "failed")
        lines = backend.status.last_lines
        assert len(lines) == 50
        assert lines[-1].startswith("line 79 ")
        assert "hush" not in "".join(lines)


@pytest.mark.gen_test(timeout=20)
async def test_a_frozen_server_is_degraded_and_recovers_by_itself(io_loop: IOLoop) -> None:
    async with running(scripted(), health_failures=1000, **QUICK) as [backend]:
        pid = await pid_of(backend)
        os.kill(pid, signal.SIGSTOP)
        try:
            await until(lambda: backend.state == "degraded")
            assert backend.status.reason == "it did not answer a probe of its health in time"
            held = asyncio.create_task(call(backend, "echo"))
            await until(lambda: backend.state == "degraded")
            assert not held.done()
        finally:
            os.kill(pid, signal.SIGCONT)
        await held
        await until(lambda: backend.state == "ready")
        assert backend.status.reason is None
        assert await pid_of(backend) == pid


@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_stays_frozen_is_started_again(io_loop: IOLoop) -> None:
    async with running(scripted(), health_failures=3, **QUICK) as [backend]:
        pid = await pid_of(backend)
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: backend.state not in ("ready", "degraded"))
        assert backend.status.reason == "it did not answer 3 probes of its health"
        await ready(backend)
        assert await pid_of(backend) != pid
        assert not alive(pid)


@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_may_be_at_work_is_not_started_again_under_its_call(io_loop: IOLoop) -> None:
    async with running(scripted(), health_failures=2, **QUICK) as [backend]:
        working = asyncio.create_task(call(backend, "never"))
        pid = await pid_of(backend)
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 1.0)
        assert backend.state == "degraded"
        # A call that came when it was silent already holds nothing up.
        late = asyncio.create_task(call(backend, "echo"))
        working.cancel()
        with pytest.raises(OutcomeUnknown):
            await late
        await ready(backend)


@pytest.mark.gen_test(timeout=20)
async def test_an_answer_that_is_an_error_is_a_sign_of_life(io_loop: IOLoop) -> None:
    async with running(scripted(), health_failures=1, **QUICK) as [backend]:  # it knows no ping
        pid = await pid_of(backend)
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 0.6)
        assert backend.state == "ready"
        assert await pid_of(backend) == pid


@pytest.mark.gen_test(timeout=20)
async def test_kill_9_during_initialize_is_survived(io_loop: IOLoop) -> None:
    before = children()
    async with running(
        scripted("--at-start", "no-answers"), wait=False, retry_initial=60, retry_maximum=60
    ) as [backend]:
        # The reaper is started with the first process.
        await until(lambda: len(children() - before) == 2)
        reaper = backend._reaper.pid
        [pid] = children() - before - {reaper}
        os.kill(pid, signal.SIGKILL)
        await until(lambda: backend.state == "retrying")
        assert backend.status.reason == "its process was ended by signal 9"


@pytest.mark.gen_test(timeout=20)
async def test_a_lost_http_session_is_begun_again_at_once(io_loop: IOLoop) -> None:
    async with scripted_http() as server:
        definition = ServerDefinition(name="web", transport="http", url=server.url)
        async with running(definition, retry_initial=60, retry_maximum=60) as [backend]:
            server.sessions.clear()
            began = time.monotonic()
            with pytest.raises(ServerUnavailable):
                await call(backend, "echo")
            await ready(backend, seconds=2)
            assert time.monotonic() - began < 2
            await call(backend, "echo")


@pytest.mark.gen_test(timeout=20)
async def test_a_port_that_was_closed_for_a_while_is_found_again(io_loop: IOLoop) -> None:
    async with scripted_http() as server:
        definition = ServerDefinition(name="web", transport="http", url=server.url)
        async with running(definition, failed_after=3, retry_maximum=0.3, **QUICK) as [backend]:
            await server.stop()
            # Nobody calls: its health tells.
            await until(lambda: backend.state == "failed")
            assert str(backend.status.reason).startswith("its connection was refused")
            await server.start()
            await ready(backend, seconds=5)
            await call(backend, "echo")


@pytest.mark.gen_test(timeout=30)
async def test_ten_thousand_notifications_a_second_hold_up_nobody(io_loop: IOLoop) -> None:
    async with running(scripted(), scripted(name="other")) as [backend, other]:
        flood = {"count": 10_000, "method": "notifications/message", "params": {"level": "info", "data": 1}}
        flooding = [asyncio.create_task(call(backend, "flood", flood)) for _ in range(3)]
        slowest = 0.0
        while not all(task.done() for task in flooding):
            began = time.monotonic()
            await call(other, "echo")
            slowest = max(slowest, time.monotonic() - began)
        await asyncio.gather(*flooding)
        assert slowest < 1
        await call(backend, "echo")


@pytest.mark.gen_test(timeout=30)
async def test_restarts_leak_no_process_file_or_task(io_loop: IOLoop, tmp_path: Path) -> None:
    grandchild = tmp_path / "grandchild"
    definition = scripted("--grandchild", grandchild)
    async with running(definition, retry_initial=0.01, retry_maximum=0.01, failed_after=1000) as [backend]:
        await restart(backend)  # the reaper and other things that are made once
        before = children(), open_files(), len(asyncio.all_tasks())
        for _ in range(25):
            await restart(backend)
        left = int(grandchild.read_text())
        assert len(children()) == len(before[0])
        await until(lambda: open_files() <= before[1])
        await until(lambda: len(asyncio.all_tasks()) <= before[2])
    await until(lambda: not alive(left), seconds=3)


async def restart(backend: Backend) -> None:
    """Kill its process, and wait until another is ready."""
    pid = await pid_of(backend)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: backend.state != "ready")
    await ready(backend)
