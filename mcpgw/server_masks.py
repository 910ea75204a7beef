"""Definitions of servers for people to read: without the secrets in them.

What an administrator may see of ``[servers.NAME]`` is how the server is started or reached, not its secrets:
values of environment variables and headers are masked, whatever they are, and arguments and addresses where
they look like secrets. References such as ``${NAME}`` are shown as they were written, for they are none.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit

from mcpgw.redaction import REDACTED, is_secret_name, redact
from mcpgw.server_definitions import JsonPath

_REFERENCE: Final = re.compile(r"(?<!\$)(\$\{[^{}]*\})")
_DEFAULT: Final = re.compile(r":-[^{}]+\}$")
_SCHEME: Final = re.compile(r"(?:Bearer|Basic|Token|ApiKey) ", re.IGNORECASE)
"""What stands before a reference in a header and is no secret (RFC 9110 section 11.1)."""
_KNOWN: Final = re.compile(
    r"(?:sk|pk|rk)[-_][A-Za-z0-9_-]{12,}|gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[a-z]-[\w-]{10,}|AKIA[A-Z0-9]{12,}|AIza[\w-]{20,}|hf_[A-Za-z0-9]{16,}|npm_[A-Za-z0-9]{16,}"
    r"|pypi-[\w-]{16,}|eyJ[\w-]{8,}\.[\w.-]*"
)
"""What common issuers' keys begin with."""
_RUN: Final = re.compile(r"[A-Za-z0-9+/=]{20,}|[0-9a-f]{16,}")
_FLAG: Final = re.compile(r"--?([A-Za-z][A-Za-z0-9_-]*)")
_ASSIGNED: Final = re.compile(r"([^=:\s]+)(=|:\s+)(.*)", re.DOTALL)
_NAME: Final = re.compile(r"(?:^|[_.-])(?:key|pass|passwd|pwd|pat|credentials?|auth)$", re.IGNORECASE)
"""Names of secrets beside those that the log masks."""


def shown_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table of ``[servers.NAME]`` as it was written, with every secret in it masked."""
    shown: dict[str, Any] = {}
    for key, value in table.items():
        if key in ("env", "headers") and isinstance(value, Mapping):
            shown[key] = {
                name: _mask(text) if isinstance(text, str) else text for name, text in value.items()
            }
        elif key == "args" and isinstance(value, list):
            shown[key] = _shown_arguments(value)
        elif key == "url" and isinstance(value, str):
            shown[key] = _shown_address(value)
        else:
            shown[key] = _shown_value(key, value)
    return shown


def unmasked(changed: Any, present: Any, shown: Any, report: Callable[[JsonPath, str], None]) -> Any:
    """`changed` with what is masked in it taken from `present`, whose masked form is `shown`.

    So what was read can be sent back with something else changed in it. A mask that stands for nothing goes
    to `report`, with its path.
    """

    def restored(value: Any, present: Any, shown: Any, path: JsonPath) -> Any:
        if isinstance(value, dict):
            return {
                key: restored(part, _member(present, key), _member(shown, key), (*path, key))
                for key, part in value.items()
            }
        if isinstance(value, list):
            return [
                restored(part, _member(present, index), _member(shown, index), (*path, index))
                for index, part in enumerate(value)
            ]
        if isinstance(value, str) and REDACTED in value:
            if value == shown and isinstance(present, str):
                return present
            report(path, "is the mask of a secret; send the secret, or leave this out")
        return value

    return restored(changed, present, shown, ())


def texts_with_references(table: Any, path: JsonPath = ()) -> Iterator[tuple[JsonPath, str]]:
    """Every text in `table` that holds a reference, with its path."""
    if isinstance(table, str):
        if "${" in table.replace("$${", ""):
            yield path, table
    elif isinstance(table, Mapping):
        for key, part in table.items():
            yield from texts_with_references(part, (*path, key))
    elif isinstance(table, list):
        for index, part in enumerate(table):
            yield from texts_with_references(part, (*path, index))


def is_public(name: str, value: Any) -> bool:
    """Whether all may see `value`, as it was written for `name`: it holds no secret and no reference."""
    return _shown_value(name, value) == value and not any(texts_with_references(value))


def _member(value: Any, key: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(key)
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        return value[key]
    return None


def _mask(text: str) -> str:
    """`text` with everything masked but references, and the scheme of a header before one."""
    parts = _REFERENCE.split(text)
    if len(parts) == 1:
        return REDACTED if text else ""
    return "".join(
        _DEFAULT.sub(f":-{REDACTED}}}", part)
        if index % 2
        else (part if not part or _SCHEME.fullmatch(part) else REDACTED)
        for index, part in enumerate(parts)
    )


def _shown_arguments(arguments: list[Any]) -> list[Any]:
    shown: list[Any] = []
    follows_name = False
    for argument in arguments:
        if not isinstance(argument, str):
            shown.append(argument)
            continue
        flag, assigned = _FLAG.fullmatch(argument), _ASSIGNED.fullmatch(argument)
        if follows_name and flag is None:
            shown.append(_mask(argument))
        elif assigned is not None and _is_secret_name(assigned[1]):
            shown.append(f"{assigned[1]}{assigned[2]}{_mask(assigned[3])}")
        elif assigned is not None and "://" in assigned[3]:
            shown.append(f"{assigned[1]}{assigned[2]}{_shown_address(assigned[3])}")
        elif "://" in argument:
            shown.append(_shown_address(argument))
        else:
            shown.append(_shown_text(argument))
        follows_name = flag is not None and _is_secret_name(flag[1])
    return shown


def _shown_address(url: str) -> str:
    """An address without user, password, and what looks like a secret in its path and query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return REDACTED
    host = parts.netloc
    if "@" in host:
        host = f"{REDACTED}@{host.rpartition('@')[2]}"
    path = "/".join(_shown_text(part) for part in parts.path.split("/"))
    if not parts.query:
        return _unsplit(parts, host, path, "")
    members = [
        f"{quote(name)}={_mask(value) if _is_secret_name(name) else _shown_text(value)}"
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    ]
    return _unsplit(parts, host, path, "&".join(members) or REDACTED)


def _unsplit(parts: SplitResult, host: str, path: str, query: str) -> str:
    # urlunsplit would quote nothing either, but drops an empty host before a path.
    text = f"{parts.scheme}://{host}{path}"
    text += f"?{query}" if query else ""
    return f"{text}#{_shown_text(parts.fragment)}" if parts.fragment else text


def _shown_text(text: str) -> str:
    """`text` unless it looks like a secret; its references stay."""
    return "".join(
        part if index % 2 else (REDACTED if _looks_secret(part) else redact(part))
        for index, part in enumerate(_REFERENCE.split(text))
    )


def _is_secret_name(name: str) -> bool:
    return is_secret_name(name) or _NAME.search(name) is not None


def _looks_secret(text: str) -> bool:
    if _KNOWN.search(text):
        return True
    # Words are not: a key mixes digits with letters in a long run.
    return any(
        any(character.isdigit() for character in run) and any(character.isalpha() for character in run)
        for run in _RUN.findall(text)
        if run.count("/") < len(run) // 8
    )


def _shown_value(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _shown_value(name, part) for name, part in value.items()}
    if isinstance(value, list):
        return [_shown_value(key, part) for part in value]
    if isinstance(value, str):
        return _mask(value) if _is_secret_name(key) else _shown_text(value)
    return value
