"""The ``mcpgw`` command as a process of its own, for tests that use it as people and scripts do."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.support.forked import ForkedProcess, gateway_command, server_table
from tests.support.gateway_process import GatewayProcess

ROOT = Path(__file__).parent.parent.parent
PROGRESS_SERVER = ROOT / "tests" / "servers" / "progress_server.py"
AS_STARTED = f"{sys.executable} -m mcpgw"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


def progress_configuration(folder: Path) -> str:
    """A gateway with the server alone whose tools report progress."""
    return "[memory]\nenabled = false\n" + server_table("progress", PROGRESS_SERVER, folder)


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without what tells commands of a gateway."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MCPGW_")}
    return {**kept, "PYTHONPATH": str(ROOT), **(extra or {})}


def run(
    *arguments: object,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as a copy of a process that has imported it."""
    return subprocess.run(
        gateway_command(*map(str, arguments)),
        cwd=folder,
        env=clean_environment(environment),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def on(gateway: GatewayProcess) -> tuple[str, str]:
    """The option that names a gateway by its data folder, as its own user would."""
    return "--data-dir", str(gateway.data_dir)


def on_terminal(*arguments: object) -> str:
    """Run a command whose stdout and stderr are a terminal of 100 columns; answers what it showed."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(
        gateway_command(*map(str, arguments)),
        env=clean_environment({"TERM": "xterm-256color"}),
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        stderr=secondary,
    )
    os.close(secondary)
    shown, deadline = b"", time.monotonic() + 20
    with ended(process), closing(os.fdopen(primary, "rb", buffering=0)) as terminal:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 1)[0]:
                continue
            try:
                chunk = terminal.read(65536)
            except OSError:  # Linux says EIO where the other side is closed
                break
            if not chunk:
                break
            shown += chunk
        assert process.wait(10) == 0, shown
    return shown.decode()


@contextmanager
def ended(process: "subprocess.Popen[Any] | ForkedProcess") -> Iterator[None]:
    """Kill the process when the block is left, where it still runs then."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
