"""Masks secrets in text for people: the last safety net of the log, never the first.

Who writes a line still leaves secrets out of it; here they are masked by what they look like.
"""

import re
from functools import lru_cache
from typing import Final

REDACTED: Final = "[redacted]"

_SECRET_WORDS = r"(?:token|ticket|secret|password|api[_-]?key)"  # noqa: S105 - names, not secrets
_NAMED_WORDS = tuple(
    f"{word}{sign}" for word in ("token", "ticket", "secret", "password", "key") for sign in "=\\\"'"
)
"""How the name of a secret ends, with what follows it, in lower case."""
_LONGEST_ENDING = 32
_SECRET_NAME = re.compile(rf"{_SECRET_WORDS}$|(?:authorization|cookie)$", re.IGNORECASE)
# Possessive and anchored at the start of a run: the time stays linear whatever the line holds.
_DOTTED = re.compile(r"(?<![A-Za-z0-9_.-])[A-Za-z0-9_-]*+(?:\.[A-Za-z0-9_-]*+)++")
_AUTHORIZATION = re.compile(
    r"""(authorization\\?["']?\s?[:=]\s?\\?["']?)(?:[A-Za-z]+\s)?[^\s"'\\,;]+""", re.IGNORECASE
)
_OWN = re.compile(r"(mcpgw_[0-9a-f]{12}_|mcpgw-(?:link|refresh|ticket)-)[A-Za-z0-9_-]++")
_BEARER = re.compile(r"""(bearer(?:\s|\\[tnr])+)[^\s"'\\,;]+""", re.IGNORECASE)
_NAMED = re.compile(
    rf"""({_SECRET_WORDS}(?:=\\?["']?|\\?["']\s?:\s?\\?["']))[^\s&"'\\#;,<>]+""", re.IGNORECASE
)
_PYDANTIC_INPUT = re.compile(r"input_value=.*?(?=, input_type=|\Z)", re.DOTALL)


def redact(text: str) -> str:
    """`text` with everything masked that looks like a secret.

    JSON Web Tokens, the gateway's own keys, links, refresh tokens and tickets, whatever stands behind
    ``Bearer`` or ``Authorization``, and the values of names that end in token, ticket, secret, password or
    api key, written ``name=value`` or as a member of JSON.
    """
    # Most lines hold none of the words, and looking for these is quicker. Letters of other alphabets can be
    # the same as one of theirs where case does not count.
    words = text.lower() if text.isascii() else None
    if words is None or "eyj" in words:
        text = _DOTTED.sub(_without_web_token, text)
    if words is None or "mcpgw" in words:
        text = _OWN.sub(rf"\1{REDACTED}", text)
    if words is None or "authorization" in words:
        text = _AUTHORIZATION.sub(rf"\1{REDACTED}", text)
    if words is None or "bearer" in words:
        text = _BEARER.sub(rf"\1{REDACTED}", text)
    if words is None or any(word in words for word in _NAMED_WORDS):
        text = _NAMED.sub(rf"\1{REDACTED}", text)
    return text


def redact_inputs(text: str) -> str:
    """`text` without the values that pydantic repeats in its errors, such as the arguments of a tool."""
    return _PYDANTIC_INPUT.sub(f"input_value={REDACTED}", text) if "input_value=" in text else text


def is_secret_name(name: str) -> bool:
    """Whether a field or header called `name` holds a secret, such as ``refresh_token`` or ``Cookie``."""
    return _ends_as_secret(name[-_LONGEST_ENDING:])  # a client may name an argument by a megabyte


@lru_cache(maxsize=1024)
def _ends_as_secret(ending: str) -> bool:
    return _SECRET_NAME.search(ending) is not None


def _without_web_token(match: re.Match[str]) -> str:
    chain = match[0]
    start = chain.find("eyJ")  # the Base64 of '{"', with which every header starts
    return chain if start < 0 or "." not in chain[start:] else f"{chain[:start]}{REDACTED}"
