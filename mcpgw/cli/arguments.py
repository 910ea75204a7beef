"""The arguments of a tool, as they stand on a command line."""

import sys
from collections.abc import Sequence
from typing import Any

from mcpgw.cli.output import UsageFault
from mcpgw.errors import ParseError
from mcpgw.wire import strict_json

_MOST_INPUT = 64 * 1024 * 1024


def read_arguments(given: Sequence[str]) -> dict[str, Any]:
    """The arguments in `given`: one JSON object, ``-`` for one on stdin, or ``name=value`` pairs.

    A value is JSON where it can be read as JSON, else text. Nothing at all is no arguments.

    Raises:
        UsageFault: it is none of these.
    """
    if not given:
        return {}
    if len(given) == 1 and given[0] == "-":
        return _object(_stdin(), "the arguments on stdin")
    if len(given) == 1 and ("=" not in given[0] or given[0].lstrip().startswith(("{", "["))):
        return _object(given[0], "the arguments")
    arguments: dict[str, Any] = {}
    for pair in given:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UsageFault(
                f"{pair!r} is no name=value pair; give pairs, or one JSON object such as '{{\"limit\": 5}}'"
            )
        if name in arguments:
            raise UsageFault(f"the argument {name!r} is given twice")
        arguments[name] = given_value(value)
    return arguments


def given_value(text: str) -> Any:
    """`text` as JSON where it can be read as JSON, else as it is."""
    try:
        return strict_json.loads(text)
    except ParseError:
        return text


def _stdin() -> str:
    try:
        text = sys.stdin.read(_MOST_INPUT + 1)
    except UnicodeDecodeError:
        raise UsageFault("the arguments on stdin are not UTF-8") from None
    if len(text) > _MOST_INPUT:
        raise UsageFault(f"the arguments on stdin are longer than {_MOST_INPUT} characters")
    return text


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = strict_json.loads(text)
    except ParseError as error:
        reason = error.message.replace("the message is ", "", 1)
        raise UsageFault(f"{what}: {reason}; give a JSON object such as '{{\"limit\": 5}}'") from None
    if not isinstance(value, dict):
        raise UsageFault(f"{what}: this is JSON, and no object such as '{{\"limit\": 5}}'")
    return value
