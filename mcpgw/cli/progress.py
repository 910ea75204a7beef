"""How far a call is, on stderr: a bar for a terminal, lines for everything else."""

import json
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mcpgw.cli.output import one_line, tell
from mcpgw.cli.program import program

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from mcpgw.client import InputAnswer, InputRequest, LogLine, Progress, Queued

_LINE_SECONDS = 1.0


class ProgressDisplay:
    """Shows progress and log lines of one call; used with ``with``, and gone without a trace at the end.

    With `quiet` nothing is shown but what the call would else wait for without a word. `options` is what
    leads another command to the same gateway.
    """

    def __init__(self, title: str, *, quiet: bool = False, options: str = "") -> None:
        self._title = title
        self._options = options
        self._quiet = quiet
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._last_percent: int | None = None
        self._next_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def progress(self, update: "Progress") -> None:
        """Show how far the call is."""
        if self._quiet:
            return
        if sys.stderr.isatty():
            self._draw(update)
        else:
            self._write(update)

    def log(self, line: "LogLine") -> None:
        """Show a line that the server logged."""
        if self._quiet:
            return
        logger = f" {line.logger}" if line.logger else ""
        self._say(f"[{line.level}]{logger}: {_text(line.data)}")

    def queued(self, place: "Queued") -> None:
        """Show what the call waits for."""
        if place.reason == "approval" and place.request_id is not None:
            command = f"{program()} approvals accept {place.request_id} {self._options}".rstrip()
            self._say(f"waits until somebody approves it: {command}")
        elif not self._quiet:
            self._say(f"waits for its turn, at place {place.position}")

    def declined(self, asked: "InputRequest") -> "InputAnswer":
        """Show what the server asks for, and decline it: nobody is there to answer."""
        from mcpgw.client import InputAnswer  # noqa: PLC0415 - after --help

        self._say(f"{asked.server} asks ({asked.kind}): {asked.message}")
        self._say(
            f"declined: {program()} call answers no questions; a program can (on_input of mcpgw.client)"
        )
        return InputAnswer("decline")

    def _say(self, words: str) -> None:
        text = one_line(words)
        if self._bar is None:
            tell(text)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _draw(self, update: "Progress") -> None:
        if self._bar is None:
            from rich.console import Console  # noqa: PLC0415 - only where there is progress
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn  # noqa: PLC0415

            text = TextColumn("{task.description}", markup=False)
            self._bar = Progress(
                text, BarColumn(), TaskProgressColumn(), console=Console(stderr=True), transient=True
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None)
        assert self._task is not None, "made with the bar"  # noqa: S101
        self._bar.update(
            self._task,
            completed=update.progress,
            total=update.total,
            description=one_line(update.message or self._title),
        )

    def _write(self, update: "Progress") -> None:
        """One line a percent, or a second where nobody knows the end."""
        if update.total:
            percent = int(100 * update.progress / update.total)
            if percent == self._last_percent:
                return
            self._last_percent = percent
            text = f"progress {update.progress:g}/{update.total:g} ({percent}%)"
        else:
            now = time.monotonic()
            if now < self._next_line:
                return
            self._next_line = now + _LINE_SECONDS
            text = f"progress {update.progress:g}"
        tell(one_line(f"{text} {update.message}" if update.message else text))


def _text(data: Any) -> str:
    return data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
