"""What is listed: as tables for a terminal, as lines of columns between tabs for other programs."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click

from mcpgw.cli.output import one_line, stdout_is_terminal

_MOMENTS: Final = frozenset(
    {"since", "nextTryAt", "createdAt", "updatedAt", "importedAt", "syncedAt", "timestamp"}
)


def say_table(head: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> None:
    """Print `rows` under `head`; on a terminal, the sentence `empty` where there are none."""
    texts = [[one_line(cell_text(cell)) for cell in row] for row in rows]
    if not stdout_is_terminal():
        click.echo("\n".join("\t".join(row) for row in [[name.lower() for name in head], *texts]))
        return
    if not texts:
        click.echo(empty)
        return
    from rich.console import Console  # noqa: PLC0415 - only for a terminal
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*head, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for row in texts:
        table.add_row(*(Text(cell) for cell in row))  # Text: what servers say is no markup
    Console(file=sys.stdout).print(table)


def say_members(members: Mapping[str, Any], indentation: str = "") -> None:
    """Print an object of JSON for people: a line for each member, objects and lists below their name.

    Members that are moments by their names are shown as local date and time.
    """
    for name, value in members.items():
        shown = one_line(name)
        if isinstance(value, Mapping) and value:
            click.echo(f"{indentation}{shown}:")
            say_members(value, f"{indentation}  ")
        elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
            click.echo(f"{indentation}{shown}:")
            for item in value:
                parts = item if isinstance(item, Mapping) else {"": item}
                texts = [f"{part}: {_member_text(part, parts[part])}".removeprefix(": ") for part in parts]
                click.echo(f"{indentation}  - {one_line(', '.join(texts))}")
        else:
            click.echo(f"{indentation}{shown}: {one_line(_member_text(name, value))}".rstrip())


def moment_text(milliseconds: Any) -> str:
    """Milliseconds since the epoch as local date and time; empty where they are none."""
    try:
        moment = datetime.fromtimestamp(milliseconds / 1000).astimezone()
    except (TypeError, ValueError, OverflowError, OSError):
        return ""
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _member_text(name: str, value: Any) -> str:
    return moment_text(value) if name in _MOMENTS and isinstance(value, int) else cell_text(value)


def cell_text(value: Any) -> str:
    """A value of JSON in a few words."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(map(cell_text, value))
    if isinstance(value, Mapping | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
