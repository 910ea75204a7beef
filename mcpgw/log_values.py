"""Values of the log as bounded, plain text: no value can forge a line, fill the disk or break the caller."""

import json
import math
import re
from functools import lru_cache
from reprlib import Repr
from typing import Final

from mcpgw.redaction import REDACTED, is_secret_name, redact_inputs

MAXIMUM_VALUE: Final = 500
"""Longest value of a field, in characters."""

Scalar = str | int | float | bool | None

_RESERVED = {"time", "level", "logger", "event", "exception", "traceback"}
_LARGEST_INTEGER = 2**63

_BARE = re.compile(r"[^\s\"'=\\]+")
# Too short for a token, and without any sign that is needed to name a secret.
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,40}")
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")

_containers = Repr()
_containers.maxstring = _containers.maxother = 100


@lru_cache(maxsize=512)
def field_name(name: str) -> str:
    """`name` as the name of a field, with an underscore where it is taken or holds other signs."""
    if not _FIELD_NAME.fullmatch(name):
        return re.sub(r"[^A-Za-z0-9_.-]", "_", f"_{name[:60]}")
    return f"{name}_" if name in _RESERVED else name


def field_value(name: str, value: object) -> Scalar:
    """`value` as it stands in a line: bounded, masked where `name` tells of a secret; raises for none."""
    if value is not None and is_secret_name(name):
        return REDACTED
    if type(value) is str:
        return bounded(value, MAXIMUM_VALUE)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < _LARGEST_INTEGER:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    try:
        if isinstance(value, bytes | bytearray | memoryview):
            text = repr(bytes(value[:MAXIMUM_VALUE]))
        elif isinstance(value, list | tuple | set | frozenset | dict):
            text = _containers.repr(value)
        else:
            text = str(value)
    except Exception as fault:  # noqa: BLE001 - the line must not break the caller; it tells the fault
        text = f"<{type(value).__name__}: {type(fault).__name__}>"
    return bounded(text, MAXIMUM_VALUE)


def bounded(text: str, limit: int) -> str:
    """`text` in at most `limit` characters, without the values that pydantic repeats."""
    if len(text) <= limit and "input_value=" not in text:
        return text
    text = redact_inputs(text[: 4 * limit])  # cut first: the search must not read megabytes
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def is_plain(text: str) -> bool:
    """Whether a text is short, stands in JSON as it is, and surely is no secret."""
    # The gateway's own secrets begin with its name.
    return _PLAIN.fullmatch(text) is not None and "mcpgw" not in text


def text_value(value: Scalar) -> str:
    """A value of a text line: bare where it is one plain word, else quoted."""
    return _text_value(value) if isinstance(value, str) else json.dumps(value)


@lru_cache(maxsize=1024)
def _text_value(value: str) -> str:
    if _BARE.fullmatch(value) and value.isprintable():
        return value
    return '"{}"'.format(escape(value).replace('"', r"\""))


def escape(text: str) -> str:
    """`text` on one line: whatever is not printable, and the backslash itself, as escapes."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        sign if sign.isprintable() and sign != "\\" else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def without_surrogates(value: Scalar) -> Scalar:
    """`value` with halves of surrogate pairs as escapes."""
    # Halves of a pair are allowed by Python and refused by other readers of JSON (RFC 8259 section 8.2).
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
