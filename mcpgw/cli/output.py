"""What commands print: text of others made harmless, and one place for every way a command can fail."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from mcpgw.cli.exit_codes import ExitCode
from mcpgw.cli.program import program
from mcpgw.errors import ConfigError

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on one line, errors too.")


class UsageFault(Exception):
    """The command cannot be run as it was given; the text says why."""


class NoGatewayFault(Exception):
    """There is no gateway where the command was told to look; the text says where."""


def printable(text: str, *, keep: str = "\n\t") -> str:
    """`text` with every character escaped that a terminal would act on; those in `keep` stay.

    Control characters start terminal sequences (ECMA-48), and invisible signs can turn the direction of a
    line around (Unicode TR 36, "Bidirectional Text Spoofing").
    """
    if text.isprintable():
        return text
    return "".join(
        sign
        if sign in keep or sign.isprintable() or sign == "\N{NO-BREAK SPACE}"
        else sign.encode("unicode_escape", "surrogatepass").decode("ascii")
        for sign in text
    )


def one_line(text: str) -> str:
    """`text` on one line, with nothing in it that a terminal would act on."""
    return printable(text, keep="")


def tell(text: str) -> None:
    """Print a line for the person, on stderr."""
    click.echo(printable(text), err=True)


def say_json(value: object) -> None:
    """Print `value` as one line of JSON; in ASCII, so that nothing in it reaches a terminal as it is."""
    click.echo(json.dumps(value, separators=(",", ":")))


def stdout_is_terminal() -> bool:
    """Whether a person looks at stdout."""
    return sys.stdout.isatty()


def ends_with(code: ExitCode) -> click.exceptions.Exit:
    """The exception that ends the command with `code`."""
    return click.exceptions.Exit(code.value)


@contextmanager
def faults_reported(*, as_json: bool = False) -> Iterator[None]:
    """End the command with a message for each way it can fail, and the exit code that belongs to it.

    The message goes to stderr, each fault of a configuration on a line of its own; or, `as_json`, as one line
    to stdout, in the shape of the REST errors (the wire contract, section 7).
    """
    try:
        yield
    except ConfigError as error:
        _report(as_json, ExitCode.USAGE, "invalid_configuration", str(error), details=list(error.faults))
    except UsageFault as error:
        _report(as_json, ExitCode.USAGE, "usage", str(error))
    except NoGatewayFault as error:
        _report(as_json, ExitCode.NOT_REACHABLE, "not_reachable", str(error), temporary=True)
    except KeyboardInterrupt:
        _report(as_json, ExitCode.INTERRUPTED, "interrupted", "interrupted")
    except Exception as error:
        from mcpgw.client import ClientError  # noqa: PLC0415 - after --help

        if not isinstance(error, ClientError):
            raise
        _report_client_error(error, as_json=as_json)


def _report_client_error(error: Any, *, as_json: bool) -> None:
    from mcpgw.client import ConnectionLost, NotAGateway, NotReachable, Refused  # noqa: PLC0415

    code, message = ExitCode.CALL_FAILED, error.message
    if isinstance(error, NotReachable):
        code = ExitCode.NOT_REACHABLE
        if not isinstance(error, NotAGateway):
            # Refused is the plain case; anything else is worth its words.
            reason = "" if error.reason == "Connection refused" else f" ({error.reason})"
            message = f"no gateway answers at {error.url}: start one with {program()} serve{reason}"
    elif isinstance(error, ConnectionLost):
        code = ExitCode.NOT_REACHABLE
    elif isinstance(error, Refused):
        code = ExitCode.REFUSED
    lines = [] if as_json else _detail_lines(error.details, message)
    if error.retry_after is not None:
        lines.append(f"try again in {error.retry_after:g} s")
    retry = None if error.retry_after is None else round(error.retry_after * 1000)
    _report(
        as_json,
        code,
        error.code,
        message,
        lines=lines,
        temporary=error.temporary,
        retryAfterMs=retry,
        details=error.details,
    )


def _detail_lines(details: Any, message: str) -> list[str]:
    """A line for each ``{path, reason}`` of an ``invalid_params`` error and each fault of a configuration; or
    one for a server's ``reason``, or for the way to a scope that is missing. What `message` says already is
    not said again.
    """
    lines: list[str] = []
    if isinstance(details, dict):
        if isinstance(details.get("reason"), str):
            lines.append(details["reason"])
        if isinstance(details.get("missingScope"), str):
            scope = details["missingScope"]
            lines.append(f"a token with it, on the gateway's machine: {_token_command(scope)}")
    for detail in details if isinstance(details, list) else []:
        if isinstance(detail, str):
            lines.append(detail)
        elif isinstance(detail, dict) and "reason" in detail:
            is_said = len(details) == 1 and str(detail["reason"]) in message
            lines += [] if is_said else [f"{detail.get('path', '')}: {detail['reason']}"]
    return [one_line(f"  {line}") for line in lines]


def _token_command(scope: str) -> str:
    return f"MCPGW_TOKEN=$({program()} token create --user NAME --scope {shlex.quote(scope)})"


def _report(
    as_json: bool,
    exit_code: ExitCode,
    code: str,
    message: str,
    *,
    lines: Sequence[str] = (),
    temporary: bool = False,
    **members: object,
) -> None:
    if as_json:
        known = {name: value for name, value in members.items() if value is not None}
        say_json({"error": {"code": code, "message": message, "temporary": temporary, **known}})
    else:
        tell("\n".join((message, *lines)))
    raise ends_with(exit_code) from None
