"""What callers see of a server's tools: which of them, under which names, with which arguments of their own.

A policy (``[servers.NAME.tools]``) stands between a server and everyone who calls it, whatever door they use:
lists, calls, events and scopes all have the names that callers see. The server itself is always called by its
own names.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from mcpgw.backends.tools import Tool
from mcpgw.errors import InvalidParams
from mcpgw.logs import log_event
from mcpgw.server_definitions import Approval, ServerDefinition, ToolPolicy, ToolRule
from mcpgw.server_masks import is_public

_LOGGER = logging.getLogger("mcpgw.gateway")
_NO_RULE = ToolRule()


@dataclass(frozen=True, slots=True, eq=False)
class ServedTool:
    """One tool as callers have it: `tool` is what they see, `own_name` what its server calls it.

    `defaults` and `fixed` are arguments that the gateway adds, `secret` the names of those among them that
    nobody may see. `is_listed` is false for one that stands in no
    list and can be called by those who know it. `needs_approval` tells whether its calls wait for consent.
    """

    tool: Tool
    own_name: str
    defaults: Mapping[str, Any] = field(repr=False)
    fixed: Mapping[str, Any] = field(repr=False)
    is_listed: bool
    needs_approval: bool
    secret: frozenset[str] = frozenset()

    def added_secrets(self, given: Mapping[str, Any]) -> frozenset[str]:
        """The names of what the gateway adds to `given` and nobody may see."""
        return self.secret - (given.keys() - self.fixed.keys())

    def does_the_same(self, other: "ServedTool") -> bool:
        """Whether a call of this one is a call of `other`: the same tool, given the same beside."""
        return (self.own_name, self.tool.raw, self.defaults, self.fixed) == (
            other.own_name,
            other.tool.raw,
            other.defaults,
            other.fixed,
        )

    def arguments(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the server is sent where a caller gives `given`.

        Raises:
            InvalidParams: the caller gives an argument that is fixed.
        """
        if not self.defaults and not self.fixed:
            return given
        if changed := sorted(given.keys() & self.fixed.keys()):
            reason = "is set by the gateway: leave it out"
            raise InvalidParams(
                f"the argument {changed[0][:64]!r} of {self.tool.name!r} {reason}",
                details=[{"path": f"/data/params/{_pointer(name)}", "reason": reason} for name in changed],
            )
        return {**self.defaults, **given, **self.fixed}


def serve_tools(definition: ServerDefinition, tools: Iterable[Tool]) -> dict[str, ServedTool]:
    """The tools of a server by the names that callers see, as its policy has them.

    Where two would have one name, the first that the server lists has it; the other is left out, and the log
    says so.
    """
    policy = definition.tools
    written = definition.to_table().get("tools", {}) if policy.rules else {}
    served: dict[str, ServedTool] = {}
    for tool in tools:
        if not _is_allowed(policy, tool.name):
            continue
        entry = _serve(definition, tool, written.get(tool.name, {}))
        if (first := served.get(entry.tool.name)) is not None:
            log_event(
                _LOGGER,
                logging.WARNING,
                "two tools with one name",
                server=definition.name,
                tool=entry.tool.name,
                served=first.own_name,
                left_out=tool.name,
            )
            continue
        served[entry.tool.name] = entry
    return served


def policy_of(definition: ServerDefinition, name: str) -> tuple[bool, str]:
    """Whether callers can have a tool under the name `name`, and what the policy says of it, in words.

    As far as the definition alone tells: whether the server has such a tool, only the server knows. The words
    are empty where the policy says nothing of it.
    """
    policy = definition.tools
    place = f"[servers.{definition.name}.tools]"
    renamed = {policy.prefix + rule.rename: own for own, rule in policy.rules.items() if rule.rename}
    own = renamed.get(name)
    if own is None:
        own = name.removeprefix(policy.prefix)
        rule = policy.rules.get(own, _NO_RULE)
        if not name.startswith(policy.prefix):
            return False, f"{place} prefix: names of its tools begin with {policy.prefix!r}"
        if rule.rename:
            return False, f"{place} renames {own!r} to {policy.prefix + rule.rename!r}"
    blocking = next((pattern for pattern in policy.block if fnmatchcase(own, pattern)), None)
    if blocking is not None:
        return False, f"{place} block has {blocking!r}"
    if policy.allow is not None and not _is_allowed(policy, own):
        return False, f"{place} allow has nothing that matches {own!r}"
    approval = policy.rules.get(own, _NO_RULE).approval or definition.approval
    if approval == "required":
        return True, "each call waits until somebody approves it"
    if approval == "writes":
        return True, "a call waits until somebody approves it, unless the tool only reads"
    return True, ""


def _serve(definition: ServerDefinition, tool: Tool, written: Mapping[str, Any]) -> ServedTool:
    policy = definition.tools
    rule = policy.rules.get(tool.name, _NO_RULE)
    defaults, fixed = written.get("defaults", {}), written.get("fixed", {})
    name = policy.prefix + (rule.rename or tool.name)
    seen = tool
    if name != tool.name or rule != _NO_RULE:
        schema = _without(tool.input_schema, rule, defaults)
        description = tool.description if rule.description is None else rule.description
        raw = {**tool.raw, "name": name, "inputSchema": schema}
        if description or "description" in raw:
            raw["description"] = description
        seen = replace(tool, name=name, description=description, input_schema=schema, raw=raw)
    return ServedTool(
        tool=seen,
        own_name=tool.name,
        defaults=rule.defaults,
        fixed=rule.fixed,
        is_listed=not any(fnmatchcase(tool.name, pattern) for pattern in policy.hidden),
        needs_approval=_needs_approval(rule.approval or definition.approval, tool),
        secret=_secrets(rule.defaults, defaults) | _secrets(rule.fixed, fixed),
    )


def _secrets(values: Mapping[str, Any], written: Mapping[str, Any]) -> frozenset[str]:
    """The names of `values` that may be secrets by how they were written; also where that is not known."""
    return frozenset(name for name in values if name not in written or not is_public(name, written[name]))


def _is_allowed(policy: ToolPolicy, name: str) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in policy.block):
        return False
    return policy.allow is None or any(fnmatchcase(name, pattern) for pattern in policy.allow)


def _needs_approval(approval: Approval, tool: Tool) -> bool:
    return approval == "required" or (approval == "writes" and not tool.is_read_only)


def _without(schema: Mapping[str, Any], rule: ToolRule, written: Mapping[str, Any]) -> Mapping[str, Any]:
    """`schema` without the arguments that are fixed, and with none required that has a default.

    A default is told, unless it may be a secret: `written` are the defaults with references in their place.
    """
    properties, required = schema.get("properties"), schema.get("required")
    if not (rule.fixed or rule.defaults):
        return schema
    changed = dict(schema)
    if isinstance(properties, Mapping):
        changed["properties"] = {
            name: {**part, "default": rule.defaults[name]}
            if name in rule.defaults and isinstance(part, Mapping) and is_public(name, written.get(name))
            else part
            for name, part in properties.items()
            if name not in rule.fixed
        }
    if isinstance(required, list):
        added = rule.fixed.keys() | rule.defaults.keys()
        changed["required"] = [name for name in required if name not in added]
        if not changed["required"]:
            del changed["required"]
    return changed


def _pointer(name: str) -> str:
    """`name` as a part of a JSON Pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
