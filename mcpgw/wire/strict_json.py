"""JSON as RFC 8259 has it, in both directions: nothing more is taken, nothing more is sent.

``json.loads`` takes NaN, infinities, doubled keys and lone surrogates; here each is refused, because two
readers of one message must never see two meanings (RFC 8259 sections 4, 6 and 8.2).
"""

import json
import math
import re
from typing import Any, Final, NoReturn

import msgspec

from mcpgw.errors import ParseError

_SURELY_FINITE_DIGITS = 300
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def _refuse_constant(name: str) -> NoReturn:
    raise ParseError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ParseError("a number is too large for JSON's interoperable range (RFC 8259 section 6)")
    return number


def _bounded_integer(text: str) -> int:
    if len(text) <= _SURELY_FINITE_DIGITS:
        return int(text)
    # What no double can hold is refused like 1e999: code of others (a tool's schema) divides it by floats.
    _finite_float(text)
    return int(text)


def _object_of_single_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ParseError(f"the member {name[:64]!r} stands twice in one object")
            seen.add(name)
    return value


def _refuse_value(value: Any) -> NoReturn:
    raise TypeError(f"a {type(value).__name__} is no JSON value")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object_of_single_names,
    parse_float=_finite_float,
    parse_int=_bounded_integer,
    parse_constant=_refuse_constant,
)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False)
# Writes NaN and infinities as null: where one stands, the other encoder has the last word.
_NESTING: Final = (dict, list)
_QUICK_ENCODE = msgspec.json.Encoder(enc_hook=_refuse_value).encode


def loads(text: str) -> Any:
    """Parse one JSON text.

    Raises:
        ParseError: the text is not JSON, or holds NaN, an infinity, a number that no double can hold, a
            doubled member name or a lone surrogate, or is nested deeper than Python can follow; the message
            names the line and column where there is one.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ParseError(f"the message is not JSON: {error.msg} at {place}") from None
    except RecursionError:
        raise _too_deep() from None
    if _SURROGATE_ESCAPE.search(text):
        try:
            _ENCODER.encode(value).encode()
        except UnicodeEncodeError:
            raise ParseError("the message holds half of a surrogate pair, which is no character") from None
        except RecursionError:
            raise _too_deep() from None
    return value


def _too_deep() -> ParseError:
    return ParseError("the message is nested too deeply")


def is_deeper_than(value: Any, limit: int) -> bool:
    """Whether arrays and objects are nested in `value` more than `limit` levels deep (a scalar has none)."""
    level = [value] if isinstance(value, _NESTING) else []
    for _ in range(limit):
        if not level:
            return False
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, _NESTING)
        ]
    return bool(level)


def dumps(value: Any) -> str:
    """Write `value` as one line of JSON.

    Raises:
        ValueError: a float is NaN or infinite, or the value is nested deeper than Python can follow.
        TypeError: something in `value` cannot be JSON; bytes, sets and dates, of which none ever comes from
            JSON, are written as texts and lists.
    """
    try:
        text = _QUICK_ENCODE(value)
        if b"null" not in text:
            return text.decode()
    except (TypeError, ValueError, RecursionError):
        pass  # what is wrong with it is found, or not, by the slower one
    return dumps_given(value)


def dumps_given(value: Any) -> str:
    """Write a value that did not come from JSON, but from a program: dates, bytes and sets are refused too.

    Raises:
        ValueError: a float is NaN or infinite, or the value is nested deeper than Python can follow.
        TypeError: something in `value` cannot be JSON.
    """
    try:
        return _ENCODER.encode(value)
    except RecursionError:
        raise ValueError("the value is nested too deeply for JSON") from None
