"""A server's definition, as it stands on a command line."""

import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click

from mcpgw.cli.arguments import given_value
from mcpgw.cli.output import UsageFault

_LARGEST_FILE: Final = 1024 * 1024
_ADDRESS: Final = re.compile(r"https?://", re.IGNORECASE)
_OF_A_PROGRAM: Final = ("command", "args", "env", "cwd")
_OF_AN_ADDRESS: Final = ("url", "headers")
_OF_TEXTS: Final = ("env", "headers")
"""The tables whose values are texts, also where they look like numbers."""


@dataclass(frozen=True)
class GivenDefinition:
    """What was given of a definition on the command line."""

    target: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    folder: str | None = None
    isolation: str | None = None
    members: tuple[str, ...] = ()
    file: Path | None = None

    def table(self) -> dict[str, Any]:
        """The members of ``[servers.NAME]`` that were given.

        Raises:
            UsageFault: something given is none.
        """
        table: dict[str, Any] = {} if self.file is None else read_object(self.file)
        table |= self._reached()
        if self.environment:
            table["env"] = {**_known(table, "env"), **dict(map(_variable, self.environment))}
        if self.headers:
            table["headers"] = {**_known(table, "headers"), **dict(map(_header, self.headers))}
        if self.folder is not None:
            table["cwd"] = self.folder
        if self.isolation is not None:
            table["isolation"] = self.isolation
        for assignment in self.members:
            set_dotted(table, assignment)
        return table

    def changes(self, unset: Sequence[str]) -> dict[str, Any]:
        """What to change of a definition, as a JSON Merge Patch (RFC 7396).

        Raises:
            UsageFault: something given is none, or nothing is.
        """
        table = self.table()
        other = _OF_AN_ADDRESS if "command" in table else _OF_A_PROGRAM if "url" in table else ()
        changes: dict[str, Any] = {key: None for key in other if key not in table} | table
        if "command" in table and self.target:
            changes.setdefault("args", None)
        for path in unset:
            _put(changes, path.split("."), None, path)
        if not changes:
            raise UsageFault("nothing to change was given; see --set and --unset")
        return changes

    def _reached(self) -> dict[str, Any]:
        if not self.target:
            return {}
        first, *rest = self.target
        if not _ADDRESS.match(first):
            return {"command": first} | ({"args": rest} if rest else {})
        if rest:
            raise UsageFault(f"{rest[0]!r} stands behind an address, which takes no arguments")
        return {"url": first}


class DefinitionCommand(click.Command):
    """A command whose last words are a command line of its own; says what to do about their options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as fault:
            way_out = (
                f"{fault.message.rstrip('.')}; if it belongs to the server's command, put -- before that."
            )
            raise click.NoSuchOption(
                fault.option_name, way_out, possibilities=fault.possibilities, ctx=ctx
            ) from None


def definition_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options of a definition; it is called with ``given``."""

    @wraps(command)
    def with_definition(
        *,
        target: tuple[str, ...],
        environment: tuple[str, ...],
        headers: tuple[str, ...],
        folder: str | None,
        isolation: str | None,
        members: tuple[str, ...],
        file: Path | None,
        **others: Any,
    ) -> None:
        given = GivenDefinition(target, environment, headers, folder, isolation, members, file)
        command(given=given, **others)

    decorated: Callable[..., None] = with_definition
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return click.argument("target", nargs=-1, metavar="[URL | [--] COMMAND...]")(decorated)


_OPTIONS: Final[tuple[Callable[[Callable[..., None]], Callable[..., None]], ...]] = (
    click.option(
        "--env",
        "environment",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="Environment variable of the program; without a value, the gateway's own of that name. "
        "May be repeated.",
    ),
    click.option(
        "--header",
        "headers",
        multiple=True,
        metavar="'NAME: VALUE'",
        help="HTTP header sent with every request. May be repeated.",
    ),
    click.option("--cwd", "folder", metavar="PATH", help="Folder that the program starts in."),
    click.option(
        "--isolation",
        type=click.Choice(["shared", "user", "connection"]),
        help="Who shares one instance of the server.",
    ),
    click.option(
        "--set",
        "members",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any other member of the definition, as lazy=true or tools.prefix=docs_; the value is JSON "
        "where it can be read as JSON, else text. May be repeated.",
    ),
    click.option(
        "--definition",
        "file",
        type=click.Path(path_type=Path, allow_dash=True),
        metavar="FILE",
        help="The definition as JSON or TOML, - for JSON on stdin; other options go over it.",
    ),
)


def set_dotted(table: dict[str, Any], assignment: str) -> None:
    """Put ``KEY=VALUE`` into `table`; a key with dots leads into tables below.

    Raises:
        UsageFault: it is none.
    """
    path, sign, value = assignment.partition("=")
    if not sign:
        raise UsageFault(f"{assignment!r} is no KEY=VALUE")
    way = path.split(".")
    _put(table, way, value if way[0] in _OF_TEXTS else given_value(value), path)


def read_object(file: Path) -> dict[str, Any]:
    """The object in a file of JSON (with comments) or TOML; ``-`` is JSON on stdin.

    Raises:
        UsageFault: it cannot be read, or is none.
    """
    from mcpgw.commented_json import parse_commented_json  # noqa: PLC0415 - after --help

    text, name = read_input(file, _LARGEST_FILE)
    try:
        value = tomllib.loads(text) if file.suffix == ".toml" else parse_commented_json(text)
    except (ValueError, RecursionError) as error:
        raise UsageFault(f"{name}: {error}") from None
    if not isinstance(value, dict):
        raise UsageFault(f"{name} holds no object")
    return value


def read_input(file: Path, largest: int) -> tuple[str, str]:
    """The text of a file, or of stdin where it is ``-``; and how to call it in a message.

    Raises:
        UsageFault: it cannot be read, or is larger than `largest` bytes.
    """
    from mcpgw.references import read_text  # noqa: PLC0415

    if str(file) != "-":
        try:
            return read_text(file, largest), str(file)
        except ValueError as error:
            raise UsageFault(f"{file}: {error}") from None
    content = sys.stdin.buffer.read(largest + 1)
    if len(content) > largest:
        raise UsageFault(f"stdin is larger than {largest} bytes")
    try:
        return content.decode("utf-8-sig"), "stdin"
    except UnicodeDecodeError:
        raise UsageFault("stdin is not UTF-8") from None


def _put(table: dict[str, Any], path: Sequence[str], value: Any, shown: str) -> None:
    if not all(path):
        raise UsageFault(f"{shown!r} is no key: write KEY, or KEY.KEY for one inside a table")
    *way, last = path
    for name in way:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UsageFault(f"{shown!r} leads through {name!r}, which is no table")
        table = inner
    table[last] = value


def _known(table: dict[str, Any], key: str) -> dict[str, Any]:
    known = table.get(key, {})
    return known if isinstance(known, dict) else {}


def _variable(given: str) -> tuple[str, str]:
    """``NAME=VALUE``; of ``NAME`` alone, the reference to the gateway's own variable."""
    name, sign, value = given.partition("=")
    if not name:
        raise UsageFault("a variable is written NAME=VALUE, or NAME for the gateway's own")
    return name, value if sign else f"${{env:{name}}}"


def _header(given: str) -> tuple[str, str]:
    name, sign, value = given.partition(":")
    if not sign or not name.strip():
        raise UsageFault("a header is written 'NAME: VALUE'")  # the text may be a secret
    return name.strip(), value.strip()
