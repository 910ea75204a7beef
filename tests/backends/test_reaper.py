"""Backends end with their gateway, however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mcpgw.backends.reaper import ProcessReaper
from tests.support.backends import SERVERS, STUBBORN_PROGRAM, alive
from tests.support.gateway_process import GatewayProcess, wait_until

StartProcess = Callable[..., GatewayProcess]


def stubborn() -> "subprocess.Popen[bytes]":
    """A process group that ends for SIGKILL alone."""
    return subprocess.Popen([sys.executable, "-S", "-c", STUBBORN_PROGRAM], start_new_session=True)


def gone(process: "subprocess.Popen[bytes]") -> bool:
    return process.poll() is not None


def configuration(note: Path) -> str:
    script = str(SERVERS / "scripted.py")
    arguments = ["-S", script, "--stubborn", "--grandchild", str(note), "--daemon", f"{note}-detached"]
    table = f"[servers.stubborn]\ncommand = {sys.executable!r}\nargs = {arguments!r}\n"
    return "[backends]\nstop_timeout = 0.3\n" + table


def family(process: GatewayProcess) -> set[int]:
    """The process ids of a gateway's children."""
    found: set[int] = set()
    for task in Path(f"/proc/{process.process.pid}/task").iterdir():
        found.update(map(int, (task / "children").read_text().split()))
    return found


def test_every_process_of_a_killed_gateway_is_gone_within_five_seconds(
    gateway_process: StartProcess, tmp_path: Path
) -> None:
    note = tmp_path / "grandchild"
    gateway = gateway_process(configuration=configuration(note))
    wait_until(Path(f"{note}-detached").exists, what="the start of the stubborn server")
    wait_until(lambda: len(family(gateway)) >= 3, what="the start of every backend")
    pids = family(gateway) | {int(note.read_text()), int(Path(f"{note}-detached").read_text())}
    assert all(map(alive, pids))
    gateway.kill()
    began = time.monotonic()
    wait_until(lambda: not any(map(alive, pids)), seconds=5, what="the end of every process")
    assert time.monotonic() - began < 5


def test_a_gateway_that_ends_in_order_leaves_no_process(
    gateway_process: StartProcess, tmp_path: Path
) -> None:
    note = tmp_path / "grandchild"
    gateway = gateway_process(configuration=configuration(note))
    wait_until(Path(f"{note}-detached").exists, what="the start of the stubborn server")
    wait_until(lambda: len(family(gateway)) >= 3, what="the start of every backend")
    pids = family(gateway) | {int(note.read_text()), int(Path(f"{note}-detached").read_text())}
    assert gateway.terminate() == 0
    wait_until(lambda: not any(map(alive, pids)), seconds=1, what="the end of every process")


def test_what_was_removed_is_left_alone_and_what_was_not_is_ended() -> None:
    kept, ended = stubborn(), stubborn()
    reaper = ProcessReaper(grace=0.2)
    try:
        reaper.add(kept.pid)
        reaper.add(ended.pid)
        reaper.remove(kept.pid)
        pid = reaper.pid
        assert pid is not None
        reaper.close()
        wait_until(lambda: gone(ended), seconds=2, what="ending it")
        assert not gone(kept)
        assert not alive(pid)
    finally:
        kept.kill()
        kept.wait()
        ended.kill()
        ended.wait()


def test_a_reaper_that_was_killed_is_replaced_and_knows_the_old_groups() -> None:
    old, new = stubborn(), stubborn()
    reaper = ProcessReaper(grace=0.2)
    try:
        reaper.add(old.pid)
        first = reaper.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not alive(first))
        reaper.add(new.pid)
        assert reaper.pid != first
        reaper.close()
        wait_until(lambda: gone(old) and gone(new), seconds=2, what="ending both")
    finally:
        for process in (old, new):
            process.kill()
            process.wait()


def test_a_reaper_that_was_killed_is_no_error_when_the_last_group_ends() -> None:
    process = stubborn()
    reaper = ProcessReaper(grace=0.2)
    try:
        reaper.add(process.pid)
        assert reaper.pid is not None
        os.kill(reaper.pid, signal.SIGKILL)
        wait_until(lambda: not alive(reaper.pid or 0))
        reaper.remove(process.pid)
        reaper.close()
    finally:
        process.kill()
        process.wait()


def test_a_reaper_that_was_never_needed_is_never_started() -> None:
    reaper = ProcessReaper(grace=0.2)
    reaper.remove(12345)
    assert reaper.pid is None
    reaper.close()


def test_nothing_in_the_current_folder_stands_in_for_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "signal.py").write_text("import sys; sys.exit(9)")
    (tmp_path / "subprocess.py").write_text("import sys; sys.exit(9)")
    process = stubborn()
    here = Path.cwd()
    reaper = ProcessReaper(grace=0.2)
    try:
        os.chdir(tmp_path)
        reaper.add(process.pid)
        reaper.close()
        wait_until(lambda: gone(process), seconds=2, what="ending it")
    finally:
        os.chdir(here)
        process.kill()
        process.wait()
