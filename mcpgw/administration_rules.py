"""What an administrator may change of a server's definition, and how a change becomes a definition."""

import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any, Final

from mcpgw.access.permissions import ADMIN, is_admin
from mcpgw.audit import Actor
from mcpgw.errors import InvalidParams, PermissionDenied
from mcpgw.roster import pointer
from mcpgw.server_definitions import RESERVED_TOOLS, JsonPath
from mcpgw.server_masks import shown_table, texts_with_references, unmasked

_MOST_OF_OPERATORS: Final = {"warm": 5, "max_instances": 100, "max_instances_per_user": 100}
"""How many instances of a server one may ask for who is no admin; each is a connection, or a process."""
_STRICTER: Final = {
    "approval": ("never", "writes", "required"),
    "isolation": ("shared", "user", "connection"),
}
"""The values of members that guard a server: the default first, each stricter than those before it."""
_OTHER_NAMES: Final = "other names of tools, which scopes go by"
_TAG_KEY: Final = secrets.token_bytes(32)
"""Of this process alone, so that a tag tells nothing of the secrets in a definition."""


def require_rights(actor: Actor, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> None:
    """Refuse an actor who may not make `after` of `before`; None is no definition. See `administration`.

    Raises:
        PermissionDenied: says what is for admins.
    """
    if is_admin(actor):
        return
    old, new = before or {}, after or {}
    if ("command" in old or "command" in new) and not _is_same(parted(old)[0], parted(new)[0]):
        raise _for_admins("anything of a program but whether it is enabled")
    known = dict(texts_with_references(old))
    if any(known.get(path) != text for path, text in texts_with_references(new)):
        raise _for_admins("a reference such as ${NAME}, also one that stands elsewhere already")
    is_moved = before is not None and after is not None and old.get("url") != new.get("url")
    if is_moved and (old.get("headers") or known or _has_arguments(old)):
        raise _for_admins("the address of a server with headers, references or arguments of its own")
    for name, most in _MOST_OF_OPERATORS.items():
        if (wanted := new.get(name)) != old.get(name) and isinstance(wanted, int) and wanted > most:
            raise _for_admins(f"{name} above {most}")
    if before is not None and after is not None and (what := _loosened(old, new)):
        raise _for_admins(what)


def without_masks(changes: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` with the secrets of `present` where they were sent back masked.

    Raises:
        InvalidParams: a mask stands where there is no secret.
    """
    details: list[dict[str, str]] = []

    def report(path: JsonPath, reason: str) -> None:
        details.append({"path": pointer(("definition", *path)), "reason": reason})

    restored: dict[str, Any] = unmasked(dict(changes), dict(present), shown_table(present), report)
    if details:
        raise InvalidParams(f"{details[0]['path']}: {details[0]['reason']}", details=details)
    return restored


def merged(present: Any, changes: Any) -> Any:
    """`present` changed by a JSON Merge Patch (RFC 7396, section 2): null takes a member away."""
    if not isinstance(changes, Mapping):
        return changes
    result = dict(present) if isinstance(present, Mapping) else {}
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def parted(table: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """A table without its switch, and the switch: the store keeps them side by side."""
    return {key: value for key, value in table.items() if key != "enabled"}, table.get("enabled", True)


def tag_of(table: Mapping[str, Any] | None, *, enabled: bool) -> str:
    """A text that is another one for every other state of a definition."""
    text = json.dumps([table, enabled], sort_keys=True, default=str)
    return hmac.digest(_TAG_KEY, text.encode("utf-8", "surrogatepass"), "sha256").hex()[:32]


def _for_admins(what: str) -> PermissionDenied:
    return PermissionDenied(f"only the scope {ADMIN!r} may set {what}", details={"missingScope": ADMIN})


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are one JSON: ``1`` is not ``true``, which Python takes for equal."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _loosened(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What `new` takes away of that by which `old` guards a server, in words; empty where that is nothing."""
    if _rank("isolation", new) < _rank("isolation", old):
        return "an isolation that is weaker than before"
    if _rank("approval", new) < _rank("approval", old):
        return "fewer approvals than before"
    before, after = old.get("tools", {}), new.get("tools", {})
    if not (_is_policy(before) and _is_policy(after)):
        return "" if _is_same(before, after) else "tools that are no table of rules"
    if "allow" in before and ("allow" not in after or not set(after["allow"]) <= set(before["allow"])):
        return "more tools than allow had before"
    if not set(after.get("block", ())) >= set(before.get("block", ())):
        return "fewer tools than block had before"
    if before.get("prefix", "") != after.get("prefix", ""):
        return _OTHER_NAMES
    for tool in {*before, *after} - RESERVED_TOOLS:
        was, will = before.get(tool, {}), after.get(tool, {})
        if was.get("rename") != will.get("rename"):
            return _OTHER_NAMES
        if _rank("approval", {**new, **will}) < _rank("approval", {**old, **was}):
            return "fewer approvals than before"
        fixed = will.get("fixed", {})
        if any(name not in fixed or not _is_same(fixed[name], v) for name, v in was.get("fixed", {}).items()):
            return "other fixed arguments than before"
    return ""


def _rank(name: str, table: Mapping[str, Any]) -> int:
    """How strict a member of a table is; what is no value of it is refused by others."""
    values = _STRICTER[name]
    value = table.get(name)
    return values.index(value) if value in values else 0


def _is_policy(tools: Any) -> bool:
    """Whether `tools` has the form that the schema asks for, as far as it is looked at here."""
    if not isinstance(tools, Mapping):
        return False
    lists = [tools[name] for name in ("allow", "block") if name in tools]
    rules = [rule for name, rule in tools.items() if name not in RESERVED_TOOLS]
    return all(isinstance(one, list) and all(isinstance(text, str) for text in one) for one in lists) and all(
        isinstance(rule, Mapping) and isinstance(rule.get("fixed", {}), Mapping) for rule in rules
    )


def _has_arguments(table: Mapping[str, Any]) -> bool:
    """Whether the gateway adds arguments of its own to calls; they may be secrets."""
    tools = table.get("tools")
    rules = tools.values() if isinstance(tools, Mapping) else ()
    return any(isinstance(rule, Mapping) and (rule.get("fixed") or rule.get("defaults")) for rule in rules)
