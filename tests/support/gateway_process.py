"""A real gateway as a process of its own, for tests that look at it from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from mcpgw.access.signing_key import load_or_create_signing_key
from mcpgw.access.tokens import Tokens
from tests.support.forked import ForkedProcess

ALL_SCOPES = ("tools:call", "servers:read", "events:read")


def wait_until(condition: "object", *, seconds: float = 10.0, what: str = "the condition") -> None:
    """Wait until `condition()` is true, at most `seconds`; fails the test otherwise."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds} s")
        time.sleep(0.01)


class GatewayProcess:
    """``mcpgw serve`` on a free port with its own data folder; `url` is known once it listens.

    Not `forked`, it is a process from its start, as an operator's; else a copy of one that has imported all.
    """

    def __init__(
        self,
        folder: Path,
        *,
        configuration: str = "",
        arguments: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
        forked: bool = True,
    ) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.log_file = folder / "logs" / "gateway.log"
        self.output = folder / "output.txt"
        (folder / "mcpgw.toml").write_text(configuration, encoding="utf-8")
        command = [
            *("serve", "--port", "0"),
            *("--data-dir", str(self.data_dir), "--log-file", str(self.log_file)),
            *arguments,
        ]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MCPGW_")}
        clean.update(environment or {})
        with self.output.open("wb") as output:
            self.process: ForkedProcess | subprocess.Popen[bytes] = (
                ForkedProcess(command, folder=folder, environment=clean, output=output)
                if forked
                else subprocess.Popen(
                    [sys.executable, "-P", "-m", "mcpgw", *command],
                    cwd=folder,
                    env=clean,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
        self.url = ""

    def wait_listening(self, seconds: float = 20.0, *, for_servers: bool = True) -> "GatewayProcess":
        """Wait until it has said that it is ready, on its output; or until it listens, not `for_servers`."""
        note = self.data_dir / "gateway.json"

        def is_ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the gateway ended: {self.printed()}")
            return note.exists() and (not for_servers or "/ws" in self.printed())

        wait_until(is_ready, seconds=seconds, what="listening")
        self.url = json.loads(note.read_text(encoding="utf-8"))["url"]
        return self

    @property
    def socket_url(self) -> str:
        """The address of ``/ws``."""
        return self.url.replace("http", "ws", 1) + "/ws"

    def printed(self) -> str:
        """What it has written to stdout and stderr so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def log(self) -> str:
        """What stands in its log file so far."""
        return self.log_file.read_text(encoding="utf-8") if self.log_file.exists() else ""

    def token(self, user: str = "ann", scopes: Iterable[str] = ALL_SCOPES, ttl: float = 600) -> str:
        """A token of this gateway."""
        tokens = Tokens(algorithm="HS256", key=load_or_create_signing_key(self.data_dir))
        return tokens.issue(user=user, scopes=scopes, ttl=ttl)

    def terminate(self, seconds: float = 20.0) -> int:
        """End it as an operator does (SIGTERM); answers its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """End it as a disaster does (SIGKILL)."""
        self.process.kill()
        self.process.wait(10)
