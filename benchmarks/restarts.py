"""Whether restarts of a backend leak: processes, files, tasks and memory after many of them.

    python -m benchmarks.restarts [--restarts 200]

A small server with a child that ignores every signal is killed again and again, and started anew by its
supervisor. What this process holds is counted after the first tenth of them and at the end. Linux only.
"""

import argparse
import asyncio
import logging
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from mcpgw.backends.backend import Backend
from mcpgw.memory_use import resident_bytes
from tests.support.backends import alive, children, open_files, pid_of, ready, running, scripted
from tests.support.waiting import until

QUICK: dict[str, Any] = {"retry_initial": 0.01, "retry_maximum": 0.01, "failed_after": 10**6}


async def restart(backend: Backend) -> None:
    """Kill its process, and wait until another takes calls."""
    os.kill(await pid_of(backend), signal.SIGKILL)
    await until(lambda: backend.state != "ready")
    await ready(backend)


def held() -> dict[str, int]:
    """What this process holds."""
    return {
        "processes": len(children()),
        "files": open_files(),
        "tasks": len(asyncio.all_tasks()),
        "KiB of memory": (resident_bytes() or 0) // 1024,
    }


async def measure(restarts: int) -> None:
    """Restart, and print what is held before and after."""
    with tempfile.TemporaryDirectory() as folder:
        grandchild = Path(folder) / "grandchild"
        async with running(scripted("--grandchild", grandchild), **QUICK) as [backend]:
            for _ in range(max(1, restarts // 10)):
                await restart(backend)
            before, began = held(), time.monotonic()
            for _ in range(restarts):
                await restart(backend)
            seconds, after = time.monotonic() - began, held()
            last = int(grandchild.read_text())
        await until(lambda: not alive(last), what="the end of the last grandchild")
    print(f"{restarts} restarts in {seconds:.1f} s, {seconds / restarts * 1000:.0f} ms each")
    for name, value in before.items():
        print(f"{name:>14}: {value:>8} before, {after[name]:>8} after")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--restarts", type=int, default=200)
    logging.getLogger("mcpgw").setLevel(logging.ERROR)  # every restart would have its lines
    asyncio.run(measure(parser.parse_args().restarts))


if __name__ == "__main__":
    main()
