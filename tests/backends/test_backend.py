"""The life of a backend: start, ready, end, pauses, stop; and what callers are told in each state."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from mcpgw.backends.backend import Backend
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.errors import OutcomeUnknown, ServerUnavailable
from mcpgw.server_definitions import ServerDefinition
from tests.support.backends import (
    alive,
    call,
    children,
    methods,
    pid_of,
    ready,
    recorded,
    running,
    scripted,
    settings,
)
from tests.support.waiting import until


@pytest.mark.gen_test(timeout=20)
async def test_each_way_to_a_server_is_the_one_that_a_test_is_to_take(io_loop: IOLoop, pipes: str) -> None:
    async with running(scripted()) as [backend]:
        assert (await backend.connection(0)).is_direct == (pipes == "direct")


@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_dies_at_start_is_tried_with_growing_jittered_pauses(io_loop: IOLoop) -> None:
    waits: dict[int, float] = {}
    async with running(scripted("--at-start", "die"), wait=False, failed_after=100) as [backend]:
        while backend.status.failures < 7:
            status = backend.status
            if status.next_try_at is not None:
                waits.setdefault(status.failures, status.next_try_at - status.since)
            await asyncio.sleep(0.002)
        assert backend.status.full_reason == "its process ended with exit code 3: scripted cannot start"
    ceilings = {failures: min(0.4, 0.05 * 2 ** (failures - 1)) for failures in waits}
    assert len(waits) >= 4  # a busy machine may look away while one passes
    assert all(-0.01 <= wait <= ceilings[failures] + 0.01 for failures, wait in waits.items())
    assert len({round(wait, 4) for wait in waits.values()}) > 1, "no jitter"


@pytest.mark.gen_test(timeout=20)
async def test_calls_to_a_server_that_cannot_start_are_refused_at_once_with_the_next_try(
    io_loop: IOLoop,
) -> None:
    async with running(scripted("--at-start", "die"), wait=False, retry_initial=60, retry_maximum=60) as [
        backend
    ]:
        async with asyncio.timeout(5):
            await backend.wait_started()
        began = time.monotonic()
        for _ in range(100):
            with pytest.raises(ServerUnavailable) as refused:
                await call(backend, "echo")
        assert time.monotonic() - began < 0.5
        details = refused.value.details
        assert details["state"] == "retrying"
        assert 0 <= details["nextTryAt"] - time.time() * 1000 <= 60_000
        assert refused.value.retry_after_ms is not None
        assert abs(details["nextTryAt"] - time.time() * 1000 - refused.value.retry_after_ms) < 1000


@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_can_start_again_is_found(io_loop: IOLoop, tmp_path: Path) -> None:
    note = tmp_path / "may-start"
    definition = scripted("--at-start", "die-unless", "--unless", note)
    async with running(definition, wait=False) as [backend]:
        await until(lambda: backend.status.failures >= 2)
        note.touch()
        await ready(backend, seconds=5)
        await call(backend, "echo")


@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_held_longer_than_its_pause_is_not_punished_for_old_failures(
    io_loop: IOLoop,
) -> None:
    async with running(scripted(), retry_initial=0.02, retry_maximum=30) as [backend]:
        for _ in range(8):  # each time it is killed it has been up for longer than 20 ms
            pid = await pid_of(backend)
            await until(lambda: time.time() - backend.status.since > 0.05)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: backend.status.state != "ready")
            assert backend.status.failures == 1
            await ready(backend, seconds=5)


@pytest.mark.gen_test(timeout=20)
async def test_the_state_is_never_ready_once_the_session_is_over(io_loop: IOLoop) -> None:
    # Stubborn: after its stdout is closed the process takes two steps of stopping to get rid of.
    async with running(scripted("--stubborn"), stop_timeout=0.4) as [backend]:
        with pytest.raises(OutcomeUnknown):
            await call(backend, "close", {"fd": 1})
        with pytest.raises(ServerUnavailable) as refused:
            await call(backend, "echo")
        assert backend.status.state == "retrying"
        assert refused.value.details["state"] == "retrying"
        assert "nextTryAt" in refused.value.details
        await ready(backend)


@pytest.mark.gen_test(timeout=20)
async def test_calls_that_race_with_the_servers_end_have_one_of_two_ends(io_loop: IOLoop) -> None:
    ends: set[type[BaseException]] = set()
    async with running(scripted()) as [backend]:
        pid = await pid_of(backend)

        async def call_on_and_on() -> None:
            while backend.status.failures == 0:
                try:
                    await call(backend, "echo", seconds=5)
                except (OutcomeUnknown, ServerUnavailable) as error:
                    ends.add(type(error))
                    await asyncio.sleep(0)

        callers = [asyncio.create_task(call_on_and_on()) for _ in range(16)]
        await call(backend, "echo")
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(5):
            await asyncio.gather(*callers)
        assert ends <= {OutcomeUnknown, ServerUnavailable}
        assert ends
        await ready(backend)


@pytest.mark.parametrize("start", ["hang", "no-answers"])
@pytest.mark.gen_test(timeout=20)
async def test_a_server_that_hangs_at_its_handshake_is_never_ready_and_stops_in_time(
    io_loop: IOLoop, start: str
) -> None:
    before = children()
    async with running(scripted("--at-start", start, "--stubborn"), wait=False) as [backend]:
        await until(lambda: children() != before)
        with pytest.raises(ServerUnavailable) as refused:
            await call(backend, "echo")
        assert refused.value.details["state"] == "starting"
        began = time.monotonic()
        await backend.stop()
        assert time.monotonic() - began < 2
        assert backend.status.state == "stopped"


@pytest.mark.gen_test(timeout=20)
async def test_stopping_while_a_late_handshake_is_being_given_up_is_no_error(io_loop: IOLoop) -> None:
    definition = scripted("--at-start", "hang", "--stubborn")
    async with running(definition, wait=False, connect_timeout=0.1, stop_timeout=0.4) as [backend]:
        # The deadline has passed, and its stubborn process is being stopped.
        await until(lambda: backend._connect_deadline is not None and backend._connect_deadline.expired())
        assert backend.status.failures == 0
        began = time.monotonic()
        await backend.stop()
        assert time.monotonic() - began < 2
        assert backend.status.state == "stopped"


@pytest.mark.gen_test(timeout=30)
async def test_stop_is_taken_in_every_state_and_any_number_of_times(io_loop: IOLoop, tmp_path: Path) -> None:
    before = children()
    tasks = asyncio.all_tasks()
    web = ServerDefinition(name="web", transport="http", url="http://127.0.0.1:9/mcp")
    definitions = [
        scripted("--at-start", "hang"),
        scripted("--at-start", "die"),
        scripted("--stubborn"),
        scripted(),
        ServerDefinition(name="missing", transport="stdio", command="/no/such/program"),
        ServerDefinition(name="off", transport="stdio", command="/no/such/program", enabled=False),
        web,
    ]
    for delay in (0, 0.01, 0.03, 0.06, 0.1, 0.2):
        async with running(*definitions, wait=False) as backends:
            await asyncio.sleep(delay)
            began = time.monotonic()
            await asyncio.gather(*(backend.stop() for backend in backends for _ in range(2)))
            await asyncio.gather(*(backend.stop() for backend in backends))
            assert time.monotonic() - began < 2.5
            states = {backend.id: backend.status.state.value for backend in backends}
            assert states.pop("off") == "disabled"
            assert set(states.values()) == {"stopped"}
    assert asyncio.all_tasks() == tasks
    await until(lambda: children() == before, seconds=2)


@pytest.mark.gen_test(timeout=20)
async def test_calls_that_are_open_at_the_stop_end_and_later_ones_are_refused(io_loop: IOLoop) -> None:
    async with running(scripted()) as [backend]:
        pid = await pid_of(backend)
        hung = asyncio.create_task(call(backend, "never"))
        await call(backend, "echo")
        stopping = asyncio.create_task(backend.stop())
        await asyncio.sleep(0)
        with pytest.raises(ServerUnavailable) as refused:
            await call(backend, "echo")
        assert refused.value.details["state"] == "stopping"
        with pytest.raises(OutcomeUnknown):
            await hung
        await stopping
        assert not alive(pid)
        with pytest.raises(ServerUnavailable):
            await call(backend, "echo")


@pytest.mark.gen_test(timeout=20)
async def test_a_backend_that_is_stopped_before_it_starts_never_starts(
    io_loop: IOLoop, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    reaper = ProcessReaper()
    backend = Backend(scripted("--record", record), settings(), reaper=reaper, longest_call=1)
    await backend.stop()
    backend.start()
    async with asyncio.timeout(2):
        await backend.wait_started()
    await backend.stop()
    assert backend.status.state == "stopped"
    assert not record.exists()
    reaper.close()


@pytest.mark.gen_test(timeout=20)
async def test_tools_that_change_at_run_time_are_listed_again(io_loop: IOLoop) -> None:
    async with running(scripted()) as [backend]:
        for name in ("one", "two", "three"):
            await call(backend, "grow", {"name": name})
        await until(lambda: {"one", "two", "three"} <= backend.tools.keys(), seconds=3)


@pytest.mark.gen_test(timeout=20)
async def test_a_list_that_cannot_be_read_again_keeps_the_old_one_and_the_session(io_loop: IOLoop) -> None:
    async with running(scripted()) as [backend]:
        pid = await pid_of(backend)
        held = asyncio.create_task(call(backend, "hold"))
        await call(backend, "grow", {"name": "one", "refuse": True})
        await call(backend, "echo")
        assert "echo" in backend.tools
        await call(backend, "release")
        await held
        assert await pid_of(backend) == pid


@pytest.mark.gen_test(timeout=20)
async def test_a_flood_of_changes_is_listed_a_few_times(io_loop: IOLoop, tmp_path: Path) -> None:
    record = tmp_path / "record"
    async with running(scripted("--record", record)) as [backend]:
        flood = {"count": 1000, "method": "notifications/tools/list_changed"}
        await call(backend, "flood", flood)
        await call(backend, "echo")
    assert methods(recorded(record)).count("tools/list") < 10


@pytest.mark.gen_test(timeout=20)
async def test_every_end_has_its_own_reason_and_a_new_session_none(io_loop: IOLoop) -> None:
    async with running(scripted()) as [backend]:
        assert backend.status.reason is None
        for code in (4, 5):
            with pytest.raises(OutcomeUnknown, match=f"exit code {code}"):
                await call(backend, "exit", {"code": code})
            assert backend.status.reason == f"its process ended with exit code {code}"
            await ready(backend)
            assert backend.status.reason is None
